"""Local distortion of a face, as expression and lip edits leave it."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.face import Face
from train.augment.picture import Picture

__all__ = ["FaceWarp"]

_MIDDLE = (0.0, 0.7)  # of the face, in its units
_ROUNDS = 4
_REACH = 0.7  # of the grid to each side, in widths of the face; a cubic spline rings one cell further


@dataclass(frozen=True, slots=True, eq=False)
class FaceWarp:
    """Shift the parts of a face against each other, smoothly, and nothing further than its own width from its middle.

    Args:
        shifts_GG2: How far each node of a square grid about the face moves, x and y, in widths of the face. The outer
            nodes stay, whatever they say.
    """

    shifts_GG2: NDArray[np.float32]

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        shifts_HW2 = self.shifts_px(picture)
        columns_HW = shifts_HW2[..., 0] + np.arange(picture.width, dtype=np.float32)[None, :]
        rows_HW = shifts_HW2[..., 1] + np.arange(picture.height, dtype=np.float32)[:, None]
        landmarks_K2 = picture.landmarks_K2
        for _ in range(_ROUNDS):  # a point ends where its pixel is taken from its start
            landmarks_K2 = picture.landmarks_K2 - _sampled(shifts_HW2, landmarks_K2)
        mask_HW = None if picture.mask_HW is None else _taken(picture.mask_HW, columns_HW, rows_HW)
        return Picture(_taken(picture.image_HWC, columns_HW, rows_HW), landmarks_K2, mask_HW)

    def shifts_px(self, picture: Picture) -> NDArray[np.float32]:
        """From where each pixel is taken, relative to its place: float32 (H, W, 2)."""
        face = Face.of(picture)
        inner_GG2 = np.zeros_like(self.shifts_GG2)
        inner_GG2[1:-1, 1:-1] = self.shifts_GG2[1:-1, 1:-1] * face.width_px
        reach_px = _REACH * face.width_px
        step_px = 2 * reach_px / (len(inner_GG2) - 1)
        (x, y) = face.to_pixels([_MIDDLE])[0]
        grid_to_crop_23 = np.array([[step_px, 0, x - reach_px], [0, step_px, y - reach_px]])
        size = (picture.width, picture.height)
        shifts_HW2 = cv2.warpAffine(inner_GG2, grid_to_crop_23, size, flags=cv2.INTER_CUBIC)
        return np.asarray(shifts_HW2, np.float32)

    def __str__(self) -> str:
        return f"warp {np.abs(self.shifts_GG2).max():.1%}"


def _taken(
    pixels: NDArray[np.uint8], columns_HW: NDArray[np.floating], rows_HW: NDArray[np.floating]
) -> NDArray[np.uint8]:
    taken = cv2.remap(pixels, columns_HW, rows_HW, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(taken, np.uint8)


def _sampled(shifts_HW2: NDArray[np.float32], points_K2: NDArray[np.float32]) -> NDArray[np.float32]:
    """The shifts at some points, the nearest inside the picture for points outside; none at points that are nowhere."""
    last = np.array(shifts_HW2.shape[1::-1]) - 1
    known_K2 = np.where(np.isfinite(points_K2), points_K2, 0)
    columns, rows = np.clip(np.rint(known_K2), 0, last).astype(int).T
    return np.where(np.isfinite(points_K2), shifts_HW2[rows, columns], np.float32(0))
