"""What stands before the numbers of an evaluation: who was evaluated, on what, and what a reader must know."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from train.ensemble import Ensemble
from train.selection import Selection
from unmask import __version__

__all__ = ["FORMAT", "preface"]

FORMAT = 1
"""Of `evaluation.json`."""
_FEW_REALS = 100
_UNTRAINED = "A model was never trained: what it says is chance."


def preface(ensemble: Ensemble, selection: Selection, scores: Sequence[float | None], damaged: int) -> dict[str, Any]:
    """The beginning of the document.

    Args:
        ensemble: Who was evaluated.
        selection: On what.
        scores: Of each video of the selection.
        damaged: Crops that could not be read.
    """
    return {
        "format": FORMAT,
        "unmask": __version__,
        "task": "mos" if ensemble.is_mos else "detection",
        "split": selection.split,
        "is_test": selection.notice is None,
        "notices": [*([selection.notice] if selection.notice else []), *([] if ensemble.trained else [_UNTRAINED])],
        "caveats": [*selection.caveats, *_caveats(ensemble, selection, scores, damaged)],
        "name": ensemble.name,
        "threshold": None if ensemble.is_mos else ensemble.threshold,
        "calibrated": ensemble.calibrated,
        "trained": ensemble.trained,
        "models": [member.to_json() for member in ensemble.members],
        "data": _data(selection, scores),
    }


def _caveats(ensemble: Ensemble, selection: Selection, scores: Sequence[float | None], damaged: int) -> list[str]:
    """What a reader must know beside the numbers."""
    said = []
    if not ensemble.is_mos and ensemble.trained and not ensemble.calibrated:
        said.append(
            "The scores are not calibrated: they rank videos, and are no probabilities. Log loss, Brier score, ECE and "
            "what depends on the threshold are those of scores as they come."
        )
    if len(ensemble.members) > 1 and not ensemble.is_mos:
        said.append("The threshold is the weighted mean of the members' own; it was not fitted to their average.")
    if lost := len(selection.unscored) + sum(score is None for score in scores):
        said.append(f"In no metric, for want of a score: {_videos(lost)}; the reasons are below.")
    if selection.left_out:
        what = "an opinion score" if ensemble.is_mos else "a label"
        said.append(f"Left out for want of {what}: {_videos(selection.left_out)}.")
    if damaged:
        said.append(f"Damaged crops, whose frames count as frames that could not be seen: {damaged:,}.")
    if _is_resized(selection):
        said.append(
            "The crops were brought to one size when they were preprocessed, so that scores can differ a little from "
            "those of the videos themselves."
        )
    reals = sum(selection.catalogue.videos[n].about.label == 0 for n in selection.videos)
    if not ensemble.is_mos and 0 < reals < _FEW_REALS:
        said.append(f"With {_videos(reals, 'real ')} the TPR at 1% FPR is that at no false positive.")
    return said


def _videos(count: int, kind: str = "") -> str:
    return f"{count:,} {kind}video{'s' if count != 1 else ''}"


def _is_resized(selection: Selection) -> bool:
    scale_N2 = np.hypot(selection.catalogue.transform_N6[:, [0, 1]], selection.catalogue.transform_N6[:, [3, 4]])
    return bool((np.abs(scale_N2 - 1) > 0.02).mean() > 0.01)


def _data(selection: Selection, scores: Sequence[float | None]) -> list[dict[str, Any]]:
    """What each dataset brought, and what became of it."""
    rows = []
    for dataset, store in selection.catalogue.stores.items():
        pairs = [
            (selection.catalogue.videos[n], score)
            for n, score in zip(selection.videos, scores, strict=True)
            if selection.catalogue.videos[n].dataset == dataset
        ]
        lost = Counter(u.reason for u in selection.unscored if u.dataset == dataset)
        lost.update("no_usable_face" for _, score in pairs if score is None)
        rows.append(
            {
                "dataset": dataset,
                "place": store.shown,
                "videos": len(pairs) + sum(u.dataset == dataset for u in selection.unscored),
                "scored": sum(score is not None for _, score in pairs),
                "real": sum(video.about.label == 0 for video, _ in pairs),
                "fake": sum(video.about.label == 1 for video, _ in pairs),
                "not_scored": dict(sorted(lost.items())),
            }
        )
    return rows
