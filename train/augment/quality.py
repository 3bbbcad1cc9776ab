"""Changes of quality: compression, noise, sharpness, resolution, spectrum. The size stays.

Lengths are shares of the picture's longer side, so that frames of any size are changed alike; JPEG's blocks alone are
pixels.

Axes: H rows, W columns, C = 3 channels in RGB order.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from train.augment.picture import Picture

__all__ = ["BandGains", "Blur", "Downscale", "GeneratorTraces", "Jpeg", "Noise", "Sharpen"]

# Below this a Gaussian reaches no neighbour by half a level.
_LEAST_SIGMA_PX = 0.2


@dataclass(frozen=True, slots=True)
class Jpeg:
    """Compress as JPEG and decode again, chroma at half resolution.

    Args:
        quality: libjpeg's, 1 to 100.
    """

    quality: int

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        bgr_HWC = cv2.cvtColor(picture.image_HWC, cv2.COLOR_RGB2BGR)
        ok, encoded = cv2.imencode(".jpg", bgr_HWC, [cv2.IMWRITE_JPEG_QUALITY, self.quality])
        assert ok
        decoded_HWC = cv2.imdecode(encoded, cv2.IMREAD_COLOR)
        assert decoded_HWC is not None
        return picture.with_image(np.asarray(cv2.cvtColor(decoded_HWC, cv2.COLOR_BGR2RGB), np.uint8))

    def __str__(self) -> str:
        return f"jpeg {self.quality}"


@dataclass(frozen=True, slots=True)
class Noise:
    """Add Gaussian noise, independent by pixel and channel; pictures of one size get the same.

    Args:
        sigma: Standard deviation in levels of 255.
        seed: What the noise comes from.
    """

    sigma: float
    seed: int

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        noise_HWC = np.random.default_rng(self.seed).standard_normal(picture.image_HWC.shape, np.float32)
        noise_HWC *= self.sigma
        return picture.with_image(np.asarray(cv2.add(picture.image_HWC, noise_HWC, dtype=cv2.CV_8U), np.uint8))

    def __str__(self) -> str:
        return f"noise {self.sigma:.1f}"


@dataclass(frozen=True, slots=True)
class Blur:
    """Gaussian blur.

    Args:
        sigma: Share of the longer side.
    """

    sigma: float

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        return picture.with_image(_blurred(picture.image_HWC, self.sigma * picture.side))

    def __str__(self) -> str:
        return f"blur {self.sigma:.2%}"


@dataclass(frozen=True, slots=True)
class Sharpen:
    """Unsharp mask: add what a blur takes away.

    Args:
        amount: How much of it.
        sigma: Of the blur, share of the longer side.
    """

    amount: float
    sigma: float = 0.004

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        blurred_HWC = _blurred(picture.image_HWC, self.sigma * picture.side)
        sharp_HWC = cv2.addWeighted(picture.image_HWC, 1 + self.amount, blurred_HWC, -self.amount, 0)
        return picture.with_image(np.asarray(sharp_HWC, np.uint8))

    def __str__(self) -> str:
        return f"sharpen {self.amount:.2f}"


@dataclass(frozen=True, slots=True)
class Downscale:
    """Lose resolution: shrink, and enlarge to the old size. At least two pixels a side are left.

    Args:
        factor: Share of the sides that is left, (0, 1].
        shrinking: OpenCV's interpolation; nearest aliases.
        enlarging: Likewise.
    """

    factor: float
    shrinking: int = cv2.INTER_AREA
    enlarging: int = cv2.INTER_LINEAR

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        small_HWC = _shrunk(picture, self.factor, self.shrinking)
        return picture.with_image(_enlarged(small_HWC, picture, self.enlarging))

    def __str__(self) -> str:
        return f"downscale {self.factor:.2f}"


@dataclass(frozen=True, slots=True)
class GeneratorTraces:
    """What up-sampling layers leave: a checkerboard, since strided kernels overlap unevenly (Odena et al., 2016).

    At the generator's resolution each phase of a 2 x 2 lattice has a gain of its own; then the face is enlarged to the
    video.

    Args:
        factor: The generator's resolution over the picture's, (0, 1].
        gains_22: By row and column of the lattice, about 1.
    """

    factor: float
    gains_22: tuple[tuple[float, float], tuple[float, float]]

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        small_HWC = _shrunk(picture, self.factor, cv2.INTER_AREA).astype(np.float32)
        for row, gains in enumerate(self.gains_22):
            for column, gain in enumerate(gains):
                small_HWC[row::2, column::2] *= gain
        bytes_HWC = np.asarray(cv2.convertScaleAbs(small_HWC), np.uint8)
        return picture.with_image(_enlarged(bytes_HWC, picture, cv2.INTER_LINEAR))

    def __str__(self) -> str:
        return f"generator {self.factor:.2f}"


@dataclass(frozen=True, slots=True)
class BandGains:
    """Other statistics of frequency: three octaves of detail are multiplied, what is coarser stays.

    Args:
        gains_3: Finest band first; 1 changes nothing.
        sigma: Of the blur that parts the two finest, share of the longer side; it doubles from band to band.
    """

    gains_3: tuple[float, float, float]
    sigma: float = 0.003

    def __call__(self, picture: Picture) -> Picture:
        """Change one picture."""
        sigmas_px = [self.sigma * picture.side * 2**k for k in range(3)]
        blurs = [picture.image_HWC.astype(np.float32)]
        blurs += [_blurred(blurs[0], sigma_px) for sigma_px in sigmas_px]
        gains = (*self.gains_3, 1.0)
        # The bands are differences of neighbouring blurs; collected by blur, each has the difference of two gains.
        out_HWC = blurs[0] * np.float32(gains[0])
        for blur_HWC, finer, coarser in zip(blurs[1:], gains, gains[1:], strict=False):
            out_HWC += np.float32(coarser - finer) * blur_HWC
        return picture.with_image(np.clip(np.rint(out_HWC), 0, 255).astype(np.uint8))

    def __str__(self) -> str:
        return "bands " + " ".join(f"{v:.2f}" for v in self.gains_3)


def _blurred(image_HWC: NDArray[Any], sigma_px: float) -> NDArray[Any]:
    if sigma_px < _LEAST_SIGMA_PX:
        return image_HWC
    return np.asarray(cv2.GaussianBlur(image_HWC, (0, 0), sigma_px))


def _shrunk(picture: Picture, factor: float, method: int) -> NDArray[np.uint8]:
    size = tuple(max(round(v * factor), min(v, 2)) for v in (picture.width, picture.height))
    return np.asarray(cv2.resize(picture.image_HWC, size, interpolation=method), np.uint8)


def _enlarged(small_HWC: NDArray[np.uint8], like: Picture, method: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.resize(small_HWC, (like.width, like.height), interpolation=method), np.uint8)
