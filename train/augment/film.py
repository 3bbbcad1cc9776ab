"""A photograph as the frames of a clip, so that a temporal head learns from portraits what real video looks like.

Real faces change from frame to frame too: they talk and turn, the camera drifts, the light changes, the detector's box
trembles. Without that in its real clips, a head would take every motion for a forgery. What the person does comes
before a blend, as it does for a forger; what the camera does comes after it, and the same for real and fake of a pair.

Axes: H rows, W columns; F frames, G rows and columns of a grid over the face, K courses.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.blendmask import GRID
from train.augment.colours import BrightnessContrast
from train.augment.face import Face
from train.augment.geometry import moved
from train.augment.picture import Picture, Step, Steps
from train.augment.quality import Blur, Noise
from train.augment.warp import FaceWarp

__all__ = ["Film"]

_EXPRESSIONS = 3
# Cycles in 16 frames. Sampled every third of a second, a talking face is another one in every frame.
_CYCLES = (0.2, 7.0)
_STRONGEST_WARP = 0.025  # widths of the face
_BLURRED = 0.1  # share of frames


@dataclass(frozen=True, slots=True)
class _Affine:
    """Move a picture; its border is repeated."""

    matrix_23: NDArray[np.float64]

    def __call__(self, picture: Picture) -> Picture:
        size = (picture.width, picture.height)
        image = cv2.warpAffine(
            picture.image_HWC, self.matrix_23, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        mask_HW = None
        if picture.mask_HW is not None:
            mask_HW = np.asarray(cv2.warpAffine(picture.mask_HW, self.matrix_23, size), np.uint8)
        return Picture(np.asarray(image, np.uint8), moved(picture.landmarks_K2, self.matrix_23), mask_HW)


@dataclass(frozen=True, slots=True, eq=False)
class Film:
    """One drawn way to film a photograph.

    Args:
        seed: What every course comes from.
        liveliness: How much the person moves, 0 to 1.
        shake: How much camera and detector do, 0 to 1.
        light: How much the light changes, 0 to 1.
        noise: Standard deviation of the sensor's noise, in levels of 255.
    """

    seed: int
    liveliness: float
    shake: float
    light: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Self:
        """Take every random number."""
        liveliness, shake, light, noise = rng.uniform(0, (1, 1, 1, 6))
        return cls(int(rng.integers(2**32)), liveliness, shake, light, noise)

    def act(self, picture: Picture, frames: int) -> list[Picture]:
        """The person of a photograph in so many frames: other expressions, the head turned and bent."""
        rng = np.random.default_rng((self.seed, 0))
        bases_KGG2 = rng.normal(0, 1, (_EXPRESSIONS, GRID, GRID, 2)).astype(np.float32)
        strength = self.liveliness * _STRONGEST_WARP / np.sqrt(_EXPRESSIONS)
        faces_KF, poses_KF = _courses(rng, _EXPRESSIONS, frames), _courses(rng, 4, frames)
        middle_2 = Face.of(picture).to_pixels([(0.0, 0.7)])[0]
        out = []
        for frame in range(frames):
            shifts_GG2 = np.tensordot(strength * faces_KF[:, frame], bases_KGG2, 1).astype(np.float32)
            turn, nod, roll, lean = self.liveliness * poses_KF[:, frame]
            # A head that turns or nods grows narrow or low; sideways it leans.
            scales = (1 - 0.12 * abs(turn), 1 - 0.06 * abs(nod))
            pose = _Affine(_about(middle_2, 6 * roll, scales, 0.08 * lean))
            out.append(Steps((FaceWarp(shifts_GG2), pose)).apply(picture))
        return out

    def shoot(self, pictures: Sequence[Picture]) -> list[Picture]:
        """What camera and detector make of frames: drift, tremble, light, noise, a blurred frame now and then."""
        rng = np.random.default_rng((self.seed, 1))
        drift_KF, light_KF = _courses(rng, 3, len(pictures)), _courses(rng, 2, len(pictures))
        tremble_KF = rng.normal(0, 1, (3, len(pictures)))
        blurred_F, seeds_F = rng.random(len(pictures)) < _BLURRED, rng.integers(2**32, size=len(pictures))
        blur = rng.uniform(0.003, 0.012)
        out = []
        for frame, picture in enumerate(pictures):
            x, y, size = self.shake * (0.02 * drift_KF[:, frame] + 0.012 * tremble_KF[:, frame])
            middle_2 = np.array([picture.width - 1, picture.height - 1]) / 2
            matrix_23 = _about(middle_2, 0.0, (1 + size, 1 + size), 0.0)
            matrix_23[:, 2] += x * picture.width, y * picture.height
            brightness, contrast = self.light * 0.1 * light_KF[:, frame]
            steps: list[Step] = [_Affine(matrix_23), BrightnessContrast(brightness, contrast)]
            steps += [Blur(blur)] if blurred_F[frame] else []
            steps += [Noise(self.noise, int(seeds_F[frame]))] if self.noise > 1 else []
            out.append(Steps(tuple(steps)).apply(picture))
        return out


def _courses(rng: np.random.Generator, count: int, frames: int) -> NDArray[np.float64]:
    """Smooth changes in about [-1, 1], float64 (K, F): each two sines of its own."""
    cycles_K2, phases_K2 = rng.uniform(*_CYCLES, (count, 2)), rng.uniform(0, 2 * np.pi, (count, 2))
    times_F = 2 * np.pi * np.arange(frames) / 16
    waves_K2F = np.sin(cycles_K2[..., None] * times_F + phases_K2[..., None])
    courses_KF: NDArray[np.float64] = waves_K2F.mean(1)
    return courses_KF


def _about(
    middle_2: NDArray[np.float64], degrees: float, scales: tuple[float, float], lean: float
) -> NDArray[np.float64]:
    """Scale, shear and turn about a point, float64 (2, 3)."""
    angle = np.deg2rad(degrees)
    turn_22 = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    linear_22 = turn_22 @ np.array([[1.0, lean], [0.0, 1.0]]) @ np.diag(scales)
    return np.column_stack([linear_22, middle_2 - linear_22 @ middle_2])
