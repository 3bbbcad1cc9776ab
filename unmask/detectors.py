"""Face detectors by name: MTCNN, and dlib's HOG detector where that is installed."""

from typing import TYPE_CHECKING

from unmask.detection import DETECTORS, SCORING_THRESHOLDS, FaceDetector
from unmask.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = ["load_detector"]


def load_detector(
    name: str = "mtcnn",
    *,
    device: "torch.device | str" = "cpu",
    thresholds: tuple[float, float, float] = SCORING_THRESHOLDS,
) -> FaceDetector:
    """Load a detector by name.

    Args:
        name: One of `DETECTORS`.
        device: Where it runs; HOG finds faces on the CPU, wherever the model is.
        thresholds: Of MTCNN's three networks.

    Raises:
        UsageError: None is called that, or dlib is not installed.
        ModelError: Weights are missing or damaged.
    """
    if name not in DETECTORS:
        raise UsageError(f"--detector is {' or '.join(DETECTORS)}; got {name!r}")
    if name == "hog":
        from unmask.hog import HogDetector

        return HogDetector.installed(device=device)
    from unmask.mtcnn import MTCNN

    return MTCNN(device=device, thresholds=thresholds)
