"""The tables of an evaluation, from outcomes made up so that every number is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from tests.evaluated import fitted_model, folder, person_clip
from tests.products import Clip
from train.catalogue import Catalogue
from train.ensemble import Ensemble, Member
from train.evaluation import Outcome
from train.preface import preface
from train.selection import Selection, select
from train.tables import detection_tables, levels, measured_outcomes, video_rows
from unmask.checkpoints import Description
from unmask.records import Status, Verdict
from unmask.scoring import ScoringOptions
from unmask.transforms import Preprocessing

OPTIONS = ScoringOptions(min_track_frames=3)


@pytest.fixture(scope="module")
def selection(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    place = tmp_path_factory.mktemp("d")
    methods = [None, "swap", None, "swap", None, "puppet", None, None]
    first = [person_clip(n, n % 2, method=methods[n]) for n in range(8)]
    lost = Clip(
        video="lost", faces={}, status="failed", columns={"label": 1, "reason": "not_a_video", "method": "swap"}
    )
    second = [person_clip(n, n % 2) for n in range(4)]
    places = [folder(place / "one", [*first, lost]), folder(place / "two", second)]
    return select(Catalogue.read([str(p) for p in places]), "all", Ensemble(()))


def ensemble(members: int = 1, **fields: Any) -> Ensemble:
    model = fitted_model()
    about = {
        "name": "m",
        "version": "1",
        "config": model.config,
        "preprocessing": Preprocessing(size_px=64),
        "trained": True,
    }
    description = Description(**{**about, **fields})
    return Ensemble(tuple(Member(f"m{n}", f"m{n}", model, description, 1 / members) for n in range(members)))


def outcome(selection: Selection, number: int, score: float | None, tracks: dict[int, tuple[float, int]]) -> Outcome:
    if score is None:
        return Outcome(number, Status.UNSCORED, reason="no_usable_face")
    start = selection.catalogue.videos[number].rows.start
    frames = sum(length for _, length in tracks.values())
    scores = np.concatenate([np.full(length, value) for value, length in tracks.values()])
    verdict = Verdict.MANIPULATED if score >= 0.5 else Verdict.AUTHENTIC
    return Outcome(
        number,
        Status.SCORED,
        score,
        verdict,
        None,
        np.arange(start, start + frames),
        scores,
        dict(tracks),
        next(iter(tracks)),
    )


@pytest.fixture
def found(selection: Selection) -> list[Outcome]:
    scores = [0.1, 0.9, 0.2, 0.15, 0.4, 0.7, None, 0.6, 0.3, 0.35, 0.2, 0.8]
    out = []
    for number, score in zip(selection.videos, scores, strict=True):
        value = score or 0.0
        # The second track is too short to decide, in the first video both are.
        tracks = {1: (value, 4), 2: (1.0 - value, 2)} if number else {1: (value, 2), 2: (0.9, 1)}
        out.append(outcome(selection, number, score, tracks))
    return out


def test_levels_hold_what_counts(selection: Selection, found: list[Outcome]) -> None:
    at = levels(selection, found, OPTIONS)
    assert len(at["video"].scores_N) == 11  # one has no score
    assert len(at["track"].scores_N) == 11
    assert at["track"].scores_N.tolist() == at["video"].scores_N.tolist()
    assert len(at["frame"].scores_N) == 10 * 6 + 3
    assert at["video"].labels_N.tolist() == [0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1]
    part = at["frame"].of({selection.videos[1]})
    assert part.scores_N.tolist() == pytest.approx([0.9] * 4 + [0.1] * 2)


def test_tables_agree_with_computing_each_group_by_hand(selection: Selection, found: list[Outcome]) -> None:
    tables = detection_tables(ensemble(), selection, found, [found], OPTIONS, resamples=20, seed=0)
    overall = tables["overall"]["video"]
    assert (overall["items"], overall["videos"], overall["real_videos"], overall["fake_videos"]) == (11, 11, 5, 6)
    labels = [0, 1, 0, 1, 0, 1, 1, 0, 1, 0, 1]
    scores = [0.1, 0.9, 0.2, 0.15, 0.4, 0.7, 0.6, 0.3, 0.35, 0.2, 0.8]
    assert overall["metrics"]["auc"]["value"] == pytest.approx(roc_auc_score(labels, scores))
    one = next(row for row in tables["datasets"] if row["dataset"] == "one")["video"]
    assert one["metrics"]["auc"]["value"] == pytest.approx(roc_auc_score(labels[:7], scores[:7]))
    methods = {(row["dataset"], row["method"]): row["video"] for row in tables["methods"]}
    assert set(methods) == {("one", "swap"), ("one", "puppet"), ("one", "no method named"), ("two", "upside down")}
    # Against all real videos of the dataset, .1, .2 and .4.
    assert methods["one", "swap"]["metrics"]["auc"]["value"] == pytest.approx(
        roc_auc_score([0, 0, 0, 1, 1], [0.1, 0.2, 0.4, 0.9, 0.15])
    )
    assert methods["one", "puppet"]["metrics"]["auc"]["value"] == 1.0
    assert methods["one", "puppet"]["metrics"]["auc"]["low"] is None  # a single fake
    assert tables["verdicts"] == {
        "real": {"authentic": 5, "manipulated": 0, "inconclusive": 0},
        "fake": {"authentic": 2, "manipulated": 4, "inconclusive": 0},
    }
    assert tables["curves"]["roc"][0] == [0.0, 0.0]
    assert tables["curves"]["roc"][-1] == [1.0, 1.0]
    assert sum(row["videos"] for row in tables["curves"]["reliability"]) == 11
    assert tables["members"] == []


def test_an_ensemble_has_its_members_beside_it_and_no_verdicts(selection: Selection, found: list[Outcome]) -> None:
    tables = detection_tables(ensemble(2), selection, found, [found, found], OPTIONS, resamples=0, seed=0)
    assert [row["name"] for row in tables["members"]] == ["m0", "m1"]
    assert tables["verdicts"] is None


def test_one_class_has_no_curves_and_says_why(selection: Selection, found: list[Outcome]) -> None:
    reals = [o for o in found if not selection.catalogue.videos[o.video].about.label]
    tables = detection_tables(ensemble(), selection, reals, [reals], OPTIONS, resamples=10, seed=0)
    assert tables["curves"] is None
    assert "all items are real" in tables["overall"]["video"]["metrics"]["auc"]["reason"]
    assert measured_outcomes(selection, reals, OPTIONS, resamples=10, seed=0).value is None


def test_every_video_has_a_row(selection: Selection, found: list[Outcome]) -> None:
    rows = {row["video"]: row for row in video_rows(selection, found)}
    assert len(rows) == 13
    assert rows["one/lost"]["reason"] == "not_a_video"
    assert rows["one/lost"]["status"] == "unscored"
    assert rows["one/fake/1"]["tracks"] == {"1": 0.9, "2": pytest.approx(0.1)}
    assert rows["one/real/6"]["score"] is None


def test_the_preface_says_what_a_reader_must_know(selection: Selection, found: list[Outcome], tmp_path: Path) -> None:
    scores = [o.score for o in found]
    said = preface(ensemble(2), selection, scores, 3)
    text = " ".join(said["caveats"])
    for part in ("not calibrated", "threshold is the weighted mean", "2 videos", "Damaged crops", "6 real videos"):
        assert part in text, part
    assert said["notices"] == []
    assert preface(ensemble(trained=False), selection, scores, 0)["notices"] == [
        "A model was never trained: what it says is chance."
    ]
    (one, two) = said["data"]
    assert (one["videos"], one["scored"], one["real"], one["fake"]) == (9, 7, 4, 4)
    assert one["not_scored"] == {"no_usable_face": 1, "not_a_video": 1}
    assert two["not_scored"] == {}
    resized = folder(tmp_path / "small", [person_clip(n, n) for n in range(2)], side_px=96)
    small = select(Catalogue.read([str(resized)]), "all", Ensemble(()))
    assert "brought to one size" in " ".join(preface(ensemble(), small, [0.1, 0.2], 0)["caveats"])
