"""What an evaluation finds: it scores the videos once, then measures, perturbs and explains.

The document is what `evaluation.json` holds: plain values alone, the same for the same models, data and seed, but for
its date.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from train.crops import CropReader
from train.embedding import Change
from train.ensemble import Ensemble
from train.evaluation import Outcome, score_all
from train.faithfulness import Faithfulness, faithfulness, probe_rows
from train.mos import Opinion, main_rows, predict_all, random_clips
from train.mos_tables import agreement, mos_rows, mos_tables
from train.preface import preface
from train.robustness import RobustnessRow, fair_sample, passes, sweep
from train.selection import Selection
from train.tables import detection_tables, measured_outcomes, video_rows
from unmask.errors import UsageError
from unmask.intervals import RESAMPLES
from unmask.metrics import Measure
from unmask.scoring import ScoringOptions

__all__ = ["Examination", "Findings", "Robustness", "examine", "steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """How an evaluation is done."""

    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    batch: int = 32
    """Crops a pass."""
    resamples: int = RESAMPLES
    """Draws of videos for the intervals; 0 for none."""
    seed: int = 0
    """Of all that is drawn."""
    robustness: bool = False
    """Perturb the crops, too."""
    robustness_videos: int = 200
    """At most so many videos are perturbed; 0 for all."""
    heatmaps: int = 0
    """Faces whose heat maps are tested."""
    depth: str | None = None
    """Weights of the depth maps, where a model takes them; see `train.fused.fused`."""

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("resamples", 0), ("seed", 0), ("robustness_videos", 0), ("heatmaps", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} is {least} or more; got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """What shapes the numbers, as a plain dict."""
        return {
            "aggregation": self.scoring.aggregation,
            "min_face_px": self.scoring.min_face_px,
            "min_track_frames": self.scoring.min_track_frames,
            "resamples": self.resamples,
            "seed": self.seed,
        }


@dataclass(frozen=True, slots=True, eq=False)
class Robustness:
    """What perturbations leave of one metric, in a sample of the videos."""

    metric: str
    videos: int
    clean: Measure
    rows: tuple[RobustnessRow, ...]

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        rows = [row.to_json() for row in self.rows]
        return {"metric": self.metric, "videos": self.videos, "clean": self.clean.to_json(), "rows": rows}


@dataclass(frozen=True, slots=True, eq=False)
class Findings:
    """All that the page shows.

    Args:
        document: What `evaluation.json` holds.
        ensemble: Who was evaluated.
        selection: On what.
        outcomes: Of each video, from a detector.
        opinions: Of each video, from a model of opinion scores.
        robustness: Where it was asked for.
        faithfulness: Where it was asked for.
    """

    document: dict[str, Any]
    ensemble: Ensemble
    selection: Selection
    outcomes: tuple[Outcome, ...] = ()
    opinions: tuple[Opinion, ...] = ()
    robustness: Robustness | None = None
    faithfulness: Faithfulness | None = None


def steps(ensemble: Ensemble, selection: Selection, how: Examination) -> int:
    """How often `examine` reports progress."""
    videos = len(selection.videos) * len(ensemble.members)
    if how.robustness:
        sample = min(how.robustness_videos or len(selection.videos), len(selection.videos))
        videos += sample * len(ensemble.members) * passes()
    return videos + how.heatmaps


def examine(
    ensemble: Ensemble,
    selection: Selection,
    reader: CropReader,
    how: Examination,
    *,
    progress: Callable[[int], None] = lambda _: None,
) -> Findings:
    """Evaluate.

    Raises:
        UsageError: No video gave a score; or weights of depth maps are given and no model takes such maps.
        ModelError: A model cannot score.
    """
    if how.depth is not None and not any(member.model.config.head == "fusion" for member in ensemble.members):
        raise UsageError("--depth-weights goes with models that take depth maps, and this one takes none: leave it out")
    return (_mos if ensemble.is_mos else _detection)(ensemble, selection, reader, how, progress)


def _detection(
    ensemble: Ensemble, selection: Selection, reader: CropReader, how: Examination, progress: Callable[[int], None]
) -> Findings:
    found, parts = score_all(
        ensemble, selection, reader, how.scoring, batch=how.batch, depth=how.depth, progress=progress
    )
    _need_scores([o.score for o in found], how)
    robust = _robustness(ensemble, selection, reader, how, progress) if how.robustness else None
    main = _main(ensemble)
    clips = {}
    for outcome in (o for o in parts[main] if o.score is not None):
        own_N = selection.catalogue.track_N[outcome.rows_N] == outcome.deciding
        rows_N, scores_N = outcome.rows_N[own_N], outcome.scores_N[own_N]
        clips[outcome.video] = probe_rows(rows_N, scores_N, selection, _length(ensemble, main))
    faithful = _faithfulness(ensemble, selection, reader, clips, how, progress)
    results = detection_tables(ensemble, selection, found, parts, how.scoring, resamples=how.resamples, seed=how.seed)
    document = {
        **preface(ensemble, selection, [o.score for o in found], sum(o.damaged for o in found)),
        "options": how.to_json(),
        "results": results,
        "robustness": None if robust is None else robust.to_json(),
        "faithfulness": None if faithful is None else faithful.to_json(),
        "videos": video_rows(selection, found),
    }
    return Findings(document, ensemble, selection, tuple(found), (), robust, faithful)


def _mos(
    ensemble: Ensemble, selection: Selection, reader: CropReader, how: Examination, progress: Callable[[int], None]
) -> Findings:
    found, parts = predict_all(
        ensemble, selection, reader, how.scoring, batch=how.batch, seed=how.seed, progress=progress
    )
    _need_scores([o.score for o in found], how)
    robust = _robustness(ensemble, selection, reader, how, progress) if how.robustness else None
    length, rng = _length(ensemble, _main(ensemble)), np.random.default_rng(how.seed)
    clips = {}
    for number in (o.video for o in found if o.score is not None):
        rows_N = main_rows(selection.catalogue, number, how.scoring)
        (clip,) = random_clips(selection.catalogue.after_gap_N[rows_N], length, 1, rng)
        clips[number] = rows_N[clip].tolist()
    faithful = _faithfulness(ensemble, selection, reader, clips, how, progress)
    document = {
        **preface(ensemble, selection, [o.score for o in found], sum(o.damaged for o in found)),
        "options": how.to_json(),
        "results": mos_tables(ensemble, selection, found, parts, resamples=how.resamples, seed=how.seed),
        "robustness": None if robust is None else robust.to_json(),
        "faithfulness": None if faithful is None else faithful.to_json(),
        "videos": mos_rows(selection, found),
    }
    return Findings(document, ensemble, selection, (), tuple(found), robust, faithful)


def _need_scores(scores: Sequence[float | None], how: Examination) -> None:
    if all(score is None for score in scores):
        raise UsageError(
            f"none of the {len(scores):,} videos has a face of {how.scoring.min_face_px} pixels or more in a whole "
            "frame: there is nothing to evaluate"
        )


def _robustness(
    ensemble: Ensemble, selection: Selection, reader: CropReader, how: Examination, progress: Callable[[int], None]
) -> Robustness:
    labels = [selection.catalogue.videos[n].about.label for n in selection.videos]
    sample = [selection.videos[n] for n in fair_sample(labels, how.robustness_videos, how.seed)]

    def measure(change: Change | None) -> Measure:
        if ensemble.is_mos:
            said, _ = predict_all(
                ensemble, selection, reader, how.scoring,
                batch=how.batch, seed=how.seed, videos=sample, change=change, progress=progress,
            )  # fmt: skip
            return agreement(selection, said, resamples=how.resamples, seed=how.seed)
        found, _ = score_all(
            ensemble, selection, reader, how.scoring,
            batch=how.batch, videos=sample, change=change, depth=how.depth, progress=progress,
        )  # fmt: skip
        return measured_outcomes(selection, found, how.scoring, resamples=how.resamples, seed=how.seed)

    clean, rows = sweep(selection, measure, seed=how.seed)
    return Robustness("srcc" if ensemble.is_mos else "auc", len(sample), clean, tuple(rows))


def _main(ensemble: Ensemble) -> int:
    """The model that counts most: the heat maps are its."""
    return max(range(len(ensemble.members)), key=lambda n: ensemble.members[n].weight)


def _length(ensemble: Ensemble, number: int) -> int:
    """Frames that a model judges at once."""
    model = ensemble.members[number].model
    return model.config.window if model.is_temporal else 1


def _faithfulness(
    ensemble: Ensemble,
    selection: Selection,
    reader: CropReader,
    clips: Mapping[int, Sequence[int]],
    how: Examination,
    progress: Callable[[int], None],
) -> Faithfulness | None:
    """The test of heat maps on some videos, as many of each class; `clips` are the faces to look at in each video."""
    if not how.heatmaps:
        return None
    videos = list(clips)
    labels = [selection.catalogue.videos[n].about.label for n in videos]
    probes = [(videos[n], clips[videos[n]]) for n in fair_sample(labels, how.heatmaps, how.seed)]
    return faithfulness(
        ensemble.members[_main(ensemble)], reader, probes, selection,
        resamples=how.resamples, seed=how.seed, progress=progress,
    )  # fmt: skip
