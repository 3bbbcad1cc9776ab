"""Small clips, made on the spot: every codec, container and defect that the decoder must live with.

Each function writes one file and returns its path. The pictures drift, so that no two frames are alike, and carry
noise, so that no codec gets away with copying.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream
from numpy.typing import NDArray

__all__ = [
    "ENCODINGS",
    "Encoding",
    "audio_only",
    "clip",
    "cut",
    "edited",
    "empty",
    "flipped",
    "grow_claim",
    "intra_refresh",
    "joined",
    "lying_header",
    "parameter_change",
    "pictures",
    "remuxed",
    "text",
    "turned",
]


def pictures(frames: int, width: int = 64, height: int = 48, *, seed: int = 0) -> Iterable[NDArray[np.uint8]]:
    """RGB pictures of shape (height, width, 3) that drift and flicker a little."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 8 + 2, width // 8 + 2, 3), np.uint8)
    scene = np.kron(coarse, np.ones((8, 8, 1), np.uint8))
    noise = rng.integers(0, 24, (height, width, 3), np.uint8)
    for i in range(frames):
        shifted = np.roll(scene, (i // 2, i), (0, 1))[:height, :width]
        yield (shifted // 2 + np.roll(noise, i * 7, 1) + np.uint8(i % 16 * 4)).astype(np.uint8)


@dataclass(frozen=True)
class Encoding:
    """A codec in a container, with the options that make it interesting."""

    name: str
    codec: str
    suffix: str
    pixel_format: str = "yuv420p"
    options: dict[str, str] = field(default_factory=dict)
    muxing: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


_X265 = "log-level=none:pools=none:frame-threads=1"
_FAST = {"preset": "veryfast"}
_VP9 = {"cpu-used": "8", "deadline": "realtime", "row-mt": "0"}

ENCODINGS = (
    Encoding("h264-mp4", "libx264", ".mp4", options={"g": "12", "bf": "3", "refs": "3"}),
    Encoding("h264-mp4-long-gop", "libx264", ".mp4", options={"g": "250", "bf": "3", "b-pyramid": "normal"}),
    Encoding(
        "h264-mp4-open-gop", "libx264", ".mp4", options={"x264-params": "open-gop=1:keyint=12:bframes=3:scenecut=0"}
    ),
    Encoding("h264-mp4-no-b", "libx264", ".mp4", options={"g": "10", "bf": "0"}),
    Encoding("h264-mp4-slices", "libx264", ".mp4", options={"g": "12", "x264-params": "slices=3:bframes=3"}),
    Encoding("h264-mp4-in-band", "libx264", ".mp4", options={"g": "12", "x264-params": "repeat-headers=1:bframes=2"}),
    Encoding("h264-mov-422", "libx264", ".mov", "yuv422p", {"g": "12"}),
    Encoding("h264-mov-444", "libx264", ".mov", "yuv444p", {"g": "12", "bf": "3"}),
    Encoding("h264-mkv-10-bit", "libx264", ".mkv", "yuv420p10le", {"g": "12", "bf": "3"}),
    Encoding("h264-mkv-interlaced", "libx264", ".mkv", options={"g": "12", "x264-params": "tff=1:bframes=2"}),
    Encoding("h264-mp4-full-range", "libx264", ".mp4", "yuvj420p", {"g": "12"}),
    Encoding("h264-avi", "libx264", ".avi", options={"g": "12", "bf": "3"}),
    Encoding("h264-avi-no-b", "libx264", ".avi", options={"g": "12", "bf": "0"}),
    Encoding(
        "h264-fragmented", "libx264", ".mp4", options={"g": "12"}, muxing={"movflags": "frag_keyframe+empty_moov"}
    ),
    Encoding("h264-ts", "libx264", ".ts", options={"g": "12", "bf": "3"}),
    Encoding(
        "hevc-mp4-open-gop",
        "libx265",
        ".mp4",
        options={**_FAST, "x265-params": f"{_X265}:keyint=12:bframes=4:scenecut=0"},
    ),
    Encoding(
        "hevc-mkv-closed-gop",
        "libx265",
        ".mkv",
        options={**_FAST, "x265-params": f"{_X265}:keyint=12:open-gop=0:scenecut=0"},
    ),
    Encoding("hevc-mp4-10-bit-422", "libx265", ".mp4", "yuv422p10le", {**_FAST, "x265-params": f"{_X265}:keyint=12"}),
    Encoding(
        "hevc-mp4-layers", "libx265", ".mp4", options={**_FAST, "x265-params": f"{_X265}:keyint=16:temporal-layers=3"}
    ),
    Encoding("hevc-mov-444", "libx265", ".mov", "yuv444p", {**_FAST, "x265-params": f"{_X265}:keyint=12"}),
    Encoding("vp9-webm", "libvpx-vp9", ".webm", options={**_VP9, "g": "12"}),
    Encoding(
        "vp9-webm-alt-ref",
        "libvpx-vp9",
        ".webm",
        options={
            "g": "24",
            "deadline": "good",
            "cpu-used": "5",
            "auto-alt-ref": "1",
            "lag-in-frames": "16",
            "b": "100k",
        },
    ),
    Encoding("vp9-mkv-444", "libvpx-vp9", ".mkv", "yuv444p", {**_VP9, "g": "12"}),
    Encoding("vp9-mp4", "libvpx-vp9", ".mp4", options={**_VP9, "g": "12"}),
    Encoding(
        "vp8-webm", "libvpx", ".webm", options={"g": "12", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}
    ),
    Encoding("vp8-alpha-webm", "libvpx", ".webm", "yuva420p", {"g": "12", "auto-alt-ref": "0", "cpu-used": "8"}),
    Encoding("av1-mp4", "libsvtav1", ".mp4", options={"preset": "12", "g": "12", "svtav1-params": "keyint=12"}),
    Encoding("av1-mkv-10-bit", "libsvtav1", ".mkv", "yuv420p10le", {"preset": "12", "g": "16"}),
    Encoding("mpeg4-mp4", "mpeg4", ".mp4", options={"g": "12", "bf": "2", "b": "400k"}),
    Encoding("mpeg4-avi", "mpeg4", ".avi", options={"g": "12", "bf": "2", "b": "400k"}),
    Encoding("mpeg4-avi-no-b", "mpeg4", ".avi", options={"g": "12", "b": "400k"}),
    Encoding("mjpeg-avi", "mjpeg", ".avi", "yuvj422p"),
    Encoding("mjpeg-mov-444", "mjpeg", ".mov", "yuvj444p"),
    Encoding("prores-mov", "prores_ks", ".mov", "yuv422p10le"),
    Encoding("png-mov-alpha", "png", ".mov", "rgba"),
    Encoding("ffv1-mkv", "ffv1", ".mkv", options={"g": "5"}),
    Encoding("mpeg2-ts", "mpeg2video", ".ts", options={"g": "12", "bf": "2", "b": "800k"}),
    Encoding("raw-avi", "rawvideo", ".avi"),
)


def clip(
    path: Path,
    encoding: Encoding = ENCODINGS[0],
    *,
    frames: int = 40,
    width: int = 64,
    height: int = 48,
    rate: int = 25,
    pts: Callable[[int], int] | None = None,
    matrix: Sequence[int] | None = None,
    images: Iterable[NDArray[np.uint8]] | None = None,
) -> Path:
    """A clip of drifting noise.

    Args:
        path: Where; the encoding's suffix is put on.
        encoding: How.
        frames: How many.
        width: Of the picture as it is stored.
        height: Of the picture as it is stored.
        rate: Frames a second.
        pts: From a frame's number to its time stamp in units of 1 / rate; for variable rates.
        matrix: A display matrix of nine numbers, as FFmpeg stores it.
        images: RGB pictures to encode in place of the noise.
    """
    path = path.with_suffix(encoding.suffix)
    with _same_scheduling(), av.open(path, "w", options=encoding.muxing) as container:
        stream = container.add_stream(encoding.codec, rate=rate, options=dict(encoding.options))
        assert isinstance(stream, VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, encoding.pixel_format
        stream.thread_count = 1
        if matrix is not None:
            stream.set_display_matrix(list(matrix))
        for i, image in enumerate(pictures(frames, width, height) if images is None else images):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=encoding.pixel_format)
            frame.pts = pts(i) if pts else i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@contextmanager
def _same_scheduling() -> Iterator[None]:
    """Run as root, SVT-AV1 raises the thread that calls it to real-time priority 99, and leaves it there.

    Whatever that thread starts later inherits it: two browsers then starve the whole machine, and spin for ever.
    """
    if not hasattr(os, "sched_getscheduler"):  # Linux alone has it
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def remuxed(source: Path, target: Path, options: dict[str, str] | None = None, *, first: int = 0) -> Path:
    """The same packets in another container, from packet `first` on."""
    with av.open(source) as original, av.open(target, "w", options=options or {}) as copy:
        stream = original.streams.video[0]
        twin = copy.add_stream_from_template(stream)
        for number, packet in enumerate(original.demux(stream)):
            if packet.dts is not None and number >= first:
                packet.stream = twin
                copy.mux(packet)
    return target


def joined(path: Path, *sources: Path) -> Path:
    """One file with the video streams of several."""
    with ExitStack() as stack:
        target = stack.enter_context(av.open(path, "w"))
        inputs = [stack.enter_context(av.open(source)) for source in sources]
        # All streams before the first packet: the header lists them.
        streams = [target.add_stream_from_template(source.streams.video[0]) for source in inputs]
        for source, stream in zip(inputs, streams, strict=True):
            for packet in source.demux(video=0):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
    return path


def audio_only(path: Path) -> Path:
    """Half a second of a tone."""
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        wave = np.sin(np.arange(24_000) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def empty(path: Path) -> Path:
    """No bytes at all."""
    path.write_bytes(b"")
    return path


def text(path: Path) -> Path:
    """Prose under a video's name."""
    path.write_text("This is no video.\nIt only says that it is.\n" * 40)
    return path


def cut(source: Path, target: Path, share: float) -> Path:
    """The first part of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target


def flipped(source: Path, target: Path, *, count: int = 300, after: float = 0.2, seed: int = 0) -> Path:
    """The same file with bytes of its packets flipped, past the first share `after` of them; its headers are whole."""
    data = bytearray(source.read_bytes())
    with av.open(source) as container:
        places = [(p.pos, p.size) for p in container.demux(video=0) if p.size and p.pos is not None]
    places = places[int(len(places) * after) :]
    spots = np.concatenate([np.arange(pos + 16, pos + size) for pos, size in places if size > 16])
    for spot in np.random.default_rng(seed).choice(spots, min(count, len(spots)), replace=False):
        data[spot] ^= 0xFF
    target.write_bytes(data)
    return target


def lying_header(source: Path, target: Path, frames: int = 1_000_000) -> Path:
    """An AVI or MP4 whose headers claim `frames` frames, and a duration to match."""
    data = bytearray(source.read_bytes())
    for tag, offset, order in (
        (b"avih", 24, "little"),
        (b"strh", 40, "little"),
        (b"mvhd", 20, "big"),
        (b"mdhd", 20, "big"),
    ):
        at = data.find(tag)
        if at >= 0:
            value = frames if order == "little" else frames * 512
            data[at + offset : at + offset + 4] = value.to_bytes(4, order)  # type: ignore[arg-type]
    target.write_bytes(data)
    return target


def grow_claim(source: Path, target: Path, table: bytes, frames: int = 1_000_000) -> Path:
    """An MP4 whose table of durations (stts) or of sizes (stsz) claims `frames` frames."""
    data = bytearray(source.read_bytes())
    at = data.find(table) + 12
    data[at : at + 4] = frames.to_bytes(4, "big")
    target.write_bytes(data)
    return target


def turned(path: Path, degrees_clockwise: int, *, mirrored: bool = False, **options: Any) -> Path:
    """A clip that is to be shown turned, or turned and then mirrored left to right. Options as in `clip`."""
    one, cosine, sine = 1 << 16, (1, 0, -1, 0)[degrees_clockwise // 90], (0, 1, 0, -1)[degrees_clockwise // 90]
    a, b, c, d = cosine, sine, -sine, cosine
    if mirrored:
        a, c = -a, -c
    matrix = [a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30]
    return clip(path, **{"frames": 6, "matrix": matrix, **options})


def edited(path: Path, source: Path, *, skipped: int = 7) -> Path:
    """An MP4 with an edit list that starts in the middle of a group of pictures: the frames before it are not shown."""
    remuxed(source, path)
    data = bytearray(path.read_bytes())
    at = data.find(b"elst")
    assert at >= 0, "the muxer wrote no edit list to change"
    assert int.from_bytes(data[at + 8 : at + 12], "big") == 1
    version_one = data[at + 4]
    place, size = (at + 20, 8) if version_one else (at + 16, 4)
    with av.open(source) as container:
        stream = container.streams.video[0]
        assert stream.average_rate
        assert stream.time_base
        step = int(1 / (stream.average_rate * stream.time_base))
    media_time = int.from_bytes(data[place : place + size], "big") + skipped * step
    data[place : place + size] = media_time.to_bytes(size, "big")
    path.write_bytes(data)
    return path


def intra_refresh(path: Path) -> Path:
    """H.264 that refreshes by columns: packets are called key frames although decoding cannot start at them."""
    params = "intra-refresh=1:keyint=12:bframes=0:scenecut=0"
    return clip(path, Encoding("refresh", "libx264", ".mp4", options={"x264-params": params}))


def parameter_change(path: Path) -> Path:
    """H.264 in MPEG-TS whose picture parameters change half way."""

    def part(name: str, qp: str, first: int) -> bytes:
        params = f"bframes=2:keyint=12:qp={qp}:cabac={int(first == 0)}:repeat-headers=1"
        made = clip(
            path.with_name(f"{path.stem}-{name}"),
            Encoding("part", "libx264", ".ts", options={"x264-params": params}, muxing={"mpegts_copyts": "1"}),
            frames=24,
            pts=lambda i: i + first,
        )
        return made.read_bytes()

    path.write_bytes(part("a", "20", 0) + part("b", "30", 30))
    return path
