"""Face crops with landmarks, for tests of augmentation: the public-domain portrait that scikit-image ships."""

import cv2
import numpy as np
import skimage.data
from numpy.typing import NDArray

from train.augment.picture import Picture

__all__ = ["BROKEN", "drawn_face", "head", "ibug_units", "is_within_binomial", "with_ibug"]

# What MTCNN finds in the whole portrait, rounded.
_LANDMARKS_K2 = np.array([[205, 102], [247, 104], [225, 129], [202, 139], [245, 142]], np.float32)
_LEFT, _TOP = 150, 35

BROKEN: dict[str, NDArray[np.float32]] = {
    "nan": np.full((5, 2), np.nan, np.float32),
    "infinite": np.full((5, 2), np.inf, np.float32),
    "huge": np.full((5, 2), 3e38, np.float32),
    "equal": np.full((5, 2), 40, np.float32),
    "outside": np.array([[900, 900], [940, 900], [920, 920], [905, 940], [935, 940]], np.float32),
    "nan68": np.full((68, 2), np.nan, np.float32),
    "infinite68": np.full((68, 2), -np.inf, np.float32),
    "equal68": np.zeros((68, 2), np.float32),
}
"""Landmarks that no face can have."""


def head(height: int = 150, width: int = 150, *, mask: bool = False) -> Picture:
    """A face crop of any size: 150 x 150 pixels of the portrait, resized."""
    image_HWC = skimage.data.astronaut()[_TOP : _TOP + 150, _LEFT : _LEFT + 150]
    image_HWC = np.ascontiguousarray(cv2.resize(image_HWC, (width, height), interpolation=cv2.INTER_AREA))
    factors_2 = np.array([width / 150, height / 150], np.float32)
    landmarks_K2 = (_LANDMARKS_K2 - [_LEFT, _TOP] + 0.5) * factors_2 - 0.5
    mask_HW = np.zeros((height, width), np.uint8)
    mask_HW[height // 4 : height // 2, width // 3 : width // 2] = 200
    return Picture(image_HWC, landmarks_K2.astype(np.float32), mask_HW if mask else None)


def ibug_units() -> NDArray[np.float64]:
    """All 68 points of a symmetric face: the eyes at (-0.5, 0) and (0.5, 0), the middle of the mouth at (0, 1)."""
    jaw = [(-1.2 * np.cos(a), 0.1 + 1.7 * np.sin(a)) for a in np.linspace(0, np.pi, 17)]
    brow = [(0.2, -0.3), (0.35, -0.38), (0.55, -0.42), (0.8, -0.36), (0.95, -0.2)]
    brows = [(-x, y) for x, y in reversed(brow)] + brow
    nose = [(0.0, 0.1), (0.0, 0.25), (0.0, 0.4), (0.0, 0.55)]
    nostrils = [(-0.2, 0.65), (-0.1, 0.68), (0.0, 0.7), (0.1, 0.68), (0.2, 0.65)]
    eye = [(-0.2, 0.0), (-0.08, -0.08), (0.08, -0.08), (0.2, 0.0), (0.08, 0.08), (-0.08, 0.08)]
    eyes = [(x - 0.5, y) for x, y in eye] + [(x + 0.5, y) for x, y in eye]
    lips = [(-0.4, 1.0), (-0.25, 0.9), (-0.1, 0.85), (0.0, 0.88), (0.1, 0.85), (0.25, 0.9), (0.4, 1.0)]
    lips += [(0.25, 1.15), (0.1, 1.2), (0.0, 1.21), (-0.1, 1.2), (-0.25, 1.15)]
    inside = [(-0.3, 1.0), (-0.1, 0.95), (0.0, 0.96), (0.1, 0.95), (0.3, 1.0), (0.1, 1.08), (0.0, 1.09), (-0.1, 1.08)]
    return np.array([*jaw, *brows, *nose, *nostrils, *eyes, *lips, *inside])


def with_ibug(picture: Picture) -> Picture:
    """The same picture with 68 landmarks, about where its face is."""
    left, right, _, *mouth = picture.landmarks_K2
    eyes, down = right - left, np.mean(mouth, 0) - (left + right) / 2
    points_K2 = ibug_units() @ np.array([eyes, down]) + (left + right) / 2
    return Picture(picture.image_HWC, points_K2.astype(np.float32), picture.mask_HW)


def drawn_face(side: int = 200, eyes_px: float = 50.0, mouth_px: float = 50.0) -> Picture:
    """An upright frontal face on white: the eyes level at 40% of the height, in the middle of the width."""
    centre, level = (side - 1) / 2, 0.4 * side
    units = np.array([[-0.5, 0], [0.5, 0], [0, 0.55], [-0.4, 1], [0.4, 1]])
    points_K2 = units * [eyes_px, mouth_px] + [centre, level]
    return Picture(np.full((side, side, 3), 255, np.uint8), points_K2.astype(np.float32))


def is_within_binomial(count: int, tries: int, p: float) -> bool:
    """Whether a count is as likely as one within four standard deviations."""
    return bool(abs(count - tries * p) <= 4 * (tries * p * (1 - p)) ** 0.5)
