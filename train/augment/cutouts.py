"""The DFDC winner's cutouts: a landmark, half a face or part of the picture is blacked out.

What is blacked out is 0 in the mask too: nothing can be seen there any more.

Axes: H rows, W columns, K landmarks.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.face import Face, filled
from train.augment.picture import Picture, Step

__all__ = ["HalfFace", "HalfPicture", "Landmark", "Part", "RemoveLandmark", "Side", "draw_cutout"]

Landmark = Literal["eyes", "mouth", "nose"]
Side = Literal["top", "bottom", "left", "right"]
Part = Literal["top", "bottom", "left", "right", "falling", "rising"]
"""A half, or the two quadrants on the falling diagonal (top left and bottom right) or on the rising one."""

# Half the width of the bar, over its length.
_BAR: dict[Landmark, float] = {"eyes": 0.25, "mouth": 1 / 3, "nose": 0.25}

_ROUND = 16  # points of a round end

_CHANGED = 102  # of 255: what counts as changed in a difference mask
_LEAST_LEFT = 20 / 380**2  # share of the picture; 20 pixels at the model's 380
_TRIES = 5


def draw_cutout(rng: np.random.Generator) -> Iterator[Step]:
    """At most one cutout, with S2's probabilities.

    With p = .7 a landmark: eyes .5, mouth .25, nose .125, none of them .125. Else with p = .2 half the face, else with
    p = .1 part of the picture. So .6125, .06 and .024 of all.
    """
    if rng.random() < 0.7:
        eighth = rng.integers(8)
        if eighth < 7:
            yield RemoveLandmark("eyes" if eighth < 4 else "mouth" if eighth < 6 else "nose")
    elif rng.random() < 0.2:
        yield HalfFace(get_args(Side)[rng.integers(4)])
    elif rng.random() < 0.1:
        yield HalfPicture(tuple(get_args(Part)[n] for n in rng.integers(6, size=_TRIES)))


@dataclass(frozen=True, slots=True)
class RemoveLandmark:
    """Black out a bar with round ends: from eye to eye, from between the eyes to the nose, or along the mouth.

    Args:
        landmark: Which.
    """

    landmark: Landmark

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        start, end = self.ends(picture)
        radius_px = _BAR[self.landmark] * float(np.hypot(*(end - start)))
        return _blackened(picture, filled([_bar(start, end, radius_px)], picture.height, picture.width))

    def ends(self, picture: Picture) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The ends of the bar's middle line, x and y in pixels."""
        left, right, nose, *mouth = Face.of(picture).points_52
        if self.landmark == "eyes":
            return left, right
        return ((left + right) / 2, nose) if self.landmark == "nose" else (mouth[0], mouth[1])

    def __str__(self) -> str:
        return f"no {self.landmark}"


@dataclass(frozen=True, slots=True)
class HalfFace:
    """Black out one half of the face, parted level or upright through its centroid.

    The face is the convex hull of 68 landmarks where they are known, else an ellipse by the five.

    Args:
        side: Which half, as the viewer sees it.
    """

    side: Side

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        face = Face.of(picture)
        outline = face.outline("hull" if face.ibug_K2 is not None else "ellipse")
        mask_HW = filled([face.to_pixels(polygon_N2) for polygon_N2 in outline], picture.height, picture.width)
        moments = cv2.moments(mask_HW, binaryImage=True)
        if moments["m00"]:
            row, column = (round(moments[m] / moments["m00"]) for m in ("m01", "m10"))
            everything = slice(None)
            spared: dict[Side, tuple[slice, slice]] = {
                "top": (slice(row, None), everything),
                "bottom": (slice(row), everything),
                "left": (everything, slice(column, None)),
                "right": (everything, slice(column)),
            }
            mask_HW[spared[self.side]] = 0
        return _blackened(picture, mask_HW)

    def __str__(self) -> str:
        return f"no {self.side} half of the face"


@dataclass(frozen=True, slots=True)
class HalfPicture:
    """Black out half of the picture.

    Where the mask says what was changed, a part that would hide nearly all of it is passed over for the next; a fake
    without a trace would be a wrong label. The last one passed over, nothing is done.

    Args:
        parts: In the order in which they are tried.
    """

    parts: tuple[Part, ...]

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        changed_HW = None if picture.mask_HW is None else picture.mask_HW > _CHANGED
        for part in self.parts:
            cut_HW = _part(part, picture.height, picture.width)
            if changed_HW is None or not changed_HW.any():
                return _blackened(picture, cut_HW)
            if np.count_nonzero(changed_HW & (cut_HW == 0)) > _LEAST_LEFT * changed_HW.size:
                return _blackened(picture, cut_HW)
        return picture

    def __str__(self) -> str:
        return f"no {self.parts[0]} half"


def _bar(start: NDArray[np.float64], end: NDArray[np.float64], radius_px: float) -> NDArray[np.float64]:
    """The outline of all points within the radius of a line."""
    direction = math.atan2(*(end - start)[::-1])
    around_N = direction + np.linspace(-math.pi / 2, math.pi / 2, _ROUND, endpoint=True)
    arc_N2 = radius_px * np.column_stack([np.cos(around_N), np.sin(around_N)])
    return np.concatenate([end + arc_N2, start - arc_N2])


def _part(part: Part, height: int, width: int) -> NDArray[np.uint8]:
    middle_y, middle_x = height // 2, width // 2
    top, bottom, left, right = slice(middle_y), slice(middle_y, None), slice(middle_x), slice(middle_x, None)
    cut_HW = np.zeros((height, width), np.uint8)
    quadrants = {
        "top": [(top, slice(None))],
        "bottom": [(bottom, slice(None))],
        "left": [(slice(None), left)],
        "right": [(slice(None), right)],
        "falling": [(top, left), (bottom, right)],
        "rising": [(top, right), (bottom, left)],
    }
    for quadrant in quadrants[part]:
        cut_HW[quadrant] = 255
    return cut_HW


def _blackened(picture: Picture, cut_HW: NDArray[np.uint8]) -> Picture:
    keep_HW = 255 - cut_HW
    image_HWC = np.asarray(cv2.bitwise_and(picture.image_HWC, picture.image_HWC, mask=keep_HW), np.uint8)
    mask_HW = None if picture.mask_HW is None else np.asarray(picture.mask_HW & keep_HW, np.uint8)
    return Picture(image_HWC, picture.landmarks_K2, mask_HW)
