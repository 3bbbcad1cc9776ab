"""Features of RGB and depth of a track's faces, as a fusion head takes them (S4).

The faces of a track are padded with black to the track's largest face, not resized to it, so that a face that comes
nearer is seen to.

Axes: L faces of a track, D features, E = 2 D: of RGB, then of depth; S side of a square.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from train.augment import Picture
from unmask.depth import DepthEstimator, as_rgb
from unmask.models import ForgeryModel
from unmask.transforms import Preprocessing, to_tensor

__all__ = ["DAMAGED", "GOOD", "NO_DEPTH", "REASONS", "Clip", "Extractor", "padded"]

_FORMAT = 1
_BATCH = 16
GOOD, NO_DEPTH, DAMAGED = 0, 1, 2
"""What became of a face: its features are there; its depth map says nothing; its crop is damaged."""
REASONS = {NO_DEPTH: "depth_failed", DAMAGED: "crop_damaged"}


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """The features of one track.

    Args:
        features_LE: float16 (L, 2 D); zeros where a face is not good.
        state_L: uint8 (L,): GOOD, NO_DEPTH or DAMAGED.
    """

    features_LE: NDArray[np.float16]
    state_L: NDArray[np.uint8]


def padded(images: Sequence[NDArray[np.uint8]], side: int) -> list[NDArray[np.uint8]]:
    """Images in the middle of black squares, uint8 (S, S, 3), of a side in pixels that none of them exceeds."""
    out = []
    for image_HWC in images:
        height, width = image_HWC.shape[:2]
        square_SSC = np.zeros((side, side, 3), np.uint8)
        top, left = (side - height) // 2, (side - width) // 2
        square_SSC[top : top + height, left : left + width] = image_HWC
        out.append(square_SSC)
    return out


class Extractor:
    """Makes the features of tracks.

    Args:
        model: Its backbone sees RGB and depth; it stands still.
        preprocessing: The model's.
        depth: Makes the depth maps.
    """

    def __init__(self, model: ForgeryModel, preprocessing: Preprocessing, depth: DepthEstimator) -> None:
        self.model, self.preprocessing, self.depth = model.eval(), preprocessing, depth
        self._device = next(model.parameters()).device

    @torch.inference_mode()
    def __call__(self, pictures: Sequence[Picture | None], side: int) -> Clip:
        """The features of a track, or of a part of it.

        Args:
            pictures: Its faces in order of time, None for those that cannot be read.
            side: The longest side of the whole track's pictures, in pixels.
        """
        state_L = np.array([DAMAGED if p is None else GOOD for p in pictures], np.uint8)
        features_LE = np.zeros((len(pictures), 2 * self.model.dim), np.float16)
        crops = [p.image_HWC for p in pictures if p is not None]
        maps = self.depth.maps(crops)
        state_L[state_L == GOOD] = [NO_DEPTH if m is None else GOOD for m in maps]
        good = [(crop, depth) for crop, depth in zip(crops, maps, strict=True) if depth is not None]
        if good:
            parts = [self._features(good[k : k + _BATCH], side) for k in range(0, len(good), _BATCH)]
            features_LE[state_L == GOOD] = np.concatenate(parts)
        return Clip(features_LE, state_L)

    def _features(self, pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]], side: int) -> NDArray[np.float16]:
        streams = [crop for crop, _ in pairs], [as_rgb(depth) for _, depth in pairs]
        rgb, depth = (to_tensor(padded(images, side), self.preprocessing, self._device) for images in streams)
        features_NE = self.model.fused_features(rgb, depth).float().cpu().numpy()
        return features_NE.astype(np.float16)

    def settings(self) -> dict[str, Any]:
        """Everything that shapes the features, as JSON can say it."""
        said = {
            "format": _FORMAT,
            "backbone": self.model.config.backbone,
            "weights": _digest(self.model),
            "preprocessing": self.preprocessing.to_json(),
            "depth": self.depth.to_json(),
        }
        plain: dict[str, Any] = json.loads(json.dumps(said))
        return plain


def _digest(model: ForgeryModel) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(model.backbone.state_dict().items()):
        found.update(name.encode())
        found.update(tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()
