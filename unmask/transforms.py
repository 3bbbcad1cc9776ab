"""The one preprocessing that training, bulk scoring and serving share. Its description lies in the checkpoint.

`unmask.faces` cuts a crop from the frame at full resolution by `margin`, `fit` and `align`; from there on `to_tensor`
leads to what the backbone takes.

Axes: N crops, H rows, W columns, C = 3 channels in RGB order.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unmask.errors import UsageError

__all__ = ["MARGINS", "Fit", "Interpolation", "Preprocessing", "normalised", "resize", "to_tensor"]

Fit = Literal["stretch", "square", "pad"]
Interpolation = Literal["bilinear", "bicubic", "area"]

# Side of the crop over side of the face's box, by system.
MARGINS: Mapping[str, float] = {"none": 1.0, "dfgc": 1.3, "third": 5 / 3}

_ENLARGING = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "area": cv2.INTER_AREA}
_LARGEST_PX = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How a face becomes a model's input. Refuses values that cannot be meant.

    Raises:
        UsageError: A field is out of its range; the message names it.
    """

    size_px: int | tuple[int, int]
    """Side of the input, or (height, width)."""
    margin: float = 1.3
    """Side of the crop over side of the face's box; 1.0 is the box itself. See `MARGINS`."""
    fit: Fit = "square"
    """How the crop meets the input's proportions: `stretch` distorts it; `square` cuts it square to begin with;
    `pad` keeps its proportions and fills up with black, the crop in the middle (S2)."""
    align: bool = False
    """Turn the face upright by its landmarks (and cut it square)."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from R, G, B in [0, 1]."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides R, G, B after that."""
    interpolation: Interpolation = "bicubic"
    """For enlarging. Shrinking is always by area, which alone does not alias."""

    def __post_init__(self) -> None:
        sizes = self.size_HW
        if len(sizes) != 2 or not all(type(v) is int and 8 <= v <= _LARGEST_PX for v in sizes):
            raise UsageError(f"size_px is a side, or (height, width), of 8 to {_LARGEST_PX} pixels; got {self.size_px}")
        if not (math.isfinite(self.margin) and 0.5 <= self.margin <= 4.0):
            raise UsageError(f"margin is the crop's side over the box's, 0.5 to 4 (1 is the box); got {self.margin}")
        if self.fit not in get_args(Fit) or self.interpolation not in get_args(Interpolation):
            raise UsageError(
                f"fit is one of {', '.join(get_args(Fit))} and interpolation one of "
                f"{', '.join(get_args(Interpolation))}; got {self.fit} and {self.interpolation}"
            )
        if not (_is_colour(self.mean) and _is_colour(self.std) and all(v > 0 for v in self.std)):
            raise UsageError(f"mean and std are three finite numbers, std above 0; got {self.mean} and {self.std}")

    @property
    def size_HW(self) -> tuple[int, int]:
        """Height and width of the input in pixels."""
        return (self.size_px, self.size_px) if isinstance(self.size_px, int) else self.size_px

    def to_json(self) -> dict[str, Any]:
        """A plain dict, ready for `json.dumps`."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: Mapping[str, Any]) -> Self:
        """The description that `to_json` gave.

        Raises:
            UsageError: A field is missing, unknown or out of range.
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
        try:
            return cls(**fields)
        except (TypeError, AttributeError) as error:
            raise UsageError(f"not a description of preprocessing: {error}") from error

    @classmethod
    def for_backbone(cls, backbone: str, **changes: Any) -> Self:
        """What a timm backbone was trained with, with a face's margin and fit.

        Args:
            backbone: Name in timm.
            **changes: Fields to set otherwise.

        Raises:
            ModelError: timm knows no such backbone.
        """
        from unmask.backbones import data_config

        config = data_config(backbone)
        height, width = config["input_size"][-2:]
        fields: dict[str, Any] = {
            "size_px": height if height == width else (height, width),
            "mean": tuple(config["mean"]),
            "std": tuple(config["std"]),
        }
        if config["interpolation"] in get_args(Interpolation):
            fields["interpolation"] = config["interpolation"]
        return cls(**(fields | changes))


