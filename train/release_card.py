"""The last step of `train.release`: calibrate the small model, try it, and write it with its card.

What was measured is kept beside the models as JSON, by the models' digests and what they were tried on: a step that
was done is not done again.
"""

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.card_text import sections
from train.catalogue import Catalogue
from train.config import TrainConfig
from train.heldout import heldout_scores
from train.splits import Splits, splits_of
from train.trial import CONDITIONS, FAMILIES, Condition, Model, Outcome, Trial, perturbations
from unmask import __version__
from unmask.analysis import Analyzer
from unmask.atomic import replacing
from unmask.calibration import Calibration
from unmask.card import CARD
from unmask.checkpoints import Description, load, save
from unmask.detection import SCORING_THRESHOLDS
from unmask.errors import UsageError
from unmask.inputs import Source
from unmask.intervals import detection_measures
from unmask.manifest import Manifest
from unmask.metrics import DETECTION, Detections
from unmask.mtcnn import MTCNN
from unmask.plan import Sampling

__all__ = ["FNR", "FPR", "finish"]

FPR, FNR = 0.02, 0.10
"""The operating point, on clips of people of validation: at most so many real ones are called manipulated, and so many
fakes authentic. Between both a verdict abstains."""

_CALIBRATION_DRAWS, _HELDOUT_DRAWS = 4, 4
"""Real and fake clips of each person: a calibration error of few clips is mostly chance."""
_HELDOUT = ("clean", "shared")
_CHANCE_DRAWS = 100
_COMPARED_PEOPLE, _FAMILY_PEOPLE, _PERTURBED_PEOPLE = 60, 40, 12
_METRICS = ("auc", "eer", "ece", "brier", "tpr_at_fpr_5")
_CPU = torch.device("cpu")
_FRAMES = 32


