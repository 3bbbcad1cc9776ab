"""Carrying out a decode plan, packet by packet, and saying which frames are damaged.

A decoder reports damage on the picture that is damaged, not on those predicted from it, and hands pictures out in the
order of presentation, so a B picture leaves before the later picture that it leans on. Therefore: damage in a packet
marks every frame whose own entry lies at or before it, until the next entry; and a frame waits until the reference
pictures decoded before it are out, which is as long as the codec reorders and never longer. A superset is marked; no
damaged frame passes for a sound one where the decoder noticed.
"""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from unmask.container import IndexedStream, OpenVideo, VideoPacket
from unmask.plan import DecodePlan, PacketIndex, Span

__all__ = ["Decoded", "Survey", "decode_first", "decode_plan", "decode_surveyed", "survey"]

SEEK_PAYS_BYTES = 32 * 2**20
"""Below this, reading on costs less than a seek, whose landing place must be looked for."""

_MOST_REORDERED = 16
"""No codec shows a picture more than this many pictures after it was decoded."""


class Decoded(NamedTuple):
    """A wanted frame: its position in presentation order, its picture, and whether it may be damaged."""

    position: int
    frame: VideoFrame
    is_damaged: bool


class _IndexMismatchError(Exception):
    """A packet is not the one that the index says."""


class _Decoder:
    """A stream's decoder, in one thread. What it cannot decode is a fact, not an exception."""

    def __init__(self, video: OpenVideo) -> None:
        self._context = video.stream.codec_context

    def decode(self, packet: VideoPacket) -> tuple[list[VideoFrame], bool]:
        """The frames that come out, and whether the packet is damaged."""
        try:
            return self._context.decode(packet), packet.is_corrupt
        except (FFmpegError, OSError, ValueError):
            return [], True

    def finish(self) -> list[VideoFrame]:
        """The frames still inside. Afterwards decoding can begin anew, at an entry."""
        try:
            return self._context.decode(None)
        except (FFmpegError, OSError, ValueError):
            return []
        finally:
            self._context.flush_buffers()


class _PacketReader:
    """The packets of a stream by number: from memory where they were kept, else from the file, each one checked."""

    def __init__(self, video: OpenVideo, indexed: IndexedStream) -> None:
        self._video, self._index, self._kept = video, indexed.index, indexed.packets
        self._rest = video.packets()
        self._next = 0

    def read(self, span: Span) -> Iterator[tuple[int, VideoPacket]]:
        """Packets [start, stop) with their numbers. Spans are read in ascending order.

        Raises:
            _IndexMismatchError: The file gives other packets than the index.
        """
        if self._kept is not None:
            yield from enumerate(self._kept[span.start : span.stop], span.start)
            return
        if int(self._index.size_P[self._next : span.start].sum()) > SEEK_PAYS_BYTES:
            self._seek(span.start)
        while self._next < span.stop:
            packet = next(self._rest, None)
            if packet is None or not self._is(packet, self._next):
                raise _IndexMismatchError
            self._next += 1
            if self._next > span.start:
                yield self._next - 1, packet

    def _is(self, packet: VideoPacket, number: int) -> bool:
        return bool(packet.size == self._index.size_P[number] and packet.pts == self._index.pts_P[number])

    def _seek(self, number: int) -> None:
        """Go to a packet or a little before it, and find out where that is."""
        try:
            self._video.container.seek(int(self._index.pts_P[number]), stream=self._video.stream)
        except (FFmpegError, OSError) as error:
            raise _IndexMismatchError from error
        self._rest = self._video.packets()
        first = next(self._rest, None)
        landed = [] if first is None else np.flatnonzero(self._index.pts_P[: number + 1] == first.pts).tolist()
        if first is None or len(landed) != 1 or not self._is(first, landed[0]):
            raise _IndexMismatchError
        self._next = landed[0]
        self._rest = _put_back(first, self._rest)


