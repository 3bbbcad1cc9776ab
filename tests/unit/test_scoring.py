from dataclasses import replace

import numpy as np
import pytest

from unmask.calibration import Calibration
from unmask.errors import UsageError
from unmask.records import FaceQuality, Verdict
from unmask.scoring import ScoringOptions, TrackScores, confident, deciding_track, judge

CLEAR = FaceQuality(side_px=120, sharpness=0.6, yaw_deg=5, pitch_deg=5, roll_deg=1)


def track(
    scores: list[float],
    *,
    track_id: int = 1,
    gaps: tuple[int, ...] = (),
    windows: list[float] | None = None,
    qualities: list[FaceQuality] | None = None,
) -> TrackScores:
    result = TrackScores(track_id)
    for k, score in enumerate(scores):
        quality = qualities[k % len(qualities)] if qualities else CLEAR
        result.add(k / 10, score, (windows or scores)[k], min(k + 1, 4), after_gap=k in gaps, quality=quality)
    return result


def test_confident_takes_the_sure_fakes_where_there_are_many() -> None:
    assert confident(np.array([0.9] * 12 + [0.1] * 10)) == pytest.approx(0.9)


def test_confident_needs_more_than_eleven_sure_fakes() -> None:
    assert confident(np.array([0.9] * 11 + [0.1] * 10)) == pytest.approx((11 * 0.9 + 10 * 0.1) / 21)


def test_confident_needs_more_than_two_fifths_of_sure_fakes() -> None:
    scores = np.array([0.9] * 12 + [0.5] * 18)
    assert confident(scores) == pytest.approx(scores.mean())


def test_confident_takes_the_sure_reals_where_nearly_all_are() -> None:
    assert confident(np.array([0.1] * 19 + [0.7])) == pytest.approx(0.1)
    assert confident(np.array([0.1] * 18 + [0.7] * 2)) == pytest.approx((1.8 + 1.4) / 20)


@pytest.mark.parametrize(("how", "expected"), [("mean", 0.4), ("max", 0.9), ("confident", 0.4)])
def test_named_aggregations(how: str, expected: float) -> None:
    assert track([0.1, 0.2, 0.9]).score(how) == pytest.approx(expected)


def test_an_unknown_aggregation_is_refused() -> None:
    with pytest.raises(UsageError, match="confident, mean, max"):
        ScoringOptions(aggregation="median")


def test_segments_end_at_gaps_and_have_their_own_scores() -> None:
    face = track([0.2, 0.4, 0.9, 0.7], gaps=(2,)).summary("mean", frame_duration_s=0.1)
    assert [(s.start_s, pytest.approx(s.end_s), pytest.approx(s.score)) for s in face.segments] == [
        (0.0, 0.2, 0.3),
        (0.2, 0.4, 0.8),
    ]


def test_uncertainty_is_the_spread_over_windows_that_hold_enough() -> None:
    # Windows hold 1, 2, 3, 4, 4 frames: the first is left out.
    spread = track([0.5] * 5, windows=[1.0, 0.2, 0.4, 0.2, 0.4]).uncertainty()
    assert spread == pytest.approx(0.1)


def test_one_window_tells_nothing_of_its_spread() -> None:
    assert track([0.5]).uncertainty() == 0.5


def test_the_most_suspicious_track_decides_unless_it_is_too_short() -> None:
    calm, alarming, flash = track([0.1] * 10), track([0.8] * 10, track_id=2), track([1.0] * 2, track_id=3)
    options = ScoringOptions()
    assert deciding_track([calm, alarming, flash], options) is alarming
    assert deciding_track([flash], options) is flash


@pytest.mark.parametrize(
    ("score", "verdict"), [(0.2, Verdict.AUTHENTIC), (0.5, Verdict.MANIPULATED), (0.9, Verdict.MANIPULATED)]
)
def test_the_threshold_decides(score: float, verdict: Verdict) -> None:
    judgement = judge(track([score] * 8), Calibration(), ScoringOptions(), trained=True, damaged=0.0)
    assert judgement.verdict is verdict
    assert judgement.reasons == ()


