"""Changes of place and size: landmarks and mask follow the image.

Axes: H rows, W columns, K landmarks; 23 an affine map of x, y in pixels, as OpenCV takes it.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.picture import Picture

__all__ = ["Flip", "IsotropicResize", "Pad", "ShiftScaleRotate", "moved"]

# The landmark that takes each one's place in a mirror.
_FIVE = np.array([1, 0, 2, 4, 3])
_IBUG = np.array(
    [
        *range(16, -1, -1),  # jaw
        *range(26, 16, -1),  # brows
        *range(27, 31),  # bridge of the nose
        *range(35, 30, -1),
        *(45, 44, 43, 42, 47, 46),  # eyes: the upper lid from the outer corner to the inner, and the lower lid back
        *(39, 38, 37, 36, 41, 40),
        *range(54, 47, -1),  # the lips' outside, upper and lower, and their inside
        *range(59, 54, -1),
        *range(64, 59, -1),
        *range(67, 64, -1),
    ]
)
_MIRRORED = {5: _FIVE, 68: _IBUG}


def moved(points_N2: NDArray[np.floating], matrix_23: NDArray[np.float64]) -> NDArray[np.float32]:
    """Points under an affine map; what is not finite, or gets too large, becomes NaN or infinite without a warning.

    Args:
        points_N2: x, y.
        matrix_23: The map.

    Returns:
        float32 (N, 2).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        return (np.asarray(points_N2, np.float64) @ matrix_23[:, :2].T + matrix_23[:, 2]).astype(np.float32)


@dataclass(frozen=True, slots=True)
class Flip:
    """Mirror left and right. Landmarks change names too: the viewer's left eye stays the first."""

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        landmarks_K2 = picture.landmarks_K2[_MIRRORED[len(picture.landmarks_K2)]]
        landmarks_K2[:, 0] = picture.width - 1 - landmarks_K2[:, 0]
        mask_HW = None if picture.mask_HW is None else np.asarray(cv2.flip(picture.mask_HW, 1), np.uint8)
        return Picture(np.asarray(cv2.flip(picture.image_HWC, 1), np.uint8), landmarks_K2, mask_HW)

    def __str__(self) -> str:
        return "flip"


@dataclass(frozen=True, slots=True)
class ShiftScaleRotate:
    """Turn and scale about the middle, then shift. What comes in from outside is black.

    Args:
        degrees: Turned anticlockwise.
        scale: Factor of size.
        shift_xy: To the right and down, in shares of the width and of the height.
    """

    degrees: float = 0.0
    scale: float = 1.0
    shift_xy: tuple[float, float] = (0.0, 0.0)

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        matrix_23 = self.matrix(picture.height, picture.width)
        size = (picture.width, picture.height)
        image_HWC = cv2.warpAffine(picture.image_HWC, matrix_23, size, flags=cv2.INTER_LINEAR)
        mask_HW = None
        if picture.mask_HW is not None:
            mask_HW = np.asarray(cv2.warpAffine(picture.mask_HW, matrix_23, size, flags=cv2.INTER_LINEAR), np.uint8)
        return Picture(np.asarray(image_HWC, np.uint8), moved(picture.landmarks_K2, matrix_23), mask_HW)

    def matrix(self, height: int, width: int) -> NDArray[np.float64]:
        """The map from a pixel before to the pixel after, float64 (2, 3)."""
        middle = ((width - 1) / 2, (height - 1) / 2)
        matrix_23 = np.asarray(cv2.getRotationMatrix2D(middle, self.degrees, self.scale), np.float64)
        matrix_23[:, 2] += self.shift_xy[0] * width, self.shift_xy[1] * height
        return matrix_23

    def __str__(self) -> str:
        parts = [f"turn {self.degrees:.0f}"]
        parts += [f"scale {self.scale:.2f}"] if self.scale != 1 else []
        parts += ["shift {:.2f} {:.2f}".format(*self.shift_xy)] if any(self.shift_xy) else []
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class IsotropicResize:
    """Bring a picture to a size without changing its proportions: it fits inside, and one axis fills it (S2).

    Args:
        size_HW: Height and width that it fits into, in pixels.
        shrinking: OpenCV's interpolation for making smaller.
        enlarging: And for making larger.
    """

    size_HW: tuple[int, int]
    shrinking: int = cv2.INTER_AREA
    enlarging: int = cv2.INTER_CUBIC

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        scale = min(self.size_HW[0] / picture.height, self.size_HW[1] / picture.width)
        size = max(round(picture.width * scale), 1), max(round(picture.height * scale), 1)
        if size == (picture.width, picture.height):
            return picture
        method = self.shrinking if scale < 1 else self.enlarging
        image_HWC = np.asarray(cv2.resize(picture.image_HWC, size, interpolation=method), np.uint8)
        mask_HW = None
        if picture.mask_HW is not None:
            gentle = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            mask_HW = np.asarray(cv2.resize(picture.mask_HW, size, interpolation=gentle), np.uint8)
        wider, higher = size[0] / picture.width, size[1] / picture.height
        # Pixels are areas: their corners, half a pixel off, are what scales.
        matrix_23 = np.array([[wider, 0, wider / 2 - 0.5], [0, higher, higher / 2 - 0.5]])
        return Picture(image_HWC, moved(picture.landmarks_K2, matrix_23), mask_HW)

    def __str__(self) -> str:
        names = {cv2.INTER_AREA: "area", cv2.INTER_CUBIC: "cubic", cv2.INTER_LINEAR: "linear"}
        return f"resize {names[self.shrinking]}/{names[self.enlarging]}"


@dataclass(frozen=True, slots=True)
class Pad:
    """Fill up with black to a size, the picture in the middle. An axis that is longer already stays.

    Args:
        size_HW: Least height and width in pixels.
    """

    size_HW: tuple[int, int]

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        rows, columns = (max(to - n, 0) for to, n in zip(self.size_HW, picture.image_HWC.shape[:2], strict=True))
        if not rows and not columns:
            return picture
        top, left = rows // 2, columns // 2
        around = (top, rows - top, left, columns - left)
        image_HWC = np.asarray(cv2.copyMakeBorder(picture.image_HWC, *around, cv2.BORDER_CONSTANT), np.uint8)
        mask_HW = None
        if picture.mask_HW is not None:
            mask_HW = np.asarray(cv2.copyMakeBorder(picture.mask_HW, *around, cv2.BORDER_CONSTANT), np.uint8)
        offset_2 = np.array([left, top], np.float32)
        return Picture(image_HWC, picture.landmarks_K2 + offset_2, mask_HW)

    def __str__(self) -> str:
        return "pad"
