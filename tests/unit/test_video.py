"""Every frame that the reader returns is the one a full decode shows; every defect has its reason."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from tests import clips
from unmask import container, decoding
from unmask.errors import MediaError, Reason, UsageError
from unmask.picture import RgbConverter
from unmask.plan import Sampling
from unmask.records import Frame
from unmask.video import Missing, VideoReader, probe

SAMPLINGS = (
    Sampling(),
    Sampling(frames=1),
    Sampling(frames=5),
    Sampling(every=7),
    Sampling(rate_fps=3.0),
    Sampling(times_s=(0.3, 0.31, 0.9, 1.1)),
)
H264, LONG_GOP = clips.ENCODINGS[0], clips.ENCODINGS[1]


@dataclass(frozen=True)
class Shown:
    """What a full decode shows, in its order."""

    time_s: float
    image_HWC: NDArray[np.uint8]
    is_corrupt: bool


def full_decode(path: Path) -> Iterator[Shown]:
    with av.open(path) as source:
        stream = source.streams.video[0]
        stream.thread_count = 1
        for packet in source.demux(stream):
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in frames:
                yield Shown(frame.time, frame.to_ndarray(format="rgb24"), frame.is_corrupt)


def read(path: Path, sampling: Sampling) -> list[Frame | Missing]:
    with VideoReader(path) as reader:
        return list(reader.frames(sampling))


def assert_as_full_decode(path: Path, samplings: tuple[Sampling, ...] = SAMPLINGS) -> None:
    """Pixels, times and positions; times in ascending order where the full decode's are not."""
    shown = list(full_decode(path))
    times_s = sorted(s.time_s for s in shown)
    with VideoReader(path) as reader:
        assert reader.info.frames == len(shown)
        for sampling in samplings:
            answers = list(reader.frames(sampling))
            expected, _ = sampling.positions(np.array(times_s), times_s[-1] + 0.001)
            assert len(answers) == len(expected)
            if sampling.frames is None:  # these may be moved to pictures that are decoded anyway
                assert [a.index for a in answers] == expected.tolist()
            assert [a.pts_s for a in answers] == reader.times_s(sampling).tolist()
            for answer in answers:
                assert isinstance(answer, Frame)
                assert answer.pts_s == times_s[answer.index]
                assert np.array_equal(answer.image_HWC, shown[answer.index].image_HWC)
                assert answer.image_HWC.flags.c_contiguous
                assert not answer.is_corrupt


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


@pytest.fixture(scope="module")
def h264(folder: Path) -> Path:
    return clips.clip(folder / "h264", H264, frames=60)


@pytest.mark.parametrize("encoding", clips.ENCODINGS, ids=str)
def test_frames_are_those_of_a_full_decode(encoding: clips.Encoding, tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "clip", encoding)
    assert_as_full_decode(path)
    info = probe(path)
    assert (info.width, info.height, info.rotation) == (64, 48, 0)
    assert info.codec in {
        "h264",
        "hevc",
        "vp9",
        "vp8",
        "av1",
        "mpeg4",
        "mjpeg",
        "prores",
        "png",
        "ffv1",
        "mpeg2video",
    } | {"rawvideo"}
    assert info.duration_s == pytest.approx(1.6, abs=0.05)
    assert info.rate_fps == pytest.approx(25, abs=0.1)


@pytest.mark.parametrize("encoding", clips.ENCODINGS[::5], ids=str)
def test_streams_too_large_to_keep_are_read_again(
    encoding: clips.Encoding, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "KEPT_BYTES", 0)
    path = clips.clip(tmp_path / "clip", encoding)
    assert_as_full_decode(path)
    monkeypatch.setattr(decoding, "SEEK_PAYS_BYTES", -1)
    assert_as_full_decode(path)


def test_a_seek_that_lands_elsewhere_is_noticed(h264: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "KEPT_BYTES", 0)
    monkeypatch.setattr(decoding, "SEEK_PAYS_BYTES", 0)
    original = decoding._PacketReader._is
    checked: list[int] = []

    def only_in_order(self: decoding._PacketReader, packet: object, number: int) -> bool:
        checked.append(number)
        return original(self, packet, number) and (number == 0 or number - 1 in checked)

    monkeypatch.setattr(decoding._PacketReader, "_is", only_in_order)
    assert_as_full_decode(h264, (Sampling(times_s=(2.2,)),))
    assert 0 in checked


