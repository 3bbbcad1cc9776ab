"""Self-blended images: fakes made on the fly from real faces alone (Shiohara & Yamasaki, CVPR 2022).

A face is blended with a changed and slightly moved copy of itself, so that what a detector can learn is what every face
swap leaves: a boundary, and two different statistics. For training, take the pair, and give both the same draw of the
strategy `selfblend`; then they differ in the blend alone:

    real, fake = SelfBlend().draw(rng).pair(picture)
    after = strategy("selfblend", 380).draw(rng)
    real, fake = after.apply(real), after.apply(fake)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TypeVar, get_args

import cv2
import numpy as np

from train.augment.blend import Blend, Placement
from train.augment.blendmask import GRID, BlendMask
from train.augment.course import Course, Rhythm
from train.augment.families import FAMILIES
from train.augment.picture import Picture
from unmask.errors import UsageError

__all__ = ["BLENDS", "SelfBlend", "self_blend"]

Name = TypeVar("Name", bound=str)

# What a whole picture may go through and stay real. A generator's traces over all of it are a fake.
_HARMLESS = ("hull", "low-resolution", "colour", "warp", "frequency")
_SINGLE_TRACES = {"regions": 1.0, "low-resolution": 1.0, "generator": 1.0, "colour": 1.0, "warp": 1.0, "frequency": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class SelfBlend:
    """Which fakes are made. The default is the paper's.

    Raises:
        UsageError: A name is unknown, or a number out of its range.
    """

    families: Mapping[str, float] = field(default_factory=lambda: {"hull": 1.0})
    """Families by weight; see `train.augment.families.FAMILIES`."""
    ratios: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
    """Greatest share of the source; one is drawn."""
    rhythms: Mapping[Rhythm, float] = field(default_factory=lambda: {"still": 1.0})
    """What changes from frame to frame of a clip, by weight: still, jitter, flicker, frozen."""
    whole: float = 0.0
    """Share of pairs in which the whole picture is changed too, real and fake, by what else only a pasted face passes:
    hard negatives, which teach that a filter, another light or a lost resolution alone is no manipulation."""

    def __post_init__(self) -> None:
        _check_weights("families", self.families, list(FAMILIES))
        _check_weights("rhythms", self.rhythms, get_args(Rhythm))
        if not 0 <= self.whole <= 1:
            raise UsageError(f"whole is a share of pairs in [0, 1]; got {self.whole}")
        if not self.ratios or not all(0 < ratio <= 1 for ratio in self.ratios):
            raise UsageError(f"ratios are shares of the source above 0, up to 1; got {self.ratios}")

    def draw(self, rng: np.random.Generator) -> Blend:
        """Take every random number of a fake, for all frames of a clip."""
        family = _picked(rng, self.families)
        ingredients = FAMILIES[family](rng)
        bends_GG2 = rng.normal(0, rng.uniform(0.01, 0.06), (GRID, GRID, 2)).astype(np.float32)
        first, second = rng.uniform(0.008, 0.027), rng.uniform(0.008, 0.055)
        ratio = self.ratios[rng.integers(len(self.ratios))]
        rhythm = _picked(rng, self.rhythms)
        target = ingredients.target
        if self.whole and rng.random() < self.whole:
            target = (*target, *FAMILIES[_HARMLESS[rng.integers(len(_HARMLESS))]](rng).source)
        return Blend(
            family,
            BlendMask(ingredients.shapes, bends_GG2, (first, second), ratio),
            ingredients.source,
            target,
            _placement(rng),
            Course(rhythm, int(rng.integers(2**32))),
        )


def self_blend(picture: Picture, rng: np.random.Generator, options: SelfBlend | None = None) -> Picture:
    """The fake made from one real face.

    Half of the paper's fakes change the whole picture and paste the original face into it; `Blend.pair` also gives the
    real picture with that change, without which a detector may learn the change.

    Args:
        picture: A real face, of any size.
        rng: Every random number comes from it.
        options: Which fakes; by default the paper's.

    Returns:
        The fake; `mask_HW` is 255 times the share of the pasted face in each pixel.
    """
    return (options or SelfBlend()).draw(rng).apply(picture)


def _placement(rng: np.random.Generator) -> Placement:
    """The paper's ranges: 3% and 1.5% of the crop to the sides and up and down, 5% of the size."""
    x, y, width, height = rng.uniform((-0.1, -0.06, 0.95, 0.95), (0.1, 0.06, 1.05, 1.05))
    return Placement((x, y), (width, height), cv2.INTER_LINEAR if rng.random() < 0.5 else cv2.INTER_CUBIC)


def _picked(rng: np.random.Generator, weights: Mapping[Name, float]) -> Name:
    names, bounds = list(weights), np.cumsum(list(weights.values()))
    return names[int(np.searchsorted(bounds, rng.random() * bounds[-1], side="right"))]


def _check_weights(what: str, weights: Mapping[Name, float], known: Sequence[str]) -> None:
    unknown = sorted(set(weights) - set(known))
    if unknown:
        raise UsageError(f"{what} of self-blends are {', '.join(known)}; there is no {unknown[0]}")
    values = weights.values()
    if not all(math.isfinite(v) and v >= 0 for v in values) or not 0 < sum(values) < math.inf:
        raise UsageError(f"{what} of self-blends have weights of 0 or more, and one above 0; got {dict(weights)}")


BLENDS: Mapping[str, SelfBlend] = MappingProxyType(
    {
        "paper": SelfBlend(),
        "mixed": SelfBlend(families={"hull": 3.0, **_SINGLE_TRACES}),
        "video": SelfBlend(
            families={"hull": 4.0, **_SINGLE_TRACES, "colour": 2.5},
            rhythms={"still": 2.0, "jitter": 1.0, "flicker": 1.0, "frozen": 1.0},
            whole=0.3,
        ),
    }
)
"""Which fakes a recipe may ask for: the paper's alone; a third of those and single traces of generators; or these, with
what only clips show, and hard negatives beside them."""
