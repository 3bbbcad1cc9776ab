"""What a recipe does to the crops it trains on, by name.

A strategy takes crops of any size and gives crops of any size: the dataset brings them to the model's size afterwards,
as the model's preprocessing says. Only `dfdc` is defined at that size: it resizes without distortion and pads with
black itself, so that the picture moves about and the cutouts fall in the model's own frame; preprocessing with
`fit="pad"`, which that recipe has, then finds nothing left to do.

One draw serves all frames of a clip. Lengths are shares of the picture, so frames may differ in size.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from train.augment.colours import BrightnessContrast, ColourJitter, FancyPca, Grey, HueSaturation, RgbShift
from train.augment.cutouts import draw_cutout
from train.augment.degrade import draw_degradation
from train.augment.geometry import Flip, IsotropicResize, Pad, ShiftScaleRotate
from train.augment.picture import Step, Steps
from train.augment.quality import Blur, Jpeg, Noise
from unmask.errors import UsageError

__all__ = ["STRATEGIES", "Plan", "Strategy", "strategy"]

Plan = Callable[[np.random.Generator, tuple[int, int]], Iterator[Step]]
"""Draws the steps of one clip; gets the model's height and width."""

# Widths of blurs are published in pixels; ours are shares of the picture as the model sees it.
_CELEBDF_PX, _DFDC_PX = 224, 380
_RESIZES = (
    (cv2.INTER_AREA, cv2.INTER_CUBIC),
    (cv2.INTER_AREA, cv2.INTER_LINEAR),
    (cv2.INTER_LINEAR, cv2.INTER_LINEAR),
)


@dataclass(frozen=True, slots=True)
class Strategy:
    """Augmentation of training crops.

    Args:
        name: In `STRATEGIES`.
        plan: Draws the steps.
        size_HW: Height and width of the model's input in pixels.
    """

    name: str
    plan: Plan
    size_HW: tuple[int, int]

    def draw(self, rng: np.random.Generator) -> Steps:
        """Take every random number, once for a clip; the result is plain data and deterministic."""
        return Steps(tuple(self.plan(rng, self.size_HW)))


def strategy(name: str, size_px: int | tuple[int, int]) -> Strategy:
    """A strategy by its name.

    Args:
        name: One of `STRATEGIES`.
        size_px: Side of the model's input, or (height, width).

    Raises:
        UsageError: There is no such strategy.
    """
    if name not in STRATEGIES:
        raise UsageError(f"there is no augmentation {name!r}; known are {', '.join(STRATEGIES)}")
    return Strategy(name, STRATEGIES[name], (size_px, size_px) if isinstance(size_px, int) else size_px)


def _none(_rng: np.random.Generator, _size_HW: tuple[int, int]) -> Iterator[Step]:
    """Nothing: for validation, and for histories without augmentation."""
    yield from ()


def _dfgc(rng: np.random.Generator, _size_HW: tuple[int, int]) -> Iterator[Step]:
    """S0: light, for a whole clip. Nothing that lowers the quality that the model is to judge."""
    if rng.random() < 0.5:
        yield Flip()
    if rng.random() < 0.3:
        yield BrightnessContrast(rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1))


def _celebdf(rng: np.random.Generator, _size_HW: tuple[int, int]) -> Iterator[Step]:
    """S1: flip, rotation by up to 15 degrees, colour jitter (.2, .2, .1, .05), blur with p = .2."""
    if rng.random() < 0.5:
        yield Flip()
    yield ShiftScaleRotate(degrees=rng.uniform(-15, 15))
    brightness, contrast, saturation = rng.uniform((0.8, 0.8, 0.9), (1.2, 1.2, 1.1))
    order = ColourJitter().order
    yield ColourJitter(
        brightness, contrast, saturation, rng.uniform(-0.05, 0.05), tuple(order[n] for n in rng.permutation(4))
    )
    if rng.random() < 0.2:
        yield Blur(rng.uniform(0.1, 2.0) / _CELEBDF_PX)


def _dfdc(rng: np.random.Generator, size_HW: tuple[int, int]) -> Iterator[Step]:
    """S2, the winner of the DFDC challenge, with its published probabilities; the cutouts come last."""
    if rng.random() < 0.5:
        yield Jpeg(int(rng.integers(60, 101)))
    if rng.random() < 0.1:
        yield _noise(rng, 10.0, 50.0)
    if rng.random() < 0.05:
        yield Blur(0.8 / _DFDC_PX)  # OpenCV's sigma for the published 3 x 3 kernel
    if rng.random() < 0.5:
        yield Flip()
    yield IsotropicResize(size_HW, *_RESIZES[rng.integers(3)])
    yield Pad(size_HW)
    if rng.random() < 0.7:
        yield _dfdc_colour(rng)
    if rng.random() < 0.2:
        yield Grey()
    if rng.random() < 0.5:
        yield _shift_scale_rotate(rng)
    yield from draw_cutout(rng)