def test_a_file_replaced_behind_the_reader_gives_no_wrong_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container, "KEPT_BYTES", 0)
    path = clips.clip(tmp_path / "clip", H264)
    other = clips.clip(tmp_path / "other", clips.Encoding("other", "libx264", ".mp4", options={"crf": "40"}))
    with VideoReader(path) as reader:
        other.replace(path)
        answers = list(reader.frames(Sampling(frames=4)))
    assert [type(a) for a in answers] == [Missing] * 4
    assert {a.reason for a in answers if isinstance(a, Missing)} == {Reason.DECODE_FAILED}


def test_variable_rate(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "vfr", H264, rate=1000, pts=lambda i: i * 40 + (i % 5) * 7 + (i > 20) * 1500)
    assert_as_full_decode(path)
    with VideoReader(path) as reader:
        [frame] = reader.frames(Sampling(times_s=(1.5,)))
        assert frame.index == 20


def test_time_stamps_that_start_late_or_below_zero(tmp_path: Path) -> None:
    late = clips.clip(tmp_path / "late", clips.Encoding("mkv", "libx264", ".mkv"), pts=lambda i: i + 1000)
    assert_as_full_decode(late, (Sampling(frames=5),))
    assert read(late, Sampling(frames=1))[0].pts_s > 40
    early = clips.clip(tmp_path / "early", H264, pts=lambda i: i - 10)
    assert_as_full_decode(early, (Sampling(), Sampling(frames=5)))


def test_an_edit_list_hides_frames(tmp_path: Path, h264: Path) -> None:
    path = clips.edited(tmp_path / "edited.mp4", h264)
    assert_as_full_decode(path)
    assert probe(path).frames == 53


def test_a_stream_cut_out_of_an_open_group_of_pictures(tmp_path: Path) -> None:
    whole = clips.clip(tmp_path / "whole", next(e for e in clips.ENCODINGS if e.name == "hevc-mp4-open-gop"))
    with VideoReader(whole) as reader:
        entry = int(np.flatnonzero(reader.index.entry_P)[1])
    path = clips.remuxed(whole, tmp_path / "part.mkv", first=entry)
    by_time = {s.time_s: s.image_HWC for s in full_decode(path)}
    for answer in read(path, Sampling()):
        # The leading pictures lean on what is gone: a full decode does not show them either.
        assert isinstance(answer, Frame) == (answer.pts_s in by_time)
        if isinstance(answer, Frame):
            assert np.array_equal(answer.image_HWC, by_time[answer.pts_s])
        else:
            assert answer.reason is Reason.DECODE_FAILED


def test_key_frames_that_are_none(tmp_path: Path) -> None:
    path = clips.intra_refresh(tmp_path / "refresh")
    assert_as_full_decode(path)


def test_parameters_that_change_on_the_way(tmp_path: Path) -> None:
    path = clips.parameter_change(tmp_path / "change.ts")
    assert_as_full_decode(path, (Sampling(), Sampling(frames=5), Sampling(times_s=(2.0,))))


def test_the_encoder_s_build_is_known_in_later_groups_of_pictures(shared_dir: Path) -> None:
    """Old x264 builds coded 4:4:4 in their own way; only the first packet of a file names the build."""
    path = shared_dir / "videos/ffpp/original_sequences/youtube/c23/videos/519.mp4"
    with VideoReader(path) as reader:
        starts = np.flatnonzero(reader.index.entry_P)
        second_s = float(reader.index.pts_s_S[reader.index.position_P[starts[1]]])
        answers = list(reader.frames(Sampling(times_s=(second_s + 0.4,))))
    [answer] = answers
    expected = next(s for s in full_decode(path) if s.time_s == answer.pts_s)
    assert isinstance(answer, Frame)
    assert np.array_equal(answer.image_HWC, expected.image_HWC)


@pytest.mark.parametrize("name", ["ffpp/original_sequences/youtube/c23/videos/004.mp4"])
def test_real_clips_are_as_a_full_decode(shared_dir: Path, name: str) -> None:
    path = shared_dir / "videos" / name
    answers = {a.index: a for a in read(path, Sampling(frames=32))}
    compared = 0
    for index, shown in enumerate(full_decode(path)):
        if index in answers:
            assert np.array_equal(answers[index].image_HWC, shown.image_HWC)
            assert answers[index].pts_s == shown.time_s
            compared += 1
    assert compared == 32


