"""Heat maps lie where the logit looks, and leave no trace on the model."""

from typing import Literal

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from unmask.errors import ModelError
from unmask.explain import heatmaps, overlay
from unmask.models import ModelConfig, build


class FrameModel(nn.Module):
    """The least that `heatmaps` asks for, around any timm-like backbone."""

    def __init__(self, backbone: nn.Module, dim: int, is_temporal: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        self.is_temporal = is_temporal
        self.head = nn.Linear(2 * dim if is_temporal else dim, 1)

    def features(self, crops_N3HW: Tensor) -> Tensor:
        return self.backbone(crops_N3HW)

    def frame_logits(self, features_ND: Tensor) -> Tensor:
        return self.head(features_ND)[:, 0]

    def clip_logits(self, features_BTD: Tensor, valid_BT: Tensor) -> Tensor:
        assert valid_BT.all()
        return self.head(torch.cat([features_BTD.mean(1), features_BTD.std(1)], -1))[:, 0]


class QuadrantCNN(nn.Module):
    """Pools only the top-left quadrant of its last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 4, stride=4)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    def forward(self, x: Tensor) -> Tensor:
        maps_NChw = self.forward_features(x).relu_()  # in place, as timm's heads may be
        h, w = maps_NChw.shape[-2:]
        return maps_NChw[:, :, : h // 2, : w // 2].mean((2, 3))


def quadrant_share(maps_NHW: Tensor) -> Tensor:
    h, w = maps_NHW.shape[-2:]
    return maps_NHW[:, : h // 2, : w // 2].sum((1, 2)) / maps_NHW.sum((1, 2))


def positive_head(model: FrameModel) -> FrameModel:
    nn.init.constant_(model.head.weight, 1.0)
    return model


def test_cnn_map_lies_in_the_quadrant_that_the_head_reads() -> None:
    torch.manual_seed(0)
    model = positive_head(FrameModel(QuadrantCNN(), 8))
    maps_NHW = heatmaps(model, torch.rand(5, 3, 64, 64), batch=2)
    assert maps_NHW.shape == (5, 64, 64)
    assert maps_NHW.dtype == torch.float32
    assert torch.allclose(maps_NHW.amax((1, 2)), torch.ones(5))
    assert maps_NHW.min() >= 0.0
    assert (quadrant_share(maps_NHW) > 0.9).all()


class LitTokens(nn.Module):
    """Marks the tokens whose first feature is large: stands for a trained block's evidence."""

    def forward(self, tokens_NLC: Tensor) -> Tensor:
        return tokens_NLC + tokens_NLC.amax(1, keepdim=True)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_vit_map_follows_the_bright_quadrant(pool: str) -> None:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=64, patch_size=8, embed_dim=24, depth=2, num_heads=2, num_classes=0,
        global_pool=pool, pos_embed="none", fc_norm=False, final_norm=False,
    )  # fmt: skip
    for block in vit.blocks:  # patches pass unchanged, and the class token takes the maximum over them
        nn.init.zeros_(block.attn.proj.weight)
        nn.init.zeros_(block.mlp.fc2.weight)
    vit.blocks[-1] = LitTokens()
    nn.init.zeros_(vit.patch_embed.proj.bias)
    nn.init.constant_(vit.patch_embed.proj.weight, 0.01)
    model = positive_head(FrameModel(vit, 24)).eval()
    crops_N3HW = torch.zeros(2, 3, 64, 64)
    crops_N3HW[:, :, :32, :32] = 1.0
    maps_NHW = heatmaps(model, crops_N3HW)
    assert maps_NHW.shape == (2, 64, 64)
    assert (quadrant_share(maps_NHW) > 0.8).all()


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet18", 64),
        ("mobilenetv3_small_050", 64),
        ("convnext_atto", 64),
        ("vit_tiny_patch16_224", 224),
        ("deit_tiny_distilled_patch16_224", 224),
        ("swin_tiny_patch4_window7_224", 224),
    ],
)
def test_real_backbones_of_every_layout_give_maps(name: str, size: int) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(name, num_classes=0)
    with torch.no_grad():
        dim = backbone.eval()(torch.zeros(1, 3, size, size)).shape[1]
    maps_NHW = heatmaps(FrameModel(backbone, dim), torch.rand(2, 3, size, size))
    assert maps_NHW.shape == (2, size, size)
    assert torch.isfinite(maps_NHW).all()
    # By the kind of processor, random weights may find nothing in one of the pictures that raises the logit.
    peak_N = maps_NHW.amax((1, 2))
    assert ((peak_N == 1.0) | (peak_N == 0.0)).all()
    assert (peak_N == 1.0).any()


