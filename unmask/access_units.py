"""H.264 that comes one access unit at a time, without a container: the picture of each unit, or why there is none.

Every unit is answered once. Pictures come in the order of presentation, later than their units where the encoder
reorders them. A unit that is damaged, and every one that may depend on it, is answered as such up to the next picture
that stands alone: what a damaged face looks like is never taken for a manipulation.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import av
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from unmask.errors import Reason
from unmask.flow import listen, tells_of_damage
from unmask.frame_numbers import FrameNumbers
from unmask.packets import PacketFlag, packet_parser

__all__ = ["AccessUnits", "UnitPicture", "is_annex_b"]

# No encoder for live pictures holds back more; a unit that is overtaken by so many is given up.
_MOST_HELD = 6
_START_CODES = (b"\0\0\1", b"\0\0\0\1")


class UnitPicture(NamedTuple):
    """What became of one unit: its time and when it came (`time.monotonic`), and a picture or the reason for none."""

    pts_s: float
    arrived_s: float
    frame: VideoFrame | None
    reason: Reason | None


@dataclass(slots=True)
class _Unit:
    pts_s: float
    arrived_s: float
    is_damaged: bool


def is_annex_b(data: bytes) -> bool:
    """Whether bytes begin with a start code of H.264, Annex B, which no picture file does."""
    return data.startswith(_START_CODES)


class AccessUnits:
    """Decodes H.264 in the byte stream format of ITU-T H.264, Annex B. For one thread at a time.

    Parameter sets lie in the units before whose pictures they are needed. They may change at any picture that stands
    alone, and the size of the pictures with them.

    Args:
        most_pixels: Larger pictures are not decoded.
    """

    def __init__(self, most_pixels: int) -> None:
        listen()
        codec = av.CodecContext.create("h264", "r")
        assert isinstance(codec, VideoCodecContext)
        codec.thread_count = 1
        codec.options = {"max_pixels": str(most_pixels)}
        parse = packet_parser("h264", b"")
        assert parse is not None
        self._codec, self._parse, self._numbers = codec, parse, FrameNumbers()
        self._held: dict[int, _Unit] = {}
        self._number = 0
        self._is_damaged = True  # nothing stands alone yet

    def decode(self, data: bytes, pts_s: float) -> Iterator[UnitPicture]:
        """Take the next unit, in the order of decoding.

        Args:
            data: The unit, with a start code before each part.
            pts_s: When its picture is shown, in seconds.

        Yields:
            What became of it and of earlier ones, as far as is known now.
        """
        number, self._number = self._number, self._number + 1
        follows = self._numbers.follows(data)
        self._is_damaged = (self._is_damaged or not follows) and not self._parse(data) & PacketFlag.ENTRY
        self._held[number] = _Unit(pts_s, time.monotonic(), self._is_damaged)
        frames, failed, complained = self._fed(data, number)
        if failed or complained:
            self._is_damaged = self._held[number].is_damaged = True
        for frame in frames:
            yield from self._shown(frame)
        if failed and number in self._held:
            yield self._given_up(number, Reason.MEDIA_UNREADABLE)
        elif len(self._held) > _MOST_HELD:
            yield self._given_up(next(iter(self._held)), Reason.DECODE_FAILED)

    def flush(self) -> Iterator[UnitPicture]:
        """No more units come for now: answer all that are held. The next one must stand alone."""
        frames, _, _ = self._fed(None, self._number)
        for frame in frames:
            yield from self._shown(frame)
        for number in list(self._held):
            yield self._given_up(number, Reason.DECODE_FAILED)
        self._codec.flush_buffers()
        self._is_damaged = True

    def _fed(self, data: bytes | None, number: int) -> tuple[list[VideoFrame], bool, bool]:
        """Pictures that come out, whether decoding failed, and whether libav tells of damage."""
        packet = None
        if data is not None:
            packet = av.Packet(data)
            packet.pts = packet.dts = number
        with av.logging.Capture(local=True) as said:
            try:
                frames, failed = self._codec.decode(packet), False
            except (FFmpegError, OSError, ValueError):
                frames, failed = [], True
        return frames, failed, any(tells_of_damage(*entry) for entry in said)

    def _shown(self, frame: VideoFrame) -> Iterator[UnitPicture]:
        unit = self._held.pop(frame.pts, None) if frame.pts is not None else None
        if unit is None:  # it was given up
            return
        for number in [number for number, other in self._held.items() if other.pts_s < unit.pts_s]:
            yield self._given_up(number, Reason.DECODE_FAILED)
        if unit.is_damaged or frame.is_corrupt:
            yield UnitPicture(unit.pts_s, unit.arrived_s, None, Reason.CORRUPT_FRAME)
        else:
            yield UnitPicture(unit.pts_s, unit.arrived_s, frame, None)

    def _given_up(self, number: int, reason: Reason) -> UnitPicture:
        unit = self._held.pop(number)
        return UnitPicture(unit.pts_s, unit.arrived_s, None, reason)
