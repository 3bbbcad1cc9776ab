"""Heat maps: which part of a face pushed the score up.

The method is HiResCAM (Draelos & Carin 2020, "Use HiResCAM instead of Grad-CAM for faithful explanations of
convolutional neural networks"): the last spatial features times the logit's gradient, element by element, summed over
channels, the positive part kept. Unlike Grad-CAM (Selvaraju et al. 2017) it does not average the gradient over the
grid first, so it cannot light up a place that the head never reads. For a vision transformer the features are the
patch tokens that enter the last block: behind it, a class-token head no longer reads the patches.

Only the layers behind those features are differentiated; what lies before them runs without a graph.

Axes: N crops, C channels, H rows, W columns, h and w the feature grid, L tokens, D features.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, cast

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from unmask.errors import ModelError, Reason

__all__ = ["METHOD", "Explainable", "heatmaps", "overlay"]

METHOD = (
    "HiResCAM (Draelos & Carin 2020): the last spatial features times the gradient of the logit. Each map is scaled to "
    "its own maximum, so colours cannot be compared between faces."
)

_MAX_OPACITY = 0.65


class Explainable(Protocol):
    """What a model must offer to be explained. `unmask.models` builds such models."""

    backbone: nn.Module
    """A timm model: `forward_features` gives the last feature map or tokens."""

    @property
    def is_temporal(self) -> bool:
        """Whether the logit belongs to a clip rather than to a frame."""

    def features(self, crops_N3HW: Tensor, /) -> Tensor:
        """Normalised crops to features (N, D)."""

    def frame_logits(self, features_ND: Tensor, /) -> Tensor:
        """One logit a frame, (N,)."""

    def clip_logits(self, features_BTD: Tensor, valid_BT: Tensor, /) -> Tensor:
        """One logit a clip, (B,)."""


def heatmaps(model: Explainable, crops_N3HW: Tensor, *, batch: int = 16) -> Tensor:
    """Where each crop raised the logit of "manipulated".

    For a temporal model all N crops are one clip, in order of time, and each frame's map is taken from the gradient of
    the clip's logit. Parameters gather no gradient, and training modes are left as they were found.

    Args:
        model: The model; it is run in evaluation mode.
        crops_N3HW: Crops as the model takes them: float, normalised, on the model's device.
        batch: Crops a pass. A temporal model takes its clip in one pass.

    Returns:
        Float32 (N, H, W) in [0, 1] on the crops' device, each map scaled to its own maximum. A crop in which nothing
        raised the logit has a map of zeros.

    Raises:
        ModelError: The backbone's features form no grid.
    """
    n, _, height, width = crops_N3HW.shape
    if n == 0:
        return crops_N3HW.new_zeros((0, height, width), dtype=torch.float32)
    # Inference tensors cannot enter a graph; a copy made outside that mode can.
    with torch.inference_mode(False), _evaluating(cast("nn.Module", model)):
        chunks = torch.split(crops_N3HW.clone(), n if model.is_temporal else batch)
        grids_Nhw = torch.cat([_grid_maps(model, chunk) for chunk in chunks])
    maps_N1HW = F.interpolate(grids_Nhw[:, None], size=(height, width), mode="bilinear", align_corners=False)
    return _scaled(maps_N1HW[:, 0])


def overlay(crop_HWC: NDArray[np.uint8], map_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The crop in grey under its heat map in the INFERNO palette, whose lightness rises with the value.

    The map also sets the opacity: where it is zero the face shows through untouched.

    Args:
        crop_HWC: RGB, uint8, (H, W, 3).
        map_HW: Float in [0, 1], (h, w); resized to the crop.

    Returns:
        RGB, uint8, (H, W, 3).
    """
    height, width, _ = crop_HWC.shape
    clean_hw = np.clip(np.nan_to_num(map_HW.astype(np.float32)), 0.0, 1.0)
    clean_HW = cv2.resize(clean_hw, (width, height), interpolation=cv2.INTER_LINEAR)
    palette_HWC = cv2.applyColorMap(np.rint(clean_HW * 255.0).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    grey_HWC = cv2.cvtColor(cv2.cvtColor(crop_HWC, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)
    opacity_HW1 = _MAX_OPACITY * np.sqrt(clean_HW)[..., None]
    painted_HWC: NDArray[np.uint8] = np.rint(grey_HWC + (palette_HWC - grey_HWC) * opacity_HW1).astype(np.uint8)
    return painted_HWC


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, then each module's own mode again: some are frozen on purpose."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _grid_maps(model: Explainable, crops_N3HW: Tensor) -> Tensor:
    """Positive contributions on the feature grid, float32 (N, h, w), not scaled."""
    with torch.enable_grad(), _tapped(model.backbone) as taps:
        features_ND = model.features(crops_N3HW)
        if model.is_temporal:
            valid_BT = torch.ones(1, len(features_ND), dtype=torch.bool, device=features_ND.device)
            logits = model.clip_logits(features_ND[None], valid_BT)
        else:
            logits = model.frame_logits(features_ND)
        (gradient,) = torch.autograd.grad(logits.sum(), taps[0], allow_unused=True, materialize_grads=True)
    contribution = taps[0].detach().float() * gradient.float()
    return _to_grid(model.backbone, contribution, crops_N3HW).sum(1).clamp(min=0.0)


@contextmanager
def _tapped(backbone: nn.Module) -> Iterator[list[Tensor]]:
    """Make the last spatial features a leaf of the graph, and hand it out as the list's only item.

    A transformer is tapped before its last block, everything else behind `forward_features`. That is a method, not a
    module, so it takes no hook: it is shadowed on the instance and uncovered again.
    """
    leaves: list[Tensor] = []
    original = cast("Any", backbone).forward_features

    def leaf(features: Tensor) -> Tensor:
        leaves.append(features.detach().requires_grad_())
        return leaves[0].clone()  # the layers behind may work in place, which a leaf forbids

    def before_last_block(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        torch.set_grad_enabled(True)
        return (leaf(args[0]), *args[1:])

    def shadow(*args: Any, **kwargs: Any) -> Tensor:
        with torch.no_grad():  # the hook above turns the graph on again for what lies behind it
            features: Tensor = original(*args, **kwargs)
        return features if leaves else leaf(features)

    hook = _last_block(backbone)
    handle = hook.register_forward_pre_hook(before_last_block) if hook is not None else None
    cast("Any", backbone).forward_features = shadow
    try:
        yield leaves
    finally:
        del backbone.forward_features
        if handle is not None:
            handle.remove()


def _last_block(backbone: nn.Module) -> nn.Module | None:
    """The last block of a vision transformer, or None for any other network."""
    blocks = getattr(backbone, "blocks", None)
    if hasattr(backbone, "num_prefix_tokens") and isinstance(blocks, nn.ModuleList | nn.Sequential):
        return blocks[-1]
    return None


def _to_grid(backbone: nn.Module, features: Tensor, crops_N3HW: Tensor) -> Tensor:
    """Features of any layout as (N, C, h, w): NCHW, NHWC (Swin) or tokens (N, L, C) behind prefix tokens."""
    if features.ndim == 4:
        return features.permute(0, 3, 1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else features
    if features.ndim == 3:
        tokens_NLC = features[:, int(getattr(backbone, "num_prefix_tokens", 0)) :]
        height, width = _token_grid(backbone, tokens_NLC.shape[1], crops_N3HW)
        if height * width == tokens_NLC.shape[1]:
            return tokens_NLC.transpose(1, 2).reshape(len(tokens_NLC), -1, height, width)
    raise ModelError(
        Reason.UNKNOWN_MODEL,
        f"{type(backbone).__name__} gives features of shape {tuple(features.shape)}, which form no grid: "
        "score with it without heat maps, or choose another backbone.",
    )


def _token_grid(backbone: nn.Module, tokens: int, crops_N3HW: Tensor) -> tuple[int, int]:
    """Rows and columns of the patches: what the model says where that fits, else the crop's own proportions."""
    grid = getattr(getattr(backbone, "patch_embed", None), "grid_size", None)
    if grid is not None and grid[0] * grid[1] == tokens:
        return int(grid[0]), int(grid[1])
    height, width = crops_N3HW.shape[-2:]
    rows = round(math.sqrt(tokens * height / width))
    return rows, tokens // max(rows, 1)


def _scaled(maps_NHW: Tensor) -> Tensor:
    """Each map divided by its maximum; zeros where there is none, or where the gradient was not finite."""
    finite_NHW = torch.nan_to_num(maps_NHW, nan=0.0, posinf=0.0, neginf=0.0)
    peak_N11 = finite_NHW.amax((1, 2), keepdim=True)
    return torch.where(peak_N11 > 0.0, finite_NHW / peak_N11.clamp(min=torch.finfo(torch.float32).tiny), 0.0)
