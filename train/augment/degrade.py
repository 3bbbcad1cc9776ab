"""What a face goes through between a camera and a viewer: scaled down, noisy, sharpened, and encoded as H.264.

A detector that is trained on photographs alone learns traces that no shared video keeps. Real and fake of a pair take
the same way, so that it tells nothing about which is which.

Axes: H rows, W columns, C = 3 channels in RGB order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from train.augment.geometry import IsotropicResize, ShiftScaleRotate
from train.augment.picture import Picture, Step, Steps
from train.augment.quality import Blur, Noise, Sharpen
from train.encoding import reencoded

__all__ = ["H264", "Degrade", "draw_degradation"]

# Crops of 100 pixels and more, at the rates at which videos are shared: what is worse leaves no trace to learn from,
# and a network that must learn from it learns slowly (benchmarks/README.md).
_UNTOUCHED = 0.2
_SCALES = (0.35, 1.0)
_CRFS = (18, 32)
_SECOND_CRFS = (23, 30)
# A frame alone is a key frame; most frames of a video are predicted from others.
_LEAD_FRAMES = 2


@dataclass(frozen=True, slots=True)
class H264:
    """Encode as a video and decode again.

    Args:
        crf: x264's constant rate factor.
        drift_xy: How far a camera moves from frame to frame, in shares of width and height, where one picture is to be
            a predicted frame; None makes it a key frame. Clips have motion of their own.
    """

    crf: int
    drift_xy: tuple[float, float] | None = None

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        before = [] if self.drift_xy is None else [self._drifted(picture, n) for n in range(_LEAD_FRAMES, 0, -1)]
        return self.clip([*before, picture])[-1]

    def clip(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Change the frames of a clip, in order; they may differ in size."""
        decoded = reencoded([picture.image_HWC for picture in pictures], self.crf)
        return [picture.with_image(image) for picture, image in zip(pictures, decoded, strict=True)]

    def _drifted(self, picture: Picture, frames: int) -> Picture:
        assert self.drift_xy is not None
        x, y = self.drift_xy
        return ShiftScaleRotate(shift_xy=(-x * frames, -y * frames))(picture)

    def __str__(self) -> str:
        return f"h264 crf {self.crf}{'' if self.drift_xy is None else ' predicted'}"


@dataclass(frozen=True, slots=True)
class Degrade:
    """Shrink to a share of the size, and leave it so.

    Args:
        scale: (0, 1]. At least 32 pixels a side are left of a picture that has them.
        method: OpenCV's interpolation.
    """

    scale: float
    method: int = cv2.INTER_AREA

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        height, width = (max(round(side * self.scale), min(side, 32)) for side in (picture.height, picture.width))
        return IsotropicResize((height, width), self.method, self.method)(picture)

    def __str__(self) -> str:
        return f"scale {self.scale:.2f}"


def draw_degradation(rng: np.random.Generator) -> Steps:
    """Take every random number of one way; some pictures are left as they are, so that good video is known too."""
    if rng.random() < _UNTOUCHED:
        return Steps()
    steps: list[Step] = []
    if rng.random() < 0.15:
        steps.append(Blur(rng.uniform(0.002, 0.006)))
    if rng.random() < 0.8:
        low, high = np.log(_SCALES)
        steps.append(Degrade(float(np.exp(rng.uniform(low, high))), _method(rng)))
    if rng.random() < 0.25:
        steps.append(Noise(rng.uniform(1, 5), int(rng.integers(2**32))))
    if rng.random() < 0.2:
        steps.append(Sharpen(rng.uniform(0.2, 1.0)))
    steps.append(_encoded(rng, _CRFS))
    if rng.random() < 0.1:
        steps.append(_encoded(rng, _SECOND_CRFS))
    return Steps(tuple(steps))


def _encoded(rng: np.random.Generator, crfs: tuple[int, int]) -> H264:
    predicted, x, y = rng.random() < 0.5, *rng.uniform(-0.01, 0.01, 2)
    return H264(int(rng.integers(crfs[0], crfs[1] + 1)), (x, y) if predicted else None)


def _method(rng: np.random.Generator) -> int:
    return (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)[rng.integers(3)]