def resize(crop_HWC: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.uint8]:
    """Bring a crop to the model's size, still as pixels.

    An axis that shrinks decides for area averaging; otherwise the stated interpolation enlarges.

    Args:
        crop_HWC: uint8 (h, w, 3), of any size from 1 x 1.
        preprocessing: The model's.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: The crop is no RGB image.
    """
    if crop_HWC.ndim != 3 or crop_HWC.shape[2] != 3 or crop_HWC.dtype != np.uint8 or not crop_HWC.size:
        raise ValueError(f"a crop is uint8 of shape (h, w, 3); got {crop_HWC.dtype} of shape {crop_HWC.shape}")
    (height, width), (to_height, to_width) = crop_HWC.shape[:2], preprocessing.size_HW
    if preprocessing.fit != "pad":
        return _resampled(crop_HWC, to_height, to_width, preprocessing.interpolation)
    scale = min(to_height / height, to_width / width)
    inner_h, inner_w = (min(max(round(v * scale), 1), to) for v, to in ((height, to_height), (width, to_width)))
    out = np.zeros((to_height, to_width, 3), np.uint8)
    top, left = (to_height - inner_h) // 2, (to_width - inner_w) // 2
    inner = _resampled(crop_HWC, inner_h, inner_w, preprocessing.interpolation)
    out[top : top + inner_h, left : left + inner_w] = inner
    return out


def to_tensor(
    crops: Sequence[NDArray[np.uint8]], preprocessing: Preprocessing, device: torch.device | str = "cpu"
) -> Tensor:
    """From crops to a model's input. Deterministic; each crop's result is independent of the others.

    Args:
        crops: N images uint8 (h, w, 3), of any sizes.
        preprocessing: The model's.
        device: Where the result shall lie. Pixels travel as bytes and become floats there.

    Returns:
        float32 (N, 3, H, W), normalised.
    """
    height, width = preprocessing.size_HW
    pixels_NHWC = np.empty((len(crops), height, width, 3), np.uint8)
    for pixels_HWC, crop_HWC in zip(pixels_NHWC, crops, strict=True):
        pixels_HWC[...] = resize(crop_HWC, preprocessing)
    return normalised(torch.from_numpy(pixels_NHWC).to(device), preprocessing)


def normalised(pixels_NHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """From pixels of the model's size to its input.

    Args:
        pixels_NHWC: uint8 (N, H, W, 3), on any device.
        preprocessing: The model's.

    Returns:
        float32 (N, 3, H, W) on the same device; on a CPU, whose convolutions are faster then, in channels-last memory.
    """
    device = pixels_NHWC.device
    memory = torch.channels_last if device.type == "cpu" else torch.contiguous_format
    # ((x / 255) - mean) / std as one multiplication and one addition.
    std_C11 = torch.tensor(preprocessing.std, device=device).view(3, 1, 1)
    mean_C11 = torch.tensor(preprocessing.mean, device=device).view(3, 1, 1)
    inputs_N3HW = pixels_NHWC.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory)
    return inputs_N3HW.mul_(1 / (255.0 * std_C11)).sub_(mean_C11 / std_C11)


def _resampled(image_HWC: NDArray[np.uint8], height: int, width: int, enlarging: Interpolation) -> NDArray[np.uint8]:
    if image_HWC.shape[:2] == (height, width):
        return image_HWC
    shrinks = image_HWC.shape[0] > height or image_HWC.shape[1] > width
    method = cv2.INTER_AREA if shrinks else _ENLARGING[enlarging]
    return np.asarray(cv2.resize(image_HWC, (width, height), interpolation=method), np.uint8)


def _is_colour(values: tuple[float, ...]) -> bool:
    return len(values) == 3 and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
