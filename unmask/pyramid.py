"""A feature pyramid over a backbone: it keeps what is small, and can show where a face was changed.

A classifier's last features are an eighth to a thirty-second as fine as the picture and stand for whole objects. The
seams of a forgery are finer. Here the maps of three stages are joined at an eighth (feature pyramids, Lin et al. 2017),
pooled by mean and maximum, and, in training, also asked for the region that was blended in (in the spirit of Face
X-ray, Li et al. 2020): a thousand answers an image in place of one, without which a network that starts from random
weights learns self-blended images slowly or not at all.

Axes: N crops, C channels, H rows, W columns; h and w an eighth of them, rounded up.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unmask.errors import ModelError, Reason

__all__ = ["STRIDE", "Pyramid"]

STRIDE = 8
"""Pixels of the input for one of the map."""

_STRIDES = (8, 16, 32)


class Pyramid(nn.Module):
    """Takes the place of a backbone: crops (N, 3, H, W) in, features (N, D) out, D = 4 x `width`.

    Args:
        inner: A timm backbone with maps at strides 8, 16 and 32.
        name: What it is called, for errors.
        width: Channels of each stage's part of the joined map.
        stages: How many of the maps are joined, from the finest on. The backbone is cut behind the last of them.

    Raises:
        ModelError: The backbone has no such maps.
    """

    def __init__(self, inner: nn.Module, name: str, width: int = 48, stages: int = 3) -> None:
        super().__init__()
        maps = getattr(inner, "feature_info", [])
        # Of each stride the deepest map.
        self._indices = [max((n for n, s in enumerate(maps) if s["reduction"] == k), default=-1) for k in _STRIDES]
        if min(self._indices) < 0 or not hasattr(inner, "forward_intermediates"):
            raise ModelError(
                Reason.UNKNOWN_MODEL,
                f"{name} has no feature maps at strides 8, 16 and 32, which a pyramid joins: choose a convolutional "
                "backbone, or model.pyramid=false",
            )
        self._indices, self.is_cut = self._indices[:stages], stages < len(_STRIDES)
        # What lies behind the last map would never be used, nor trained.
        cast("Any", inner).prune_intermediate_layers(self._indices, prune_head=True)
        self.inner, self.num_features = inner, 4 * width
        self.laterals = nn.ModuleList(nn.Conv2d(maps[n]["num_chs"], width, 1) for n in self._indices)
        self.locate = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 1, 1))
        self._width = width

    def forward_features(self, crops_N3HW: Tensor) -> Tensor:
        """The joined map (N, C, h, w): all stages together, and beside them what the last one says by itself."""
        found = cast("Any", self.inner).forward_intermediates(
            crops_N3HW, indices=self._indices, intermediates_only=True, output_fmt="NCHW"
        )
        *finer, coarse = (lateral(each) for lateral, each in zip(self.laterals, found, strict=True))
        joined = coarse
        for each in reversed(finer):
            joined = each + F.interpolate(joined, size=each.shape[2:], mode="bilinear")
        return torch.cat([F.relu(joined), F.interpolate(coarse, size=joined.shape[2:], mode="bilinear")], 1)

    def pool(self, joined_NChw: Tensor) -> Tensor:
        """Features (N, D) of a joined map: means, then maxima."""
        return torch.cat([joined_NChw.mean((2, 3)), joined_NChw.amax((2, 3))], 1)

    def forward(self, crops_N3HW: Tensor) -> Tensor:
        """Features (N, D)."""
        return self.pool(self.forward_features(crops_N3HW))

    def located(self, crops_N3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, D); and logits (N, h, w) for what each place was blended in."""
        joined_NChw = self.forward_features(crops_N3HW)
        where_N1hw: Tensor = self.locate(joined_NChw[:, : self._width])
        return self.pool(joined_NChw), where_N1hw[:, 0]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As timm's backbones do."""
        cast("Any", self.inner).set_grad_checkpointing(enable)
