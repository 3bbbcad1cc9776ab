"""Depth maps of face crops by Depth-Anything V2 (Yang et al. 2024), through `transformers` (the extra `depth`).

A map says which parts of one picture are nearer than others, without a unit. It becomes grey levels of the crop's own
size: 255 is the nearest point of that crop, 0 the farthest.

Axes: N crops, H rows, W columns, C = 3 channels in RGB order.
"""

import hashlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unmask.backbones import hub_reachable
from unmask.errors import ModelError, Reason, UsageError
from unmask.transforms import Preprocessing, to_tensor

__all__ = ["DEPTH_MODEL", "RANDOM", "DepthEstimator", "as_rgb", "is_published"]

_log = logging.getLogger(__name__)

DEPTH_MODEL = "depth-anything/Depth-Anything-V2-Small-hf"
"""The name of the published weights on the hub."""
RANDOM = "random"
"""Stands for that architecture with random weights: to try things out, and for tests."""

_PATCH = 14
_LARGEST_PX = 1036
_BATCH = 4
# Below this range a map is flat: it says nothing.
_FLAT = 1e-6


class DepthEstimator:
    """Makes depth maps. Load it with `load`.

    Args:
        network: A model of `transformers` for depth estimation.
        device: Where it runs.
        size_px: Side of its input.
        name: What it was called when it was loaded.
    """

    def __init__(self, network: nn.Module, device: torch.device, size_px: int, name: str) -> None:
        self._network, self._device, self.name = network.eval().to(device), device, name
        # ImageNet's mean and std, as its own processor has them.
        self._input = Preprocessing(size_px=size_px, fit="stretch")
        self.sha256 = _digest(network)

    @classmethod
    def load(
        cls, name: str = DEPTH_MODEL, *, device: torch.device | str = "cpu", size_px: int = 518
    ) -> "DepthEstimator":
        """Load the weights: a folder with `config.json` and `model.safetensors`, a name on the hub, or `RANDOM`.

        Raises:
            UsageError: `transformers` is not installed; a size that is no multiple of 14.
            ModelError: The weights cannot be had, or are none of a depth network.
        """
        if size_px % _PATCH or not _PATCH <= size_px <= _LARGEST_PX:
            raise UsageError(f"the depth network's input is a multiple of {_PATCH} up to {_LARGEST_PX}; got {size_px}")
        if importlib.util.find_spec("transformers") is None:
            raise UsageError("depth maps need transformers, which is not installed: pip install unmask[depth]")
        network = _random() if name == RANDOM else _pretrained(name)
        return cls(network, torch.device(device), size_px, name)

    @torch.inference_mode()
    def maps(self, crops: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8] | None]:
        """Depth maps of crops, each independent of the others.

        Args:
            crops: N images uint8 (H, W, 3), of any sizes.

        Returns:
            Of each, uint8 (H, W) of its own size; None where the map is flat or not finite, and says nothing.
        """
        found: list[NDArray[np.uint8] | None] = []
        for start in range(0, len(crops), _BATCH):
            part = crops[start : start + _BATCH]
            inputs_N3HW = to_tensor(part, self._input, self._device)
            depth_NHW = self._network(pixel_values=inputs_N3HW).predicted_depth.float().cpu().numpy()
            found += [_grey(depth_HW, crop) for depth_HW, crop in zip(depth_NHW, part, strict=True)]
        return found

    def to_json(self) -> dict[str, Any]:
        """Everything that shapes the maps, as JSON can say it."""
        return {"sha256": self.sha256, "size_px": self._input.size_px}


def is_published(name: str) -> bool:
    """Whether weights are called as on the hub, or `RANDOM`, and not by a folder of one's own."""
    path = Path(name).expanduser()
    is_path = path.is_dir() or path.is_absolute() or name.startswith(".")
    return name == RANDOM or (name.count("/") == 1 and not is_path)


def as_rgb(map_HW: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A map in three equal channels, uint8 (H, W, 3), as a backbone takes it (S4)."""
    return np.repeat(map_HW[..., None], 3, 2)


def _grey(depth_HW: NDArray[np.float32], crop_HWC: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
    if not np.isfinite(depth_HW).all():
        return None
    low, high = float(depth_HW.min()), float(depth_HW.max())
    if high - low < _FLAT * max(abs(high), 1.0):
        return None
    height, width = crop_HWC.shape[:2]
    sized_HW = cv2.resize(depth_HW, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(np.clip(np.rint((sized_HW - low) * (255 / (high - low))), 0, 255), np.uint8)


def _pretrained(name: str) -> nn.Module:
    from transformers import AutoModelForDepthEstimation

    folder = Path(name).expanduser()
    is_local = folder.is_dir()
    if not is_local and not is_published(name):
        raise ModelError(
            Reason.MISSING_FILE,
            f"there is no folder {name} with depth weights: name one that holds config.json and model.safetensors, or "
            f"{DEPTH_MODEL}",
        )
    try:
        return _read(AutoModelForDepthEstimation, str(folder) if is_local else name, local=True)
    except ModelError:
        raise
    except Exception as error:  # whatever the files or the cache say
        _log.info("depth weights %s: %r", name, error)
        if is_local:
            raise ModelError(
                Reason.CHECKPOINT_CORRUPT,
                f"{name} holds no depth network in safetensors ({type(error).__name__}): it needs config.json and "
                "model.safetensors",
            ) from error
    try:
        if hub_reachable():
            return _read(AutoModelForDepthEstimation, name, local=False)
    except ModelError:
        raise
    except Exception as error:
        _log.info("depth weights %s: %r", name, error)
    raise ModelError(
        Reason.PRETRAINED_UNAVAILABLE,
        f"the depth weights {name} are not in the cache and cannot be downloaded: name a folder that holds config.json "
        "and model.safetensors",
    )


def _read(kind: Any, name: str, *, local: bool) -> nn.Module:
    from transformers.utils import logging as told

    told.disable_progress_bar()  # type: ignore[no-untyped-call]
    level = told.get_verbosity()
    told.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        network, found = kind.from_pretrained(
            name, local_files_only=local, use_safetensors=True, output_loading_info=True
        )
    finally:
        told.set_verbosity(level)
    # What is not there is random, and another at every load.
    if lacking := sorted(map(str, [*found["missing_keys"], *found["mismatched_keys"]])):
        raise ModelError(
            Reason.CHECKPOINT_CORRUPT,
            f"the depth weights {name} lack {len(lacking):,} of the network's tensors, such as {lacking[0]}: get the "
            "whole model.safetensors that goes with config.json",
        )
    # Published in half precision or in single, maps are made in single.
    whole: nn.Module = network.float()
    return whole


def _random() -> nn.Module:
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config

    backbone = Dinov2Config(
        hidden_size=384,
        num_attention_heads=6,
        out_features=["stage3", "stage6", "stage9", "stage12"],  # type: ignore[call-arg]
        reshape_hidden_states=False,
        apply_layernorm=True,
        image_size=518,
        patch_size=_PATCH,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        config = DepthAnythingConfig(
            backbone_config=backbone,
            reassemble_hidden_size=384,
            neck_hidden_sizes=[48, 96, 192, 384],
            fusion_hidden_size=64,
        )
        network: nn.Module = DepthAnythingForDepthEstimation(config)
        for weight in network.parameters():
            if weight.ndim > 1:
                torch.nn.init.kaiming_normal_(weight)  # with its own small ones, maps are nearly flat
        torch.nn.init.ones_(network.get_parameter("head.conv3.bias"))  # what is below 0 is cut off
    return network


def _digest(network: nn.Module) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
