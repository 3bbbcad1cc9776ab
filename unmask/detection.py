"""What can be said of face detection without its networks: settings, scales, and where the weights lie."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

from unmask.errors import ModelError, Reason, UsageError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from unmask.records import Faces

__all__ = [
    "DETECTORS",
    "NETS",
    "SCORING_THRESHOLDS",
    "FaceDetector",
    "Images",
    "detection_scale",
    "scale_for_smallest_face",
    "weights_file",
]

DETECTORS = ("mtcnn", "hog")
"""By name: `mtcnn` comes with Unmask, `hog` needs the extra `dlib`."""

NETS = ("pnet", "rnet", "onet")
"""The three networks of MTCNN."""

SCORING_THRESHOLDS = (0.7, 0.8, 0.8)
"""Of the three networks, as the DFDC challenge's winner sets them to score videos: fewer things that are no faces."""


Images: TypeAlias = "Sequence[NDArray[np.uint8] | Tensor] | Tensor"
"""RGB, uint8, (H, W, 3) each, of any sizes; or one tensor (N, H, W, 3)."""


class FaceDetector(Protocol):
    """What whoever looks for faces needs of a detector; see `unmask.mtcnn.MTCNN` for shapes and units."""

    device: "torch.device"
    min_face_px: float
    """The smallest face that it finds, in pixels of what it searches."""

    def search(self, images: Images, *, scale: float | Literal["auto"] = "auto") -> list["Faces"]:
        """The faces of each image, most probable first."""
        ...

    def refine(self, images: Images, boxes: "Sequence[NDArray[np.float32]]") -> list["Faces"]:
        """The faces near boxes (N, 4) that are nearly known, one a box; probability 0 where there is none any more."""
        ...


def detection_scale(width: int, height: int) -> float:
    """The scale at which the DFDC challenge's winner detects faces, by the wider side in pixels.

    2 below 300, 1 up to 1000, a half above, and above 1900 a third (0.33 there; a third averages whole pixels).
    """
    wider = max(width, height)
    if wider < 300:
        return 2.0
    if wider <= 1000:
        return 1.0
    return 0.5 if wider <= 1900 else 1 / 3


def scale_for_smallest_face(smallest_px: float, min_face_px: float = 20.0) -> float:
    """The scale at which a face of `smallest_px` in the frame is just as large as the detector's smallest.

    At most 2: larger copies show no more.

    Raises:
        UsageError: A size is not positive.
    """
    if not (smallest_px > 0 and min_face_px > 0):
        raise UsageError(f"the smallest face must be larger than 0 pixels; got {smallest_px} and {min_face_px}")
    return min(2.0, min_face_px / smallest_px)


def weights_file(net: str) -> Path:
    """facenet-pytorch's weights of one of the `NETS`, in its installed wheel, which is not imported.

    Raises:
        ModelError: The package, or this file in it, is absent.
    """
    spec = importlib.util.find_spec("facenet_pytorch")
    for folder in list(spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "data" / f"{net}.pt"
        if path.is_file():
            return path
    raise ModelError(
        Reason.PRETRAINED_UNAVAILABLE,
        f"the face detector's weights {net}.pt are not installed; run `pip install --no-deps facenet-pytorch`",
    )
