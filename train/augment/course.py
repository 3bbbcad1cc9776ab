"""How a blend goes on over the frames of a clip. Fakes are made frame by frame, and it shows in time."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

__all__ = ["Course", "Moment", "Rhythm"]

Rhythm = Literal["still", "jitter", "flicker", "frozen"]
"""`still` the same in every frame; `jitter` the face trembles on the head; `flicker` its strength and brightness
change; `frozen` the face of an earlier frame stays for some frames while the head goes on."""

_REFRESHED = 0.3  # share of the frames in which a frozen face is taken anew


@dataclass(frozen=True, slots=True)
class Moment:
    """What one frame's blend has of its own.

    Args:
        shift_xy: In the face's units.
        scale: Factor of size.
        ratio: Factor of the mask.
        brightness: Added, as a share of white.
    """

    shift_xy: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    ratio: float = 1.0
    brightness: float = 0.0


@dataclass(frozen=True, slots=True)
class Course:
    """The frames of one clip.

    Args:
        rhythm: What changes.
        seed: What the changes come from.
        strength: Factor of their size; 1 makes a face tremble by about a hundredth of its width.
    """

    rhythm: Rhythm = "still"
    seed: int = 0
    strength: float = 1.0

    def moment(self, frame: int) -> Moment:
        """What the frame's blend has of its own: the same for the same frame."""
        rng = np.random.default_rng((self.seed, frame))
        if self.rhythm == "jitter":
            x, y, size = self.strength * rng.normal(0, (0.03, 0.03, 0.01))
            return Moment(shift_xy=(float(x), float(y)), scale=math.exp(size))
        if self.rhythm == "flicker":
            ratio = 1 - min(self.strength, 1.0) * float(rng.uniform(0, 0.5))
            return Moment(ratio=ratio, brightness=self.strength * float(rng.normal(0, 0.03)))
        return Moment()

    def sources(self, frames: int) -> list[int]:
        """For each frame of a clip, the frame that its face is taken from."""
        if self.rhythm != "frozen":
            return list(range(frames))
        fresh = np.random.default_rng(self.seed).random(frames) < _REFRESHED
        fresh[:1] = True
        return [int(n) for n in np.maximum.accumulate(np.where(fresh, np.arange(frames), 0))]