@pytest.mark.parametrize("head", ["frame", "mobilenet", "l2", "temporal"])
def test_every_head_of_our_models_is_explained(head: Literal["frame", "mobilenet", "l2", "temporal"]) -> None:
    model = build(ModelConfig(backbone="mobilenetv3_small_050", head=head), seed=1)
    for n in (1, 3):
        maps_NHW = heatmaps(model, torch.rand(n, 3, 64, 64))
        assert maps_NHW.shape == (n, 64, 64)
        assert torch.isfinite(maps_NHW).all()
        assert maps_NHW.amax() == 1.0


def test_temporal_head_gives_a_map_for_each_frame() -> None:
    torch.manual_seed(0)
    model = positive_head(FrameModel(QuadrantCNN(), 8, is_temporal=True))
    maps_NHW = heatmaps(model, torch.rand(6, 3, 32, 32), batch=2)
    assert maps_NHW.shape == (6, 32, 32)
    assert torch.isfinite(maps_NHW).all()
    assert (quadrant_share(maps_NHW) > 0.85).all()


def test_still_clip_and_blind_head_give_zeros_not_nan() -> None:
    still = FrameModel(QuadrantCNN(), 8, is_temporal=True)
    nn.init.zeros_(still.backbone.conv.weight)  # equal frames: the deviation's gradient is not finite
    assert (heatmaps(still, torch.ones(4, 3, 32, 32)) == 0.0).all()
    blind = FrameModel(QuadrantCNN(), 8)
    nn.init.zeros_(blind.head.weight)
    assert (heatmaps(blind, torch.rand(2, 3, 32, 32)) == 0.0).all()
    assert heatmaps(blind, torch.rand(0, 3, 32, 32)).shape == (0, 32, 32)


def test_leaves_no_trace() -> None:
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=2,
                            num_classes=0)  # fmt: skip
    model = FrameModel(vit, 24).train()
    vit.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.inference_mode():
        maps_NHW = heatmaps(model, torch.rand(2, 3, 32, 32))
    assert not maps_NHW.requires_grad
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert "forward_features" not in vars(vit)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Vectors(nn.Module):
    def forward_features(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x)


def test_features_without_a_grid_are_refused_and_the_model_is_restored() -> None:
    model = FrameModel(Vectors(), 3).train()
    with pytest.raises(ModelError, match="form no grid"):
        heatmaps(model, torch.rand(1, 3, 8, 8))
    assert model.training
    assert "forward_features" not in vars(model.backbone)


def test_overlay_is_rgb_and_clear_where_the_map_is_zero() -> None:
    crop_HWC = np.full((40, 40, 3), 100, np.uint8)
    map_HW = np.zeros((10, 10), np.float32)
    map_HW[:, 6:] = 0.6  # INFERNO at 0.6 is orange red: much red, little blue
    painted_HWC = overlay(crop_HWC, map_HW)
    assert painted_HWC.shape == (40, 40, 3)
    assert painted_HWC.dtype == np.uint8
    assert (painted_HWC[:, :15] == 100).all()
    red, _, blue = painted_HWC[20, 35].astype(int)
    assert red > blue + 60
    assert (overlay(crop_HWC, np.full((2, 2), np.nan, np.float32)) == 100).all()
