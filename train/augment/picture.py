"""One face crop on its way into a batch, and what changes it.

A `Draw` holds every random number of one change. It is taken once for a clip and acts alike on each of its frames,
which may differ in size: lengths are shares of the picture or of the face, never pixels.

Axes: H rows, W columns, C = 3 channels in RGB order; K landmarks, x and y in pixels, (0, 0) the middle of the first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["Draw", "Picture", "Step", "Steps"]


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """One face crop. Steps never write into its arrays.

    Args:
        image_HWC: uint8 (H, W, 3), RGB, of any size.
        landmarks_K2: float32; (5, 2) eyes (the viewer's left first), nose, corners of the mouth; or (68, 2) in the
            order of iBUG. May hold anything where nothing is known, NaN too: see `train.augment.face`.
        mask_HW: uint8 (H, W), where a fake was changed. Geometry moves it along; what is cut out is 0 in it.

    Raises:
        ValueError: A shape or type is another.
    """

    image_HWC: NDArray[np.uint8]
    landmarks_K2: NDArray[np.float32]
    mask_HW: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        image, landmarks, mask = self.image_HWC, self.landmarks_K2, self.mask_HW
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"an image is uint8 of shape (H, W, 3); got {image.dtype} of shape {image.shape}")
        if landmarks.shape not in {(5, 2), (68, 2)}:
            raise ValueError(f"landmarks have shape (5, 2) or (68, 2); got {landmarks.shape}")
        if mask is not None and (mask.shape != image.shape[:2] or mask.dtype != np.uint8):
            raise ValueError(
                f"a mask is uint8 of its image's shape {image.shape[:2]}; got {mask.dtype} of shape {mask.shape}"
            )

    def __repr__(self) -> str:
        mask = "with a mask" if self.mask_HW is not None else "no mask"
        return f"Picture({self.height} x {self.width}, {len(self.landmarks_K2)} landmarks, {mask})"

    @property
    def height(self) -> int:
        """Rows."""
        return int(self.image_HWC.shape[0])

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.image_HWC.shape[1])

    @property
    def side(self) -> int:
        """The longer of the two."""
        return max(self.height, self.width)

    def with_image(self, image_HWC: NDArray[np.uint8]) -> "Picture":
        """Another image of the same size and place."""
        return replace(self, image_HWC=image_HWC)


Step = Callable[[Picture], Picture]
"""One change with all its parameters: a frozen dataclass that is called. Deterministic."""


class Draw(Protocol):
    """A change of which every random number is drawn."""

    def apply(self, picture: Picture) -> Picture:
        """Change one picture. The same for every frame of a clip; deterministic."""
        ...

    def apply_clip(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Change the frames of a clip, in order. Differs from `apply` on each only where a change has a course."""
        ...


@dataclass(frozen=True, slots=True)
class Steps:
    """A `Draw` of steps, one after the other.

    Args:
        steps: What is done; empty leaves pictures as they are.
    """

    steps: tuple[Step, ...] = ()

    def apply(self, picture: Picture) -> Picture:
        """Change one picture."""
        for step in self.steps:
            picture = step(picture)
        return picture

    @property
    def is_framewise(self) -> bool:
        """Whether parts of a clip become what they become in the whole: no step takes all frames at once."""
        return not any(hasattr(step, "clip") for step in self.steps)

    def apply_clip(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Change every frame alike; a step with a method `clip` takes all frames at once (an encoder)."""
        changed = list(pictures)
        for step in self.steps:
            clip = getattr(step, "clip", None)
            changed = [step(picture) for picture in changed] if clip is None else clip(changed)
        return changed

    def __str__(self) -> str:
        return ", ".join(map(str, self.steps)) or "unchanged"
