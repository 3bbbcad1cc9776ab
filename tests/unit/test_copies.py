from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from numpy.typing import NDArray

from pipelines.copies import CRFS, CopyInfo, compress
from tests.clips import ENCODINGS, Encoding, audio_only, clip, cut, edited, empty, flipped, joined, text, turned
from tests.portraits import filmed
from unmask.errors import MediaError, Reason, StorageError, UsageError
from unmask.plan import Sampling
from unmask.records import Frame
from unmask.video import VideoReader

BY_NAME = {e.name: e for e in ENCODINGS}


def times(path: Path) -> list[Fraction]:
    with VideoReader(path) as reader:
        index = reader.index
        return [int(pts) * index.time_base for pts in index.pts_P[index.packet_S]]


def pictures_of(path: Path) -> list[NDArray[np.uint8]]:
    with VideoReader(path) as reader:
        return [f.image_HWC for f in reader.frames(Sampling()) if isinstance(f, Frame)]


def psnr(a: list[NDArray[np.uint8]], b: list[NDArray[np.uint8]]) -> float:
    """Of the brightness: colours may be stored at half the resolution."""
    errors = [np.square((x.astype(float) - y) @ (0.299, 0.587, 0.114)).mean() for x, y in zip(a, b, strict=True)]
    return float(10 * np.log10(255**2 / np.mean(errors)))


def with_sound(path: Path, codec: str, *, frames: int = 50) -> Path:
    """A clip of two seconds with a tone."""
    with av.open(path, "w") as container:
        picture = container.add_stream("libx264", rate=25, options={"g": "12"})
        picture.width, picture.height, picture.pix_fmt, picture.thread_count = 64, 48, "yuv420p", 1
        sound = container.add_stream(codec, rate=48_000)
        kind = sound.codec_context.codec.audio_formats[0].name
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), i, np.uint8))
            frame.pts = i
            container.mux(picture.encode(frame))
            wave = np.sin(np.arange(1920) / 20)[None]
            wave = wave.astype(np.float32) if kind.startswith("flt") else (wave * 9999).astype(np.int16)
            tone = av.AudioFrame.from_ndarray(wave, format=kind, layout="mono")
            tone.sample_rate, tone.pts = 48_000, i * 1920
            container.mux(sound.encode(tone))
        container.mux(sound.encode(None))
        container.mux(picture.encode(None))
    return path


def sound_of(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(path) as container:
        packets = container.demux(container.streams.audio[0])
        return [(p.pts * p.time_base, bytes(p)) for p in packets if p.size]  # type: ignore[operator]


def test_quality_and_size_fall_with_crf(tmp_path) -> None:
    source = clip(tmp_path / "source", images=filmed(30), width=320, height=240)
    pictures = pictures_of(source)
    quality, sizes = [], []
    for crf in CRFS:
        target = tmp_path / f"{crf}.mp4"
        info = compress(source, target, crf)
        assert info == CopyInfo(frames=30, lost=0, corrupt=0, size_bytes=target.stat().st_size, audio="none")
        assert times(target) == times(source)
        quality.append(psnr(pictures, pictures_of(target)))
        sizes.append(info.size_bytes)
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > 33
    assert quality[0] - quality[2] > 3
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2] < sizes[0] / 2


@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_every_kind_of_source(encoding: Encoding, tmp_path) -> None:
    source = clip(tmp_path / "source", encoding, frames=26)
    target = tmp_path / "copy.mp4"
    info = compress(source, target, 10, preset="veryfast")
    originals, copies = pictures_of(source), pictures_of(target)
    assert (info.frames, info.lost, info.corrupt, info.notes) == (26, 0, 0, ())
    # Colours, range and matrix included: a wrong tag costs more than this.
    assert psnr(originals, copies) > 31
    with VideoReader(source) as reader, VideoReader(target) as copy:
        sampling = Sampling()
        np.testing.assert_allclose(copy.times_s(sampling), reader.times_s(sampling), atol=1e-9)
        assert copy.info.pixel_format == ("yuvj420p" if "yuvj" in reader.info.pixel_format else "yuv420p")
        assert (copy.info.width, copy.info.height) == (64, 48)


def test_variable_rate_and_a_late_start(tmp_path) -> None:
    source = clip(tmp_path / "source", frames=30, rate=1000, pts=lambda i: 333 + i * 33 + 17 * i * i)
    target = tmp_path / "copy.mp4"
    compress(source, target, 28)
    assert times(target) == times(source)
    assert times(target)[0] == Fraction(333, 1000)
    kind = Encoding("late", "libx264", ".ts", muxing={"mpegts_copyts": "1"})
    transport = clip(tmp_path / "stream", kind, frames=20, pts=lambda i: i + 777)
    compress(transport, target, 28)
    assert times(target) == times(transport)
    assert times(transport)[0] == Fraction(777, 25)


