"""From a logit to a probability that can be believed, and to the thresholds of a verdict.

Temperature scaling (Guo et al. 2017) with an optional bias (Platt 1999), fitted on held-out data; thresholds from
error rates on held-out data.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from unmask.errors import UsageError

__all__ = ["Calibration"]

_SLOPES = (1e-3, 1e3)


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """How a model's logits are read. The default reads them as they are, and says that it was not fitted.

    A probability above `band` speaks for a manipulation, one under it for an authentic face; within it a verdict
    abstains.

    Raises:
        UsageError: A field is out of its range.
    """

    temperature: float = 1.0
    """Divides the logit; above 0. Above 1 it makes a model less sure."""
    bias: float = 0.0
    """Added after that."""
    threshold: float = 0.5
    """The probability that parts the classes where no abstention is wanted."""
    band: tuple[float, float] = (0.5, 0.5)
    """Lowest and highest probability of which the model is not sure, with the threshold between them. Where both are
    the same there is no band."""
    fitted: bool = False
    """Whether temperature and bias come from data."""
    source: str = ""
    """Which data, in words."""

    def __post_init__(self) -> None:
        if not isinstance(self.band, tuple) or len(self.band) != 2:
            raise UsageError(f"a band has two ends; got {self.band!r}")
        numbers = (self.temperature, self.bias, self.threshold, *self.band)
        if not all(isinstance(v, int | float) and math.isfinite(v) for v in numbers) or self.temperature <= 0:
            raise UsageError(f"a calibration has finite numbers and a temperature above 0; got {self}")
        if not 0.0 <= self.band[0] <= self.threshold <= self.band[1] <= 1.0:
            raise UsageError(f"a threshold lies in its band, and both in [0, 1]; got {self.threshold}, {self.band}")
        if not isinstance(self.fitted, bool) or not isinstance(self.source, str):
            raise UsageError(
                f"a calibration says in true or false whether it was fitted, and in words where; got {self}"
            )

    def probability(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Calibrated probabilities in [0, 1] that faces are manipulated, in the shape of the logits."""
        scaled = np.asarray(logits, np.float64) / self.temperature + self.bias
        return np.exp(-np.logaddexp(0.0, -scaled))

    @classmethod
    def fit(cls, logits_N: ArrayLike, labels_N: ArrayLike, *, bias: bool = False, source: str = "") -> Self:
        """Fit the temperature, and the bias if wanted, by the least negative log likelihood.

        Labels are softened as Platt (1999) does, so that classes that are perfectly apart still give a finite slope.

        Args:
            logits_N: (N,), of held-out data.
            labels_N: (N,), 1 for manipulated and 0 for authentic.
            bias: Fit a bias too: needed where the classes' balance differs from training.
            source: Which data, in words.

        Raises:
            UsageError: The data cannot be fitted: shapes, a class that is absent, numbers that are not finite, or
                logits that do not rise from authentic to manipulated.
        """
        from scipy.optimize import minimize

        logits, labels = _checked(logits_N, labels_N)
        positives, n = labels.sum(), len(labels)
        targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (n - positives + 2))

        def loss(slope_bias: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            z = slope_bias[0] * logits + slope_bias[1]
            error = np.exp(-np.logaddexp(0.0, -z)) - targets
            return float(np.mean(np.logaddexp(0.0, z) - targets * z)), np.array([np.mean(error * logits), error.mean()])

        # The loss is convex in slope and bias. The slope starts where logits of any scale are of order 1.
        start = np.array([1.0 / max(float(np.std(logits)), 1e-3), 0.0])
        bounds = [_SLOPES, (None, None) if bias else (0.0, 0.0)]
        found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"gtol": 1e-9, "ftol": 1e-14})
        slope, offset = (float(v) for v in found.x)
        if slope <= _SLOPES[0]:
            raise UsageError("cannot calibrate: the logits do not rise from authentic to manipulated; check the labels")
        return cls(temperature=1.0 / slope, bias=offset, fitted=True, source=source)

    def at_error_rates(self, real_logits_N: ArrayLike, fake_logits_N: ArrayLike, *, fpr: float, fnr: float) -> Self:
        """Set the threshold and the band by error rates on held-out data.

        Args:
            real_logits_N: Logits of authentic items.
            fake_logits_N: Logits of manipulated items.
            fpr: At most this share of the authentic reaches the threshold, which is the band's upper end.
            fnr: At most this share of the manipulated falls under the band. Where the classes are so far apart that
                no band is needed, it is empty.

        Raises:
            UsageError: A rate that is no share, or fewer items than are needed to measure it.
        """
        real, fake = (np.sort(self.probability(_finite(v))) for v in (real_logits_N, fake_logits_N))
        for rate, n, items in ((fpr, len(real), "authentic"), (fnr, len(fake), "manipulated")):
            if not 0.0 < rate < 1.0 or n * rate < 1.0:
                raise UsageError(f"an error rate lies in (0, 1), and {rate} takes 1 / rate {items} items; got {n}")
        # The next number above the real score that must not pass; the fake score that must not fall under.
        threshold = min(float(np.nextafter(real[-1 - math.floor(fpr * len(real))], 1.0)), 1.0)
        if np.mean(real >= threshold) > fpr:
            raise UsageError(f"no threshold keeps to a false-positive rate of {fpr}: too many authentic items reach 1")
        low = min(float(fake[math.floor(fnr * len(fake))]), threshold)
        return replace(self, threshold=threshold, band=(low, threshold))

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The calibration that `to_json` gave.

        Raises:
            UsageError: A field is unknown or out of range.
        """
        try:
            fields: dict[str, Any] = {k: tuple(v) if k == "band" else v for k, v in plain.items()}
            return cls(**fields)
        except TypeError as error:
            raise UsageError(f"not a calibration: {error}") from error


def _finite(logits_N: ArrayLike) -> NDArray[np.float64]:
    logits = np.asarray(logits_N, np.float64)
    if logits.ndim != 1 or not logits.size or not np.isfinite(logits).all():
        raise UsageError(f"logits are finite and of shape (N,), N > 0; got shape {logits.shape}")
    return logits


def _checked(logits_N: ArrayLike, labels_N: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    logits, labels = _finite(logits_N), np.asarray(labels_N, np.float64)
    if labels.shape != logits.shape or set(np.unique(labels)) != {0.0, 1.0}:
        raise UsageError(f"labels are 0 and 1, both present, one a logit ({len(logits)}); got shape {labels.shape}")
    return logits, labels
