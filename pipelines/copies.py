"""Re-encoded copies of videos, as a platform would serve them: H.264 at a constant rate factor (CRF).

What step 6 of the DFDC winner's preprocessing asks of `ffmpeg -c:v libx264 -crf 28`, with PyAV's encoder, and with
these things kept exactly: the frames and their presentation times (also at a variable rate), the size of the picture,
how it is turned for display, the shape of its pixels, its colour tags, and the sound, which is not encoded again.
A video goes through frame by frame, in one thread.
"""

from array import array
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, Literal, TypeAlias

import av
import cv2
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.sidedata.sidedata import Type
from av.stream import Discard
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from unmask.atomic import replacing
from unmask.container import OpenVideo, read_index
from unmask.decoding import Survey, survey
from unmask.errors import MediaError, Reason, StorageError, UsageError

__all__ = ["CRFS", "CopyInfo", "compress"]

CRFS = (23, 28, 32)
"""The DFDC winner's."""

_RETRIES = 8
_FULL_RANGE = {"yuvj420p", "yuvj422p", "yuvj444p", "yuvj440p", "yuvj411p"}
_SMPTE170M, _LIMITED = 6, 1
_PRESETS = "ultrafast superfast veryfast faster fast medium slow slower veryslow placebo".split()

AnyPacket: TypeAlias = "Packet[Any]"

# x264's code for AVX-512 gives other bytes from run to run (2 files of 12 runs; 1 with the code for AVX2).
_AVX512F = 13  # in OpenCV's numbers
_REPEATABLE = {"x264-params": "asm=avx2"} if cv2.checkHardwareSupport(_AVX512F) else {}


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyInfo:
    """What a copy holds.

    Args:
        frames: Frames in it.
        lost: Frames that the source's index names and that could not be decoded: the copy goes on without them.
        corrupt: Frames in it whose source the decoder called damaged.
        size_bytes: Of the copy.
        audio: What became of the sound: copied as it was, dropped since MP4 cannot hold it, or there was none.
        notes: What differs from the source beyond the encoding, a sentence each.
    """

    frames: int
    lost: int
    corrupt: int
    size_bytes: int
    audio: Literal["copied", "dropped", "none"]
    notes: tuple[str, ...] = ()


def compress(source: Path, target: Path, crf: int, *, preset: str = "medium") -> CopyInfo:
    """Encode a video again with x264.

    Args:
        source: Any video that `VideoReader` reads.
        target: The MP4 to write; it is there when it is whole, and else what was there before.
        crf: x264's constant rate factor, 0 (lossless) to 51; 23, 28 and 32 are the DFDC winner's.
        preset: x264's trade of time for size.

    Raises:
        MediaError: The source cannot be opened or holds no frame that can be decoded; reasons as of `VideoReader`.
        StorageError: The target cannot be written.
        UsageError: crf or preset is none of x264's.
    """
    if not 0 <= crf <= 51:
        raise UsageError(f"crf is {crf}; x264 takes 0 (lossless) to 51 (worst).")
    if preset not in _PRESETS:
        raise UsageError(f"preset is {preset!r}; x264 has {', '.join(_PRESETS)}.")
    clock = _Clock.of(source)
    try:
        with replacing(target) as beside:
            with OpenVideo(source) as video:
                copy = _Copy(video, clock, {"crf": str(crf), "preset": preset, "threads": "1", **_REPEATABLE})
                copy.write(beside)
            if copy.frames == 0:
                raise MediaError(Reason.NO_FRAMES, f"{source} holds no frame that can be decoded; fetch it again")
            size_bytes = beside.stat().st_size
    except (FFmpegError, OSError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"{target} cannot be written ({cause}); check the place, its space and your rights.") from (
            error
        )
    return CopyInfo(
        frames=copy.frames,
        lost=max(clock.frames - copy.frames, 0),
        corrupt=copy.corrupt,
        size_bytes=size_bytes,
        audio=copy.audio,
        notes=tuple(copy.notes),
    )


