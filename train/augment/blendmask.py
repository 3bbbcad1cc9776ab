"""The mask by which a face is blended: a shape on the face, deformed, softened, weakened.

As in Shiohara & Yamasaki, "Detecting Deepfakes with Self-Blended Images" (CVPR 2022): the outline is bent elastically;
two Gaussian filters soften it, and what the first leaves below 1 is dropped in between, so that the mask shrinks as the
first is wider than the second; a ratio makes it fainter. Here the outline itself is bent, in the face's units, not its
pixels: cheaper, and alike at any size.

Axes: G rows and columns of a grid over the face, H rows, W columns, N points.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.face import Face, Shape, filled
from train.augment.picture import Picture

__all__ = ["GRID", "BlendMask"]

GRID = 6
"""Rows and columns of the grids that bend outlines and faces."""

# What the grid covers, in the face's units: left, right, top, bottom.
_LEFT, _RIGHT, _TOP, _BOTTOM = -1.6, 1.6, -1.2, 2.4
_POINTS = 72
# A soft mask needs no more; larger faces are masked at this width and enlarged.
_WIDTH_PX = 128.0


@dataclass(frozen=True, slots=True, eq=False)
class BlendMask:
    """One drawn mask; its place and size come from each picture's face.

    Args:
        shapes: What it covers.
        bends_GG2: How far the outline moves, by place on the face, in the face's units.
        sigmas: Of the two filters, in widths of the face.
        ratio: The mask's greatest value, (0, 1].
    """

    shapes: tuple[Shape, ...]
    bends_GG2: NDArray[np.float32]
    sigmas: tuple[float, float]
    ratio: float

    def on(self, face: Face, picture: Picture, ratio: float = 1.0) -> NDArray[np.uint8]:
        """The mask of a picture.

        Args:
            face: Where its face is. Where nothing of the shape lies inside the picture, the usual face is taken: a fake
                without a change would be a wrong label.
            picture: Of any size.
            ratio: Makes the mask fainter still.

        Returns:
            uint8 (H, W), 255 times the share of the source; 255 times the ratio at its greatest.
        """
        soft_HW = self._soft(face, picture)
        if not soft_HW.any():
            soft_HW = self._soft(Face.usual(picture), picture)
        size = (picture.width, picture.height)
        if soft_HW.shape != size[::-1]:
            soft_HW = np.asarray(cv2.resize(soft_HW, size, interpolation=cv2.INTER_LINEAR), np.uint8)
        peak = max(int(soft_HW.max()), 1)
        return np.asarray(cv2.convertScaleAbs(soft_HW, alpha=255 * self.ratio * ratio / peak), np.uint8)

    def _soft(self, face: Face, picture: Picture) -> NDArray[np.uint8]:
        scale = min(_WIDTH_PX / face.width_px, 1.0)
        height, width = (max(round(v * scale), 1) for v in (picture.height, picture.width))
        factors_2 = np.array([width / picture.width, height / picture.height])
        outlines = (outline for shape in self.shapes for outline in face.outline(shape))
        polygons = [(face.to_pixels(self._bent(_dense(o))) + 0.5) * factors_2 - 0.5 for o in outlines]
        hard_HW = filled(polygons, height, width)
        return _softened(hard_HW, *(sigma * face.width_px * scale for sigma in self.sigmas))

    def _bent(self, points_N2: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points in the face's units, moved by the grid between whose nodes they lie."""
        last = len(self.bends_GG2) - 1
        columns_N1, rows_N1 = (
            ((v - low) / (high - low) * last).astype(np.float32)[:, None]
            for v, low, high in ((points_N2[:, 0], _LEFT, _RIGHT), (points_N2[:, 1], _TOP, _BOTTOM))
        )
        bends_N12 = cv2.remap(self.bends_GG2, columns_N1, rows_N1, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return points_N2 + bends_N12[:, 0]


def _dense(polygon_N2: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same polygon with many points, evenly spaced along its edges."""
    closed = np.concatenate([polygon_N2, polygon_N2[:1]])
    lengths = np.concatenate([[0.0], np.cumsum(np.hypot(*np.diff(closed, axis=0).T))])
    places = np.linspace(0, lengths[-1], _POINTS, endpoint=False)
    return np.column_stack([np.interp(places, lengths, closed[:, axis]) for axis in (0, 1)])


def _softened(hard_HW: NDArray[np.uint8], first_px: float, second_px: float) -> NDArray[np.uint8]:
    core_HW = np.where(_blurred(hard_HW, first_px) == 255, np.uint8(255), np.uint8(0))
    # A shape that is too narrow for the first filter keeps its outline.
    return _blurred(core_HW if core_HW.any() else hard_HW, second_px)


def _blurred(mask_HW: NDArray[np.uint8], sigma_px: float) -> NDArray[np.uint8]:
    return np.asarray(cv2.GaussianBlur(mask_HW, (0, 0), max(sigma_px, 0.3)), np.uint8)
