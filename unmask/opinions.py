"""How well predicted opinion scores agree with those that people gave.

Axes: N items.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask.metrics import UndefinedError

__all__ = ["OPINION", "Opinions"]


class Opinions:
    """Predicted opinion scores, with those that people gave.

    Args:
        scores_N: Predicted.
        mos_N: Mean opinion scores.

    Raises:
        ValueError: Shapes differ, or a number is not finite.
    """

    def __init__(self, scores_N: ArrayLike, mos_N: ArrayLike) -> None:
        self.scores_N, self.mos_N = np.asarray(scores_N, np.float64), np.asarray(mos_N, np.float64)
        if self.scores_N.ndim != 1 or self.scores_N.shape != self.mos_N.shape:
            raise ValueError(f"opinions come one a score; got {self.scores_N.shape} and {self.mos_N.shape}")
        if not (np.isfinite(self.scores_N).all() and np.isfinite(self.mos_N).all()):
            raise ValueError("scores and opinions are finite numbers")

    def __len__(self) -> int:
        return len(self.scores_N)

    def taken(self, rows_N: NDArray[np.integer[Any]]) -> "Opinions":
        """Some of the items, as often as they are named."""
        return Opinions(self.scores_N[rows_N], self.mos_N[rows_N])

    def plcc(self) -> float:
        """Pearson's linear correlation, of the scores as they are."""
        return _correlation(self.scores_N, self.mos_N)

    def srcc(self) -> float:
        """Spearman's rank correlation; equal values share their mean rank."""
        from scipy.stats import rankdata

        return _correlation(rankdata(self.scores_N), rankdata(self.mos_N))

    def rmse(self) -> float:
        """Root mean square error."""
        if not len(self):
            raise UndefinedError("there is nothing to measure")
        return float(np.sqrt(np.mean((self.scores_N - self.mos_N) ** 2)))

    def agreement(self) -> float:
        """The mean of PLCC and SRCC: the score of DFGC-VRA 2023 on one test set."""
        return (self.plcc() + self.srcc()) / 2


def _correlation(a_N: NDArray[np.float64], b_N: NDArray[np.float64]) -> float:
    if len(a_N) < 2:
        raise UndefinedError("a correlation takes two items or more")
    a_N, b_N = a_N - a_N.mean(), b_N - b_N.mean()
    size_a, size_b = float(np.sqrt(a_N @ a_N)), float(np.sqrt(b_N @ b_N))
    for size, values_N, what in ((size_a, a_N, "scores"), (size_b, b_N, "opinions")):
        # What rounding leaves of equal numbers is no spread.
        if size <= 1e-12 * len(values_N) or not np.isfinite(size):
            raise UndefinedError(f"all {what} are the same")
    return float(np.clip(a_N @ b_N / (size_a * size_b), -1.0, 1.0))


OPINION: Mapping[str, Callable[[Opinions], float]] = MappingProxyType(
    {"plcc": Opinions.plcc, "srcc": Opinions.srcc, "rmse": Opinions.rmse, "agreement": Opinions.agreement}
)
"""The metrics of predicted opinions, by name."""