@pytest.mark.parametrize(
    ("scores", "trained", "damaged", "why"),
    [
        ([0.9] * 8, False, 0.0, "never trained"),
        ([0.9] * 3, True, 0.0, "4 are needed"),
        ([0.0] * 7 + [1.0] * 13, True, 0.0, "windows disagree"),
        ([0.9] * 8, True, 0.6, "60% of the frames"),
        ([0.5] * 8, True, 0.0, "unsure"),
    ],
)
def test_it_abstains_and_says_why(scores: list[float], trained: bool, damaged: float, why: str) -> None:
    judgement = judge(track(scores), Calibration(band=(0.4, 0.6)), ScoringOptions(), trained=trained, damaged=damaged)
    assert judgement.verdict is Verdict.INCONCLUSIVE
    assert len(judgement.reasons) == 1
    assert why in judgement.reasons[0]


@pytest.mark.parametrize(
    ("poor", "why"),
    [
        ({"side_px": 47.4}, "The face is small: 47 px across, where 48 px are needed."),
        ({"sharpness": 0.24}, "The face is blurred: its sharpness is 0.24, where 0.25 is needed."),
        ({"yaw_deg": 61.0}, "The face is turned 61 degrees to the side, where 50 are the most."),
        ({"pitch_deg": 50.0}, "The face looks 50 degrees up or down, where 40 are the most."),
        ({"roll_deg": 90.0}, "The face is tilted by 90 degrees, where 45 are the most."),
    ],
)
def test_a_face_that_is_hard_to_see_is_not_judged(poor: dict[str, float], why: str) -> None:
    """The median decides: a few poor frames do no harm."""
    hard = replace(CLEAR, **poor)
    mostly, seldom = [hard, hard, CLEAR], [hard, CLEAR, CLEAR]
    judged = [
        judge(track([0.9] * 9, qualities=q), Calibration(), ScoringOptions(), trained=True, damaged=0.0)
        for q in (mostly, seldom)
    ]
    assert [j.verdict for j in judged] == [Verdict.INCONCLUSIVE, Verdict.MANIPULATED]
    assert [j.reasons for j in judged] == [(why,), ()]
    lax = ScoringOptions(min_median_face_px=0, min_sharpness=0, max_yaw_deg=180, max_pitch_deg=180, max_roll_deg=180)
    unlimited = judge(track([0.9] * 9, qualities=[hard]), Calibration(), lax, trained=True, damaged=0.0)
    assert unlimited.verdict is Verdict.MANIPULATED


def test_each_weakness_has_its_sentence() -> None:
    worst = FaceQuality(side_px=33, sharpness=0.1, yaw_deg=80, pitch_deg=60, roll_deg=60)
    judged = judge(track([0.1] * 8, qualities=[worst]), Calibration(), ScoringOptions(), trained=True, damaged=0.0)
    assert [reason.split()[2] for reason in judged.reasons] == ["is", "is", "is", "looks", "is"]


def test_a_track_has_the_median_of_its_frames() -> None:
    seen = [replace(CLEAR, side_px=s, sharpness=x) for s, x in ((60, 0.2), (90, None), (200, 0.4))]
    summary = track([0.5] * 3, qualities=seen).summary("mean", frame_duration_s=0.1)
    assert summary.quality == replace(CLEAR, side_px=90.0, sharpness=pytest.approx(0.3))


@pytest.mark.parametrize(
    "wrong", [{"min_median_face_px": -1}, {"min_sharpness": 1.1}, {"max_yaw_deg": 0}, {"max_roll_deg": 181}]
)
def test_limits_have_ranges(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be"):
        ScoringOptions(**wrong)  # type: ignore[arg-type]
