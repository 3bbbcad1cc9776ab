"""What happens to a video on its way: the seven perturbations of DeeperForensics-1.0 at five severities.

Jiang et al. 2020, "DeeperForensics-1.0: A Large-Scale Dataset for Real-World Face Forgery Detection". The values are
those that its authors published with the dataset:

    saturation   colours drawn towards grey: chroma times .4, .3, .2, .1, 0
    contrast     pixels times .85, .725, .6, .475, .35 (which darkens, too)
    block        16, 32, 48, 64, 80 grey squares at random places
    noise        Gaussian noise in Y, Cb and Cr of variance .001, .002, .005, .01, .05 (values in [0, 1])
    blur         Gaussian blur with a kernel of 7, 9, 13, 17, 21 px and a sigma of a sixth of that
    pixelation   shrunk by 2, 3, 4, 5, 6 and enlarged again: what the published code does under the name of JPEG
    compression  H.264 at CRF 30, 32, 35, 38, 40

Three things are ours. `jpeg` is JPEG itself, at qualities 70, 50, 30, 20 and 10, beside the pixelation that goes by its
name. The perturbations act on face crops, where the authors' act on whole frames, because crops are what is kept; so
the squares are a 32nd of the crop's shorter side wide (8 px of 256), where the authors' have 8 px in any frame. And the
CRF sweep (23, 28, 32, 40) covers the rates of the DFDC winner's copies and one beyond.

Crops of a track that are encoded as a clip are as far apart in time as they were sampled: the encoder finds less to
predict than in the video itself, and spends more bits on the same quality.

Axes: N crops in order of time, H rows, W columns, C = 3 channels in RGB order.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from train.encoding import reencoded

__all__ = ["CRF_SWEEP", "PERTURBATIONS", "Perturbation", "perturbed"]

Image = NDArray[np.uint8]
_GREY = 128
_CRFS = (30, 32, 35, 38, 40)


def _saturation(image_HWC: Image, share: float, rng: np.random.Generator) -> Image:  # noqa: ARG001
    ycc_HWC = _to_ycc(image_HWC)
    ycc_HWC[..., 1:] = 0.5 + (ycc_HWC[..., 1:] - 0.5) * share
    return _to_rgb(ycc_HWC)


def _contrast(image_HWC: Image, share: float, rng: np.random.Generator) -> Image:  # noqa: ARG001
    return _pixels(image_HWC.astype(np.float32) * share)


def _block(image_HWC: Image, count: float, rng: np.random.Generator) -> Image:
    height, width, _ = image_HWC.shape
    side = max(round(min(height, width) / 32), 1)
    out_HWC = image_HWC.copy()
    tops, lefts = (rng.integers(0, max(extent - side, 0) + 1, int(count)) for extent in (height, width))
    for top, left in zip(tops.tolist(), lefts.tolist(), strict=True):
        out_HWC[top : top + side, left : left + side] = _GREY
    return out_HWC


def _noise(image_HWC: Image, variance: float, rng: np.random.Generator) -> Image:
    ycc_HWC = _to_ycc(image_HWC)
    noise_HWC = rng.standard_normal(ycc_HWC.shape, np.float32) * np.float32(np.sqrt(variance))
    return _to_rgb(ycc_HWC + noise_HWC)


def _blur(image_HWC: Image, kernel_px: float, rng: np.random.Generator) -> Image:  # noqa: ARG001
    size = int(kernel_px)
    return np.asarray(cv2.GaussianBlur(image_HWC, (size, size), size / 6), np.uint8)


def _pixelation(image_HWC: Image, factor: float, rng: np.random.Generator) -> Image:  # noqa: ARG001
    height, width, _ = image_HWC.shape
    small = (max(int(width // factor), 1), max(int(height // factor), 1))
    return np.asarray(cv2.resize(cv2.resize(image_HWC, small), (width, height)), np.uint8)


def _jpeg(image_HWC: Image, quality: float, rng: np.random.Generator) -> Image:  # noqa: ARG001
    coded = cv2.imencode(".jpg", image_HWC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)


@dataclass(frozen=True, slots=True)
class Perturbation:
    """One of them.

    Args:
        title: In words.
        value: What its values are.
        values: One a severity, 1 to 5.
        apply: From a crop, a value and random numbers to a crop of the same size; None for video compression, which
            takes all crops of a track at once.
    """

    title: str
    value: str
    values: tuple[float, ...]
    apply: Callable[[Image, float, np.random.Generator], Image] | None


PERTURBATIONS: Mapping[str, Perturbation] = MappingProxyType(
    {
        "saturation": Perturbation("colour saturation", "share of chroma kept", (0.4, 0.3, 0.2, 0.1, 0.0), _saturation),
        "contrast": Perturbation("colour contrast", "factor of pixels", (0.85, 0.725, 0.6, 0.475, 0.35), _contrast),
        "block": Perturbation("block-wise change", "grey squares", (16, 32, 48, 64, 80), _block),
        "noise": Perturbation("noise in colour components", "variance", (0.001, 0.002, 0.005, 0.01, 0.05), _noise),
        "blur": Perturbation("Gaussian blur", "kernel in pixels", (7, 9, 13, 17, 21), _blur),
        "pixelation": Perturbation("pixelation", "factor", (2, 3, 4, 5, 6), _pixelation),
        "jpeg": Perturbation("JPEG compression", "quality", (70, 50, 30, 20, 10), _jpeg),
        "compression": Perturbation("video compression", "CRF of H.264", _CRFS, None),
    }
)
"""By name; see the module."""

CRF_SWEEP = (23, 28, 32, 40)
"""Constant rate factors of the sweep."""


def perturbed(
    crops: Sequence[Image], tracks_N: NDArray[np.integer], name: str, value: float, rng: np.random.Generator
) -> list[Image]:
    """Perturb crops of one video.

    Args:
        crops: uint8 (h, w, C) each, in order of time.
        tracks_N: Whose face each is: those of one track are encoded as one clip.
        name: Of the perturbation.
        value: One of its values, or any other that it can take.
        rng: Places of squares, and noise.

    Returns:
        As many crops of the same sizes.
    """
    apply = PERTURBATIONS[name].apply
    if apply is not None:
        return [apply(crop, value, rng) for crop in crops]
    out: list[Image] = list(crops)
    for track in np.unique(tracks_N):
        rows = np.flatnonzero(tracks_N == track).tolist()
        for row, crop in zip(rows, reencoded([crops[row] for row in rows], int(value)), strict=True):
            out[row] = crop
    return out


def _to_ycc(image_HWC: Image) -> NDArray[np.float32]:
    """Y, Cb, Cr as floats in [0, 1], the chroma around 1/2."""
    ycc_HWC = cv2.cvtColor(image_HWC.astype(np.float32) / 255, cv2.COLOR_RGB2YCrCb)
    return np.asarray(ycc_HWC[..., [0, 2, 1]], np.float32)


def _to_rgb(ycc_HWC: NDArray[np.float32]) -> Image:
    rgb_HWC = cv2.cvtColor(np.ascontiguousarray(ycc_HWC[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB)
    return _pixels(np.asarray(rgb_HWC, np.float32) * 255)


def _pixels(image_HWC: NDArray[np.float32]) -> Image:
    return np.rint(np.clip(image_HWC, 0, 255)).astype(np.uint8)
