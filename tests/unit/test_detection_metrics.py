"""The metrics against scikit-learn, scipy and computations by hand; their intervals against what is known of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import optimize, stats
from scipy.interpolate import interp1d
from sklearn import metrics as reference

from unmask.intervals import agreement_over_sets, detection_measures, draws, opinion_measures
from unmask.metrics import DETECTION, ECE_BINS, Detections, Measure, UndefinedError, measured
from unmask.opinions import OPINION, Opinions

Arrays = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]


def drawn(seed: int, n: int = 200, *, digits: int = 2) -> Arrays:
    """Scores with many ties, labels that they tell something of, and weights, some of them 0."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    scores = np.round(1 / (1 + np.exp(-rng.normal(labels - 0.5, 1.0))), digits)
    return scores, labels, rng.integers(0, 4, n).astype(float)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_areas_and_losses_are_those_of_scikit_learn(seed: int, weighted: bool) -> None:
    scores, labels, weights = drawn(seed)
    w = weights if weighted else None
    items = Detections(scores, labels, weights_N=w, threshold=0.4)
    fakes, reals = labels == 1, labels == 0
    parts = [reference.log_loss(labels[c], scores[c], sample_weight=None if w is None else w[c], labels=[0, 1])
             for c in (fakes, reals)]  # fmt: skip
    expected = {
        "auc": reference.roc_auc_score(labels, scores, sample_weight=w),
        "average_precision": reference.average_precision_score(labels, scores, sample_weight=w),
        "log_loss": reference.log_loss(labels, scores, sample_weight=w),
        "weighted_log_loss": (1.4 * parts[0] + parts[1]) / 2,
        "brier": reference.brier_score_loss(labels, scores, sample_weight=w),
        "balanced_accuracy": reference.balanced_accuracy_score(labels, scores >= 0.4, sample_weight=w),
    }
    for name, value in expected.items():
        assert DETECTION[name](items) == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(5))
def test_rates_are_those_of_scikit_learns_curve(seed: int) -> None:
    scores, labels, _ = drawn(seed)
    items = Detections(scores, labels)
    fpr, tpr, _ = reference.roc_curve(labels, scores, drop_intermediate=False)
    crossing = optimize.brentq(lambda x: 1.0 - x - interp1d(fpr, tpr)(x), 0.0, 1.0)
    assert items.eer() == pytest.approx(crossing, abs=1e-9)
    assert items.tpr_at(0.01) == tpr[fpr <= 0.01].max()
    assert items.tpr_at(0.05) == tpr[fpr <= 0.05].max()


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_is_that_of_a_loop_over_bins(seed: int) -> None:
    scores, labels, _ = drawn(seed, digits=6)
    scores[:2] = 0.0, 1.0
    error = 0.0
    for b in range(ECE_BINS):
        inside = (scores >= b / ECE_BINS) & ((scores < (b + 1) / ECE_BINS) | (b == ECE_BINS - 1))
        if inside.any():
            error += inside.sum() / len(scores) * abs(scores[inside].mean() - labels[inside].mean())
    assert Detections(scores, labels).ece() == pytest.approx(error, abs=1e-12)


def test_small_cases_by_hand() -> None:
    items = Detections([0.9, 0.8, 0.3, 0.6, 0.1], [1, 1, 1, 0, 0])
    assert items.auc() == pytest.approx(5 / 6)  # of 6 pairs one is the wrong way round
    assert items.tpr_at(0.01) == pytest.approx(2 / 3)
    assert items.tpr_at(0.5) == 1.0
    assert items.average_precision() == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert items.balanced_accuracy() == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert items.eer() == pytest.approx(1 / 3)  # the line from (0, 2/3) to (.5, 2/3) meets fpr = 1 - tpr there
    assert items.brier() == pytest.approx((0.01 + 0.04 + 0.49 + 0.36 + 0.01) / 5)
    weight, score, fakes = items.reliability()
    assert weight.sum() == 5
    assert score[1] == pytest.approx(0.1)
    assert fakes[13] == 1.0
    assert np.isnan(score[0])


def test_a_sure_answer_that_is_wrong_has_a_finite_loss() -> None:
    assert Detections([0.0, 1.0], [1, 1]).log_loss() == pytest.approx(-np.log(1e-15) / 2)


