"""Where a face lies in its crop, and the shapes that are drawn on it.

Shapes are polygons in the face's own units: x in distances of the eyes, y in distances from the eyes to the mouth, from
the point between the eyes, to the viewer's right and towards the chin. So the eyes are at (-0.5, 0) and (0.5, 0) and
the middle of the mouth at (0, 1), whatever the size and the turn of the face.

Landmarks that cannot be a face's (not finite, all in one place, outside the picture) never stop a batch: then an
upright face is taken to fill the middle of the crop, as crops with a margin have it.

Axes: N points, K landmarks, x and y in pixels or in the face's units.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from train.augment.picture import Picture

__all__ = ["Face", "Shape", "filled", "five_points"]

Shape = Literal["hull", "extended", "inner", "lower", "eyes", "nose", "mouth", "ellipse"]
"""`hull` brows to chin; `extended` with the forehead; `inner` brows to lips; `lower` nose to chin; the features; and
the ellipse that stands for the hull where only five landmarks are known."""

# Where the five lie in a crop, in shares of width and height, when nothing better is known.
_USUAL_K2 = np.array([[0.33, 0.41], [0.67, 0.41], [0.5, 0.55], [0.37, 0.69], [0.63, 0.69]])

_IBUG_LEFT_EYE, _IBUG_RIGHT_EYE = slice(36, 42), slice(42, 48)
_IBUG_NOSE_TIP, _IBUG_MOUTH_CORNERS = 30, [48, 54]
_IBUG_BROWS = slice(17, 27)
_IBUG_PARTS: dict[Shape, list[int]] = {
    "hull": list(range(68)),
    "extended": list(range(68)),
    "inner": list(range(17, 68)),
    "lower": [*range(3, 14), *range(31, 36)],
}
_BROW_LIFT = 0.35

# The right half of each outline, from the top to the bottom; the left half mirrors it. Proportions of the mean of
# 300-W's annotations, rounded.
_CHEEK = [(1.14, 0.0), (1.14, 0.35), (1.06, 0.8)]
_JAW = [(0.92, 1.15), (0.68, 1.5), (0.35, 1.76), (0.12, 1.83)]
_RIGHT_HALVES: dict[Shape, list[tuple[float, float]]] = {
    "hull": [(0.35, -0.37), (0.7, -0.36), (0.95, -0.24), *_CHEEK, *_JAW],
    "extended": [(0.3, -0.78), (0.65, -0.68), (0.98, -0.42), *_CHEEK, *_JAW],
    "inner": [(0.35, -0.37), (0.7, -0.36), (0.93, -0.2), (0.88, 0.15), (0.7, 0.75), (0.52, 1.15), (0.2, 1.3)],
    "lower": [(0.2, 0.55), (0.45, 0.55), (1.08, 0.7), *_JAW],
}
_CIRCLE_N2 = np.column_stack([f(np.linspace(0, 2 * np.pi, 32, endpoint=False)) for f in (np.cos, np.sin)])
_ELLIPSE = ((0.0, 0.71), (1.14, 1.12))
_AROUND_EYE, _AROUND_NOSE, _AROUND_MOUTH = (0.36, 0.27), (0.36, 0.42), (0.6, 0.33)

_LEAST_EYE_DISTANCE = 0.02
_SHIFT_BITS = 4  # of a pixel, when polygons are filled
_FAR_PX = 1e5


def five_points(landmarks_K2: NDArray[np.float32]) -> NDArray[np.float64]:
    """Eyes, nose and corners of the mouth of either kind of landmarks: float64 (5, 2), NaN where one is not finite."""
    points = np.where(np.isfinite(landmarks_K2), landmarks_K2, np.nan).astype(np.float64)
    if len(points) == 5:
        return points
    eyes = [points[_IBUG_LEFT_EYE].mean(0), points[_IBUG_RIGHT_EYE].mean(0)]
    return np.array([*eyes, points[_IBUG_NOSE_TIP], *points[_IBUG_MOUTH_CORNERS]])


@dataclass(frozen=True, slots=True, eq=False)
class Face:
    """A face in its crop.

    Args:
        points_52: Its five landmarks in pixels; the usual ones where the given cannot be a face's.
        ibug_K2: All 68, where they are known.
        to_crop_23: From the face's units to pixels.
        yaw: How far the nose is off the middle, in distances of the eyes, to the viewer's right.
        is_known: Whether the landmarks were taken.
    """

    points_52: NDArray[np.float64]
    ibug_K2: NDArray[np.float64] | None
    to_crop_23: NDArray[np.float64]
    yaw: float
    is_known: bool

    @classmethod
    def of(cls, picture: Picture) -> "Face":
        """The face of a picture, by its landmarks."""
        points_52 = five_points(picture.landmarks_K2)
        if not _can_be_a_face(points_52, picture):
            return cls.usual(picture)
        ibug_K2 = picture.landmarks_K2.astype(np.float64) if len(picture.landmarks_K2) == 68 else None
        if ibug_K2 is not None and not (np.abs(ibug_K2) < _FAR_PX).all():  # NaN is not below it either
            ibug_K2 = None
        return cls(points_52, ibug_K2, *_frame(points_52), is_known=True)

    @classmethod
    def usual(cls, picture: Picture) -> "Face":
        """An upright face in the middle of a crop."""
        points_52 = _USUAL_K2 * [picture.width, picture.height] - 0.5
        return cls(points_52, None, *_frame(points_52), is_known=False)

    @property
    def width_px(self) -> float:
        """About the width of the face, from ear to ear."""
        return float(2.3 * np.hypot(*self.to_crop_23[:, 0]))

    def outline(self, shape: Shape) -> list[NDArray[np.float64]]:
        """One or more polygons (N, 2) in the face's units: from all 68 landmarks where they are known."""
        if shape in ("eyes", "nose", "mouth"):
            return [self._around(x, y, radii) for x, y, radii in self._features(shape)]
        if shape == "ellipse":
            return [self._around(*_ELLIPSE[0], _ELLIPSE[1], turned=True)]
        if self.ibug_K2 is None:
            right_N2 = np.array(_RIGHT_HALVES[shape])
            return [self._turned(np.concatenate([right_N2, right_N2[::-1] * [-1, 1]]))]
        points_K2 = self.to_units(self.ibug_K2)
        if shape == "extended":
            points_K2[_IBUG_BROWS, 1] -= _BROW_LIFT
        hull_N12 = cv2.convexHull(points_K2[_IBUG_PARTS[shape]].astype(np.float32))
        return [np.asarray(hull_N12, np.float64)[:, 0]]

    def to_pixels(self, points_N2: ArrayLike) -> NDArray[np.float64]:
        """From the face's units to pixels of the crop, float64 (N, 2)."""
        pixels_N2: NDArray[np.float64] = np.asarray(points_N2, np.float64) @ self.to_crop_23[:, :2].T
        return pixels_N2 + self.to_crop_23[:, 2]

    def to_units(self, points_N2: ArrayLike) -> NDArray[np.float64]:
        """From pixels of the crop to the face's units, float64 (N, 2)."""
        offsets_N2 = np.asarray(points_N2, np.float64) - self.to_crop_23[:, 2]
        units_N2: NDArray[np.float64] = offsets_N2 @ np.linalg.inv(self.to_crop_23[:, :2]).T
        return units_N2

    def _features(self, shape: Shape) -> list[tuple[float, float, tuple[float, float]]]:
        left, right, nose, *mouth = self.to_units(self.points_52)
        if shape == "eyes":
            width, height = _AROUND_EYE
            left_width, right_width = self._widths(np.array([-0.5, 0.5])) * width
            return [(*left, (left_width, height)), (*right, (right_width, height))]
        if shape == "nose":
            return [(float(nose[0]) * 0.7, float(nose[1]) * 0.8, _AROUND_NOSE)]
        x, y = np.mean(mouth, 0)
        return [(x, y + 0.08, _AROUND_MOUTH)]  # the lower lip is the larger

    def _around(self, x: float, y: float, radii: tuple[float, float], *, turned: bool = False) -> NDArray[np.float64]:
        ellipse_N2 = _CIRCLE_N2 * radii + [x, y]
        return self._turned(ellipse_N2) if turned else ellipse_N2

    def _turned(self, points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([points_N2[:, 0] * self._widths(points_N2[:, 0]), points_N2[:, 1]])

    def _widths(self, x_N: NDArray[np.float64]) -> NDArray[np.float64]:
        """As the head is turned away, the far side grows narrow and the near side wide: factors by place."""
        turn = min(abs(self.yaw), 0.45)
        return np.where(x_N * self.yaw > 0, 1 - 1.3 * turn, 1 + 0.5 * turn)


def filled(polygons: list[NDArray[np.float64]], height: int, width: int) -> NDArray[np.uint8]:
    """Polygons as a mask.

    Args:
        polygons: Each (N, 2), in pixels; may reach outside.
        height: Rows.
        width: Columns.

    Returns:
        uint8 (H, W): 255 inside any of them, else 0.
    """
    mask_HW = np.zeros((height, width), np.uint8)
    for polygon_N2 in polygons:
        fixed = np.rint(np.clip(polygon_N2, -_FAR_PX, _FAR_PX) * 2**_SHIFT_BITS).astype(np.int32)
        cv2.fillPoly(mask_HW, [fixed], 255, shift=_SHIFT_BITS)
    return mask_HW


def _can_be_a_face(points_52: NDArray[np.float64], picture: Picture) -> bool:
    if not (np.abs(points_52) < _FAR_PX).all():
        return False
    middle, size = points_52.mean(0), np.array([picture.width, picture.height])
    eyes, eyes_to_mouth = _distances(points_52)
    inside = bool(((middle >= -0.5) & (middle <= size - 0.5)).all())
    return inside and _LEAST_EYE_DISTANCE * picture.side <= max(eyes, eyes_to_mouth) <= 2 * picture.side


def _distances(points_52: NDArray[np.float64]) -> tuple[float, float]:
    left, right, _, *mouth = points_52
    return float(np.hypot(*(right - left))), float(np.hypot(*(np.mean(mouth, 0) - (left + right) / 2)))


def _frame(points_52: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """The map from the face's units to pixels, and the yaw. Turned heads shorten one unit: it keeps a least length."""
    left, right, nose, *mouth = points_52
    origin, down = (left + right) / 2, np.mean(mouth, 0) - (left + right) / 2
    eyes, eyes_to_mouth = _distances(points_52)
    across = (right - left) / eyes if eyes > 0.1 * eyes_to_mouth else np.array([down[1], -down[0]]) / eyes_to_mouth
    below = np.array([-across[1], across[0]])
    below = below if below @ down >= 0 else -below
    unit_x, unit_y = max(eyes, 0.6 * eyes_to_mouth), max(float(below @ down), 0.6 * eyes)
    slant = float(np.clip(across @ down / unit_y, -0.5, 0.5))
    matrix_23 = np.column_stack([unit_x * across, unit_y * (below + slant * across), origin])
    nose_x, _ = np.linalg.solve(matrix_23[:, :2], nose - origin)
    return matrix_23, float(nose_x)


assert set(get_args(Shape)) == {*_RIGHT_HALVES, "eyes", "nose", "mouth", "ellipse"}
