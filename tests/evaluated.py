"""A preprocessed folder to evaluate on, and detectors that know something of it, made on the spot.

The fakes are the portrait with the inside of the face upside down; every video has its own light and noise, so that no
two are alike. A model is a small network with random weights whose last layer is fitted to some of these faces.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tests.products import BOX, Clip, faked, finished_run, portrait
from unmask.calibration import Calibration
from unmask.checkpoints import Description, save
from unmask.faces import cut, enlarge
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.storage import Store
from unmask.transforms import Preprocessing, resize, to_tensor

__all__ = ["PREPROCESSING", "checkpoint", "fitted_model", "folder", "lit", "person_clip"]

PREPROCESSING = Preprocessing(size_px=64, margin=1.3)
FRAMES = (0, 4, 8, 12, 16, 20)


def lit(picture: Callable[[int], NDArray[np.uint8]], number: int) -> Callable[[int], NDArray[np.uint8]]:
    """The same pictures in another light, with noise of their own."""

    def taken(frame: int) -> NDArray[np.uint8]:
        rng = np.random.default_rng([number, frame])
        gain, noise = 0.6 + 0.1 * (number % 7), rng.normal(0, 3 + number % 5, (240, 320, 1))
        return np.clip(picture(frame) * gain + noise, 0, 255).astype(np.uint8)

    return taken


def person_clip(number: int, label: int, /, **columns: Any) -> Clip:
    """One video of one person: `real/0`, `fake/1`, ..."""
    name = f"{'fake' if label else 'real'}/{number}"
    about = {"label": label, "identity": [f"person {number}"], "method": "upside down" if label else None}
    picture = lit(faked if label else portrait, number)
    return Clip(video=name, picture=picture, faces={f: [BOX] for f in FRAMES}, columns={**about, **columns})


def folder(
    place: Path, clips: Sequence[Clip] | None = None, *, videos: int = 12, margin: float = 1.3, **options: Any
) -> Path:
    """Write a finished run: as many real as fake videos, a person each, in the split test."""
    if clips is None:
        clips = [person_clip(n, n % 2, split="test") for n in range(videos)]
    finished_run(Store(place), clips, per_shard=5, margin=margin, **options)
    return place


@cache
def _crops() -> tuple[list[NDArray[np.uint8]], list[int]]:
    """Faces to fit a model to: of other videos than those of `folder`."""
    crops, labels = [], []
    for number in range(100, 116):
        label = number % 2
        for frame in FRAMES:
            image_HWC = lit(faked if label else portrait, number)(frame)
            around_4 = np.floor(enlarge(np.array(BOX, np.float32), PREPROCESSING.margin, square=True) + 0.5)
            crops.append(resize(cut(image_HWC, around_4), PREPROCESSING))
            labels.append(label)
    return crops, labels


def fitted_model(head: str = "frame", *, task: str = "detection", seed: int = 0, strength: float = 4.0) -> ForgeryModel:
    """A model whose output rises with "fake".

    Args:
        head: frame or temporal.
        task: detection or mos.
        seed: Of its random weights.
        strength: How sure it is.
    """
    config = ModelConfig(backbone="mobilenetv3_small_050", head=head, window=4, task=task)  # type: ignore[arg-type]
    model = build(config, seed=seed)
    crops, labels = _crops()
    inputs = to_tensor(crops, PREPROCESSING)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().features(inputs)  # batch statistics of faces
        features_ND = model.eval().features(inputs)
        target_N = torch.tensor(labels, dtype=torch.float32) * 2 - 1
        mean_D, std_D = features_ND.mean(0), features_ND.std(0) + 1e-3
        scaled_ND = (features_ND - mean_D) / std_D
        gram = scaled_ND @ scaled_ND.T + 10.0 * torch.eye(len(crops))
        weight_D = scaled_ND.T @ torch.linalg.solve(gram, target_N) / std_D * strength
        _set_head(model, weight_D, -float(weight_D @ mean_D))
    return model


def _set_head(model: ForgeryModel, weight_D: torch.Tensor, bias: float) -> None:
    """Make the head compute weight . feature + bias, of the window's mean where it judges windows."""
    if not model.is_temporal:
        layer = model.head.fc
        assert isinstance(layer, nn.Linear)
        layer.weight.copy_(weight_D[None])
        layer.bias.fill_(bias)
        return
    linear = [module for module in model.head if isinstance(module, nn.Linear)]
    for layer in linear:
        layer.weight.zero_()
        layer.bias.zero_()
    # A ReLU for each sign carries the value through.
    linear[0].weight[0, : len(weight_D)], linear[0].weight[1, : len(weight_D)] = weight_D, -weight_D
    linear[0].bias[0], linear[0].bias[1] = bias, -bias
    for layer in linear[1:-1]:
        layer.weight[0, 0] = layer.weight[1, 1] = 1.0
    linear[-1].weight[0, 0], linear[-1].weight[0, 1] = 1.0, -1.0


def checkpoint(path: Path, model: ForgeryModel, *, calibrated: bool = True, **fields: Any) -> Path:
    """Save a model as a trained one."""
    calibration = (
        Calibration(temperature=1.2, fitted=True, source="a test", band=(0.4, 0.5)) if calibrated else Calibration()
    )
    description = Description(
        **{
            "name": path.stem,
            "version": "1",
            "config": model.config,
            "preprocessing": PREPROCESSING,
            "calibration": calibration,
            "trained": True,
            "provenance": {"recipe": "fitted to upside-down faces"},
            **fields,
        }
    )
    save(path, model, description)
    return path
