"""A detector trained on real faces alone, tested on real faces of other people and on self-blends of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.augment import BLENDS
from train.catalogue import Catalogue
from train.clips import Samples
from train.config import TrainConfig
from train.context import Context
from train.crops import CropReader
from train.material import pool_of
from train.network import Network
from train.precision import Precision
from train.splits import left_for_test, splits_of
from train.validation import validate
from unmask.checkpoints import Description
from unmask.intervals import detection_measures
from unmask.models import ForgeryModel

__all__ = ["Heldout", "heldout_blends", "heldout_scores"]

# Other fakes than those that the epoch was chosen by.
_SEED = 1


@dataclass(frozen=True, slots=True, eq=False)
class Heldout:
    """What a model says of self-blended and of pristine faces of people who were left; the same faces for every model.

    Args:
        probability_K: Calibrated.
        label_K: 1 for a self-blend.
        video_K: By number.
        videos: How many.
        level: frame or clip.
    """

    probability_K: NDArray[np.float64]
    label_K: NDArray[np.float64]
    video_K: NDArray[np.int64]
    videos: int
    level: str

    def measures(self, threshold: float) -> dict[str, Any]:
        """Metrics with 95% intervals by video, as JSON can say them."""
        found = detection_measures(self.probability_K, self.label_K, self.video_K, threshold=threshold)
        return {metric: measure.to_json() for metric, measure in found.items()}


def heldout_blends(
    model: ForgeryModel, description: Description, config: TrainConfig, data: Sequence[str], device: torch.device
) -> dict[str, Any]:
    """How well self-blended faces are told from pristine ones, of people who were left for the test and are not known.

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
        UsageError: Nobody was left, or the model was made from all who were.
    """
    found = dict(heldout_scores(model, description, config, data, device, list(BLENDS)))
    threshold = description.calibration.threshold
    by_blends = {name: judged.measures(threshold) for name, judged in found.items()}
    trained_on = found[config.augment.blends]
    return {
        "what": "self-blended against pristine faces of people who were not trained on",
        "videos": trained_on.videos,
        "faces": len(trained_on.label_K),
        "level": trained_on.level,
        "blends": config.augment.blends,
        "metrics": by_blends[config.augment.blends],
        "by_blends": by_blends,
    }


def heldout_scores(
    model: ForgeryModel,
    description: Description,
    config: TrainConfig,
    data: Sequence[str],
    device: torch.device,
    kinds: Sequence[str],
    others: Sequence[Description] = (),
) -> Iterator[tuple[str, Heldout]]:
    """What a model says of people who were left, for each kind of self-blends. As `heldout_blends`.

    Args:
        model: As in `heldout_blends`, as all that is not named here.
        description: Its own.
        config: Of the training.
        data: The same as in training.
        device: Where it shall run.
        kinds: Of self-blends.
        others: Models beside which it is seen: whom one of them knows is left out.
    """
    catalogue = Catalogue.read(data)
    left = left_for_test(catalogue, splits_of(catalogue, config, 0), [description, *others])
    network = Network(model.to(device), description.preprocessing).eval()
    for kind in kinds:
        samples = Samples(
            catalogue,
            CropReader(catalogue),
            pool_of(catalogue, left, config, "test"),
            config,
            description.preprocessing,
            blend=BLENDS[kind],
            seed=_SEED,
        )
        found = validate(network, samples, Precision(device, torch.float32), Context(device=device), loader_workers=0)
        level = "frame" if samples.length == 1 else "clip"
        probability_K = np.asarray(description.calibration.probability(found.logits_K), np.float64)
        yield kind, Heldout(probability_K, found.labels_K, found.groups_K, len(left), level)