def upright(image_HWC: NDArray[np.uint8], degrees_clockwise: int, mirrored: bool) -> NDArray[np.uint8]:
    turned = np.rot90(image_HWC, -degrees_clockwise // 90)
    return turned[:, ::-1] if mirrored else turned


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_stand_upright(tmp_path: Path, degrees: int, mirrored: bool) -> None:
    path = clips.turned(tmp_path / "turned", degrees, mirrored=mirrored)
    with VideoReader(path) as reader:
        info = reader.info
        answers = list(reader.frames(Sampling()))
        assert reader.info == info
    size = (48, 64) if degrees in (90, 270) else (64, 48)
    assert (info.width, info.height) == size
    if not mirrored:
        assert info.rotation == degrees
    for answer, shown in zip(answers, full_decode(path), strict=True):
        assert isinstance(answer, Frame)
        assert answer.image_HWC.flags.c_contiguous
        assert np.array_equal(answer.image_HWC, upright(shown.image_HWC, degrees, mirrored))


def test_the_short_way_from_444_to_rgb_is_exact_for_every_colour() -> None:
    """All 2^24 combinations of Y, U and V, a stripe of Y at a time, for each range and matrix."""
    uv = np.mgrid[0:256, 0:256].astype(np.uint8)
    for color_range, colorspace in ((0, 2), (1, 1), (2, 1), (1, 5), (2, 6), (1, 9)):
        convert = RgbConverter()
        for luma in range(0, 256, 16):
            y = np.repeat(np.arange(luma, luma + 16, dtype=np.uint8), 256)[:, None] * np.ones((1, 256), np.uint8)
            planes = np.stack([y, np.tile(uv[0], (16, 1)), np.tile(uv[1], (16, 1))])
            frame = av.VideoFrame.from_ndarray(
                np.ascontiguousarray(planes.transpose(1, 2, 0)), "yuv444p", channel_last=True
            )
            frame.color_range, frame.colorspace = color_range, colorspace
            assert np.array_equal(convert(frame), frame.to_ndarray(format="rgb24"))


def test_interlaced_clips_say_so(tmp_path: Path, h264: Path) -> None:
    interlaced = next(e for e in clips.ENCODINGS if "interlaced" in e.name)
    assert probe(clips.clip(tmp_path / "clip", interlaced)).interlaced
    assert not probe(h264).interlaced


@pytest.mark.parametrize(("width", "height", "frames"), [(16, 16, 20), (8192, 4320, 2), (62, 46, 20)])
def test_extreme_sizes(tmp_path: Path, width: int, height: int, frames: int) -> None:
    fast = clips.Encoding("fast", "libx264", ".mp4", options={"preset": "ultrafast", "crf": "40"})
    path = clips.clip(tmp_path / "clip", fast, frames=frames, width=width, height=height)
    assert_as_full_decode(path, (Sampling(frames=2),))
    assert (probe(path).width, probe(path).height) == (width, height)


def test_one_frame(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "one", H264, frames=1)
    assert_as_full_decode(path, (Sampling(), Sampling(frames=32), Sampling(rate_fps=5.0), Sampling(every=3)))
    assert probe(path).duration_s > 0


def test_times_without_a_frame_are_answered(h264: Path) -> None:
    before, shown, after = read(h264, Sampling(times_s=(99.0, 0.5, -1.0)))
    assert before == Missing(-1.0, -1, Reason.MISSING_FRAME)
    assert isinstance(shown, Frame)
    assert shown.index == 12
    assert after == Missing(99.0, -1, Reason.MISSING_FRAME)


@pytest.mark.parametrize("name", ["h264-mp4", "h264-avi", "mpeg4-avi", "h264-mkv-10-bit"])
def test_headers_that_claim_a_million_frames(tmp_path: Path, name: str) -> None:
    honest = clips.clip(tmp_path / "honest", next(e for e in clips.ENCODINGS if e.name == name))
    path = clips.lying_header(honest, tmp_path / f"lying{honest.suffix}")
    assert path.read_bytes() != honest.read_bytes() or honest.suffix == ".mkv"
    assert probe(path).frames == 40
    assert_as_full_decode(path, (Sampling(frames=5), Sampling(rate_fps=3.0)))


def test_sample_tables_that_claim_a_million_frames(tmp_path: Path, h264: Path) -> None:
    durations = clips.grow_claim(h264, tmp_path / "durations.mp4", b"stts")
    assert_as_full_decode(durations, (Sampling(frames=5), Sampling(rate_fps=3.0)))
    sizes = clips.grow_claim(h264, tmp_path / "sizes.mp4", b"stsz")
    assert probe(sizes).frames == 0  # libav finds no packet behind such a table
    assert read(sizes, Sampling(frames=8)) == []


@pytest.mark.parametrize("share", [0.5, 0.8, 0.97])
def test_a_file_cut_in_the_middle(tmp_path: Path, h264: Path, share: float) -> None:
    whole = clips.remuxed(h264, tmp_path / "whole.mp4", {"movflags": "faststart"})
    path = clips.cut(whole, tmp_path / "cut.mp4", share)
    answers = read(path, Sampling(frames=12))
    assert len(answers) == 12
    sound = [a for a in answers if isinstance(a, Frame) and not a.is_corrupt]
    lost = [a for a in answers if isinstance(a, Missing) and a.reason is Reason.MISSING_FRAME]
    assert sound
    assert lost or share == 0.97
    shown = {s.time_s: s.image_HWC for s in full_decode(whole)}
    for frame in sound:
        assert np.array_equal(frame.image_HWC, shown[frame.pts_s])
    assert all(a.pts_s < b.pts_s for a, b in pairwise(answers))
    assert probe(path).frames < 60


@pytest.mark.parametrize("name", ["h264-mp4", "h264-mkv-10-bit", "h264-avi", "h264-fragmented"])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.9])
def test_a_cut_anywhere_is_an_answer_or_a_named_error(tmp_path: Path, name: str, share: float) -> None:
    whole = clips.clip(tmp_path / "whole", next(e for e in clips.ENCODINGS if e.name == name))
    path = clips.cut(whole, tmp_path / f"cut{whole.suffix}", share)
    opened, answers = True, list[Frame | Missing]()
    try:
        answers = read(path, Sampling(frames=6))
    except MediaError as error:
        opened = error.reason not in {Reason.TRUNCATED_HEADER, Reason.NO_VIDEO_STREAM}
    assert opened == bool(answers)
    shown = [s.image_HWC for s in full_decode(whole)]
    for answer in answers:
        if isinstance(answer, Frame) and not answer.is_corrupt:
            assert any(np.array_equal(answer.image_HWC, image) for image in shown)


