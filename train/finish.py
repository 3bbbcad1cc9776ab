"""What a run leaves: the best epoch as a calibrated checkpoint, and a summary."""

import datetime as dt
import hashlib
import importlib.metadata
import json
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from train.config import TrainConfig
from train.fused_samples import FusedMaterial
from train.validation import Validated
from unmask import __version__
from unmask.calibration import Calibration
from unmask.checkpoints import Description, save
from unmask.depth import is_published
from unmask.errors import UsageError
from unmask.provenance import USED, joined, used_digests
from unmask.scoring import AGGREGATIONS, ScoringOptions

if TYPE_CHECKING:
    from train.loop import Training

__all__ = ["BEST", "CLIPS", "SUMMARY", "calibrated", "keep_best", "write_summary"]

BEST, SUMMARY, CLIPS = "best.safetensors", "summary.json", "clips.json"
"""Files in a run's folder. Where the summary is, the run has ended. The last is of fusion heads: what was masked."""

_FPR = _FNR = 0.05
"""The operating point: error rates on videos of validation between which a verdict abstains."""


def calibrated(validated: Validated, split: str) -> Calibration:
    """Read the logits of validation as probabilities, and choose the thresholds of a verdict.

    The temperature is fitted on single frames or clips, as it is applied; the thresholds on videos, whose score is
    aggregated as in scoring.

    Args:
        validated: Of people that were not trained on.
        split: What they are, in words.
    """
    try:
        fitted = Calibration.fit(validated.logits_K, validated.labels_K, source=split)
    except UsageError as error:
        return Calibration(source=f"not fitted: {error.message}")
    aggregate = AGGREGATIONS[ScoringOptions().aggregation]
    groups, first_G = np.unique(validated.groups_K, return_index=True)
    probability_K = fitted.probability(validated.logits_K)
    score_G = np.array([aggregate(probability_K[validated.groups_K == g]) for g in groups])
    label_G = validated.labels_K[first_G]
    try:
        return fitted.at_error_rates(
            _logits(fitted, score_G[label_G == 0]), _logits(fitted, score_G[label_G == 1]), fpr=_FPR, fnr=_FNR
        )
    except UsageError:
        return fitted  # too few videos to measure error rates: the threshold stays at 1/2


def _logits(calibration: Calibration, score_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logits that are read as these probabilities."""
    clipped_N = np.clip(score_N, 1e-12, 1 - 1e-12)
    found: NDArray[np.float64] = (np.log(clipped_N / (1 - clipped_N)) - calibration.bias) * calibration.temperature
    return found


def keep_best(training: "Training", validated: Validated, row: dict[str, Any]) -> None:
    """Write the checkpoint of the epoch that validation likes best so far."""
    config, material, teachers = training.config, training.material, training.teachers
    is_mos = config.model.task == "mos"
    splits = {
        name: [material.catalogue.videos[n].about for n in getattr(material.splits, name)] for name in ("train", "val")
    }
    source = f"{len(splits['val'])} videos of validation ({material.splits.how})"
    model = training.judge().model
    description = Description(
        name=config.recipe,
        version=__version__,
        config=config.model,
        preprocessing=material.preprocessing,
        calibration=Calibration() if is_mos else calibrated(validated, source),
        trained=True,
        provenance={
            "recipe": config.recipe,
            "config": _without_folders(config).to_json(),
            "seed": training.run.seed,
            "epoch": row["epoch"],
            "validation": {k: row[f"val_{k}"] for k in validated.metrics},
            "data": sorted(material.catalogue.stores),
            "splits": material.splits.describe(),
            "mos_by_method": _lookup(training) if is_mos else {},
            "date": dt.datetime.now(dt.UTC).date().isoformat(),
            "versions": {name: importlib.metadata.version(name) for name in ("torch", "timm")},
            USED: joined([used_digests(splits), *([] if teachers is None else teachers.used())]),
            **({} if config.weights is None else {"weights": _file(Path(config.weights))}),
            **({} if teachers is None else {"teachers": teachers.to_json()}),
            **(_depth(material.kept) if isinstance(material.kept, FusedMaterial) else {}),
        },
    )
    with TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole.safetensors"
        save(whole, model, description)
        with training.store.writing(BEST, Path(scratch)) as path:
            shutil.move(whole, path)


def _without_folders(config: TrainConfig) -> TrainConfig:
    """What a published checkpoint may tell: files by their names, whatever folder of whose machine they lie in.

    Which they were is told by digests: `weights`, `teachers` and `depth`.
    """
    teachers = tuple(Path(name).name for name in config.distill.teachers)
    depth = config.input.depth if is_published(config.input.depth) else Path(config.input.depth).name
    return replace(
        config,
        weights=Path(config.weights).name if config.weights else None,
        distill=replace(config.distill, teachers=teachers),
        input=replace(config.input, depth=depth),
    )


def _file(path: Path) -> str:
    try:
        with path.expanduser().open("rb") as file:
            return f"file {path.name}, sha256 {hashlib.file_digest(file, 'sha256').hexdigest()}"
    except OSError:  # read at the start, and gone since
        return f"file {path.name}"


def _depth(kept: FusedMaterial) -> dict[str, Any]:
    """Which depth maps it was trained on, and what was masked; of clips that were left out, how many."""
    told = kept.told()
    clips = {
        name: {**part, "clips_left_out": len(part["clips_left_out"])} if "clips_left_out" in part else part
        for name, part in told.items()
    }
    return {"depth": kept.keeper.extractor.depth.to_json(), "clips": clips}


def _lookup(training: "Training") -> dict[str, float]:
    """Mean opinion score of each method in training: what a look at the file's name alone would answer."""
    by_method: dict[str, list[float]] = {}
    for number in training.material.splits.train:
        about = training.material.catalogue.videos[number].about
        if about.mos is not None:
            by_method.setdefault(about.method or "", []).append(about.mos)
    return {method: float(np.mean(scores)) for method, scores in sorted(by_method.items())}


def write_summary(training: "Training") -> None:
    """Say that a run has ended, and how."""
    rows, select, course = training.history.rows, training.config.loop.select, training.course
    # A history that was damaged and begun anew may lack the best epoch.
    best = next((row for row in rows if row["epoch"] == course.best_epoch), {f"val_{select}": course.best})
    summary = {
        "run": training.run.name,
        "epochs": training.progress.epoch,
        "best_epoch": course.best_epoch,
        "selected_by": select,
        "validation": {k.removeprefix("val_"): v for k, v in best.items() if k.startswith("val_")},
        "seconds": round(sum(r["seconds"] for r in rows), 1),
        "substituted": sum(r["substituted"] for r in rows),
    }
    if isinstance(training.material.kept, FusedMaterial):
        told = training.material.kept.told()
        training.store.write(CLIPS, (json.dumps(told, indent=1) + "\n").encode())
    training.store.write(SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())