@dataclass(frozen=True, slots=True)
class _Clock:
    """When each frame is shown. Where time stamps cannot be trusted, a survey has decoded the video once to learn it.

    Args:
        time_base: Seconds a tick.
        frames: How many the file names, those past its end too.
        pts: The ticks of each decoded frame in order; None to take them from the frames.
    """

    time_base: Fraction
    frames: int
    pts: "array[int] | None" = None

    @classmethod
    def of(cls, source: Path) -> "_Clock":
        with OpenVideo(source) as video:
            indexed = read_index(video)
            index, time_base = indexed.index, video.stream.time_base or Fraction(1, 1)
            rate = video.stream.average_rate or video.stream.guessed_rate or Fraction(25)
            if indexed.is_trusted:
                return cls(time_base, index.frames + len(index.lost_pts_L))
        with OpenVideo(source) as video:
            surveyed = survey(video, indexed)
        return cls._surveyed(surveyed, time_base, rate)

    @classmethod
    def _surveyed(cls, surveyed: Survey, time_base: Fraction, rate: Fraction) -> "_Clock":
        if len(surveyed.pts_S):
            return cls(time_base, len(surveyed.pts_S), array("q", np.sort(surveyed.pts_S).tolist()))
        return cls(1 / rate, len(surveyed.pts_s_S), array("q", range(len(surveyed.pts_s_S))))

    def tick(self, number: int, frame: VideoFrame) -> int | None:
        """When the decoder's frame of this number is shown."""
        if self.pts is None:
            return frame.pts
        return self.pts[number] if number < len(self.pts) else None


class _Copy:
    """One copy being made."""

    def __init__(self, video: OpenVideo, clock: _Clock, options: dict[str, str]) -> None:
        self.frames = self.corrupt = 0
        self.notes: dict[str, None] = {}  # in order, each once
        self.audio: Literal["copied", "dropped", "none"] = "none"
        self._video, self._clock, self._options = video, clock, options
        self._sound = next(iter(video.container.streams.audio), None)
        self._number, self._last_tick, self._size = 0, -(2**63), (0, 0)
        self._to_format = VideoReformatter()

    def write(self, path: Path) -> None:
        """Write all of it to a path whose name need not say that it is an MP4; nothing where no frame comes out."""
        if self._sound is not None:
            self.audio = "copied" if _fits(self._sound) else "dropped"
            self._sound = self._sound if self.audio == "copied" else None
        events = self._events()
        early: list[AnyPacket] = []
        first: VideoFrame | None = None
        # The first frame tells what the container does not: how it is turned, and its colours.
        for event in events:
            if isinstance(event, VideoFrame):
                first = event
                break
            early.append(event)
        if first is None:
            return
        # A start that is not at 0 is kept in units of the movie's own clock, which are milliseconds by default.
        options = {"movie_timescale": str(self._clock.time_base.denominator)}
        with closing(av.open(str(path), "w", format="mp4", container_options=options)) as target:
            stream = self._video_stream(target, first)
            sound = _SoundTrack(target, self._sound)
            for event in chain(early, [first], events):
                if isinstance(event, VideoFrame):
                    self._encode(target, stream, event)
                else:
                    sound.add(event)
            target.mux(stream.encode(None))
        if sound.left_out:
            self.notes[f"{sound.left_out} packets of sound without a usable time are left out."] = None

    def _events(self) -> Iterator["VideoFrame | AnyPacket"]:
        """Decoded frames and packets of sound, as they come out of the file."""
        for packet in _packets(self._video, self._sound):
            if packet.stream.index == self._video.stream.index:
                yield from self._decoded(packet)
            else:
                yield packet
        yield from self._decoded(None)

    def _decoded(self, packet: "AnyPacket | None") -> list[VideoFrame]:
        try:
            return self._video.stream.codec_context.decode(packet)
        except (FFmpegError, OSError, ValueError):
            return []  # its frames will be missing from the count

    def _video_stream(self, target: OutputContainer, first: VideoFrame) -> VideoStream:
        """The copy's video stream, as much like the source's as H.264 allows."""
        source, clock = self._video.stream, self._clock
        is_interlaced = {"flags": "+ildct+ilme"} if first.interlaced_frame else {}
        rate = source.average_rate or source.guessed_rate or Fraction(25)
        stream = target.add_stream("libx264", rate=rate, options={**self._options, **is_interlaced})
        side_data: Any = first.side_data  # a mapping by type, which PyAV's stubs do not say
        matrix = side_data.get(Type.DISPLAYMATRIX)
        if matrix is not None:
            stream.set_display_matrix(np.frombuffer(bytes(matrix), np.int32, 9).tolist())
        context = stream.codec_context
        context.width, context.height = first.width + first.width % 2, first.height + first.height % 2
        if (context.width, context.height) != (first.width, first.height):
            became = f"{first.width} x {first.height} pixels became {context.width} x {context.height}"
            self.notes[f"{became}: H.264 needs even sides."] = None
        context.pix_fmt = "yuvj420p" if first.format.name in _FULL_RANGE else "yuv420p"
        context.time_base, context.thread_count = clock.time_base, 1
        if source.sample_aspect_ratio:
            context.sample_aspect_ratio = source.sample_aspect_ratio
        if first.format.is_rgb:
            context.colorspace, context.color_range = _SMPTE170M, _LIMITED  # what libswscale makes of RGB
        else:
            context.colorspace, context.color_range = int(first.colorspace), int(first.color_range)
        context.color_primaries, context.color_trc = int(first.color_primaries), int(first.color_trc)
        self._size = (first.width, first.height)
        return stream

    def _encode(self, target: OutputContainer, stream: VideoStream, frame: VideoFrame) -> None:
        tick = self._clock.tick(self._number, frame)
        self._number += 1
        if tick is None or tick <= self._last_tick:
            return  # of a damaged packet
        self._last_tick = tick
        self.frames += 1
        self.corrupt += frame.is_corrupt
        if (frame.width, frame.height) != self._size:
            self.notes[f"Frames of another size are scaled to the first one's, {self._size[0]} x {self._size[1]}."] = (
                None
            )
        width, height = self._size
        fitted = self._to_format.reformat(frame, width, height, format=stream.codec_context.pix_fmt, threads=1)
        fitted = _with_even_sides(fitted)
        fitted.pts, fitted.time_base = tick, self._clock.time_base
        fitted.pict_type = 0  # the source's would be forced on the encoder
        target.mux(stream.encode(fitted))