def finish(
    model: Path,
    frames_model: Path,
    plain_model: Path,
    *,
    faces: str,
    clips: Sequence[str],
    folder: Path,
    name: str,
    portraits: str = "Photographs of real faces.",
    history: str = "",
) -> Path:
    """Calibrate, try, and write the model with its card.

    Args:
        model: With the temporal head.
        frames_model: The backbone's own, with a head for frames: the baseline without a temporal head.
        plain_model: Trained without the way of shared videos: the other baseline.
        faces: The preprocessed portraits.
        clips: Preprocessed datasets of labelled videos.
        folder: Where measurements are kept, and the model goes.
        name: What it is called.
        portraits: What the photographs are, in a sentence, for the card.
        history: How the weights came about, for the card.

    Returns:
        The checkpoint's path in `folder`.

    Raises:
        UsageError: The models are no detectors of self-blends, or do not belong together.
    """
    built, description = load(model)
    config = TrainConfig.from_json(dict(description.provenance)["config"])
    if not built.is_temporal or config.data.draw != "selfblend":
        raise UsageError(f"{model} was not made by the recipe selfblend-clips")
    catalogue = Catalogue.read([faces])
    splits = splits_of(catalogue, config, 0)
    # From here on everything is measured with the weights as they are shipped.
    half = folder / "half.safetensors"
    save(half, built, description, half=True)
    shipped = load(half)
    baselines = {"frames": load(frames_model), "plain": load(plain_model)}
    models: dict[str, Model] = {"shipped": shipped, **baselines}
    digests = {name: described.sha256 for name, (_, described) in models.items()}

    def kept(step: str, make: Callable[[], Any], **on: Any) -> Any:
        key = json.loads(json.dumps({"models": digests, "faces": faces, "rates": [FPR, FNR], **on}))
        path = folder / f"{step}.json"
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = json.loads(path.read_text())
            if found.get("of") == key:
                return found["found"]
        made = make()
        with replacing(path) as beside:
            beside.write_text(json.dumps({"of": key, "found": made}, indent=1) + "\n")
        return made

    calibrations = kept("calibration", lambda: _calibrated(catalogue, splits, config, models), draws=_CALIBRATION_DRAWS)
    for each, (network, described) in models.items():
        fitted = Calibration.from_json(calibrations[each])
        models[each] = (network, replace(described, calibration=fitted))
    only = {"shipped": models["shipped"]}
    trial, alone = (Trial(catalogue, splits.test, config, tried, _CPU) for tried in (models, only))

    def photographs() -> dict[str, Any]:
        return _photographs(faces, config, models["shipped"])

    def tried(step: str, by: Trial, conditions: Mapping[str, Condition], **how: Any) -> Any:
        on = {"conditions": {n: repr(c) for n, c in conditions.items()}, "calibrations": calibrations, **how}
        return kept(step, lambda: _tried(by, models, conditions, **how), **on)

    heldout = kept("photographs", photographs, calibrations=calibrations)
    heldout |= tried("heldout", alone, {name: CONDITIONS[name] for name in _HELDOUT}, draws=_HELDOUT_DRAWS)
    compared = tried("compared", trial, CONDITIONS, draws=1, people=_COMPARED_PEOPLE)
    families = tried("families", alone, FAMILIES, draws=1, people=_FAMILY_PEOPLE)
    robust = kept(
        "robustness", lambda: _perturbed(alone, models["shipped"]), people=_PERTURBED_PEOPLE, calibrations=calibrations
    )
    scored = kept("clips", lambda: _scored(clips, models), clips=list(clips), frames=_FRAMES, calibrations=calibrations)
    facts = {
        "people": {split: len(getattr(splits, split)) for split in ("train", "val", "test")},
        "weights": sum(v.numel() for v in built.state_dict().values()),
        "speed": kept("speed", lambda: _speed(models["shipped"])),
        "portraits": portraits,
        "history": history,
    }
    written = sections(facts, heldout=heldout, compared=compared, families=families, robust=robust, scored=scored)
    provenance = {**description.provenance, CARD: [section.to_json() for section in written]}
    ready = replace(
        models["shipped"][1], name=name, version=__version__, provenance=provenance, sha256="",
    )  # fmt: skip
    path = folder / f"{name}.safetensors"
    save(path, models["shipped"][0], ready, half=True)
    return path


def _calibrated(
    catalogue: Catalogue, splits: Splits, config: TrainConfig, models: Mapping[str, Model]
) -> dict[str, Any]:
    """Calibrations of all models on the same clips of people of validation."""
    trial = Trial(catalogue, splits.val, config, models, _CPU)
    outcome = trial.run(CONDITIONS["shared"], draws=_CALIBRATION_DRAWS, seed=2)
    real = outcome.labels_K == 0
    found = {}
    for name, logits_K in outcome.logits.items():
        source = f"{len(logits_K)} clips of {trial.people} people of validation, self-blended or not, as shared videos"
        fitted = Calibration.fit(logits_K, outcome.labels_K, bias=True, source=source)
        found[name] = fitted.at_error_rates(logits_K[real], logits_K[~real], fpr=FPR, fnr=FNR).to_json()
    return found


def _tried(
    trial: Trial,
    models: Mapping[str, Model],
    conditions: Mapping[str, Condition],
    *,
    draws: int,
    people: int | None = None,
) -> dict[str, Any]:
    """Metrics of every model of a trial under every condition, on people of the test; and the operating point there."""
    found: dict[str, Any] = {}
    for name, condition in conditions.items():
        outcome = trial.run(condition, draws=draws, people=people, seed=3)
        found[name] = {
            "title": condition.title,
            "clips": len(outcome.labels_K),
            "models": {each: _measures(outcome, each, models[each][1]) for each in outcome.logits},
        }
    return found


