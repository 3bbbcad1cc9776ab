"""The numbers of an evaluation of opinion scores: of each test set, with what a table of methods would have said.

A test set is a folder, or each of its parts where the dataset has parts (C1, C2 and C3 of DFGC-VRA).

Axes: V videos.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.catalogue import CataloguedVideo
from train.ensemble import Ensemble
from train.mos import METHOD_MOS, Opinion, looked_up, method_means
from train.selection import Selection
from train.splits import official_splits
from unmask.intervals import agreement_over_sets, opinion_measures
from unmask.metrics import Measure
from unmask.opinions import Opinions

__all__ = ["agreement", "known_means", "mos_rows", "mos_tables", "set_of"]


def set_of(video: CataloguedVideo) -> str:
    """The test set that a video belongs to."""
    return f"{video.dataset}/{video.about.part}" if video.about.part else video.dataset


def known_means(ensemble: Ensemble, selection: Selection) -> tuple[dict[str, float], str]:
    """The mean opinion of each method in training data, and where it comes from: empty where nobody tells."""
    for member in ensemble.members:
        means = member.description.provenance.get(METHOD_MOS)
        if isinstance(means, Mapping) and means:
            return {str(k): float(v) for k, v in means.items()}, f"the training data of {member.name}"
    splits = official_splits(selection.catalogue)
    chosen = {selection.catalogue.videos[n].key for n in selection.videos}
    train = [v for v in selection.catalogue.videos if splits.get(v.key) == "train" and v.key not in chosen]
    means = method_means(video.about for video in train)
    return means, f"the split train of {', '.join(sorted({v.dataset for v in train}))}" if means else ""


def mos_tables(
    ensemble: Ensemble,
    selection: Selection,
    found: Sequence[Opinion],
    parts: Sequence[Sequence[Opinion]],
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """All tables, as plain values. Arguments as in `train.tables.detection_tables`."""
    means, source = known_means(ensemble, selection)

    def sets(opinions: Sequence[Opinion]) -> dict[str, Any]:
        scored = [o for o in opinions if o.score is not None]
        score_V = np.array([o.score for o in scored], np.float64)
        return _measures(selection, [o.video for o in scored], score_V, resamples, seed)

    scored = [o.video for o in found if o.score is not None]
    table: dict[str, Any] | None = None
    if means and scored:
        score_V, unknown = looked_up(means, [selection.catalogue.videos[n].about for n in scored])
        table = {"source": source, "unknown": unknown, **_measures(selection, scored, score_V, resamples, seed)}
    return {
        **sets(found),
        "lookup": table,
        "members": [{"name": member.name, **sets(part)} for member, part in zip(ensemble.members, parts, strict=True)]
        if len(parts) > 1
        else [],
    }


def _measures(
    selection: Selection, videos: Sequence[int], score_V: NDArray[np.float64], resamples: int, seed: int
) -> dict[str, Any]:
    """Each test set, all of them together, and the challenge's score."""
    catalogued = [selection.catalogue.videos[n] for n in videos]
    mos_V = np.array([video.about.mos for video in catalogued], np.float64)
    set_V = np.array([set_of(video) for video in catalogued], np.str_)

    def measures(rows: NDArray[np.bool_]) -> dict[str, Any]:
        found = opinion_measures(score_V[rows], mos_V[rows], resamples=resamples, seed=seed)
        return {"videos": int(rows.sum()), "metrics": {name: m.to_json() for name, m in found.items()}}

    return {
        "overall": measures(np.ones(len(videos), np.bool_)),
        "sets": [{"set": str(name), **measures(set_V == name)} for name in np.unique(set_V)],
        "challenge": agreement_over_sets(score_V, mos_V, set_V, resamples=resamples, seed=seed).to_json(),
    }


def agreement(selection: Selection, found: Sequence[Opinion], *, resamples: int, seed: int) -> Measure:
    """Spearman's correlation over all videos, with its interval."""
    scored = [o for o in found if o.score is not None]
    items = Opinions([o.score or 0.0 for o in scored], [_mos(selection, o) for o in scored])
    return opinion_measures(items.scores_N, items.mos_N, resamples=resamples, seed=seed)["srcc"]


def _mos(selection: Selection, opinion: Opinion) -> float:
    mos = selection.catalogue.videos[opinion.video].about.mos
    assert mos is not None
    return mos


def mos_rows(selection: Selection, found: Sequence[Opinion]) -> list[dict[str, Any]]:
    """A row a video: what it is, and what came of it. Those without a face come last."""
    rows = []
    for opinion in found:
        video = selection.catalogue.videos[opinion.video]
        rows.append(
            {
                "video": video.key,
                "dataset": video.dataset,
                "set": set_of(video),
                "method": video.about.method,
                "mos": video.about.mos,
                "score": opinion.score,
                "clips": list(opinion.clips),
                "reason": None if opinion.score is not None else "no_usable_face",
            }
        )
    rows += [
        {
            "video": lost.key,
            "dataset": lost.dataset,
            "set": None,
            "method": lost.about.method,
            "mos": None,
            "score": None,
            "clips": [],
            "reason": lost.reason,
        }
        for lost in selection.unscored
    ]
    return rows