def test_perfect_and_constant_scores() -> None:
    perfect = Detections([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1])
    assert (perfect.auc(), perfect.eer(), perfect.average_precision()) == (1.0, 0.0, 1.0)
    constant = Detections(np.full(6, 0.5), [0, 1, 1, 0, 1, 1])
    assert (constant.auc(), constant.eer(), constant.tpr_at(0.05)) == (0.5, 0.5, 0.0)
    assert constant.average_precision() == pytest.approx(4 / 6)


@pytest.mark.parametrize(("labels", "why"), [([1, 1], "all items are fake"), ([0, 0], "all items are real")])
def test_one_class_leaves_what_needs_both_undefined_with_a_reason(labels: list[int], why: str) -> None:
    measures = {name: measured(metric, Detections([0.2, 0.7], labels)) for name, metric in DETECTION.items()}
    undefined = {name for name, m in measures.items() if m.value is None}
    assert undefined == set(DETECTION) - {"log_loss", "ece", "brier"}
    assert all(why in (measures[name].reason or "") for name in undefined)
    assert Measure(None, reason="why").to_json() == {"value": None, "low": None, "high": None, "reason": "why"}


def test_nothing_is_undefined_and_not_nan() -> None:
    for name, metric in DETECTION.items():
        assert measured(metric, Detections([], [])).reason == "there is nothing to measure", name
        assert measured(metric, Detections([0.5], [1], weights_N=[0])).value is None, name


@pytest.mark.parametrize(
    ("scores", "labels"), [([0.5], [2]), ([1.5], [1]), ([np.nan], [1]), ([0.5, 0.5], [1]), ([[0.5]], [[1]])]
)
def test_what_is_no_probability_or_label_is_refused(scores: list[float], labels: list[int]) -> None:
    with pytest.raises(ValueError, match=r"scores are|labels are"):
        Detections(scores, labels)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=40))
def test_weights_are_repetitions(rows: list[tuple[int, int, int]]) -> None:
    scores, labels, weights = (np.array(column) for column in zip(*rows, strict=True))
    often = np.repeat(np.arange(len(rows)), weights)
    weighed = Detections(scores / 20, labels).reweighted(weights)
    repeated = Detections(scores[often] / 20, labels[often])
    for name, metric in DETECTION.items():
        assert measured(metric, weighed).value == pytest.approx(measured(metric, repeated).value, abs=1e-12), name


@pytest.mark.parametrize("seed", range(4))
def test_opinions_agree_as_scipy_says(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mos = np.round(rng.uniform(1, 5, 50), 1)
    scores = np.round(mos + rng.normal(0, 1, 50), 1)
    items = Opinions(scores, mos)
    assert items.plcc() == pytest.approx(stats.pearsonr(scores, mos).statistic, abs=1e-12)
    assert items.srcc() == pytest.approx(stats.spearmanr(scores, mos).statistic, abs=1e-12)
    assert items.rmse() == pytest.approx(reference.root_mean_squared_error(mos, scores), abs=1e-12)
    assert items.agreement() == pytest.approx((items.plcc() + items.srcc()) / 2)


def test_opinions_without_spread_have_no_correlation() -> None:
    for scores, mos, why in (([0.1] * 5, [1, 2, 3, 4, 5], "all scores"), ([1, 2, 3], [3, 3, 3], "all opinions")):
        measures = {name: measured(metric, Opinions(scores, mos)) for name, metric in OPINION.items()}
        assert measures["plcc"].value is measures["srcc"].value is measures["agreement"].value is None
        assert why in (measures["srcc"].reason or "")
        assert measures["rmse"].value is not None
    with pytest.raises(UndefinedError, match="two items"):
        Opinions([1.0], [1.0]).plcc()
    with pytest.raises(ValueError, match="finite"):
        Opinions([np.inf], [1.0])


def test_draws_keep_strata_and_repeat() -> None:
    strata = np.array(["a", "b", "a", "a", "b"])
    counts = list(draws(strata, 50, 7))
    assert all(c[strata == "a"].sum() == 3 and c[strata == "b"].sum() == 2 for c in counts)
    assert (np.array(counts) == np.array(list(draws(strata, 50, 7)))).all()
    assert (np.array(counts) != np.array(list(draws(strata, 50, 8)))).any()


def test_intervals_are_those_of_drawing_videos_by_hand() -> None:
    rng = np.random.default_rng(0)
    video = np.repeat(np.arange(30), 4)
    label_V = rng.permutation(np.arange(30) % 2)
    labels = label_V[video]
    scores = np.clip(rng.normal(0.3 + 0.3 * labels, 0.25), 0, 1)
    found = detection_measures(scores, labels, video, resamples=200, seed=3)
    values = []
    for count in draws(label_V, 200, 3):
        rows = np.concatenate([np.flatnonzero(video == v) for v in np.repeat(np.arange(30), count)])
        values.append(reference.roc_auc_score(labels[rows], scores[rows]))
    assert found["auc"].value == pytest.approx(reference.roc_auc_score(labels, scores))
    assert (found["auc"].low, found["auc"].high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])))
    assert found == detection_measures(scores, labels, video, resamples=200, seed=3)


