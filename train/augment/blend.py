"""One drawn self-blend: the fake of a real face and the real picture that it differs from in the blend alone.

Axes: H rows, W columns, C = 3 channels in RGB order; 23 and 33 affine maps of x, y.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.blendmask import BlendMask
from train.augment.colours import BrightnessContrast
from train.augment.course import Course, Moment
from train.augment.face import Face
from train.augment.picture import Picture, Step, Steps

__all__ = ["Blend", "Placement"]

_MIDDLE = np.array([0.0, 0.7])  # of the face, in its units: scaling keeps it


@dataclass(frozen=True, slots=True)
class Placement:
    """How the source lies on the target, in the face's units.

    Args:
        shift_xy: To the viewer's right and towards the chin.
        scale_xy: Factors of width and height.
        interpolation: OpenCV's, for moving it.
    """

    shift_xy: tuple[float, float] = (0.0, 0.0)
    scale_xy: tuple[float, float] = (1.0, 1.0)
    interpolation: int = cv2.INTER_LINEAR

    def at(self, moment: Moment) -> "Placement":
        """With what a frame has of its own."""
        shift_x, shift_y = (a + b for a, b in zip(self.shift_xy, moment.shift_xy, strict=True))
        scale_x, scale_y = (moment.scale * scale for scale in self.scale_xy)
        return replace(self, shift_xy=(shift_x, shift_y), scale_xy=(scale_x, scale_y))

    def matrix(self, source: Face, target: Face) -> NDArray[np.float64]:
        """The map from a pixel of the source to the pixel of the target, float64 (2, 3)."""
        offset_2 = self.shift_xy + _MIDDLE - np.array(self.scale_xy) * _MIDDLE
        in_units_33 = np.vstack([np.column_stack([np.diag(self.scale_xy), offset_2]), [0, 0, 1]])
        from_source_33 = np.linalg.inv(np.vstack([source.to_crop_23, [0, 0, 1]]))
        matrix_23: NDArray[np.float64] = target.to_crop_23 @ in_units_33 @ from_source_33
        return matrix_23


@dataclass(frozen=True, slots=True, eq=False)
class Blend:
    """A `Draw` that makes fakes. Real and fake of a pair are equal wherever the mask is 0.

    Args:
        family: Its name in `train.augment.families.FAMILIES`.
        mask: Where the source shows.
        source: Steps that only the face to be pasted passes.
        target: Steps that the whole picture passes, and the real one of the pair with it.
        placement: Where the source lies.
        course: What changes from frame to frame of a clip.
    """

    family: str
    mask: BlendMask
    source: tuple[Step, ...] = ()
    target: tuple[Step, ...] = ()
    placement: Placement = field(default_factory=Placement)
    course: Course = field(default_factory=Course)

    def apply(self, picture: Picture) -> Picture:
        """The fake of one real picture: `mask_HW` is 255 times the share of the source in each pixel."""
        return self.apply_clip([picture])[0]

    def apply_clip(self, pictures: Sequence[Picture]) -> list[Picture]:
        """The fakes of the frames of a clip, in order."""
        return [fake for _, fake in self.pairs(pictures)]

    def pair(self, picture: Picture) -> tuple[Picture, Picture]:
        """The real picture and its fake, which differ in the blend alone."""
        return self.pairs([picture])[0]

    def pairs(self, pictures: Sequence[Picture]) -> list[tuple[Picture, Picture]]:
        """Real and fake for each frame of a clip, in order."""
        reals, sources = self.reals(pictures), self.course.sources(len(pictures))
        moments = [self.course.moment(frame) for frame in range(len(pictures))]
        return [
            (real, self._fake(real, pictures[frame], pictures[sources[frame]], moments[frame]))
            for frame, real in enumerate(reals)
        ]

    def reals(self, pictures: Sequence[Picture]) -> list[Picture]:
        """The real pictures of `pairs` alone, which cost next to nothing."""
        return Steps(self.target).apply_clip(pictures)

    def _fake(self, real: Picture, target: Picture, source: Picture, moment: Moment) -> Picture:
        flicker = (BrightnessContrast(moment.brightness, 0.0),) if moment.brightness else ()
        face = Face.of(target)
        pasted_HWC = cv2.warpAffine(
            Steps((*self.source, *flicker)).apply(source).image_HWC,
            self.placement.at(moment).matrix(Face.of(source), face),
            (target.width, target.height),
            flags=self.placement.interpolation,
            borderMode=cv2.BORDER_REPLICATE,  # reflection never ends on a picture one pixel wide
        )
        mask_HW = self.mask.on(face, target, moment.ratio)
        share_HW = mask_HW * np.float32(1 / 255)
        fake_HWC = cv2.blendLinear(pasted_HWC, real.image_HWC, share_HW, 1 - share_HW)
        return Picture(np.asarray(fake_HWC, np.uint8), real.landmarks_K2, mask_HW)

    def __str__(self) -> str:
        parts = [f"{self.family} on {'+'.join(self.mask.shapes)} x {self.mask.ratio:g}"]
        parts += [f"{name}: {Steps(steps)}" for name, steps in (("source", self.source), ("all", self.target)) if steps]
        return "; ".join(parts if self.course.rhythm == "still" else [*parts, self.course.rhythm])
