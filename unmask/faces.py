"""Faces cut out of frames: margins, squares, alignment by landmarks. Always from the frame at full resolution.

Axes: H rows, W columns, C = 3 channels; K = 5 landmarks; boxes are x1, y1, x2, y2 in pixels of the frame.
"""

import math
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from unmask.transforms import Preprocessing

__all__ = ["align", "alignment", "crop", "cut", "cut_corners", "enlarge", "face_side_px"]

# Where the five landmarks of an upright face lie in a unit square (the common 112 px template of ArcFace, Deng et al.
# 2019): eyes, nose, corners of the mouth.
_TEMPLATE_K2 = (
    np.array([[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]])
    / 112.0
)


def face_side_px(box_4: NDArray[np.float32]) -> float:
    """The shorter side of a box in pixels: what limits how much of a face can be seen."""
    return float(min(box_4[2] - box_4[0], box_4[3] - box_4[1]))


def enlarge(box_4: NDArray[np.floating[Any]], margin: float, *, square: bool = False) -> NDArray[np.float64]:
    """Enlarge a box about its centre.

    Args:
        box_4: x1, y1, x2, y2.
        margin: Side of the result over side of the box: 1.0 keeps it, 1.3 is S0's, 5 / 3 adds a third a side (S2).
        square: Make both sides as long as the longer one.

    Returns:
        float64 (4,), which may reach outside the frame.
    """
    box = np.asarray(box_4, np.float64)
    centre, size = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) * margin
    if square:
        size = np.full(2, size.max())
    return np.concatenate([centre - size / 2, centre + size / 2])


def cut(image_HWC: NDArray[np.uint8], box_4: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Cut a box out of an image, at whole pixels; what lies outside the image is black.

    Returns:
        uint8 (h, w, 3), a copy of at least 1 x 1 pixel.
    """
    height, width, _ = image_HWC.shape
    x1, y1, x2, y2 = cut_corners(box_4)
    out = np.zeros((y2 - y1, x2 - x1, 3), np.uint8)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if left < right and top < bottom:
        out[top - y1 : bottom - y1, left - x1 : right - x1] = image_HWC[top:bottom, left:right]
    return out


def cut_corners(box_4: NDArray[np.floating[Any]]) -> tuple[int, int, int, int]:
    """The pixels that `cut` takes for a box: x1, y1, x2, y2, half open, at least one pixel wide and high."""
    x1, y1 = (math.floor(v + 0.5) for v in box_4[:2])
    return x1, y1, max(math.floor(box_4[2] + 0.5), x1 + 1), max(math.floor(box_4[3] + 0.5), y1 + 1)


def align(image_HWC: NDArray[np.uint8], landmarks_K2: NDArray[np.float32], margin: float) -> NDArray[np.uint8]:
    """Cut a face out upright: the similarity that best maps its landmarks to the template (Umeyama, 1991).

    The result has the face's own resolution, so that the model's resize is the only other resampling.

    Args:
        image_HWC: uint8 (H, W, 3).
        landmarks_K2: float32 (5, 2), x and y in pixels of the image.
        margin: Side of the crop over side of the template, as in `enlarge`.

    Returns:
        uint8 (side, side, 3); what lies outside the image is black.
    """
    matrix_23, side = alignment(landmarks_K2, margin)
    warped = cv2.warpAffine(image_HWC, matrix_23, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(warped, np.uint8)


def alignment(landmarks_K2: NDArray[np.float32], margin: float) -> tuple[NDArray[np.float64], int]:
    """The similarity by which `align` takes its pixels.

    Returns:
        float64 (2, 3) from a pixel's place (x, y) in the result to its place in the image; and the result's side.
    """
    template = _TEMPLATE_K2[:, 0] + 1j * _TEMPLATE_K2[:, 1]
    points = landmarks_K2[:, 0].astype(np.float64) + 1j * landmarks_K2[:, 1].astype(np.float64)
    template_offset, offset = template - template.mean(), points - points.mean()
    # In the plane a similarity without reflection is one complex factor, and least squares is a projection.
    factor = np.vdot(template_offset, offset) / np.vdot(template_offset, template_offset).real
    side = max(round(abs(factor) * margin), 1)
    to_image = factor * margin / side
    centre = points.mean() + factor * ((0.5 + 0.5j) - template.mean())
    origin = centre - to_image * (side - 1) / 2 * (1 + 1j) - (0.5 + 0.5j)
    matrix_23 = np.array([[to_image.real, -to_image.imag, origin.real], [to_image.imag, to_image.real, origin.imag]])
    return matrix_23, side


def crop(
    image_HWC: NDArray[np.uint8],
    box_4: NDArray[np.float32],
    landmarks_K2: NDArray[np.float32],
    preprocessing: "Preprocessing",
) -> NDArray[np.uint8]:
    """Cut one face out of a frame as a model's preprocessing asks, before resizing.

    Returns:
        uint8 (h, w, 3) at the frame's own resolution.
    """
    if preprocessing.align:
        return align(image_HWC, landmarks_K2, preprocessing.margin)
    return cut(image_HWC, enlarge(box_4, preprocessing.margin, square=preprocessing.fit == "square"))
