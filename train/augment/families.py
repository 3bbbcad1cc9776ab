"""Families of self-blends: how the pasted face differs from the one below it, and where it is pasted.

`hull` is the paper's (Shiohara & Yamasaki, CVPR 2022); the others imitate single traces of generators.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from train.augment.blendmask import GRID
from train.augment.colours import BrightnessContrast, HueSaturation, RgbShift
from train.augment.face import Shape
from train.augment.picture import Step
from train.augment.quality import BandGains, Downscale, GeneratorTraces, Sharpen
from train.augment.warp import FaceWarp

__all__ = ["FAMILIES", "Ingredients"]

_WHOLE: tuple[Shape, ...] = ("hull", "extended", "inner")
_REGIONS: tuple[tuple[Shape, ...], ...] = (
    ("eyes",),
    ("mouth",),
    ("nose",),
    ("lower",),
    ("eyes", "nose"),
    ("mouth", "nose"),
    ("eyes", "nose", "mouth"),
)


class Ingredients(NamedTuple):
    """What a family draws.

    Args:
        shapes: Where the source shows.
        source: Steps that only the source passes.
        target: Steps that the whole picture passes, real and fake.
    """

    shapes: tuple[Shape, ...]
    source: tuple[Step, ...]
    target: tuple[Step, ...] = ()


def _hull(rng: np.random.Generator) -> Ingredients:
    """The paper's: source or target gets other statistics of colour and frequency."""
    steps = _statistics(rng)
    return Ingredients(_whole(rng), steps) if rng.random() < 0.5 else Ingredients(_whole(rng), (), steps)


def _regions(rng: np.random.Generator) -> Ingredients:
    """As `hull`, on features of the face."""
    return Ingredients(_REGIONS[rng.integers(len(_REGIONS))], _statistics(rng))


def _low_resolution(rng: np.random.Generator) -> Ingredients:
    """The face comes back from a network of few pixels."""
    enlarging = cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC
    return Ingredients(_whole(rng), (Downscale(rng.uniform(0.2, 0.6), cv2.INTER_AREA, enlarging), _tint(rng, 0.5)))


def _generator(rng: np.random.Generator) -> Ingredients:
    """The face comes out of up-sampling layers."""
    a, b, c, d = 1 + rng.normal(0, 0.03, 4)
    return Ingredients(_whole(rng), (GeneratorTraces(rng.uniform(0.4, 1.0), ((a, b), (c, d))), _tint(rng, 0.5)))


def _colour(rng: np.random.Generator) -> Ingredients:
    """The whole face has another colour, or other light, and nothing else."""
    red, green, blue = rng.uniform(-40, 40, 3)
    return Ingredients(_whole(rng), (RgbShift((red, green, blue)), _tint(rng, 2.0), _light(rng, 0.2)))


def _warp(rng: np.random.Generator) -> Ingredients:
    """The parts of the face are moved against each other."""
    shifts_GG2 = rng.normal(0, rng.uniform(0.015, 0.04), (GRID, GRID, 2)).astype(np.float32)
    return Ingredients(_whole(rng), (FaceWarp(shifts_GG2), _tint(rng, 0.5)))


def _frequency(rng: np.random.Generator) -> Ingredients:
    """The face has other shares of fine and coarse detail."""
    a, b, c = np.exp(rng.normal(0, (0.7, 0.5, 0.3)))
    return Ingredients(_whole(rng), (BandGains((min(a, 2.5), min(b, 2.0), c)),))


FAMILIES: Mapping[str, Callable[[np.random.Generator], Ingredients]] = {
    "hull": _hull,
    "regions": _regions,
    "low-resolution": _low_resolution,
    "generator": _generator,
    "colour": _colour,
    "warp": _warp,
    "frequency": _frequency,
}


def _statistics(rng: np.random.Generator) -> tuple[Step, ...]:
    """The paper's source-target transforms.

    Its code gives the limits of hue, saturation and value as 0.3 where its library counts levels, so that nearly
    nothing happens; ours are a few degrees and percent.
    """
    steps: list[Step] = []
    if rng.random() < 0.3:
        red, green, blue = rng.uniform(-20, 20, 3)
        steps.append(RgbShift((red, green, blue)))
    steps += [_tint(rng, 1.0), _light(rng, 0.1)]
    if rng.random() < 0.5:
        factor = 1 / (2 if rng.random() < 0.5 else 4)
        shrinking = cv2.INTER_NEAREST if rng.random() < 0.5 else cv2.INTER_AREA
        steps.append(Downscale(factor, shrinking, cv2.INTER_LINEAR))
    else:
        steps.append(Sharpen(rng.uniform(0.2, 1.0)))
    return tuple(steps)


def _whole(rng: np.random.Generator) -> tuple[Shape, ...]:
    return (_WHOLE[rng.integers(len(_WHOLE))],)


def _tint(rng: np.random.Generator, strength: float) -> Step:
    degrees, saturation, value = strength * rng.uniform(-1, 1, 3) * (6.0, 0.15, 0.03)
    return HueSaturation(degrees, saturation, value)


def _light(rng: np.random.Generator, limit: float) -> Step:
    brightness, contrast = rng.uniform(-limit, limit, 2)
    return BrightnessContrast(brightness, contrast)