DAMAGED = ["h264-mp4", "h264-mp4-long-gop", "h264-mp4-open-gop", "h264-mov-444", "mpeg4-mp4"]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", DAMAGED)
def test_flipped_bytes(tmp_path: Path, name: str, seed: int) -> None:
    """All targets are accounted for; sound frames are those of a full decode; nothing before the damage is flagged."""
    encoding = next(e for e in clips.ENCODINGS if e.name == name)
    clean = clips.clip(tmp_path / "clean", encoding, frames=60, width=128, height=96)
    path = clips.flipped(clean, tmp_path / f"flipped{clean.suffix}", count=60, after=0.6, seed=seed)
    whole = [s.image_HWC for s in full_decode(clean)]
    shown = {round(s.time_s, 6): s for s in full_decode(path)}
    for sampling in (Sampling(), Sampling(frames=16)):
        answers = read(path, sampling)
        assert len(answers) == (60 if sampling.frames is None else 16)
        flagged = sum(isinstance(a, Missing) or a.is_corrupt for a in answers)
        assert flagged
        for answer in answers:
            if answer.index < 20:
                assert isinstance(answer, Frame)
                assert not answer.is_corrupt
                assert np.array_equal(answer.image_HWC, whole[answer.index])
            if isinstance(answer, Frame):
                twin = shown[round(answer.pts_s, 6)]
                assert answer.is_corrupt >= twin.is_corrupt
                if not answer.is_corrupt:
                    assert np.array_equal(answer.image_HWC, twin.image_HWC)


