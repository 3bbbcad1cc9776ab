"""Which frames of a video are wanted, and which of its packets must be decoded to get them.

Pure functions over a packet index: nothing here opens a file. Axes: P packets in the order of the file (decoding
order), S frames shown in order of presentation (a *position* is an index into S), L packets that the container names
and the file no longer holds, T targets.

A frame can be decoded once everything since the last *entry* has been: a packet where the bitstream starts afresh. A
frame that is shown before its entry but stored after it (the leading pictures of an open GOP) leans on the entry
before. So each target needs the stretch from its own entry to itself; stretches that meet are joined; and within a
stretch the packets that no other picture depends on are left out unless they are targets themselves. Leaving out
non-reference pictures is bit exact; leaving out all B pictures is not (H.264 predicts from them too).
"""

import math
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from unmask.errors import UsageError

__all__ = ["DecodePlan", "PacketIndex", "Sampling", "Span", "is_dense", "linear_plan", "make_plan"]

# Frames at most this far apart are followed: a face moves little in that time.
_FOLLOW_STEP_S = 0.12
_TOLERANCE_S = 1e-6
"""A time given in decimal seconds may miss the time stamp that it was printed from by this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Which frames are wanted. At most one field is set; with none, every frame is.

    Args:
        frames: This many, evenly spread: one from about the middle of each of as many equal slices of the frames
            shown, by position. All of them where the video has fewer.
        rate_fps: The frame that is shown at the first time stamp, and every 1 / rate_fps seconds after it.
        every: The frames at positions 0, k, 2k, ...
        times_s: The frames shown at these presentation times, in ascending order; one answer a time.

    Raises:
        UsageError: More than one field is set, or a value is out of its range.
    """

    frames: int | None = None
    rate_fps: float | None = None
    every: int | None = None
    times_s: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("frames", "rate_fps", "every", "times_s") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(f"choose one way to sample frames; got {' and '.join(given)}")
        for option, count in (("--frames", self.frames), ("--every", self.every)):
            if count is not None and (isinstance(count, bool) or int(count) != count or count < 1):
                raise UsageError(f"{option} must be at least 1; got {count}")
        if self.rate_fps is not None and not (math.isfinite(self.rate_fps) and self.rate_fps > 0):
            raise UsageError(f"--fps must be above 0; got {self.rate_fps}")
        if self.times_s is not None and not all(math.isfinite(time_s) for time_s in self.times_s):
            raise UsageError(f"presentation times must be finite numbers of seconds; got {self.times_s}")

    def positions(
        self, pts_s_S: NDArray[np.float64], end_s: float, references_R: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The wanted positions and times, both (T,), ascending.

        Args:
            pts_s_S: When each frame is first shown, in seconds, ascending.
            end_s: When the last one has been shown: frames are shown over [pts_s, next pts_s).
            references_R: Ascending positions of pictures that others are predicted from, and that are decoded anyway.
                Evenly spread frames are taken from these where one lies at most a quarter of a slice from its middle.

        Returns:
            Positions, -1 where nothing is shown at a time that was asked for; and the frames' times, or where there is
            no frame the time that was asked for.
        """
        shown = len(pts_s_S)
        if self.times_s is not None:
            wanted_s = np.sort(np.asarray(self.times_s, np.float64))
            positions = np.searchsorted(pts_s_S, wanted_s + _TOLERANCE_S, side="right") - 1
            positions = np.where(wanted_s < end_s, positions, -1).astype(np.int64)
            return positions, np.where(positions >= 0, pts_s_S[positions] if shown else wanted_s, wanted_s)
        if self.frames is not None:
            slices = np.arange(min(self.frames, shown), dtype=np.int64)
            positions = (2 * slices + 1) * shown // (2 * max(len(slices), 1))
            if references_R is not None and len(references_R) and shown:
                positions = _nearest(positions, references_R, within=shown / (4 * len(slices)))
        elif self.rate_fps is not None and shown:
            bounds_s = np.append(pts_s_S, max(end_s, pts_s_S[-1] + 2 * _TOLERANCE_S)) - pts_s_S[0]
            ticks = np.ceil((bounds_s - _TOLERANCE_S) * self.rate_fps)  # the first tick at or after each bound
            positions = np.flatnonzero(np.diff(ticks) > 0).astype(np.int64)
        else:
            positions = np.arange(0, shown, self.every or 1, dtype=np.int64)
        return positions, pts_s_S[positions]


def _nearest(positions_T: NDArray[np.int64], others_R: NDArray[np.int64], within: float) -> NDArray[np.int64]:
    """For each position the nearest of the others, the earlier of two; itself where none is near enough."""
    after = np.searchsorted(others_R, positions_T)
    candidates_2T = np.stack([others_R[np.maximum(after - 1, 0)], others_R[np.minimum(after, len(others_R) - 1)]])
    away_2T = np.abs(candidates_2T - positions_T)
    nearest_T = np.take_along_axis(candidates_2T, away_2T.argmin(0)[None], 0)[0]
    return np.where(away_2T.min(0) <= within, nearest_T, positions_T)


def is_dense(times_s_T: NDArray[np.float64]) -> bool:
    """Whether frames at these times, (T,) ascending, lie so close together that faces are followed through them."""
    return len(times_s_T) > 1 and float(np.median(np.diff(times_s_T))) <= _FOLLOW_STEP_S


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PacketIndex:
    """The packets of a video stream, in the order of the file, and the order in which their frames are shown.

    Args:
        pts_P: int64, presentation time stamps in units of `time_base`.
        size_P: int64, bytes.
        entry_P: bool, decoding can start here. The first packet always counts as one.
        disposable_P: bool, no other picture is predicted from this one.
        shown_P: bool, a frame is shown for it (not cut off by an edit list, not hidden).
        lost_pts_L: int64, time stamps of packets that the container names and the file, cut short, does not hold.
        last_duration: How long the last frame is shown, in units of `time_base`; 0 where the file does not say.
        time_base: Seconds a unit.

    Attributes:
        packet_S: int64, the packet of each frame shown.
        position_P: int64, the position of each packet's frame; -1 where none is shown.
        pts_s_S: float64, when each frame is first shown, in seconds; those of the lost packets at the end.
        end_s: When the last frame has been shown.
    """

    pts_P: NDArray[np.int64]
    size_P: NDArray[np.int64]
    entry_P: NDArray[np.bool_]
    disposable_P: NDArray[np.bool_]
    shown_P: NDArray[np.bool_]
    time_base: Fraction
    lost_pts_L: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    last_duration: int = 0
    packet_S: NDArray[np.int64] = field(init=False)
    position_P: NDArray[np.int64] = field(init=False)
    pts_s_S: NDArray[np.float64] = field(init=False)
    end_s: float = field(init=False)

    def __post_init__(self) -> None:
        lengths = {len(a) for a in (self.pts_P, self.size_P, self.entry_P, self.disposable_P, self.shown_P)}
        if len(lengths) != 1:
            raise ValueError(f"the arrays of a packet index have one length; got {sorted(lengths)}")
        shown = np.flatnonzero(self.shown_P)
        packet_S = shown[np.argsort(self.pts_P[shown], kind="stable")]
        position_P = np.full(len(self.pts_P), -1, np.int64)
        position_P[packet_S] = np.arange(len(packet_S))
        pts_S = np.concatenate([self.pts_P[packet_S], self.lost_pts_L])
        # In floats and in this order, as PyAV computes `frame.time`.
        pts_s_S = pts_S.astype(np.float64) * self.time_base.numerator / self.time_base.denominator
        object.__setattr__(self, "packet_S", packet_S)
        object.__setattr__(self, "position_P", position_P)
        object.__setattr__(self, "pts_s_S", pts_s_S)
        object.__setattr__(self, "end_s", self._end_s(pts_S))

    def _end_s(self, pts_S: NDArray[np.int64]) -> float:
        if not len(pts_S):
            return 0.0
        last = self.last_duration or (int(np.median(np.diff(pts_S))) if len(pts_S) > 1 else 0)
        return float((int(pts_S[-1]) + max(last, 1)) * self.time_base)

    def __len__(self) -> int:
        return len(self.pts_P)

    def __repr__(self) -> str:
        return f"PacketIndex(packets={len(self)}, frames={self.frames}, lost={len(self.lost_pts_L)})"

    @property
    def frames(self) -> int:
        """How many frames the packets in the file show."""
        return len(self.packet_S)

    @property
    def has_unique_times(self) -> bool:
        """Whether a time stamp names one frame."""
        return not len(self.packet_S) or bool(np.all(np.diff(self.pts_P[self.packet_S]) > 0))

    def positions(self, sampling: Sampling) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The positions and times that `sampling` wants of this video; see `Sampling.positions`."""
        return sampling.positions(self.pts_s_S, self.end_s, np.flatnonzero(~self.disposable_P[self.packet_S]))

    def entries_of(self, packets_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The packets at which decoding must start for these packets' frames to be exact, (N,)."""
        entry_P = self.entry_P.copy()
        entry_P[:1] = True
        entries = np.flatnonzero(entry_P)
        which_N = np.searchsorted(entries, packets_N, side="right") - 1
        while True:
            leading_N = (self.pts_P[packets_N] < self.pts_P[entries[which_N]]) & (which_N > 0)
            if not leading_N.any():
                return entries[which_N]
            which_N = which_N - leading_N


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of packets, [start, stop), that is decoded in one go, from an entry."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DecodePlan:
    """What to decode for the wanted frames.

    Args:
        positions_T: int64, ascending; -1 where nothing is shown at a time that was asked for.
        times_s_T: float64, the frames' presentation times in seconds.
        spans: What is decoded, in the order of the file.
        fed_P: bool, the packets that the decoder is given.
        cost: Their share of the video's bytes, from 0 to 1.
    """

    positions_T: NDArray[np.int64]
    times_s_T: NDArray[np.float64]
    spans: tuple[Span, ...]
    fed_P: NDArray[np.bool_]
    cost: float

    def __len__(self) -> int:
        return len(self.positions_T)


def make_plan(index: PacketIndex, sampling: Sampling) -> DecodePlan:
    """The least that has to be decoded for the frames that `sampling` wants."""
    positions_T, times_s_T = index.positions(sampling)
    present_T = (positions_T >= 0) & (positions_T < index.frames)
    packets_N = np.unique(index.packet_S[positions_T[present_T]])
    fed_P = np.zeros(len(index), np.bool_)
    spans = _spans(index.entries_of(packets_N), packets_N)
    for span in spans:
        fed_P[span.start : span.stop] = True
        if span.start > 0:  # leading pictures lean on what is not decoded here
            fed_P[span.start : span.stop] &= index.pts_P[span.start : span.stop] >= index.pts_P[span.start]
    fed_P &= ~index.disposable_P
    fed_P[packets_N] = True
    cost = float(index.size_P[fed_P].sum() / max(int(index.size_P.sum()), 1))
    return DecodePlan(positions_T=positions_T, times_s_T=times_s_T, spans=spans, fed_P=fed_P, cost=cost)


def linear_plan(index: PacketIndex, positions_T: NDArray[np.int64], times_s_T: NDArray[np.float64]) -> DecodePlan:
    """Every packet from the first to the last target's, as a full decode takes them."""
    return DecodePlan(
        positions_T=positions_T,
        times_s_T=times_s_T,
        spans=(Span(0, len(index)),),
        fed_P=np.ones(len(index), np.bool_),
        cost=1.0,
    )


def _spans(entries_N: NDArray[np.int64], packets_N: NDArray[np.int64]) -> tuple[Span, ...]:
    """The stretches [entry, packet], joined where they meet."""
    spans: list[Span] = []
    order = np.lexsort((packets_N, entries_N))
    for start, last in zip(entries_N[order].tolist(), packets_N[order].tolist(), strict=True):
        if spans and start <= spans[-1].stop:
            spans[-1] = Span(spans[-1].start, max(spans[-1].stop, last + 1))
        else:
            spans.append(Span(start, last + 1))
    return tuple(spans)
