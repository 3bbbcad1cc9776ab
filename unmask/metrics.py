"""How well scores tell fakes from real faces.

Each metric of `Detections` is a number, or raises `UndefinedError` with the reason why these data give none; `measured`
turns both into a `Measure`. Items may have weights, so that `unmask.intervals` can draw videos again and again without
sorting anew.

Axes: N items, T thresholds in falling order, B bins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "DETECTION",
    "ECE_BINS",
    "FAKE_WEIGHT",
    "Curve",
    "Detections",
    "Measure",
    "UndefinedError",
    "measured",
]

ECE_BINS = 15
"""Bins of equal width in which calibration is measured (Guo et al. 2017)."""
FAKE_WEIGHT = 1.4
"""What fakes count in the weighted log loss by which the winner of DFDC picked its checkpoints (S2)."""
# As Kaggle does: a sure answer that is wrong costs 34.5, not infinity.
_LEAST = 1e-15
_CLASSES = {0: "real", 1: "fake"}

T = TypeVar("T")
Floats = NDArray[np.float64]


class UndefinedError(ValueError):
    """A metric has no value for these data. The message is the reason, without a full stop."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric's value, its 95% interval where one was drawn, and the reason for what is missing."""

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        plain: dict[str, Any] = {"value": self.value, "low": self.low, "high": self.high}
        return plain if self.reason is None else {**plain, "reason": self.reason}


@dataclass(frozen=True, eq=False)
class Curve:
    """What passes each threshold: items that score as much or more, by weight.

    Args:
        thresholds_T: Falling: infinity, which nothing passes, then every score that occurs.
        fakes_T: Weight of the fakes that pass.
        reals_T: Weight of the reals that pass.
    """

    thresholds_T: Floats
    fakes_T: Floats
    reals_T: Floats

    @cached_property
    def tpr_T(self) -> Floats:
        """Share of the fakes that pass."""
        return np.asarray(self.fakes_T / self.fakes_T[-1])

    @cached_property
    def fpr_T(self) -> Floats:
        """Share of the reals that pass."""
        return np.asarray(self.reals_T / self.reals_T[-1])

    @property
    def precision_T(self) -> Floats:
        """Share of fakes among what passes; 1 where nothing does."""
        passed_T = self.fakes_T + self.reals_T
        return np.divide(self.fakes_T, passed_T, out=np.ones_like(passed_T), where=passed_T > 0)


