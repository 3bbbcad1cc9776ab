"""Which pictures of a live stream are due, by their times alone: the first in every interval of 1 / rate seconds."""

import itertools
import math
from collections import deque

__all__ = ["Sampler"]

# Times are rounded by their containers; a picture so little early still opens its interval.
_TICK_S = 2e-3
_REMEMBERED = 32


class Sampler:
    """Chooses pictures at a rate. Begin a new one for every connection, and where its clock goes back.

    Args:
        rate_fps: Pictures a second; None takes every one.
        phase: In [0, 1): after the first picture, the next interval begins so much of an interval later, or a whole one
            at 0. Streams that began at one moment share a machine better where their pictures do not come together.
    """

    def __init__(self, rate_fps: float | None, phase: float = 0.0) -> None:
        assert rate_fps is None or rate_fps > 0
        assert 0 <= phase < 1
        self._rate_fps, self._phase = rate_fps, phase
        self._origin_s: float | None = None
        self._last_s = -math.inf
        self._slot = -1
        self._recent_s: deque[float] = deque(maxlen=_REMEMBERED)
        self._step_s = math.inf

    def anew(self) -> "Sampler":
        """One of the same rate, for a source that set its clock back."""
        return Sampler(self._rate_fps, self._phase)

    def see(self, pts_s: float) -> bool:
        """Hear of a packet before it is decoded.

        Returns:
            Whether its picture may be due: no other comes before it in its interval, so far as is known.
        """
        if self._rate_fps is None:
            return True
        self._learn_step(pts_s)
        if self._origin_s is None or self._step_s == math.inf:
            return True
        return self._slot_of(pts_s - self._step_s) < self._slot_of(pts_s)

    def _learn_step(self, pts_s: float) -> None:
        """The least time between two pictures; packets come out of order."""
        self._recent_s.append(pts_s)
        if len(self._recent_s) < _REMEMBERED // 2:
            return
        ordered = sorted(set(self._recent_s))
        steps = (b - a for a, b in itertools.pairwise(ordered) if b - a > _TICK_S)
        self._step_s = min(steps, default=math.inf)

    def _slot_of(self, pts_s: float) -> int:
        assert self._rate_fps is not None
        assert self._origin_s is not None
        return math.floor((pts_s - self._origin_s + _TICK_S) * self._rate_fps + (1 - self._phase) % 1)

    def take(self, pts_s: float) -> int | None:
        """Hear of a picture that is shown.

        Returns:
            None where it is not due; otherwise how many intervals before it had no picture.
        """
        if pts_s <= self._last_s:
            return None  # damage can bring pictures out of order
        if self._origin_s is None:
            self._origin_s = pts_s
        self._last_s = pts_s
        if self._rate_fps is None:
            return 0
        slot = self._slot_of(pts_s)
        if slot <= self._slot:
            return None
        skipped, self._slot = slot - self._slot - 1, slot
        return skipped
