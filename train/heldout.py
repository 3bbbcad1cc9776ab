"""A detector trained on real faces alone, tested on real faces of other people and on self-blends of them."""

from collections.abc import Sequence
from typing import Any

import torch

from train.augment import BLENDS
from train.catalogue import Catalogue
from train.clips import Samples
from train.config import TrainConfig
from train.context import Context
from train.crops import CropReader
from train.material import pool_of
from train.network import Network
from train.precision import Precision
from train.splits import splits_of
from train.validation import validate
from unmask.checkpoints import Description
from unmask.errors import UsageError
from unmask.intervals import detection_measures
from unmask.models import ForgeryModel

__all__ = ["heldout_blends"]

# Other fakes than those that the epoch was chosen by.
_SEED = 1


def heldout_blends(
    model: ForgeryModel, description: Description, config: TrainConfig, data: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """How well self-blended faces are told from pristine ones, of people who were left for the test.

    Args:
        model: Trained.
        description: Its own.
        config: Of the training, which says who was left.
        data: The same as in training.
        device: Where it shall run.

    Returns:
        Numbers of faces; metrics with 95% intervals by video, as JSON can say them, on the self-blends that were
        trained on (`metrics`) and on each kind there is (`by_blends`).

    Raises:
        UsageError: Nobody was left.
    """
    catalogue = Catalogue.read(data)
    splits = splits_of(catalogue, config, 0)
    if not splits.test:
        raise UsageError("nobody was left for the test: set data.fractions with a third share above 0")
    network = Network(model.to(device), description.preprocessing)
    by_blends: dict[str, dict[str, Any]] = {}
    for name, blend in BLENDS.items():
        samples = Samples(
            catalogue,
            CropReader(catalogue),
            pool_of(catalogue, splits.test, config, "test"),
            config,
            description.preprocessing,
            blend=blend,
            seed=_SEED,
        )
        found = validate(network, samples, Precision(device, torch.float32), Context(device=device), loader_workers=0)
        measures = detection_measures(
            description.calibration.probability(found.logits_K),
            found.labels_K,
            found.groups_K,
            threshold=description.calibration.threshold,
        )
        by_blends[name] = {metric: measure.to_json() for metric, measure in measures.items()}
    return {
        "what": "self-blended against pristine faces of people who were not trained on",
        "videos": len(splits.test),
        "faces": len(found.logits_K),
        "level": "frame" if samples.length == 1 else "clip",
        "blends": config.augment.blends,
        "metrics": by_blends[config.augment.blends],
        "by_blends": by_blends,
    }
