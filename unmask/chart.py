"""The geometry of the score-over-time chart: lines, spread, gaps, dots and ticks of one face track.

Axes: W windows of a track.
"""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unmask.evidence import FrameEvidence, TrackEvidence, fair_choice
from unmask.records import FaceScore, Segment, VideoScore

__all__ = ["Axes", "Chart", "Run", "draw_chart", "end_of_time_s"]

_DOTS = 400
_LINE_POINTS = 600
_PLOT_PX = 200.0
_TICK_STEPS_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)


def end_of_time_s(score: VideoScore, tracks: Iterable[TrackEvidence]) -> float:
    """Where the time axis of a video ends. Containers understate durations, so evidence may reach further."""
    ends = [segment.end_s for face in score.faces for segment in face.segments]
    ends += [track.frames[-1].pts_s for track in tracks if track.frames]
    duration_s = score.media.duration_s if score.media is not None else 0.0
    return max([value for value in (*ends, duration_s) if math.isfinite(value)], default=0.0) or 1.0


@dataclass(frozen=True, slots=True)
class Axes:
    """What a chart shows, from `start_s` to `end_s`: x in percent of the width, y in pixels from the top."""

    start_s: float
    end_s: float

    def x(self, t_s: float) -> float:
        """Percent of the width at a time, kept inside."""
        return min(100.0, max(0.0, 100.0 * (t_s - self.start_s) / (self.end_s - self.start_s)))

    def y(self, score: float) -> float:
        """Pixels from the top at a score, kept inside."""
        return _PLOT_PX * (1.0 - min(1.0, max(0.0, score)))

    @property
    def ticks_s(self) -> list[float]:
        """At most seven round times."""
        span_s = self.end_s - self.start_s
        step_s = next((step for step in _TICK_STEPS_S if span_s / step <= 6.0), span_s / 6.0)
        first = math.ceil(self.start_s / step_s - 1e-9)
        return [n * step_s for n in range(first, math.floor(self.end_s / step_s + 1e-9) + 1)]


@dataclass(frozen=True, slots=True)
class Run:
    """A line of the chart without a gap: points in percent of the width and pixels of the height."""

    line: str
    band: str
    is_flat: bool


@dataclass(frozen=True, slots=True)
class Chart:
    """One track: a run a segment, the gaps between them in seconds, and at most 400 `dots` of its `frames` frames."""

    axes: Axes
    runs: tuple[Run, ...]
    gaps: tuple[tuple[float, float], ...]
    dots: tuple[FrameEvidence, ...]
    frames: int


def draw_chart(face: FaceScore, evidence: TrackEvidence, end_s: float) -> Chart:
    """Lay out the chart of one face.

    Args:
        face: The track's segments; where it has none, its frames make one.
        evidence: The track's windows and frames, of which at most 400 become dots.
        end_s: Where the video ends.
    """
    axes = _axes(face, evidence, end_s)
    segments = face.segments or _whole(face, evidence)
    starts = np.array([segment.start_s for segment in segments])
    home_W = np.clip(np.searchsorted(starts, evidence.times_s_W + 1e-6, side="right") - 1, 0, None)
    runs = [_run(axes, segment, evidence, np.flatnonzero(home_W == i)) for i, segment in enumerate(segments)]
    gaps = [(a.end_s, b.start_s) for a, b in itertools.pairwise(segments) if b.start_s > a.end_s + 1e-3]
    dots = fair_choice(evidence.frames, _DOTS)
    return Chart(axes, tuple(runs), tuple(gaps), tuple(dots), len(evidence.frames))


def _axes(face: FaceScore, evidence: TrackEvidence, end_s: float) -> Axes:
    """The whole video, so that its charts line up; a short appearance in a long one gets an axis of its own."""
    times = [t for segment in face.segments for t in (segment.start_s, segment.end_s)]
    times += [frame.pts_s for frame in evidence.frames] + [float(t) for t in evidence.times_s_W]
    first, last = min(times, default=0.0), max(times, default=end_s)
    if 8.0 * (last - first) >= end_s:
        return Axes(min(0.0, first), max(end_s, last))
    margin = max(0.25, 0.1 * (last - first))
    return Axes(max(0.0, first - margin), last + margin)


def _whole(face: FaceScore, evidence: TrackEvidence) -> tuple[Segment, ...]:
    if not evidence.frames:
        return ()
    return (Segment(evidence.frames[0].pts_s, evidence.frames[-1].pts_s, face.score),)


def _run(axes: Axes, segment: Segment, evidence: TrackEvidence, own_W: NDArray[np.intp]) -> Run:
    """The line of one segment through its windows; with fewer than two of them, level from its start to its end."""
    times, scores = evidence.times_s_W[own_W], evidence.scores_W[own_W]
    spread = evidence.spread_W[own_W]
    if len(own_W) < 2:
        times = np.array([segment.start_s, segment.end_s])
        scores = np.full(2, scores[0] if len(own_W) else segment.score)
        spread = np.full(2, spread[0] if len(own_W) else 0.0)
    buckets = np.array_split(np.arange(len(times)), min(len(times), _LINE_POINTS))
    mean = [(times[i].mean(), scores[i].mean()) for i in buckets]
    upper = [(times[i].mean(), (scores[i] + spread[i]).max()) for i in buckets]
    lower = [(times[i].mean(), (scores[i] - spread[i]).min()) for i in buckets]
    return Run(_points(axes, mean), _points(axes, [*upper, *reversed(lower)]), len(own_W) == 0)


def _points(axes: Axes, series: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{axes.x(t_s):.3f},{axes.y(score):.2f}" for t_s, score in series)
