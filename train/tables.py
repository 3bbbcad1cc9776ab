"""The numbers of a detector's evaluation: per frame, track and video; of all data, of each dataset and of each method.

A frame is a scored face in one frame, or the window that ends with it (temporal models); its label is its video's. A
track counts where it is long enough to decide a video, or is the one that decided. A method is measured against all
real videos of its dataset.

Axes: N items of a level.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.ensemble import Ensemble
from train.evaluation import Outcome
from train.selection import Selection
from unmask.intervals import detection_measures
from unmask.metrics import DETECTION, Detections, Measure, UndefinedError
from unmask.records import Verdict
from unmask.scoring import ScoringOptions

__all__ = ["LEVELS", "Level", "curves", "detection_tables", "levels", "measured_outcomes", "video_rows"]

LEVELS = ("video", "track", "frame")
_CURVE_POINTS = 200
_NO_METHOD = "no method named"


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """Scores at one level, with the truth."""

    scores_N: NDArray[np.float64]
    labels_N: NDArray[np.int64]
    videos_N: NDArray[np.int64]
    """Number in the catalogue of the video that each is of."""

    def of(self, videos: set[int]) -> "Level":
        """The part that is of some videos."""
        kept = np.isin(self.videos_N, list(videos))
        return Level(self.scores_N[kept], self.labels_N[kept], self.videos_N[kept])

    def detections(self, threshold: float = 0.5) -> Detections:
        """For metrics and curves."""
        return Detections(self.scores_N, self.labels_N, threshold=threshold)


def levels(selection: Selection, found: Sequence[Outcome], options: ScoringOptions) -> dict[str, Level]:
    """The scores at each of `LEVELS`, of the videos that have any."""
    rows: dict[str, list[tuple[float, int]]] = {name: [] for name in LEVELS}
    for outcome in found:
        if outcome.score is None:
            continue
        rows["video"].append((outcome.score, outcome.video))
        longest = max(length for _, length in outcome.tracks.values())
        enough = min(options.min_track_frames, longest)
        rows["track"] += [(score, outcome.video) for score, length in outcome.tracks.values() if length >= enough]
        rows["frame"] += [(score, outcome.video) for score in outcome.scores_N.tolist()]
    return {name: _level(selection, listed) for name, listed in rows.items()}


def _level(selection: Selection, listed: Sequence[tuple[float, int]]) -> Level:
    videos_N = np.array([video for _, video in listed], np.int64)
    labels = {n: selection.catalogue.videos[n].about.label or 0 for n in set(videos_N.tolist())}
    return Level(
        np.array([score for score, _ in listed], np.float64),
        np.array([labels[n] for n in videos_N.tolist()], np.int64),
        videos_N,
    )


def detection_tables(
    ensemble: Ensemble,
    selection: Selection,
    found: Sequence[Outcome],
    parts: Sequence[Sequence[Outcome]],
    options: ScoringOptions,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """All tables, as plain values for the JSON and the page.

    Args:
        ensemble: Who was evaluated.
        selection: On what.
        found: What the ensemble said.
        parts: What each member said.
        options: What counted as evidence.
        resamples: Draws of videos for the intervals.
        seed: Of the draws.
    """

    def measures(at: Mapping[str, Level], videos: set[int] | None = None) -> dict[str, Any]:
        return {
            name: _measures(level if videos is None else level.of(videos), ensemble.threshold, resamples, seed)
            for name, level in at.items()
        }

    whole = levels(selection, found, options)
    members = []
    if len(parts) > 1:
        for member, part in zip(ensemble.members, parts, strict=True):
            own = levels(selection, part, options)["video"]
            threshold = member.description.calibration.threshold
            members.append({"name": member.name, "video": _measures(own, threshold, resamples, seed)})
    return {
        "overall": measures(whole),
        "datasets": [{"dataset": name, **measures(whole, videos)} for name, videos in _by_dataset(selection).items()],
        "methods": [
            {"dataset": dataset, "method": method, **measures(whole, videos)}
            for (dataset, method), videos in _by_method(selection).items()
        ],
        "members": members,
        "verdicts": _verdicts(selection, found) if len(parts) == 1 else None,
        "curves": curves(whole["video"]),
    }


def measured_outcomes(
    selection: Selection, found: Sequence[Outcome], options: ScoringOptions, *, resamples: int, seed: int
) -> Measure:
    """The AUC of videos alone, with its interval."""
    level = levels(selection, found, options)["video"]
    only: Mapping[str, Callable[[Detections], float]] = {"auc": DETECTION["auc"]}
    return detection_measures(
        level.scores_N, level.labels_N, level.videos_N, metrics=only, resamples=resamples, seed=seed
    )["auc"]


def _measures(level: Level, threshold: float, resamples: int, seed: int) -> dict[str, Any]:
    found = detection_measures(
        level.scores_N, level.labels_N, level.videos_N, threshold=threshold, resamples=resamples, seed=seed
    )
    first = np.unique(level.videos_N, return_index=True)[1]
    return {
        "items": len(level.scores_N),
        "videos": len(first),
        "real_videos": int((level.labels_N[first] == 0).sum()),
        "fake_videos": int((level.labels_N[first] == 1).sum()),
        "metrics": {name: measure.to_json() for name, measure in found.items()},
    }


def _by_dataset(selection: Selection) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for number in selection.videos:
        found.setdefault(selection.catalogue.videos[number].dataset, set()).add(number)
    return found


def _by_method(selection: Selection) -> dict[tuple[str, str], set[int]]:
    """The fakes of each method with all real videos of its dataset."""
    real: dict[str, set[int]] = {}
    found: dict[tuple[str, str], set[int]] = {}
    for number in selection.videos:
        video = selection.catalogue.videos[number]
        if video.about.label:
            found.setdefault((video.dataset, video.about.method or _NO_METHOD), set()).add(number)
        else:
            real.setdefault(video.dataset, set()).add(number)
    return {key: fakes | real.get(key[0], set()) for key, fakes in sorted(found.items())}


def _verdicts(selection: Selection, found: Sequence[Outcome]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {"real": Counter(), "fake": Counter()}
    for outcome in found:
        if outcome.verdict is not None and outcome.score is not None:
            label = "fake" if selection.catalogue.videos[outcome.video].about.label else "real"
            counts[label][outcome.verdict.value] += 1
    return {label: {verdict.value: count[verdict.value] for verdict in Verdict} for label, count in counts.items()}


def curves(level: Level) -> dict[str, Any] | None:
    """ROC, precision and recall, and the reliability diagram, as points; None where a class is missing."""
    items = level.detections()
    try:
        curve = items.curve()
    except UndefinedError:
        return None
    kept = _thinned(len(curve.thresholds_T))
    weight_B, mean_B, share_B = items.reliability()
    filled = np.flatnonzero(weight_B)
    return {
        "roc": np.stack([curve.fpr_T, curve.tpr_T], 1)[kept].tolist(),
        "precision_recall": np.stack([curve.tpr_T, curve.precision_T], 1)[kept][1:].tolist(),
        "reliability": [
            {"videos": int(weight_B[b]), "score": float(mean_B[b]), "fakes": float(share_B[b])} for b in filled
        ],
    }


def _thinned(points: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, points - 1, min(points, _CURVE_POINTS)).round().astype(np.int64))


def video_rows(selection: Selection, found: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A row a video: what it is, and what came of it. Those without a face come last."""
    rows = []
    for outcome in found:
        video = selection.catalogue.videos[outcome.video]
        rows.append(
            {
                "video": video.key,
                "dataset": video.dataset,
                "label": video.about.label,
                "method": video.about.method,
                "status": str(outcome.status),
                "score": outcome.score,
                "verdict": None if outcome.verdict is None else str(outcome.verdict),
                "reason": outcome.reason,
                "faces_scored": len(outcome.rows_N),
                "tracks": {str(track): score for track, (score, _) in outcome.tracks.items()},
                "deciding_track": outcome.deciding,
            }
        )
    rows += [
        {
            "video": lost.key,
            "dataset": lost.dataset,
            "label": lost.about.label,
            "method": lost.about.method,
            "status": "unscored",
            "score": None,
            "verdict": None,
            "reason": lost.reason,
            "faces_scored": 0,
            "tracks": {},
            "deciding_track": None,
        }
        for lost in selection.unscored
    ]
    return rows
