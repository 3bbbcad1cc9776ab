"""95% intervals of metrics, by drawing videos again (the bootstrap; Efron 1979).

The unit that is drawn is the video, whatever the items are: the frames of one video are no independent witnesses.
Videos are drawn within strata, as many as there are, so that no class and no test set goes missing. The interval is
between the percentiles 2.5 and 97.5 of the metric. The same seed gives the same draws.

Axes: N items, V videos, R draws.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask.metrics import DETECTION, Detections, Measure, UndefinedError, measured
from unmask.opinions import OPINION, Opinions

__all__ = [
    "RESAMPLES",
    "agreement_over_sets",
    "detection_measures",
    "draws",
    "interval",
    "opinion_measures",
    "share_interval",
]

RESAMPLES = 1000
"""How often videos are drawn anew."""
T = TypeVar("T")
# Of the draws, at least so many must have a value.
_LEAST_SHARE = 0.5


def draws(strata_V: ArrayLike, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """How often each video is drawn, int64 (V,), `resamples` times.

    Args:
        strata_V: What each video belongs to; as many are drawn of each stratum as it has.
        resamples: R.
        seed: Of the draws.
    """
    strata = np.asarray(strata_V)
    members = [np.flatnonzero(strata == name) for name in np.unique(strata)]
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        count_V = np.zeros(len(strata), np.int64)
        for rows in members:
            count_V[rows] = np.bincount(rng.integers(0, len(rows), len(rows)), minlength=len(rows))
        yield count_V


def interval(at: Measure, values: Sequence[float], resamples: int) -> Measure:
    """A measure with the interval of its values in many draws; draws in which it had none do not count."""
    if at.value is None or not resamples:
        return at
    if len(values) < _LEAST_SHARE * resamples:
        return Measure(at.value, reason="no interval: too few draws of videos give a value")
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    return Measure(at.value, low, high)


def share_interval(share: float, of: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson 1927); it has a width where nothing or everything was counted, too.

    Args:
        share: [0, 1].
        of: Independent witnesses, 1 or more.
    """
    z2 = 1.959964**2
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = np.sqrt(z2 * (share * (1 - share) / of + z2 / (4 * of**2))) / (1 + z2 / of)
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


def detection_measures(
    scores_N: ArrayLike,
    labels_N: ArrayLike,
    videos_N: ArrayLike,
    *,
    threshold: float = 0.5,
    metrics: Mapping[str, Callable[[Detections], float]] = DETECTION,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Measure]:
    """The metrics of a detector with their intervals.

    Args:
        scores_N: Probabilities of manipulation.
        labels_N: 1 for a fake, 0 for a real item.
        videos_N: Which video each item is of: any values that tell videos apart. A video has one label.
        threshold: The detector's own.
        metrics: Which.
        resamples: R; 0 for no intervals.
        seed: Of the draws.

    Returns:
        By name. A metric that these data do not define has no value and says why; one with fewer than two videos of
        a class has no interval.
    """
    items = Detections(scores_N, labels_N, threshold=threshold)
    at = {name: measured(metric, items) for name, metric in metrics.items()}
    if not resamples or not len(items):
        return at
    _, first_V, video_N = np.unique(np.asarray(videos_N), return_index=True, return_inverse=True)
    label_V = np.asarray(labels_N)[first_V]
    if min(np.count_nonzero(label_V == label) for label in np.unique(label_V)) < 2:
        few = "no interval: it takes two videos or more of each class"
        return {name: m if m.value is None else Measure(m.value, reason=few) for name, m in at.items()}
    found: dict[str, list[float]] = {name: [] for name, m in at.items() if m.value is not None}
    for count_V in draws(label_V, resamples, seed):
        drawn = items.reweighted(count_V[video_N])
        for name, values in found.items():
            values.append(metrics[name](drawn))  # both classes are there in every draw
    return {name: interval(m, found.get(name, ()), resamples) for name, m in at.items()}


def opinion_measures(
    scores_V: ArrayLike, mos_V: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Measure]:
    """PLCC, SRCC, RMSE and the mean of the first two, with their intervals; one item a video.

    Args:
        scores_V: Predicted opinions.
        mos_V: Mean opinion scores.
        resamples: R; 0 for no intervals.
        seed: Of the draws.
    """
    items = Opinions(scores_V, mos_V)
    at = {name: measured(metric, items) for name, metric in OPINION.items()}
    if not resamples or len(items) < 2:
        return at
    found: dict[str, list[float]] = {name: [] for name, m in at.items() if m.value is not None}
    for rows in _rows(np.zeros(len(items)), resamples, seed):
        drawn = items.taken(rows)
        for name, values in found.items():
            _append(values, OPINION[name], drawn)
    return {name: interval(m, found.get(name, ()), resamples) for name, m in at.items()}


def agreement_over_sets(
    scores_V: ArrayLike, mos_V: ArrayLike, sets_V: ArrayLike, *, resamples: int = RESAMPLES, seed: int = 0
) -> Measure:
    """The challenge's score: the mean, over test sets, of the mean of PLCC and SRCC (DFGC-VRA 2023).

    Args:
        scores_V: Predicted opinions.
        mos_V: Mean opinion scores.
        sets_V: The test set of each video; as many videos are drawn of each as it has.
        resamples: R; 0 for no interval.
        seed: Of the draws.
    """
    items, sets = Opinions(scores_V, mos_V), np.asarray(sets_V)

    def mean(rows_V: NDArray[np.int64]) -> float:
        return float(np.mean([items.taken(rows_V[sets[rows_V] == name]).agreement() for name in np.unique(sets)]))

    at = measured(mean, np.arange(len(items)))
    values: list[float] = []
    if at.value is not None:
        for rows in _rows(sets, resamples, seed):
            _append(values, mean, rows)
    return interval(at, values, resamples)


def _rows(strata_V: NDArray[Any], resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    for count_V in draws(strata_V, resamples, seed):
        yield np.repeat(np.arange(len(count_V)), count_V)


def _append(values: list[float], metric: Callable[[T], float], items: T) -> None:
    with contextlib.suppress(UndefinedError):
        values.append(metric(items))