def _put_back(first: VideoPacket, rest: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
    yield first
    yield from rest


@dataclass(slots=True)
class _Held:
    """A wanted frame that waits until every position up to `waits_for` is out."""

    packet: int
    entry: int
    waits_for: int
    frame: VideoFrame
    is_damaged: bool


class _Outlet:
    """Sorts what comes out of the decoder: keeps the wanted frames, and marks those that damage has reached."""

    def __init__(self, index: PacketIndex, wanted: dict[int, int]) -> None:
        self._index, self._wanted = index, wanted
        self._in_flight: dict[int, int] = {}
        self._waits_for: dict[int, int] = {}
        self._held: deque[_Held] = deque()
        self._damaged: list[int] = []
        self._peak = self._out = -1

    def feed(self, packet: int) -> None:
        """The decoder is about to be given this packet."""
        if not self._index.shown_P[packet]:
            return
        self._in_flight[int(self._index.pts_P[packet])] = packet
        if packet in self._wanted:
            self._waits_for[packet] = self._peak
        if not self._index.disposable_P[packet]:
            self._peak = max(self._peak, int(self._index.position_P[packet]))

    def damage(self, packet: int) -> None:
        """This packet is damaged, and what leans on it with it."""
        if not self._index.disposable_P[packet]:
            insort(self._damaged, packet)

    def accept(self, frame: VideoFrame) -> Iterator[Decoded]:
        """A frame came out: yields the wanted frames whose state is now known."""
        packet = None if frame.pts is None else self._in_flight.pop(frame.pts, None)
        if packet is None:
            return
        if frame.is_corrupt:
            self.damage(packet)
        self._out = max(self._out, int(self._index.position_P[packet]))
        if packet in self._wanted:
            waits_for = self._waits_for.pop(packet)
            self._held.append(_Held(packet, self._wanted[packet], waits_for, frame, frame.is_corrupt))
        while self._held and self._held[0].waits_for <= self._out:
            yield self._release(self._held.popleft())

    def finish(self) -> Iterator[Decoded]:
        """Nothing more will come out of this span."""
        while self._held:
            yield self._release(self._held.popleft())
        self._in_flight.clear()
        self._waits_for.clear()
        self._peak = self._out = -1

    def _release(self, held: _Held) -> Decoded:
        at = bisect_left(self._damaged, held.entry)
        reached = at < len(self._damaged) and self._damaged[at] <= held.packet
        return Decoded(int(self._index.position_P[held.packet]), held.frame, held.is_damaged or reached)


def decode_plan(video: OpenVideo, indexed: IndexedStream, plan: DecodePlan) -> Iterator[Decoded]:
    """The plan's frames in presentation order; those that do not come out are left out.

    Ends early where the file gives other packets than the index.

    Args:
        video: Just opened; where the packets were kept it may have been read through, but nothing decoded.
        indexed: Its index.
        plan: What to decode.
    """
    index, decoder, reader = indexed.index, _Decoder(video), _PacketReader(video, indexed)
    positions_T = plan.positions_T[(plan.positions_T >= 0) & (plan.positions_T < index.frames)]
    packets_N = np.unique(index.packet_S[positions_T])
    outlet = _Outlet(index, dict(zip(packets_N.tolist(), index.entries_of(packets_N).tolist(), strict=True)))
    try:
        if plan.spans and plan.spans[0].start > 0:
            # Decoders learn the encoder's build, and the bugs to mimic, from the first packet (x264 4:4:4, DivX).
            for _, packet in reader.read(Span(0, 1)):
                decoder.decode(packet)
                decoder.finish()
        for span in plan.spans:
            yield from _decode_span(decoder, reader, outlet, span, plan.fed_P)
    except _IndexMismatchError:
        return


def _decode_span(
    decoder: _Decoder, reader: _PacketReader, outlet: _Outlet, span: Span, fed_P: NDArray[np.bool_]
) -> Iterator[Decoded]:
    for number, packet in reader.read(span):
        if not fed_P[number]:
            continue
        outlet.feed(number)
        frames, is_damaged = decoder.decode(packet)
        if is_damaged:
            outlet.damage(number)
        for frame in frames:
            yield from outlet.accept(frame)
    for frame in decoder.finish():
        yield from outlet.accept(frame)
    yield from outlet.finish()


def decode_first(video: OpenVideo, indexed: IndexedStream) -> VideoFrame | None:
    """The first frame that can be decoded. Leaves the decoder as if nothing had been."""
    decoder = _Decoder(video)
    for packet in _packets(video, indexed):
        frames = decoder.decode(packet)[0] + decoder.finish()
        if frames:
            return frames[0]
    return None


def _packets(video: OpenVideo, indexed: IndexedStream) -> Iterator[VideoPacket]:
    return video.packets() if indexed.packets is None else iter(indexed.packets)


@dataclass(frozen=True, slots=True, eq=False)
class Survey:
    """What a full decode shows, learnt by decoding once without converting anything.

    Args:
        pts_s_S: float64, presentation times in seconds, ascending. Where the decoder's are not, they are its times
            sorted: containers without presentation times count packets, in decoding order.
        end_s: When the last frame has been shown.
        damaged_S: bool, damaged, or close enough to damage to have been predicted from it.
        pts_S: int64, the decoder's time stamps in the order of the frames; empty where one is missing.
    """

    pts_s_S: NDArray[np.float64]
    end_s: float
    damaged_S: NDArray[np.bool_]
    pts_S: NDArray[np.int64]


def _decode_all(video: OpenVideo, indexed: IndexedStream) -> Iterator[tuple[VideoFrame | None, bool]]:
    """Every frame, as a full decode gives them; None with True where a packet failed."""
    decoder = _Decoder(video)
    for packet in _packets(video, indexed):
        frames, is_damaged = decoder.decode(packet)
        if is_damaged:
            yield None, True
        for frame in frames:
            yield frame, frame.is_corrupt
    for frame in decoder.finish():
        yield frame, frame.is_corrupt


def survey(video: OpenVideo, indexed: IndexedStream) -> Survey:
    """Decode a video just opened, from end to end, and note what it shows."""
    pts: list[int | None] = []
    keys: list[int] = []
    damage: list[int] = []
    for frame, is_damaged in _decode_all(video, indexed):
        if is_damaged:
            damage.append(len(pts))
        if frame is not None:
            if frame.key_frame and not is_damaged:
                keys.append(len(pts))
            pts.append(frame.pts)
    stream = video.stream
    time_base = stream.time_base
    if time_base is None or None in pts or len(set(pts)) != len(pts):
        rate = float(stream.average_rate or stream.guessed_rate or 25)
        pts_S, pts_s_S = np.zeros(0, np.int64), np.arange(len(pts)) / rate
    else:
        pts_S = np.array(pts, np.int64)
        pts_s_S = np.sort(pts_S).astype(np.float64) * time_base.numerator / time_base.denominator
    gap_s = float(np.median(np.diff(pts_s_S))) if len(pts) > 1 else 1.0 / float(stream.average_rate or 25)
    end_s = float(pts_s_S[-1]) + gap_s if len(pts) else 0.0
    return Survey(pts_s_S, end_s, _reached(damage, keys, len(pts)), pts_S)


def _reached(damage: list[int], keys: list[int], frames: int) -> NDArray[np.bool_]:
    """Which frames damage may have reached: from a reordering before it to the key frame after it."""
    damaged_S = np.zeros(frames, np.bool_)
    for position in damage:
        after = bisect_left(keys, position + 1)
        damaged_S[max(0, position - _MOST_REORDERED) : keys[after] if after < len(keys) else frames] = True
    return damaged_S


def decode_surveyed(video: OpenVideo, indexed: IndexedStream, surveyed: Survey, wanted: set[int]) -> Iterator[Decoded]:
    """The wanted positions of a video just opened, by decoding everything up to the last of them again."""
    position = 0
    last = max(wanted, default=-1)
    for frame, _ in _decode_all(video, indexed):
        if position > last:
            return
        if frame is not None:
            if position in wanted:
                yield Decoded(position, frame, bool(surveyed.damaged_S[position]))
            position += 1
