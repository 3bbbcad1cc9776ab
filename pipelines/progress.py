"""What the driver of a run knows of it: counts, rates, the time left.

A `Receipt` comes for each batch of work that was committed. `Progress` adds them up, in memory that does not grow with
the number of videos; `summary` says at the end what the run came to.
"""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Progress", "Receipt", "Stage", "summary"]

# What a stage's items are, where they are not frames that were asked for.
_UNITS: Mapping[str, str] = {"crop": "faces", "embed": "faces"}
# Current rates are means over the last minute, remembered in twelve parts.
_PART_S, _PARTS = 5.0, 12
# The time left is unknown before so many videos have taken so long.
_BASE_VIDEOS, _BASE_S = 4, 5.0
# The pace of the last third of the run counts most, but not of less than a minute, nor of more than half an hour, ...
_SHARE, _SHORTEST_S, _LONGEST_S = 1 / 3, 60.0, 1800.0
# ... unless fewer than so many videos fall into that.
_MEMORY_VIDEOS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What one committed batch of frames, or group of outcomes, came to.

    Raises:
        ValueError: A count is negative, or more frames were dropped than were answered.
    """

    frames: int = 0
    """Frames that were asked for and are answered now, the dropped ones among them."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Of these, how many could not be looked at, by reason."""
    faces: int = 0
    """Faces in the others."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Seconds of work by stage: decode, detect, crop, embed, commit."""

    def __post_init__(self) -> None:
        if min(self.frames, self.faces, *self.dropped.values(), *self.seconds.values()) < 0:
            raise ValueError(f"a receipt counts from 0; got {self}")
        if sum(self.dropped.values()) > self.frames:
            raise ValueError(f"a receipt drops no more frames than it answers; got {self}")

    @property
    def decoded(self) -> int:
        """Frames that could be looked at."""
        return self.frames - sum(self.dropped.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How far a stage is, and how fast."""

    name: str
    unit: str
    """What its items are: frames or faces."""
    items: int
    busy_s: float
    """Seconds of work so far, of all its workers together."""
    items_per_s: float | None
    """Over the last minute by the clock; None where that is not known yet."""
    workers: float | None
    """How many of its workers were at work at a time, over the last minute."""


class _Window:
    """Items and seconds of work of the last minute. The first entry only says when it began."""

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._parts: deque[tuple[int, int, float]] = deque()  # number of the part, items, seconds of work

    def add(self, now_s: float, items: int, busy_s: float) -> None:
        part = self._part(now_s)
        if self._parts and self._parts[-1][0] == part:
            _, items_before, busy_before = self._parts.pop()
            items, busy_s = items + items_before, busy_s + busy_before
        self._parts.append((part, items, busy_s))
        while self._parts[0][0] < part - _PARTS:
            self._parts.popleft()

    def rates(self, now_s: float) -> tuple[float | None, float | None]:
        """Items, and seconds of work, a second."""
        age_s = now_s - self._since_s
        if age_s < 1.0:
            return None, None
        # From the start of the oldest part that still counts.
        oldest = max(0, self._part(now_s) - _PARTS)
        span_s = age_s - oldest * _PART_S
        recent = [(items, busy_s) for part, items, busy_s in self._parts if part >= oldest]
        return sum(n for n, _ in recent) / span_s, sum(busy_s for _, busy_s in recent) / span_s

    def _part(self, now_s: float) -> int:
        return int((now_s - self._since_s) // _PART_S)


class _Pace:
    """Videos a second, the recent past weighing most: an exponentially weighted mean, unbiased from its start."""

    def __init__(self, now_s: float) -> None:
        self._since_s = self._last_s = now_s
        self._videos = 0
        self._weighted_videos = self._weighted_s = 0.0

    def finish(self, now_s: float) -> None:
        self._weighted_videos, self._weighted_s = self._decayed(now_s)
        self._weighted_videos += 1.0
        self._videos += 1
        self._last_s = now_s

    def videos_per_s(self, now_s: float) -> float | None:
        """None while there is too little to go by. Falls while nothing comes."""
        if self._videos < _BASE_VIDEOS or now_s - self._since_s < _BASE_S:
            return None
        videos, seconds = self._decayed(now_s)
        return videos / seconds

    def _decayed(self, now_s: float) -> tuple[float, float]:
        age_s = now_s - self._since_s
        by_age_s = max(_SHORTEST_S, min(_LONGEST_S, _SHARE * age_s))
        memory_s = max(by_age_s, _MEMORY_VIDEOS * age_s / max(self._videos, 1))
        keep = math.exp(-(now_s - self._last_s) / memory_s)
        return self._weighted_videos * keep, self._weighted_s * keep + memory_s * (1.0 - keep)


@dataclass(slots=True)
class _Account:
    items: int
    busy_s: float
    window: _Window


class Progress:
    """Adds up what comes in. Its memory is bounded by the numbers of stages and reasons.

    Args:
        videos: In the manifest.
        done_before: Of them, those that earlier runs finished.
        shards: That the videos make.
        shards_before: Of them, those that were whole before.
        clock: Seconds from any origin.

    Attributes:
        results: Videos that this run finished, by (status, reason).
        outcomes: Frames, by `decoded` or the reason why not.
        faces: Found.
        finished: Videos that this run finished.
    """

    def __init__(
        self,
        *,
        videos: int,
        done_before: int = 0,
        shards: int = 0,
        shards_before: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.videos, self.done_before = videos, done_before
        self.shards, self.shards_before = shards, shards_before
        self.shards_finished = 0
        self.results: Counter[tuple[str, str | None]] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.faces = 0
        self.finished = 0
        self._clock = clock
        self._started_s = clock()
        self._accounts: dict[str, _Account] = {}
        self._pace: _Pace | None = None

    def add(self, receipt: Receipt) -> None:
        """Count what was committed."""
        now_s = self._clock()
        if self._pace is None:
            self._pace = _Pace(now_s)  # what it took to start says nothing about the pace
        self.outcomes.update({"decoded": receipt.decoded, **receipt.dropped})
        self.faces += receipt.faces
        for stage, busy_s in receipt.seconds.items():
            items = receipt.faces if _UNITS.get(stage) == "faces" else receipt.frames
            if stage not in self._accounts:
                self._accounts[stage] = _Account(items, busy_s, _Window(now_s))
                continue
            account = self._accounts[stage]
            account.items += items
            account.busy_s += busy_s
            account.window.add(now_s, items, busy_s)

    def video_done(self, status: str, reason: str | None = None) -> None:
        """Count a video that is finished, well or not."""
        now_s = self._clock()
        if self._pace is None:
            self._pace = _Pace(now_s)
        self._pace.finish(now_s)
        self.results[status, reason] += 1
        self.finished += 1

    def shard_done(self) -> None:
        """Count a shard whose products are whole."""
        self.shards_finished += 1

    @property
    def to_do(self) -> int:
        """Videos that are still to come."""
        return max(0, self.videos - self.done_before - self.finished)

    @property
    def elapsed_s(self) -> float:
        """Since the run began."""
        return self._clock() - self._started_s

    @property
    def videos_per_s(self) -> float | None:
        """The pace at present; None before it is known."""
        return self._pace.videos_per_s(self._clock()) if self._pace is not None else None

    @property
    def eta_s(self) -> float | None:
        """Seconds that the rest will take at the present pace; None before that is known."""
        if not self.to_do:
            return 0.0
        pace = self.videos_per_s
        # A run that came to a stop has no time left that one could name.
        return self.to_do / pace if pace is not None and pace > 1e-9 else None

    def stages(self) -> Iterator[Stage]:
        """The stages, in the order in which they first reported."""
        now_s = self._clock()
        for name, account in self._accounts.items():
            items_per_s, workers = account.window.rates(now_s)
            yield Stage(
                name=name,
                unit=_UNITS.get(name, "frames"),
                items=account.items,
                busy_s=account.busy_s,
                items_per_s=items_per_s,
                workers=workers,
            )

    def by_status(self) -> Counter[str]:
        """Videos that this run finished, by status."""
        counts: Counter[str] = Counter()
        for (status, _), n in self.results.items():
            counts[status] += n
        return counts

    def by_reason(self) -> Counter[str]:
        """Videos that this run finished and that have a reason, by it."""
        counts: Counter[str] = Counter()
        for (_, reason), n in self.results.items():
            if reason is not None:
                counts[reason] += n
        return counts

    def dropped(self) -> Counter[str]:
        """Frames that could not be looked at, by reason."""
        return Counter({reason: n for reason, n in self.outcomes.items() if reason != "decoded" and n})


def summary(progress: Progress) -> dict[str, Any]:
    """What a run came to, as JSON can say it. Counts are of this run, except `total` and `done_before`."""
    elapsed_s = progress.elapsed_s
    by_reason: dict[str, dict[str, int]] = {}
    for (status, reason), n in progress.results.most_common():
        if reason is not None:
            by_reason.setdefault(status, {})[reason] = n
    return {
        "videos": {
            "total": progress.videos,
            "done_before": progress.done_before,
            "finished": progress.finished,
            "by_status": dict(progress.by_status().most_common()),
            "by_reason": by_reason,
        },
        "shards": {
            "total": progress.shards,
            "done_before": progress.shards_before,
            "finished": progress.shards_finished,
        },
        "frames": {
            "answered": progress.outcomes.total(),
            "decoded": progress.outcomes["decoded"],
            "dropped": dict(progress.dropped().most_common()),
        },
        "faces": progress.faces,
        "stages": {
            stage.name: {"items": stage.items, "unit": stage.unit, "busy_s": round(stage.busy_s, 3)}
            for stage in progress.stages()
        },
        "wall_s": round(elapsed_s, 3),
        "videos_per_min": round(60.0 * progress.finished / elapsed_s, 3) if elapsed_s > 0 else None,
    }
