"""Features that `preprocess --embed` kept: a head is trained on them without running the backbone again.

Axes: N faces, D features.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train.catalogue import Catalogue
from unmask.errors import StorageError, UsageError
from unmask.models import ForgeryModel
from unmask.presets import resolve
from unmask.products import Products
from unmask.storage import Store
from unmask.transforms import Preprocessing

__all__ = ["KeptFeatures"]


@dataclass(frozen=True, slots=True, eq=False)
class KeptFeatures:
    """The features of all faces of a catalogue, and the backbone that they came from.

    Args:
        features_ND: float16 (N, D).
        model: What the backbone was called when they were made: a checkpoint, a preset or a name in timm.
        weights: A file that its weights came from.
        pretrained: Whether they came from timm.
        sha256: Digest of the model.
    """

    features_ND: NDArray[np.float16]
    model: str
    weights: str | None
    pretrained: bool | None
    sha256: str

    @classmethod
    def find(cls, catalogue: Catalogue, backbone: str, preprocessing: Preprocessing) -> "KeptFeatures":
        """Read the features of a backbone at a model's input.

        Raises:
            UsageError: A dataset keeps none, or those of two datasets come from different weights.
            StorageError: They cannot be read.
        """
        pieces: list[NDArray[np.float16]] = []
        found: dict[str, Any] = {}
        for store in catalogue.stores.values():
            key, about = _of_dataset(store, backbone, preprocessing)
            if found and found["sha256"] != about["sha256"]:
                raise UsageError(f"the features in {store.shown} come from other weights than those of another dataset")
            found = about
            products = Products(store)
            pieces += [products.features(key, shard) for shard in products.shards()]
        features_ND = np.concatenate(pieces)
        if len(features_ND) != len(catalogue):
            raise UsageError(f"there are {len(features_ND):,} features for {len(catalogue):,} faces; preprocess again")
        return cls(features_ND, found["model"], found["weights"], found["pretrained"], found["sha256"])

    def start(self, model: ForgeryModel) -> None:
        """Give a model the backbone that the features came from.

        Raises:
            ModelError: It cannot be had any more.
            UsageError: It is another now.
        """
        weights = Path(self.weights) if self.weights else None
        source, description = resolve(self.model, weights=weights, pretrained=self.pretrained)
        if description.sha256 != self.sha256:
            raise UsageError(f"{self.model} has changed since its features were kept: preprocess again with --embed")
        model.backbone.load_state_dict(source.backbone.state_dict())


def _of_dataset(store: Store, backbone: str, preprocessing: Preprocessing) -> tuple[str, dict[str, Any]]:
    """The key of a dataset's features, and what is said of them."""
    wanted = json.loads(json.dumps(preprocessing.to_json()))
    keys = {name.split("/")[1] for name in store.names("features", deep=True)}
    for key in sorted(keys):
        try:
            about: dict[str, Any] = json.loads(store.read(f"features/{key}/key.json"))
        except ValueError:
            raise StorageError(f"{store.shown}/features/{key}/key.json is damaged; preprocess again") from None
        if about["preprocessing"] == wanted and _backbone_of(about["model"]) == backbone:
            return key, about
    raise UsageError(
        f"{store.shown} keeps no features of {backbone} at this input: preprocess with --embed {backbone}, "
        "or train without data.cached_features"
    )


def _backbone_of(model: str) -> str:
    from unmask.checkpoints import describe
    from unmask.presets import PRESETS

    if model in PRESETS:
        return PRESETS[model].config.backbone
    return describe(Path(model)).config.backbone if model.endswith(".safetensors") else model
