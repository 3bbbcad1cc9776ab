"""Changes of colour. Each is one affine map of R, G, B, so pixels are rounded and clipped once.

Hue and saturation turn and stretch the chroma planes of YIQ and leave luma alone. The usual way over 8-bit HSV gives
grey pixels a red cast and leaves steps of rounding, which a detector could learn.

Axes: H rows, W columns, C = 3 channels in RGB order; 34 a map of (R, G, B, 1) to R, G, B in levels of 0 to 255.
"""

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from train.augment.picture import Picture

__all__ = ["BrightnessContrast", "ColourJitter", "FancyPca", "Grey", "HueSaturation", "RgbShift"]

_WHITE = 255.0
_LUMA_3 = np.array([0.299, 0.587, 0.114])
_TO_YIQ_33 = np.array([_LUMA_3, [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ_33 = np.linalg.inv(_TO_YIQ_33)
# Eigenvectors come with either sign: brightness, red against blue, green against both, so that frames of a clip agree.
_SIGNS_33 = np.array([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
_PCA_PIXELS = 4096


@dataclass(frozen=True, slots=True)
class RgbShift:
    """Add to each channel.

    Args:
        levels_C: For R, G, B, in levels of 255.
    """

    levels_C: tuple[float, float, float]

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        return _recoloured(picture, _map(np.eye(3), self.levels_C))

    def __str__(self) -> str:
        return "rgb " + " ".join(f"{v:+.0f}" for v in self.levels_C)


@dataclass(frozen=True, slots=True)
class BrightnessContrast:
    """Multiply by 1 + contrast, then add brightness.

    Args:
        brightness: Share of white, -1 to 1.
        contrast: From -1, black, upwards.
    """

    brightness: float
    contrast: float

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        return _recoloured(picture, _map((1 + self.contrast) * np.eye(3), [_WHITE * self.brightness] * 3))

    def __str__(self) -> str:
        return f"brightness {self.brightness:+.2f}, contrast {self.contrast:+.2f}"


@dataclass(frozen=True, slots=True)
class HueSaturation:
    """Turn the hue, stretch the saturation, add to the value.

    Args:
        degrees: Of the colour circle, red to green positive.
        saturation: Colours grow by this share; -1 leaves grey.
        value: Added, as a share of white.
    """

    degrees: float
    saturation: float
    value: float = 0.0

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        return _recoloured(picture, _map(_chroma_33(self.degrees, 1 + self.saturation), [_WHITE * self.value] * 3))

    def __str__(self) -> str:
        return f"hue {self.degrees:+.0f}, saturation {self.saturation:+.2f}, value {self.value:+.2f}"


@dataclass(frozen=True, slots=True)
class FancyPca:
    """Shift the colour along the principal axes of the picture's own colours (Krizhevsky et al., 2012).

    The steps are multiples of the standard deviations. Of the variances, as the paper's formula reads, they would stay
    below one level of 255.

    Args:
        alphas_3: The multiples, widest axis first; the paper draws them with a standard deviation of 0.1.
    """

    alphas_3: tuple[float, float, float]

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        return _recoloured(picture, _map(np.eye(3), self.levels(picture.image_HWC)))

    def levels(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """What is added to R, G, B, in levels of 255."""
        # A grid of some thousand pixels tells as much as all of them.
        stride = max(math.isqrt(image_HWC.shape[0] * image_HWC.shape[1] // _PCA_PIXELS), 1)
        pixels_NC = image_HWC[::stride, ::stride].reshape(-1, 3).astype(np.float64)
        pixels_NC -= pixels_NC.mean(0)
        variances_3, axes_33 = np.linalg.eigh(pixels_NC.T @ pixels_NC / len(pixels_NC))
        variances_3, axes_33 = variances_3[::-1], axes_33.T[::-1]
        signs_3 = np.where((axes_33 * _SIGNS_33).sum(1) < 0, -1.0, 1.0)
        steps_3 = np.array(self.alphas_3) * np.sqrt(np.maximum(variances_3, 0)) * signs_3
        levels_3: NDArray[np.float64] = steps_3 @ axes_33
        return levels_3

    def __str__(self) -> str:
        return "pca " + " ".join(f"{v:+.2f}" for v in self.alphas_3)


@dataclass(frozen=True, slots=True)
class Grey:
    """Luma in all three channels."""

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        grey_HW = cv2.cvtColor(picture.image_HWC, cv2.COLOR_RGB2GRAY)
        return picture.with_image(np.asarray(cv2.cvtColor(grey_HW, cv2.COLOR_GRAY2RGB), np.uint8))

    def __str__(self) -> str:
        return "grey"


@dataclass(frozen=True, slots=True)
class ColourJitter:
    """Torchvision's colour jitter: factors of brightness, contrast and saturation and a turn of the hue, in any order.

    Args:
        brightness: Factor of all levels.
        contrast: Factor of the distance to the picture's mean luma.
        saturation: Factor of the distance to a pixel's luma.
        hue_turns: Share of the colour circle, -0.5 to 0.5.
        order: In which the four are done.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_turns: float = 0.0
    order: tuple[Literal["brightness", "contrast", "saturation", "hue"], ...] = (
        "brightness",
        "contrast",
        "saturation",
        "hue",
    )

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        matrix_33, mean = np.eye(3), np.array(cv2.mean(picture.image_HWC)[:3])
        offset = 0.0  # the same for all channels: contrast alone adds one
        for change in self.order:
            if change == "contrast":
                middle = float(_LUMA_3 @ (matrix_33 @ mean)) + offset
                offset = self.contrast * offset + (1 - self.contrast) * middle
            elif change == "brightness":
                offset *= self.brightness
            matrix_33 = self._step(change) @ matrix_33
        return _recoloured(picture, _map(matrix_33, [offset] * 3))

    def _step(self, change: str) -> NDArray[np.float64]:
        if change == "saturation":
            return _chroma_33(0.0, self.saturation)
        if change == "hue":
            return _chroma_33(360 * self.hue_turns, 1.0)
        return (self.brightness if change == "brightness" else self.contrast) * np.eye(3)

    def __str__(self) -> str:
        factors = f"{self.brightness:.2f} {self.contrast:.2f} {self.saturation:.2f} {self.hue_turns:+.3f}"
        return f"jitter {factors}"


def _chroma_33(degrees: float, stretch: float) -> NDArray[np.float64]:
    """Luma kept, chroma turned and stretched. In the plane of I and Q red to green is clockwise."""
    cos, sin = (stretch * f(math.radians(degrees)) for f in (math.cos, math.sin))
    matrix_33: NDArray[np.float64] = _FROM_YIQ_33 @ np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]) @ _TO_YIQ_33
    return matrix_33


def _map(matrix_33: NDArray[np.float64], offset_3: ArrayLike) -> NDArray[np.float64]:
    return np.column_stack([matrix_33, np.asarray(offset_3, np.float64)])


def _recoloured(picture: Picture, map_34: NDArray[np.float64]) -> Picture:
    return picture.with_image(np.asarray(cv2.transform(picture.image_HWC, map_34), np.uint8))