class _SoundTrack:
    """Packets of sound as they were, in the order of their time."""

    def __init__(self, target: OutputContainer, source: AudioStream | None) -> None:
        self._target = target
        self._stream = None if source is None else target.add_stream_from_template(source)
        self._last_dts = -(2**63)
        self.left_out = 0

    def add(self, packet: AnyPacket) -> None:
        if packet.size == 0:
            return  # marks the end
        if packet.dts is None or packet.dts <= self._last_dts:
            self.left_out += 1
            return
        self._last_dts = packet.dts
        packet.stream = self._stream
        self._target.mux(packet)


def _fits(sound: AudioStream) -> bool:
    """Whether an MP4 can hold it."""
    try:
        with av.open(BytesIO(), "w", format="mp4") as trial:
            trial.add_stream_from_template(sound)
            trial.start_encoding()
    except (FFmpegError, ValueError, OSError):
        return False
    return True


def _packets(video: OpenVideo, sound: AudioStream | None) -> Iterator[AnyPacket]:
    """The packets of both streams in the order of the file. Damage is passed over where the demuxer can."""
    streams: list[VideoStream | AudioStream] = [video.stream]
    if sound is not None:
        sound.discard = Discard.default
        streams.append(sound)
    failures = 0
    while failures < _RETRIES:
        try:
            for packet in video.container.demux(*streams):
                if packet.size > 0:
                    failures = 0
                    yield packet
            return
        except (FFmpegError, OSError):
            failures += 1


def _with_even_sides(frame: VideoFrame) -> VideoFrame:
    """The frame with its last column and row repeated where it has an odd number of them, as 4:2:0 needs."""
    width, height = frame.width + frame.width % 2, frame.height + frame.height % 2
    if (width, height) == (frame.width, frame.height):
        return frame
    grown = VideoFrame(width, height, frame.format.name)
    for plane, into in zip(frame.planes, grown.planes, strict=True):
        held, room = (np.frombuffer(p, np.uint8).reshape(-1, p.line_size) for p in (plane, into))  # type: ignore[call-overload]
        pixels = held[: plane.height, : plane.width]
        more = ((0, into.height - plane.height), (0, into.width - plane.width))
        room[: into.height, : into.width] = np.pad(pixels, more, mode="edge")
    return grown