def _fusion(rng: np.random.Generator, _size_HW: tuple[int, int]) -> Iterator[Step]:
    """S4: one augmentation for a whole clip, or none, each as likely."""
    choices: tuple[Callable[[], Step], ...] = (
        Flip,
        lambda: ShiftScaleRotate(degrees=rng.uniform(-10, 10)),
        lambda: _brightness_contrast(rng, 0.2),
        lambda: _hue_saturation(rng),
        lambda: Blur(rng.uniform(0.002, 0.008)),
        lambda: _noise(rng, 10.0, 50.0),
        lambda: Jpeg(int(rng.integers(50, 96))),
    )
    choice = rng.integers(len(choices) + 1)
    if choice < len(choices):
        yield choices[choice]()


def _selfblend(rng: np.random.Generator, _size_HW: tuple[int, int]) -> Iterator[Step]:
    """What follows the blend, for real and fake of a pair alike, so that they differ in the blend alone."""
    if rng.random() < 0.5:
        yield Flip()
    if rng.random() < 0.5:
        # The paper cuts each training face with another margin.
        shift_x, shift_y = rng.uniform(-0.05, 0.05, 2)
        yield ShiftScaleRotate(0.0, rng.uniform(0.9, 1.1), (shift_x, shift_y))
    if rng.random() < 0.3:
        red, green, blue = rng.uniform(-20, 20, 3)
        yield RgbShift((red, green, blue))
    if rng.random() < 0.3:
        yield HueSaturation(rng.uniform(-12, 12), rng.uniform(-0.3, 0.3), rng.uniform(-0.08, 0.08))
    if rng.random() < 0.3:
        yield _brightness_contrast(rng, 0.3)
    if rng.random() < 0.5:
        yield Jpeg(int(rng.integers(40, 101)))


def _video(rng: np.random.Generator, _size_HW: tuple[int, int]) -> Iterator[Step]:
    """What a shared video does to a face, and nothing else."""
    yield from draw_degradation(rng).steps


def _selfblend_video(rng: np.random.Generator, size_HW: tuple[int, int]) -> Iterator[Step]:
    """As `selfblend`, and then what a shared video does to a face."""
    yield from _selfblend(rng, size_HW)
    # Compression leaves little of a blend: a few hundred photographs would rather be learnt by heart. Other colours and
    # angles make them strangers.
    if rng.random() < 0.3:
        yield HueSaturation(rng.uniform(-180, 180), 0.0, 0.0)
    if rng.random() < 0.15:
        yield Grey()
    if rng.random() < 0.5:
        yield ShiftScaleRotate(rng.uniform(-15, 15))
    yield from _video(rng, size_HW)


STRATEGIES: Mapping[str, Plan] = {
    "none": _none,
    "dfgc": _dfgc,
    "celebdf": _celebdf,
    "dfdc": _dfdc,
    "fusion": _fusion,
    "selfblend": _selfblend,
    "video": _video,
    "selfblend-video": _selfblend_video,
}


def _dfdc_colour(rng: np.random.Generator) -> Step:
    """One of three, each as likely."""
    kind = rng.integers(3)
    if kind == 0:
        return _brightness_contrast(rng, 0.2)
    if kind == 1:
        first, second, third = rng.normal(0, 0.1, 3)
        return FancyPca((first, second, third))
    return _hue_saturation(rng)


def _brightness_contrast(rng: np.random.Generator, limit: float) -> Step:
    return BrightnessContrast(rng.uniform(-limit, limit), rng.uniform(-limit, limit))


def _hue_saturation(rng: np.random.Generator) -> Step:
    """Published as 20 of OpenCV's 180 steps of hue, and 30 and 20 of its 255 of saturation and value."""
    return HueSaturation(rng.uniform(-40, 40), rng.uniform(-0.3, 0.3), rng.uniform(-20, 20) / 255)


def _noise(rng: np.random.Generator, least_variance: float, greatest_variance: float) -> Step:
    return Noise(rng.uniform(least_variance, greatest_variance) ** 0.5, int(rng.integers(2**32)))


def _shift_scale_rotate(rng: np.random.Generator) -> Step:
    shift_x, shift_y = rng.uniform(-0.1, 0.1, 2)
    return ShiftScaleRotate(rng.uniform(-10, 10), rng.uniform(0.8, 1.2), (shift_x, shift_y))
