"""Finds faces and computes their features in this process: what a live session needs where there is no cluster.

Axes: N faces, H rows, W columns, C = 3 channels, D features.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from unmask.detection import FaceDetector
from unmask.models import ForgeryModel
from unmask.records import Faces
from unmask.transforms import Preprocessing, to_tensor

__all__ = ["LocalScorer"]


class LocalScorer:
    """A detector and a backbone, called at once and one after the other. See `unmask.live.Scorer`.

    Args:
        model: Its backbone is used.
        preprocessing: The model's.
        detector: Finds faces; on the model's device.
    """

    def __init__(self, model: ForgeryModel, preprocessing: Preprocessing, detector: FaceDetector) -> None:
        self._model, self._preprocessing, self._detector = model.eval(), preprocessing, detector
        self._device = next(model.parameters()).device

    async def find(self, image_HWC: NDArray[np.uint8], near_N4: NDArray[np.float32] | None) -> Faces:
        """The faces of a frame: all of them, or one for each of the boxes near which they are expected."""
        if near_N4 is None:
            return self._detector.search([image_HWC])[0]
        return self._detector.refine([image_HWC], [near_N4])[0]

    async def embed(self, crops_NHWC: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features float32 (N, D) of crops uint8 (N, H, W, 3) of the model's size."""
        with torch.inference_mode():
            inputs_N3HW = to_tensor(list(crops_NHWC), self._preprocessing, self._device)
            return np.asarray(self._model.features(inputs_N3HW).float().cpu().numpy())
