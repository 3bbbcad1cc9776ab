"""Planes carry a picture to another process and become the same frame there."""

import json
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests import clips
from unmask.errors import UsageError
from unmask.picture import Orientation, RgbConverter
from unmask.plan import Sampling
from unmask.planes import PlaneHeader, Planes, own_memory, picture_bytes
from unmask.records import Frame
from unmask.video import Missing, VideoReader, probe

H264 = clips.ENCODINGS[0]
PLANAR = {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p"}


def travelled(planes: Planes) -> Planes:
    """What arrives where header and bytes have been written out and read again."""
    header: PlaneHeader = json.loads(json.dumps(planes.header()))
    return Planes.from_parts(header, planes.data_B.tobytes())


def same(a: Frame | Missing, b: Frame | Missing) -> bool:
    if isinstance(a, Missing) or isinstance(b, Missing):
        return a == b
    equal = np.array_equal(a.image_HWC, b.image_HWC) and b.image_HWC.flags.c_contiguous
    return equal and (a.pts_s, a.index, a.is_corrupt) == (b.pts_s, b.index, b.is_corrupt)


def same_planes(a: Planes | Missing, b: Planes | Missing) -> bool:
    if isinstance(a, Missing) or isinstance(b, Missing):
        return a == b
    return a.header() == b.header() and np.array_equal(a.data_B, b.data_B)


def assert_planes_become_the_frames(path: Path, sampling: Sampling) -> list[Planes | Missing]:
    to_rgb = RgbConverter()
    with VideoReader(path) as reader:
        frames, answers = list(reader.frames(sampling)), list(reader.planes(sampling))
    for frame, answer in zip(frames, answers, strict=True):
        assert same(frame, answer if isinstance(answer, Missing) else travelled(answer).to_frame(to_rgb))
    return answers


@pytest.mark.parametrize("encoding", clips.ENCODINGS, ids=str)
def test_planes_become_the_frames_of_the_reader(encoding: clips.Encoding, tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", encoding, frames=14)
    answers = assert_planes_become_the_frames(path, Sampling())
    info = probe(path)
    kept = info.pixel_format in PLANAR and not info.interlaced
    for answer in answers:
        assert isinstance(answer, Planes)
        assert (answer.format in PLANAR) == kept
        assert len(answer.data_B) == picture_bytes(info)


@pytest.mark.parametrize(("width", "height"), [(64, 49), (65, 48), (35, 33), (50, 38), (6, 2), (130, 70), (1, 1)])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv422p", "yuv410p", "yuv411p", "yuv440p", "gray", "yuva420p"])
def test_planes_of_every_size(pixel_format: str, width: int, height: int, tmp_path: Path) -> None:
    encoding = clips.Encoding("ffv1", "ffv1", ".mkv", pixel_format)
    path = clips.clip(tmp_path / "clip", encoding, frames=2, width=width, height=height)
    assert_planes_become_the_frames(path, Sampling())


@pytest.mark.parametrize("matrix", [1, 4, 5, 6, 7, 9])
@pytest.mark.parametrize("value_range", [0, 1, 2])
@pytest.mark.parametrize("name", ["yuv420p", "yuv422p", "yuv420p10le", "nv12", "pal8", "bgr24"])
def test_matrix_and_range_travel(name: str, matrix: int, value_range: int) -> None:
    image_HWC = np.random.default_rng(5).integers(0, 256, (36, 70, 3), np.uint8)
    picture = av.VideoFrame.from_ndarray(image_HWC, format="rgb24")
    picture = picture if name == "pal8" else picture.reformat(format=name)
    picture.colorspace, picture.color_range = matrix, value_range
    to_rgb = RgbConverter()
    planes = Planes.of(picture, to_rgb, pts_s=1.5, index=3, is_corrupt=True)
    expected = Frame(to_rgb(picture), 1.5, 3, True)
    assert same(expected, travelled(planes).to_frame(RgbConverter()))


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv444p"])
def test_turned_pictures_are_turned_at_the_other_end(
    pixel_format: str, degrees: int, mirrored: bool, tmp_path: Path
) -> None:
    encoding = clips.Encoding("h264", "libx264", ".mp4", pixel_format)
    path = clips.turned(tmp_path / "clip", degrees, mirrored=mirrored, encoding=encoding)
    answers = assert_planes_become_the_frames(path, Sampling())
    first = answers[0]
    assert isinstance(first, Planes)
    assert (first.width, first.height) == (64, 48)
    assert (first.orientation == Orientation()) == (not degrees and not mirrored)


def test_damaged_and_cut_videos(tmp_path: Path) -> None:
    whole = clips.clip(tmp_path / "clip", H264, frames=60)
    whole = clips.remuxed(whole, tmp_path / "front.mp4", {"movflags": "faststart"})
    for path in (clips.flipped(whole, tmp_path / "flipped.mp4"), clips.cut(whole, tmp_path / "cut.mp4", 0.7)):
        assert_planes_become_the_frames(path, Sampling())
        assert_planes_become_the_frames(path, Sampling(frames=9))


def test_one_picture_for_several_times_and_none(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", H264)
    answers = assert_planes_become_the_frames(path, Sampling(times_s=(-1.0, 0.5, 0.51, 0.9, 99.0)))
    assert [isinstance(a, Missing) for a in answers] == [True, False, False, False, True]
    assert answers[1] is answers[2]


def test_bytes_go_where_the_caller_says_and_are_read_in_place(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", H264, frames=5)
    size = picture_bytes(probe(path))
    assert size == 64 * 48 * 3 // 2
    room, used = np.zeros(5 * size, np.uint8), 0

    def allocate(wanted: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        nonlocal used
        used += wanted
        return room[used - wanted : used]

    with VideoReader(path) as reader:
        written = [p for p in reader.planes(Sampling(), allocate=allocate) if isinstance(p, Planes)]
        fresh = [p for p in reader.planes(Sampling()) if isinstance(p, Planes)]
    assert used == len(room)
    read = list(Planes.unpack([p.header() for p in written], room.data))
    for a, b, c in zip(fresh, written, read, strict=True):
        assert np.shares_memory(b.data_B, room)
        assert np.shares_memory(c.data_B, room)
        assert same_planes(a, b)
        assert same_planes(a, c)
    assert not np.shares_memory(read[0].to_frame(RgbConverter()).image_HWC, room)


def test_a_frame_never_lies_in_the_buffer_it_came_from(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", clips.Encoding("png", "png", ".mov", "rgb24"), frames=1)
    with VideoReader(path) as reader:
        (planes,) = reader.planes(Sampling())
    assert isinstance(planes, Planes)
    assert planes.format == "rgb24"
    assert not np.shares_memory(planes.to_frame(RgbConverter()).image_HWC, planes.data_B)


def test_wrong_sizes_and_formats_are_refused(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", H264, frames=1)
    with VideoReader(path) as reader:
        (planes,) = reader.planes(Sampling())
    assert isinstance(planes, Planes)
    header, data = planes.header(), planes.data_B.tobytes()
    with pytest.raises(ValueError, match="buffer is smaller"):
        Planes.from_parts(header, data[:-1])
    with pytest.raises(ValueError, match="got nv12"):
        Planes.from_parts({**header, "format": "nv12"}, data)
    with pytest.raises(ValueError, match=r"of shape \(4608,\); got uint8 of shape \(4607,\)"):
        Planes(**{**{name: getattr(planes, name) for name in planes.__slots__}, "data_B": planes.data_B[1:]})
    assert "64x48 yuv420p" in repr(planes)
    assert own_memory(3).shape == (3,)


class TestSomeTargets:
    """`only`: the answers are those of a reading of all targets."""

    SAMPLINGS = (
        Sampling(),
        Sampling(frames=11),
        Sampling(every=3),
        Sampling(rate_fps=7.0),
        Sampling(times_s=(-1.0, 0.2, 0.21, 0.22, 0.9, 1.4, 99.0)),
    )

    def check(self, path: Path) -> int:
        """Every run of targets, tried from a few places; returns how many answers are corrupt or missing."""
        unsound = 0
        with VideoReader(path) as reader:
            for sampling in self.SAMPLINGS:
                expected = list(reader.planes(sampling))
                unsound += sum(isinstance(a, Missing) or a.is_corrupt for a in expected)
                numbers = range(len(expected))
                cuts = [0, len(numbers) // 3, 2 * len(numbers) // 3, len(numbers)]
                choices = [list(numbers[a:b]) for a, b in pairwise(cuts)] + [
                    list(numbers[1::4]),
                    list(numbers[-2:]),
                    [],
                ]
                for only in choices:
                    got = list(reader.planes(sampling, only=only))
                    assert len(got) == len(only)
                    assert all(same_planes(expected[n], answer) for n, answer in zip(only, got, strict=True))
        return unsound

    @pytest.mark.parametrize("encoding", clips.ENCODINGS[::3], ids=str)
    def test_sound_videos(self, encoding: clips.Encoding, tmp_path: Path) -> None:
        self.check(clips.clip(tmp_path / "clip", encoding))

    @pytest.mark.parametrize("number", [0, 1, 2, 8, 20, 28])
    @pytest.mark.parametrize("count", [1, 5, 300])
    def test_damaged_videos(self, number: int, count: int, tmp_path: Path) -> None:
        encoding = clips.ENCODINGS[number]
        whole = clips.clip(tmp_path / "clip", encoding)
        damaged = clips.flipped(whole, tmp_path / f"damaged{encoding.suffix}", count=count, seed=count)
        assert self.check(damaged) or count < 300

    def test_videos_cut_short(self, tmp_path: Path) -> None:
        whole = clips.clip(tmp_path / "clip", H264, frames=60)
        front = clips.remuxed(whole, tmp_path / "front.mp4", {"movflags": "faststart"})
        assert self.check(clips.cut(front, tmp_path / "cut.mp4", 0.6))

    def test_frames_closer_than_the_tolerance_of_times(self, tmp_path: Path) -> None:
        whole = clips.clip(tmp_path / "clip", H264, frames=12)
        with VideoReader(whole) as reader:
            # As if the container counted in quarters of a microsecond.
            index = reader.index
            pts_s_S = index.pts_s_S[0] + np.arange(len(index.pts_s_S)) * 2.5e-7
            object.__setattr__(index, "pts_s_S", pts_s_S)
            expected = list(reader.planes(Sampling(every=2)))
            got = list(reader.planes(Sampling(every=2), only=[1, 4]))
        assert same_planes(expected[1], got[0])
        assert same_planes(expected[4], got[1])

    def test_less_is_decoded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = clips.clip(tmp_path / "clip", H264, frames=60)
        fed: list[int] = []
        original = VideoReader._carry_out

        def counted(self: VideoReader, video: object, plan: object) -> object:
            fed.append(int(plan.fed_P.sum()))  # type: ignore[attr-defined]
            return original(self, video, plan)  # type: ignore[arg-type]

        monkeypatch.setattr(VideoReader, "_carry_out", counted)
        with VideoReader(path) as reader:
            list(reader.planes(Sampling(frames=12)))
            list(reader.planes(Sampling(frames=12), only=range(9, 12)))
        everything, a_quarter = fed
        assert a_quarter < everything / 2


def test_a_closed_reader_refuses(tmp_path: Path) -> None:
    with VideoReader(clips.clip(tmp_path / "clip", H264, frames=2)) as reader:
        info = asdict(reader.info)
    assert info["pixel_format"] == "yuv420p"
    with pytest.raises(UsageError, match="is closed"):
        next(iter(reader.planes(Sampling())))