@pytest.mark.parametrize("name", ["hevc-mp4-open-gop", "vp9-webm", "av1-mp4", "mjpeg-avi"])
def test_flipped_bytes_where_the_decoder_says_little(tmp_path: Path, name: str) -> None:
    """These decoders are silent about most damage; still every target has its answer, and the sound part is sound."""
    encoding = next(e for e in clips.ENCODINGS if e.name == name)
    clean = clips.clip(tmp_path / "clean", encoding, frames=60, width=128, height=96)
    path = clips.flipped(clean, tmp_path / f"flipped{clean.suffix}", count=300, after=0.6)
    whole = [s.image_HWC for s in full_decode(clean)]
    answers = read(path, Sampling(every=2))
    assert len(answers) == (probe(path).frames + 1) // 2
    for answer in answers[:10]:
        assert isinstance(answer, Frame)
        assert np.array_equal(answer.image_HWC, whole[answer.index])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d, _: d / "absent.mp4", Reason.MISSING_FILE),
        (lambda d, _: d, Reason.UNREADABLE_FILE),
        (lambda d, _: d / "nul\0byte.mp4", Reason.UNREADABLE_FILE),
        (lambda d, _: clips.empty(d / "empty.mp4"), Reason.EMPTY_FILE),
        (lambda d, _: clips.text(d / "text.mp4"), Reason.NOT_A_VIDEO),
        (lambda d, _: clips.audio_only(d / "audio.mp4"), Reason.NO_VIDEO_STREAM),
        (lambda d, h264: clips.cut(h264, d / "cut.mp4", 0.5), Reason.TRUNCATED_HEADER),
    ],
    ids=["missing", "folder", "nul", "empty", "text", "audio", "cut-before-moov"],
)
def test_what_cannot_be_opened_says_why(
    make: object, reason: Reason, tmp_path: Path, h264: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = make(tmp_path, h264)  # type: ignore[operator]
    with pytest.raises(MediaError) as caught:
        VideoReader(path)
    assert caught.value.reason is reason
    assert "\n" not in caught.value.message
    assert capfd.readouterr() == ("", "")


def test_a_codec_without_a_decoder(tmp_path: Path, h264: Path) -> None:
    path = tmp_path / "unknown.mp4"
    path.write_bytes(h264.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(MediaError) as caught:
        VideoReader(path)
    assert caught.value.reason is Reason.UNSUPPORTED_CODEC


def test_a_playlist_opens_no_other_file(tmp_path: Path, h264: Path) -> None:
    playlist = tmp_path / "list.mp4"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:2,\n{h264}\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError) as caught:
        VideoReader(playlist)
    assert caught.value.reason is Reason.NOT_A_VIDEO


def test_a_file_named_like_an_address(tmp_path: Path, h264: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pipe:0").write_bytes(h264.read_bytes())
    assert probe("pipe:0").frames == 60


def test_damage_is_silent(tmp_path: Path, h264: Path, capfd: pytest.CaptureFixture[str]) -> None:
    read(clips.flipped(h264, tmp_path / "flipped.mp4"), Sampling(frames=8))
    assert capfd.readouterr() == ("", "")


def test_a_closed_reader_refuses(h264: Path) -> None:
    with VideoReader(h264) as reader:
        pass
    with pytest.raises(UsageError, match="is closed"):
        next(iter(reader.frames(Sampling(frames=1))))


def test_two_readings_at_once(h264: Path) -> None:
    with VideoReader(h264) as reader:
        first, second = reader.frames(Sampling(every=2)), reader.frames(Sampling(every=2))
        for a, b in zip(first, second, strict=True):
            assert isinstance(a, Frame)
            assert isinstance(b, Frame)
            assert np.array_equal(a.image_HWC, b.image_HWC)


def test_readers_in_threads(h264: Path) -> None:
    expected = [a.image_HWC.sum() for a in read(h264, Sampling(frames=9)) if isinstance(a, Frame)]
    got: list[list[int]] = []

    def work() -> None:
        got.append([a.image_HWC.sum() for a in read(h264, Sampling(frames=9)) if isinstance(a, Frame)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [expected] * 4


def test_an_abandoned_reading_closes_its_file(h264: Path) -> None:
    def open_files() -> int:
        return sum(h264.name in str(p.resolve()) for p in Path("/proc/self/fd").iterdir() if p.exists())

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc, which this system lacks")
    before = open_files()
    with VideoReader(h264) as reader:
        frames = reader.frames(Sampling())
        next(frames)
        frames.close()  # type: ignore[attr-defined]
    assert open_files() == before