class Detections:
    """Probabilities of manipulation, with the truth.

    Args:
        scores_N: In [0, 1].
        labels_N: 1 for a fake, 0 for a real item.
        weights_N: What each counts; 1 by default.
        threshold: From here on a score says "fake".

    Raises:
        ValueError: Shapes differ, scores are no probabilities, or labels are neither 0 nor 1.
    """

    def __init__(
        self, scores_N: ArrayLike, labels_N: ArrayLike, *, weights_N: ArrayLike | None = None, threshold: float = 0.5
    ) -> None:
        scores, labels = np.asarray(scores_N, np.float64), np.asarray(labels_N)
        if scores.ndim != 1 or labels.shape != scores.shape or not ((labels == 0) | (labels == 1)).all():
            raise ValueError(f"labels are 0 or 1, one a score; got shapes {scores.shape} and {labels.shape}")
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError("scores are probabilities in [0, 1]")
        self.threshold = threshold
        self._order_N = np.argsort(-scores, kind="stable")
        self.scores_N: Floats = scores[self._order_N]
        self._fake_N = labels[self._order_N] == 1
        # Of items with one score, the last.
        self._ends_T = np.append(np.flatnonzero(np.diff(self.scores_N)), max(len(scores) - 1, 0))[: len(scores)]
        self._weigh(np.ones(len(scores)) if weights_N is None else np.asarray(weights_N, np.float64))

    def __len__(self) -> int:
        return len(self.scores_N)

    def _weigh(self, weights_N: Floats) -> None:
        if weights_N.shape != self.scores_N.shape or (weights_N < 0).any():
            raise ValueError(f"weights are 0 or more, one a score; got shape {weights_N.shape}")
        sorted_N = weights_N[self._order_N]
        self._fakes_N = sorted_N * self._fake_N
        self._reals_N = sorted_N - self._fakes_N
        self._curve: Curve | None = None

    def reweighted(self, weights_N: ArrayLike) -> "Detections":
        """The same items with other weights (given in the order in which they came), without sorting again."""
        other = object.__new__(Detections)
        # What is cached of the scores alone is taken along.
        other.__dict__.update(self.__dict__)
        other._weigh(np.asarray(weights_N, np.float64))
        return other

    @cached_property
    def _losses_N(self) -> Floats:
        right_N = np.where(self._fake_N, self.scores_N, 1 - self.scores_N)
        return np.asarray(-np.log(np.clip(right_N, _LEAST, 1.0)))

    @cached_property
    def _errors_N(self) -> Floats:
        return np.asarray((self.scores_N - self._fake_N) ** 2)

    @cached_property
    def _bins_N(self) -> NDArray[np.int64]:
        return np.minimum((self.scores_N * ECE_BINS).astype(np.int64), ECE_BINS - 1)

    def _need_both(self) -> tuple[float, float]:
        """The weight of fakes and of reals."""
        fakes, reals = float(self._fakes_N.sum()), float(self._reals_N.sum())
        if not fakes + reals:
            raise UndefinedError("there is nothing to measure")
        for weight, label in ((fakes, 0), (reals, 1)):
            if not weight:
                raise UndefinedError(f"all items are {_CLASSES[label]}, and this takes both classes")
        return fakes, reals

    def _mean(self, values_N: Floats) -> float:
        weights_N = self._fakes_N + self._reals_N
        if not weights_N.sum():
            raise UndefinedError("there is nothing to measure")
        # No dot product: BLAS would start threads for each of a thousand draws.
        return float((values_N * weights_N).sum() / weights_N.sum())

    def curve(self) -> Curve:
        """What ROC and precision-recall are drawn from."""
        self._need_both()
        if self._curve is None:
            self._curve = self._drawn()
        return self._curve

    def _drawn(self) -> Curve:
        fakes_T, reals_T = (np.cumsum(w)[self._ends_T] for w in (self._fakes_N, self._reals_N))
        return Curve(np.append(np.inf, self.scores_N[self._ends_T]), np.append(0.0, fakes_T), np.append(0.0, reals_T))

    def auc(self) -> float:
        """Area under the ROC curve: the chance that a fake scores above a real item, ties counting half."""
        curve = self.curve()
        return float(np.trapezoid(curve.tpr_T, curve.fpr_T))

    def eer(self) -> float:
        """Equal error rate: where, on straight lines between thresholds, as many reals pass as fakes do not."""
        curve = self.curve()
        fpr_T, excess_T = curve.fpr_T, curve.fpr_T + curve.tpr_T - 1
        after = int(np.argmax(excess_T >= 0))  # the first is -1, the last 1
        share = -excess_T[after - 1] / (excess_T[after] - excess_T[after - 1])
        return float(fpr_T[after - 1] + share * (fpr_T[after] - fpr_T[after - 1]))

    def average_precision(self) -> float:
        """Sum of the precisions at each threshold, times the recall gained there; depends on the classes' balance."""
        curve = self.curve()
        return float((np.diff(curve.tpr_T) * curve.precision_T[1:]).sum())

    def tpr_at(self, fpr: float) -> float:
        """Share of fakes found by the lowest threshold that at most this share of reals passes."""
        curve = self.curve()
        return float(curve.tpr_T[curve.fpr_T <= fpr + 1e-12][-1])

    def log_loss(self) -> float:
        """Mean negative log likelihood, with scores kept 1e-15 away from 0 and 1."""
        return self._mean(self._losses_N)

    def weighted_log_loss(self) -> float:
        """(1.4 fakes' + reals') / 2, each the log loss of its class alone (S2)."""
        fakes, reals = self._need_both()
        of_fakes, of_reals = (float((self._losses_N * w).sum()) for w in (self._fakes_N, self._reals_N))
        return (FAKE_WEIGHT * of_fakes / fakes + of_reals / reals) / 2

    def balanced_accuracy(self) -> float:
        """Mean of the shares of fakes and of reals on their side of the threshold."""
        fakes, reals = self._need_both()
        above_N = self.scores_N >= self.threshold
        return float((self._fakes_N[above_N].sum() / fakes + self._reals_N[~above_N].sum() / reals) / 2)

    def brier(self) -> float:
        """Mean squared distance of score and label."""
        return self._mean(self._errors_N)

    def reliability(self) -> tuple[Floats, Floats, Floats]:
        """The reliability diagram, in `ECE_BINS` bins of equal width.

        Returns:
            Of each bin (B,): its weight, its mean score, its share of fakes; NaN in bins of no weight.
        """
        weights_N = self._fakes_N + self._reals_N
        weight_B = self._binned(weights_N)
        filled = np.where(weight_B > 0, weight_B, np.nan)
        return weight_B, self._binned(weights_N * self.scores_N) / filled, self._binned(self._fakes_N) / filled

    def _binned(self, values_N: Floats) -> Floats:
        return np.asarray(np.bincount(self._bins_N, values_N, ECE_BINS), np.float64)

    def ece(self) -> float:
        """Expected calibration error: distance of mean score and share of fakes in a bin, on average over items.

        In `ECE_BINS` bins of equal width over the probability of "fake".
        """
        weight_B, mean_B, share_B = self.reliability()
        if not weight_B.sum():
            raise UndefinedError("there is nothing to measure")
        filled = weight_B > 0
        return float(np.abs(mean_B - share_B)[filled] @ weight_B[filled] / weight_B.sum())


DETECTION: Mapping[str, Callable[[Detections], float]] = MappingProxyType(
    {
        "auc": Detections.auc,
        "eer": Detections.eer,
        "average_precision": Detections.average_precision,
        "log_loss": Detections.log_loss,
        "weighted_log_loss": Detections.weighted_log_loss,
        "balanced_accuracy": Detections.balanced_accuracy,
        "tpr_at_fpr_1": lambda items: items.tpr_at(0.01),
        "tpr_at_fpr_5": lambda items: items.tpr_at(0.05),
        "ece": Detections.ece,
        "brier": Detections.brier,
    }
)
"""The metrics of detectors, by name."""


def measured(metric: Callable[[T], float], items: T) -> Measure:
    """A metric's value, or the reason why it has none."""
    try:
        return Measure(metric(items))
    except UndefinedError as undefined:
        return Measure(None, reason=str(undefined))
