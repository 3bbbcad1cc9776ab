"""From a live connection's packets to the pictures that are due, and which of them damage may have reached.

Packet loss shows in libav's log and, at times, on no picture at all. So after every complaint all pictures count as
damaged until the next one that stands alone: a superset, and what a damaged face looks like is never taken for a
manipulation.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import av
from av.error import FFmpegError
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from unmask.packets import PacketFlag, packet_parser
from unmask.sampler import Sampler

__all__ = ["Flow", "Picture", "listen", "tells_of_damage"]

# Without pictures that stand alone (intra refresh), damage counts as healed after so long without new damage.
_HEALED_S = 10.0
# A source whose pictures still have no time by then has no clock (MJPEG over HTTP): ours is taken.
_CLOCKLESS_S = 1.0
# libav gives RTSP's first picture no time. It lies before the second as that one before the third, within this.
_FIRST_STEP_S = 1.0
# Damage brings pictures out of order by less; a source that goes back further has set its clock anew.
_CLOCK_BACK_S = 1.0
_DECODERS = frozenset("h264 hevc vp8 vp9 av1 libdav1d mjpeg mpeg4 mpeg2video".split())


class Picture(NamedTuple):
    """A picture that is due: as decoded, and its time on the connection's own clock.

    `is_damaged`: damage may have reached it. `lost`: so many before it were due and did not come out of the decoder.
    """

    frame: VideoFrame
    pts_s: float
    is_damaged: bool
    lost: int


def listen() -> None:
    """Have libav's complaints kept for the thread that causes them, by `av.logging.Capture`. Nothing is printed."""
    log = logging.getLogger("libav")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
        log.propagate = False
    av.logging.set_skip_repeated(False)
    av.logging.set_level(av.logging.WARNING)


def tells_of_damage(level: int, name: str, message: str) -> bool:
    """Whether a line of libav's log says that packets were lost or that a picture is damaged."""
    return (name == "rtsp" and "missed" in message) or (name in _DECODERS and level <= av.logging.ERROR)


class Flow:
    """The pictures of one connection.

    Args:
        stream: Of an open container.
        sampler: Says which are due.
        damage: Whether libav has complained since it was last asked.

    Attributes:
        shown_s: When the last picture came out, by `time.monotonic`.
    """

    def __init__(self, stream: VideoStream, sampler: Sampler, damage: Callable[[], bool]) -> None:
        self._context, self._sampler, self._damage = stream.codec_context, sampler, damage
        self._base_s = float(stream.time_base or 0)
        self._parse = packet_parser(self._context.codec.canonical_name, self._context.extradata or b"")
        self._whole_from_s, self._damaged_s = -math.inf, -math.inf
        self._failed = self._has_clock = False
        self._last_s = -math.inf
        self._first: VideoFrame | None = None
        self._second: tuple[VideoFrame, float] | None = None
        self._began_s = self.shown_s = time.monotonic()

    def decode(self, packet: Any) -> Iterator[Picture]:
        """The pictures that come out after one more packet. An empty packet brings out the rest."""
        damaged = self._damage()  # lost between the last packet and this one
        if packet.size and not self._is_needed(packet):
            if damaged:
                self._note_damage()
            return
        frames, failed = self._decoded(packet)
        self._failed = self._failed or failed
        if self._damage() or damaged or failed or packet.is_corrupt:
            self._note_damage()
        elif packet.size and packet.is_keyframe and self._whole_from_s == math.inf and packet.pts is not None:
            self._whole_from_s = packet.pts * self._base_s
        for frame in frames:
            yield from self._due(frame)

    def _decoded(self, packet: Any) -> tuple[list[VideoFrame], bool]:
        try:
            return self._context.decode(packet if packet.size else None), False
        except (FFmpegError, OSError, ValueError):
            return [], packet.size > 0

    def _is_needed(self, packet: Any) -> bool:
        """Pictures that no other depends on are decoded only where they may be due."""
        if self._parse is None or packet.pts is None:
            return True
        may_be_due = self._sampler.see(packet.pts * self._base_s)
        return may_be_due or not self._parse(bytes(packet)) & PacketFlag.DISPOSABLE

    def _note_damage(self) -> None:
        self._whole_from_s, self._damaged_s = math.inf, time.monotonic()

    def _due(self, frame: VideoFrame) -> Iterator[Picture]:
        self.shown_s = time.monotonic()
        pts_s, is_first = self._pts_s(frame), self._first is None and not self._has_clock
        if pts_s is None:
            self._first = frame if is_first else self._first
        elif self._first is not None and self._has_clock and self._second is None:
            self._second = frame, pts_s
        else:
            yield from self._beginning(pts_s)
            yield from self._at(frame, pts_s)

    def _beginning(self, third_s: float) -> Iterator[Picture]:
        """The pictures that waited until the time of the first could be told."""
        first, second, self._first, self._second = self._first, self._second, None, None
        if first is not None and second is not None:
            step_s = third_s - second[1]
            if 0 < step_s <= _FIRST_STEP_S:
                yield from self._at(first, second[1] - step_s)
            yield from self._at(*second)

    def _at(self, frame: VideoFrame, pts_s: float) -> Iterator[Picture]:
        if pts_s < self._last_s - _CLOCK_BACK_S:
            self._set_back(pts_s)
        self._last_s = max(self._last_s, pts_s)
        if frame.is_corrupt:
            self._note_damage()
        elif self._whole_from_s == math.inf and self.shown_s - self._damaged_s > _HEALED_S:
            self._whole_from_s = -math.inf
        skipped = self._sampler.take(pts_s)
        if skipped is not None:
            lost, self._failed = skipped if self._failed else 0, False
            yield Picture(frame, pts_s, pts_s < self._whole_from_s, lost)

    def _set_back(self, pts_s: float) -> None:
        """The times so far say nothing of those that come."""
        self._sampler, self._last_s = self._sampler.anew(), pts_s
        if math.inf > self._whole_from_s > pts_s + _CLOCK_BACK_S:
            self._whole_from_s = -math.inf

    def _pts_s(self, frame: VideoFrame) -> float | None:
        """When it is shown; None at a connection's beginning, before the source has told the time."""
        if frame.pts is not None and self._base_s:
            self._has_clock = True
            return float(frame.pts * self._base_s)
        since_s = self.shown_s - self._began_s
        return since_s if not self._has_clock and since_s > _CLOCKLESS_S else None