def test_frames_outside_the_edit_list_stay_outside(tmp_path) -> None:
    source = edited(tmp_path / "edited.mp4", clip(tmp_path / "whole", frames=30))
    compress(source, tmp_path / "copy.mp4", 23)
    assert times(tmp_path / "copy.mp4") == times(source)
    assert len(times(source)) == 23


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_turned_pictures_stay_turned(degrees: int, mirrored: bool, tmp_path) -> None:
    source = turned(tmp_path / "source", degrees, mirrored=mirrored, width=96)
    target = tmp_path / "copy.mp4"
    compress(source, target, 10)
    assert psnr(pictures_of(source), pictures_of(target)) > 33
    with av.open(source) as a, av.open(target) as b:
        frames = [next(c.decode(video=0)) for c in (a, b)]
        first, second = (bytes(f.side_data.get(Type.DISPLAYMATRIX)) for f in frames)
        assert first == second
        assert (frames[1].width, frames[1].height) == (96, 48)


def test_colour_tags_and_the_shape_of_pixels_stay(tmp_path) -> None:
    params = "colorprim=bt709:transfer=bt709:colormatrix=bt709:sar=4/3:fullrange=off"
    source = clip(tmp_path / "source", Encoding("tagged", "libx264", ".mp4", options={"x264-params": params}))
    target = tmp_path / "copy.mp4"
    compress(source, target, 23)
    tags = []
    for path in (source, target):
        with av.open(path) as container:
            c = container.streams.video[0].codec_context
            tags.append((c.colorspace, c.color_primaries, c.color_trc, c.color_range, c.sample_aspect_ratio))
    assert tags[0] == tags[1]
    assert tags[0] == (1, 1, 1, 1, Fraction(4, 3))


@pytest.mark.parametrize("pixel_format", ["yuv420p10le", "yuv444p10le"])
def test_full_range_of_ten_bits_stays_full_range(pixel_format: str, tmp_path) -> None:
    kind = Encoding("full", "libx264", ".mkv", pixel_format, {"x264-params": "fullrange=on"})
    source = clip(tmp_path / "source", kind)
    compress(source, tmp_path / "copy.mp4", 10)
    # Read as limited range, every picture would be 7% off: 25 dB.
    assert psnr(pictures_of(source), pictures_of(tmp_path / "copy.mp4")) > 33


def test_interlaced_video_stays_interlaced(tmp_path) -> None:
    source = clip(tmp_path / "source", BY_NAME["h264-mkv-interlaced"])
    compress(source, tmp_path / "copy.mp4", 23)
    with av.open(tmp_path / "copy.mp4") as container:
        assert next(container.decode(video=0)).interlaced_frame


def test_odd_sides_are_evened_without_moving_a_pixel(tmp_path) -> None:
    source = clip(tmp_path / "source", BY_NAME["mjpeg-mov-444"], width=65, height=47)
    info = compress(source, tmp_path / "copy.mp4", 10)
    assert info.notes == ("65 x 47 pixels became 66 x 48: H.264 needs even sides.",)
    copies = pictures_of(tmp_path / "copy.mp4")
    assert copies[0].shape == (48, 66, 3)
    assert psnr(pictures_of(source), [image[:47, :65] for image in copies]) > 27


@pytest.mark.parametrize(("codec", "suffix"), [("aac", ".mp4"), ("aac", ".ts"), ("libopus", ".mkv")])
def test_sound_is_copied(codec: str, suffix: str, tmp_path) -> None:
    source = with_sound(tmp_path / f"source{suffix}", codec)
    info = compress(source, tmp_path / "copy.mp4", 28)
    assert (info.audio, info.frames, info.notes) == ("copied", 50, ())
    before, after = sound_of(source), sound_of(tmp_path / "copy.mp4")
    assert len(before) == len(after) > 50
    assert [data.endswith(copy) for (_, data), (_, copy) in zip(before, after, strict=True)] == [True] * len(after)
    shifts = [abs(a - b) for (a, _), (b, _) in zip(before, after, strict=True)]
    assert max(shifts) < Fraction(1, 1000)
    assert times(source) == times(tmp_path / "copy.mp4")


