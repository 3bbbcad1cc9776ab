"""What can be said of face detection without its networks: settings, scales, and where the weights lie."""

import importlib.util
from pathlib import Path

from unmask.errors import ModelError, Reason, UsageError

__all__ = ["NETS", "SCORING_THRESHOLDS", "detection_scale", "scale_for_smallest_face", "weights_file"]

NETS = ("pnet", "rnet", "onet")
"""The three networks of MTCNN."""

SCORING_THRESHOLDS = (0.7, 0.8, 0.8)
"""Of the three networks, as the DFDC challenge's winner sets them to score videos: fewer things that are no faces."""


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
