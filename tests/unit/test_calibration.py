import json
from typing import Any

import numpy as np
import pytest

from unmask.calibration import Calibration
from unmask.errors import UsageError


def drawn(slope: float, bias: float = 0.0, n: int = 40_000) -> tuple[np.ndarray, np.ndarray]:
    """Logits z whose true probability is sigmoid(slope z + bias), and labels drawn from it."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0.0, 2.0 / slope, n)
    return logits, (rng.random(n) < 1 / (1 + np.exp(-(slope * logits + bias)))).astype(int)


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    bins = np.minimum((probabilities * 15).astype(int), 14)
    gaps = [
        abs(probabilities[bins == b].mean() - labels[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)
    ]
    return float(np.sum(gaps))


def test_by_default_it_is_the_sigmoid_and_says_that_it_was_not_fitted() -> None:
    calibration = Calibration()
    assert not calibration.fitted
    assert calibration.probability([-1000.0, 0.0, 1000.0]).tolist() == [0.0, 0.5, 1.0]
    assert float(calibration.probability(2.0)) == pytest.approx(0.8807970779778823)


def test_probabilities_rise_with_the_logit() -> None:
    probabilities = Calibration(temperature=3.0, bias=-1.0).probability(np.linspace(-50, 50, 1001))
    assert (np.diff(probabilities) > 0).all()
    assert probabilities.min() >= 0
    assert probabilities.max() <= 1


@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0, 4.0, 300.0])
def test_it_recovers_a_known_temperature(temperature: float) -> None:
    fitted = Calibration.fit(*drawn(1 / temperature), source="drawn")
    assert fitted.temperature == pytest.approx(temperature, rel=0.03)
    assert (fitted.bias, fitted.fitted, fitted.source) == (0.0, True, "drawn")


def test_it_recovers_a_known_bias() -> None:
    fitted = Calibration.fit(*drawn(0.4, bias=-1.5), bias=True)
    assert fitted.temperature == pytest.approx(2.5, rel=0.03)
    assert fitted.bias == pytest.approx(-1.5, abs=0.05)


def test_calibration_error_falls_on_data_not_fitted_on() -> None:
    logits, labels = drawn(0.25)
    fitted = Calibration.fit(logits[::2], labels[::2])
    before, after = (
        expected_calibration_error(c.probability(logits[1::2]), labels[1::2]) for c in (Calibration(), fitted)
    )
    assert before > 0.15
    assert after < 0.02


def test_classes_that_are_apart_give_a_finite_temperature() -> None:
    fitted = Calibration.fit([-3.0, -2.0, 2.0, 3.0], [0, 0, 1, 1])
    assert 0.1 < fitted.temperature < 10
    assert 0.5 < float(fitted.probability(3.0)) < 1.0


@pytest.mark.parametrize(
    ("logits", "labels", "match"),
    [
        ([], [], "logits are finite"),
        ([[1.0], [2.0]], [0, 1], "logits are finite"),
        ([1.0, np.nan], [0, 1], "logits are finite"),
        ([1.0, 2.0], [1, 1], "both present"),
        ([1.0, 2.0], [0.2, 0.8], "labels are 0 and 1"),
        ([1.0, 2.0], [0, 1, 1], "labels are 0 and 1"),
        ([3.0, 2.0, -2.0, -3.0], [0, 0, 1, 1], "do not rise"),
    ],
)
def test_data_that_cannot_be_fitted_is_refused(logits: list[Any], labels: list[Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Calibration.fit(logits, labels)


@pytest.mark.parametrize(("fpr", "fnr"), [(0.01, 0.05), (0.1, 0.1), (0.5, 0.001)])
def test_thresholds_keep_to_their_error_rates(fpr: float, fnr: float) -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.normal(-1, 1, 3000).round(2), rng.normal(1, 1, 2000).round(2)  # with ties
    calibration = Calibration(temperature=2.0).at_error_rates(real, fake, fpr=fpr, fnr=fnr)
    low, high = calibration.band
    assert high == calibration.threshold
    false_positives = (calibration.probability(real) >= calibration.threshold).mean()
    assert false_positives <= fpr
    assert false_positives >= fpr * 0.8  # no stricter than asked
    assert (calibration.probability(fake) < low).mean() <= fnr


def test_classes_that_are_apart_need_no_band() -> None:
    calibration = Calibration().at_error_rates(np.linspace(-9, -1, 50), np.linspace(1, 9, 50), fpr=0.1, fnr=0.1)
    low, high = calibration.band
    assert low == high == calibration.threshold


@pytest.mark.parametrize(
    ("real", "fpr", "match"),
    [([0.0] * 10, 0.01, "1 / rate authentic"), ([0.0] * 10, 0.0, "lies in"), ([900.0] * 10, 0.2, "too many authentic")],
)
def test_thresholds_that_cannot_be_kept_are_refused(real: list[float], fpr: float, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        Calibration().at_error_rates(real, [1.0] * 10, fpr=fpr, fnr=0.5)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0.0},
        {"temperature": float("inf")},
        {"bias": float("nan")},
        {"threshold": 0.7, "band": (0.4, 0.6)},
        {"band": (0.5,)},
        {"band": (0.4, 1.5)},
        {"fitted": 1},
        {"threshold": "half"},
        {"gamma": 2},
    ],
)
def test_bad_values_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Calibration.from_json(fields)


def test_json_and_back() -> None:
    calibration = Calibration(temperature=2.0, bias=0.1, threshold=0.4, band=(0.3, 0.5), fitted=True, source="FF++")
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