def test_sound_that_no_mp4_holds_is_dropped(tmp_path) -> None:
    source = with_sound(tmp_path / "source.avi", "adpcm_ima_wav")
    info = compress(source, tmp_path / "copy.mp4", 28)
    assert (info.audio, info.frames) == ("dropped", 50)
    with av.open(tmp_path / "copy.mp4") as container:
        assert not container.streams.audio


def test_a_file_that_ends_early_gives_its_readable_part(tmp_path) -> None:
    whole = clip(tmp_path / "whole", BY_NAME["h264-fragmented"], frames=60)
    target = tmp_path / "copy.mp4"
    info = compress(cut(whole, tmp_path / "cut.mp4", 0.6), target, 23)
    assert 20 < info.frames < 60
    assert times(target) == times(whole)[: info.frames]
    with_index = clip(tmp_path / "front", Encoding("front", "libx264", ".mp4", muxing={"movflags": "faststart"}))
    info = compress(cut(with_index, tmp_path / "cut2.mp4", 0.7), target, 23)
    assert 38 <= info.frames + info.lost <= 40  # the index past the end is known to within the reordering
    assert info.lost > 5
    assert len(times(target)) == info.frames


def test_damage_is_counted(tmp_path) -> None:
    source = flipped(clip(tmp_path / "whole", frames=60), tmp_path / "flipped.mp4")
    target = tmp_path / "copy.mp4"
    info = compress(source, target, 23)
    assert info.corrupt + info.lost > 0
    assert info.frames + info.lost == 60
    assert set(times(target)) <= set(times(source))
    assert len(times(target)) == info.frames


BAD = {
    "missing": (lambda path: path, Reason.MISSING_FILE),
    "empty": (empty, Reason.EMPTY_FILE),
    "text": (text, Reason.NOT_A_VIDEO),
    "audio": (audio_only, Reason.NO_VIDEO_STREAM),
    "header": (lambda path: cut(clip(path.with_name("whole")), path, 0.5), Reason.TRUNCATED_HEADER),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named_and_what_was_there_stays(kind: str, tmp_path) -> None:
    make, reason = BAD[kind]
    target = tmp_path / "out" / "copy.mp4"
    target.parent.mkdir()
    target.write_bytes(b"before")
    with pytest.raises(MediaError) as failure:
        compress(make(tmp_path / "source.mp4"), target, 23)
    assert failure.value.reason is reason
    assert target.read_bytes() == b"before"
    assert list(target.parent.iterdir()) == [target]


def test_a_video_without_a_frame_leaves_nothing(tmp_path) -> None:
    whole = clip(tmp_path / "whole", Encoding("front", "libx264", ".mp4", muxing={"movflags": "faststart"}))
    data = whole.read_bytes()
    source = tmp_path / "header.mp4"
    source.write_bytes(data[: data.index(b"mdat") + 12])
    with pytest.raises(MediaError) as failure:
        compress(source, tmp_path / "copy.mp4", 23)
    assert failure.value.reason is Reason.NO_FRAMES
    assert not (tmp_path / "copy.mp4").exists()


def test_a_failure_on_the_way_leaves_nothing(tmp_path, monkeypatch) -> None:
    source = clip(tmp_path / "source", frames=30)
    (tmp_path / "out").mkdir()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.copies._with_even_sides", full)
    with pytest.raises(StorageError, match="No space left on device"):
        compress(source, tmp_path / "out/copy.mp4", 23)
    assert list((tmp_path / "out").iterdir()) == []
    with pytest.raises(StorageError, match="cannot be written"):
        compress(source, tmp_path / "nowhere/copy.mp4", 23)


@pytest.mark.parametrize("options", [{"crf": 52}, {"crf": -1}, {"crf": 23, "preset": "quick"}])
def test_options(options, tmp_path) -> None:
    with pytest.raises(UsageError, match="x264"):
        compress(tmp_path / "source.mp4", tmp_path / "copy.mp4", **options)


def test_two_video_streams(tmp_path) -> None:
    small, large = clip(tmp_path / "small", frames=5), clip(tmp_path / "large", frames=8, width=128, height=96)
    compress(joined(tmp_path / "two.mp4", small, large), tmp_path / "copy.mp4", 23)
    with VideoReader(tmp_path / "copy.mp4") as reader, VideoReader(tmp_path / "two.mp4") as source:
        assert (reader.info.width, reader.info.frames) == (source.info.width, source.info.frames)


def test_encoding_again_gives_the_same_file(tmp_path) -> None:
    source = clip(tmp_path / "source")
    for name in "ab":
        compress(source, tmp_path / f"{name}.mp4", 28)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