def test_frames_of_one_video_are_no_independent_witnesses() -> None:
    rng = np.random.default_rng(1)
    label_V = np.arange(40) % 2
    score_V = np.clip(rng.normal(0.4 + 0.2 * label_V, 0.2), 0, 1)
    video = np.repeat(np.arange(40), 25)  # 25 frames that all say the same
    by_video = detection_measures(score_V[video], label_V[video], video, resamples=300)["auc"]
    by_frame = detection_measures(score_V[video], label_V[video], np.arange(1000), resamples=300)["auc"]
    assert None not in (by_video.low, by_video.high, by_frame.low, by_frame.high)
    assert (by_video.high or 0) - (by_video.low or 0) > 3 * ((by_frame.high or 0) - (by_frame.low or 0))


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    truth = stats.norm.cdf(1 / np.sqrt(2))  # the AUC of normal scores that lie one deviation apart
    labels, inside = np.repeat([0, 1], 60), 0
    for seed in range(60):
        scores = stats.norm.cdf(np.random.default_rng(seed).normal(labels, 1.0))
        measure = detection_measures(scores, labels, np.arange(120), metrics={"auc": Detections.auc}, resamples=200)
        found = measure["auc"]
        assert found.low is not None
        assert found.high is not None
        inside += found.low <= truth <= found.high
    assert 50 <= inside <= 60


def test_too_few_videos_have_a_value_and_no_interval() -> None:
    found = detection_measures([0.1, 0.2, 0.9, 0.8], [0, 0, 1, 1], ["a", "a", "b", "c"])
    assert found["auc"].value == 1.0
    assert found["auc"].low is None
    assert "two videos" in (found["auc"].reason or "")
    assert detection_measures([], [], [])["auc"].value is None
    one_class = detection_measures([0.1, 0.2, 0.4], [0, 0, 0], [1, 2, 3])
    assert one_class["auc"].value is None
    assert one_class["brier"].low is not None
    assert detection_measures([0.1, 0.9], [0, 1], [1, 2], resamples=0)["auc"] == Measure(1.0)


def test_opinion_intervals_and_the_challenges_score() -> None:
    rng = np.random.default_rng(2)
    mos = rng.uniform(1, 5, 60)
    scores, sets = mos + rng.normal(0, 0.5, 60), np.repeat(["C1", "C2", "C3"], 20)
    found = opinion_measures(scores, mos)
    for measure in found.values():
        assert None not in (measure.low, measure.value, measure.high)
        assert (measure.low or 0) < (measure.value or 0) < (measure.high or 0)
    score = agreement_over_sets(scores, mos, sets, resamples=100)
    parts = []
    for name in ("C1", "C2", "C3"):
        own = scores[sets == name], mos[sets == name]
        parts.append((stats.pearsonr(*own).statistic + stats.spearmanr(*own).statistic) / 2)
    assert score.value == pytest.approx(np.mean(parts))
    assert (score.low or 1) < (score.value or 0) < (score.high or 0)
    flat = agreement_over_sets(scores, mos, [*sets[:-1], "alone"])
    assert flat.value is None
    assert "two items" in (flat.reason or "")
    assert opinion_measures([1.0], [2.0])["plcc"].reason == "a correlation takes two items or more"