def _photographs(faces: str, config: TrainConfig, model: Model) -> dict[str, Any]:
    """Metrics on single photographs of people of the test, as the paper tests its detectors: nothing moves."""
    network, description = model
    still = replace(config, model=replace(config.model, window=1))
    found = {}
    for name, judged in heldout_scores(network, description, still, [faces], _CPU, ["paper", "mixed"]):
        title = {"paper": "single photographs, the paper's blends", "mixed": "single photographs, mixed blends"}[name]
        measures = _judged(judged.probability_K, judged.label_K, judged.video_K, description.calibration)
        found[name] = {"title": title, "clips": len(judged.label_K), "models": {"shipped": measures}}
    return found


def _measures(outcome: Outcome, model: str, description: Description) -> dict[str, Any]:
    calibration = description.calibration
    return _judged(calibration.probability(outcome.logits[model]), outcome.labels_K, outcome.people_K, calibration)


def _judged(
    probability_K: NDArray[np.float64],
    labels_K: NDArray[np.float64],
    people_K: NDArray[np.int64],
    calibration: Calibration,
) -> dict[str, Any]:
    # The real and the fake clips of one person are two videos.
    videos_K = 2 * people_K + labels_K.astype(np.int64)
    measures = detection_measures(
        probability_K,
        labels_K,
        videos_K,
        threshold=calibration.threshold,
        metrics={name: DETECTION[name] for name in _METRICS},
    )
    low, high = calibration.band
    rng = np.random.default_rng(0)
    by_chance = [
        Detections(probability_K, rng.random(len(probability_K)) < probability_K).ece() for _ in range(_CHANCE_DRAWS)
    ]
    real_K, fake_K = probability_K[labels_K == 0], probability_K[labels_K == 1]
    return {
        **{name: measure.to_json() for name, measure in measures.items()},
        "ece_by_chance": float(np.mean(by_chance)),
        "people": len(np.unique(people_K)),
        "real_called_manipulated": float(np.mean(real_K >= high)),
        "fake_called_authentic": float(np.mean(fake_K < low)),
        "inconclusive": float(np.mean((probability_K >= low) & (probability_K < high))),
    }


def _perturbed(trial: Trial, model: Model) -> list[dict[str, Any]]:
    people = min(_PERTURBED_PEOPLE, trial.people)
    untouched = ("none", "none", 0.0, trial.run(CONDITIONS["clean"], people=people))
    rows = []
    for name, title, value, outcome in itertools.chain([untouched], perturbations(trial, people=people)):
        measures = _measures(outcome, "shipped", model[1])
        rows.append({"name": name, "title": title, "value": value, "people": people, "auc": measures["auc"],
                     "real_called_manipulated": measures["real_called_manipulated"]})  # fmt: skip
    return rows


def _scored(clips: Sequence[str], models: Mapping[str, Model]) -> list[dict[str, Any]]:
    """Every labelled clip by every model, as `unmask score` does."""
    detector = MTCNN(device=_CPU, thresholds=SCORING_THRESHOLDS)
    analyzers = {name: Analyzer(model, described, detector) for name, (model, described) in models.items()}
    rows = []
    for folder in clips:
        with Manifest(f"{folder}/manifest.parquet") as manifest:
            for video in manifest:
                row: dict[str, Any] = {"video": video.video, "label": video.label, "method": video.method,
                                       "source": video.source, "models": {}}  # fmt: skip
                for name, analyzer in analyzers.items():
                    score = analyzer.analyze(Source(video.uri), Sampling(frames=_FRAMES)).score
                    row["models"][name] = {
                        "score": score.score,
                        "verdict": str(score.verdict),
                        "status": str(score.status),
                    }
                rows.append(row)
    return rows


@torch.inference_mode()
def _speed(model: Model) -> dict[str, float]:
    """Milliseconds for a face on one thread of this machine's processor, in batches of 16; the fastest of five."""
    network, description = model
    height, width = description.preprocessing.size_HW
    crops_N3HW = torch.zeros(16, 3, height, width)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        seconds: list[float] = []
        for _ in range(6):
            began = time.perf_counter()
            network.features(crops_N3HW)
            seconds.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return {"ms_a_face": 1000 * min(seconds[1:]) / 16}
