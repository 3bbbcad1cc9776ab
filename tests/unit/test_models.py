import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from unmask.errors import ModelError, Reason, UsageError
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.window import RollingWindow, mean_std, rolling_mean_std

SMALL = "mobilenetv3_small_050"


def crops(n: int, side: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(1))


def settle(model: ForgeryModel, inputs_N3HW: torch.Tensor) -> None:
    """Fit the batch statistics of random weights to inputs: without that, all features are next to 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train().features(inputs_N3HW)
    model.eval()


@pytest.fixture(scope="module")
def temporal() -> ForgeryModel:
    return build(ModelConfig(backbone=SMALL, head="temporal", dropout=0.1))


@pytest.mark.parametrize(
    ("backbone", "side"),
    [("test_resnet", 64), ("test_efficientnet", 64), ("test_convnext", 64), ("test_vit.r160_in1k", 160), (SMALL, 64)],
)
@pytest.mark.parametrize("head", ["frame", "l2"])
def test_any_timm_backbone_gives_one_logit_a_frame(backbone: str, side: int, head: Any) -> None:
    model = build(ModelConfig(backbone=backbone, head=head))
    features_ND = model.features(crops(2, side))
    assert features_ND.shape == (2, model.dim)
    logits_N = model.frame_logits(features_ND)
    assert logits_N.shape == (2,)
    assert torch.isfinite(logits_N).all()
    assert not model.is_temporal


def test_the_mobilenet_head_computes_what_torchvision_computes() -> None:
    """S1's arrangement: pooled features -> Linear(576, 1024) -> Hardswish -> dropout -> Linear(1024, 1)."""
    from torchvision.models import mobilenet_v3_small

    model = build(ModelConfig(backbone="mobilenetv3_small_100", head="mobilenet", dropout=0.2))
    theirs = mobilenet_v3_small(weights=None).classifier
    theirs[3] = nn.Linear(1024, 1)
    hidden, last = model.backbone.conv_head, model.head.fc  # type: ignore[union-attr]
    settle(model, crops(4))
    with torch.no_grad():
        theirs[0].weight.copy_(hidden.weight.flatten(1))
        theirs[0].bias.copy_(hidden.bias)
        theirs[3].load_state_dict(last.state_dict())
        inputs = crops(2)
        pooled = model.backbone.global_pool(model.backbone.forward_features(inputs)).flatten(1)  # type: ignore[operator]
        assert pooled.shape == (2, 576)
        expected = theirs.eval()(pooled)[:, 0]
        torch.testing.assert_close(model.frame_logits(model.features(inputs)), expected)
    assert model.head.dropout.p == theirs[2].p == 0.2  # type: ignore[union-attr]


def test_the_l2_head_sees_directions_only() -> None:
    model = build(ModelConfig(backbone="test_vit", head="l2"))
    features_ND = torch.randn(4, model.dim)
    torch.testing.assert_close(model.frame_logits(features_ND), model.frame_logits(features_ND * 1000))
    longest = model.head.fc.weight.norm() + model.head.fc.bias.abs()  # type: ignore[union-attr,operator,operator]
    assert model.frame_logits(features_ND).abs().max() <= longest
    assert torch.isfinite(model.frame_logits(torch.zeros(1, model.dim))).all()


def test_the_temporal_head_is_that_of_its_authors(temporal: ForgeryModel) -> None:
    layers = [m for m in temporal.head.modules() if not isinstance(m, nn.Sequential)]
    assert [type(m).__name__ for m in layers] == ["Dropout", *["Linear", "ReLU"] * 3, "Linear"]
    sizes = [m.out_features for m in layers if isinstance(m, nn.Linear)]
    assert sizes == [512, 256, 64, 1]
    assert isinstance(layers[1], nn.Linear)
    assert layers[1].in_features == 2 * temporal.dim
    assert temporal.is_temporal


def test_clip_logits_ignore_frames_that_are_not_valid(temporal: ForgeryModel) -> None:
    features_BTD = torch.randn(2, 5, temporal.dim)
    valid_BT = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], dtype=torch.bool)
    expected = temporal.clip_logits(features_BTD[1:, [0, 1, 3]], torch.ones(1, 3, dtype=torch.bool))
    features_BTD[~valid_BT] = float("nan")
    logits_B = temporal.clip_logits(features_BTD, valid_BT)
    torch.testing.assert_close(logits_B[1:], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("frames", [0, 1, 2])
def test_short_clips_have_finite_logits_and_gradients(temporal: ForgeryModel, frames: int) -> None:
    features_BTD = torch.ones(1, 3, temporal.dim, requires_grad=True)
    logits_B = temporal.clip_logits(features_BTD, torch.arange(3)[None] < frames)
    logits_B.sum().backward()
    assert features_BTD.grad is not None
    assert torch.isfinite(features_BTD.grad).all()
    assert torch.isfinite(logits_B).all()
    assert bool((logits_B == 0).all()) is (frames == 0)
    assert bool((features_BTD.grad == 0).all()) is (frames == 0)


def test_rolling_windows_give_the_logits_of_recomputed_clips() -> None:
    model, length = build(ModelConfig(backbone=SMALL, head="temporal", window=4)), 4
    inputs = crops(9)
    settle(model, inputs)
    window = RollingWindow(length, model.dim)
    with torch.inference_mode():
        features_LD = model.features(inputs)
        assert features_LD.std() > 0.05
        at_once, _ = rolling_mean_std(features_LD, length)
        for i in range(9):
            clip_BTD = model.features(inputs[max(0, i - length + 1) : i + 1])[None]
            valid_BT = torch.ones(clip_BTD.shape[:2], dtype=torch.bool)
            pushed_BS = torch.from_numpy(window.push(features_LD[i].numpy(), i / 25).statistics_S)[None]
            expected_BS = mean_std(clip_BTD, valid_BT)
            torch.testing.assert_close(pushed_BS, expected_BS, atol=1e-5, rtol=0)
            torch.testing.assert_close(at_once[i : i + 1], expected_BS, atol=1e-5, rtol=0)
            expected_B = model.clip_logits(clip_BTD, valid_BT)
            torch.testing.assert_close(model.window_logits(pushed_BS), expected_B, atol=1e-5, rtol=0)


def test_random_weights_repeat_and_leave_the_global_state_alone() -> None:
    config = ModelConfig(backbone="test_resnet")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    one, other, third = build(config), build(config), build(config, seed=1)
    assert torch.equal(torch.rand(3), expected)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert not torch.equal(one.head.fc.weight, third.head.fc.weight)  # type: ignore[union-attr,arg-type]
    assert not one.training


@pytest.mark.parametrize("head", ["frame", "mobilenet"])
def test_a_frozen_backbone_stands_still(head: Any) -> None:
    model = build(ModelConfig(backbone=SMALL, head=head))
    model.freeze()
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.frame_logits(model.features(crops(4))).sum().backward()
    optimiser.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    hidden = {"backbone.conv_head.weight", "backbone.conv_head.bias"} if head == "mobilenet" else set()
    assert changed == {"head.fc.weight", "head.fc.bias"} | hidden
    assert model.training
    model.unfreeze()
    assert all(p.requires_grad for p in model.parameters())
    assert all(m.training for m in model.modules())


def test_layer_norm_tuning_trains_norms_and_head_alone() -> None:
    model = build(ModelConfig(backbone="test_vit", head="l2"))
    model.freeze(except_layer_norm=True)
    trained = {k for k, p in model.named_parameters() if p.requires_grad}
    assert {"head.fc.weight", "backbone.norm.weight", "backbone.blocks.0.norm1.bias"} <= trained
    assert all(k.startswith("head.") or "norm" in k for k in trained)
    with pytest.raises(UsageError, match="no LayerNorm"):
        build(ModelConfig(backbone="test_resnet")).freeze(except_layer_norm=True)


def test_stochastic_depth_reaches_the_backbone() -> None:
    model = build(ModelConfig(backbone="test_efficientnet", drop_path=0.2))
    assert any(type(m).__name__ == "DropPath" for m in model.modules())
    with pytest.raises(ModelError, match="takes no drop_path"):
        build(ModelConfig(backbone="vgg11", drop_path=0.2))


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"backbone": ""}, "backbone is the name"),
        ({"head": "cls"}, "head is one of frame, mobilenet, temporal, l2"),
        ({"head": "mobilenet"}, "give resnet18 head=frame"),
        ({"dropout": 1.0}, "rates in"),
        ({"drop_path": -0.1}, "rates in"),
        ({"dropout": float("nan")}, "rates in"),
        ({"window": 0}, "window is a number of frames"),
        ({"window": 2.5}, "window is a number of frames"),
        ({"stages": 2}, "less than 3 with a pyramid alone; got 2"),
        ({"stages": 0, "pyramid": True}, "stages is 1, 2 or 3"),
        ({"colour": "red"}, "not a description of a model"),
    ],
)
def test_bad_values_are_refused_with_a_remedy(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(UsageError, match=match):
        ModelConfig.from_json({"backbone": "resnet18"} | fields)


def test_json_and_back() -> None:
    config = ModelConfig(backbone=SMALL, head="temporal", dropout=0.1, window=5)
    assert ModelConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_an_unknown_backbone_is_named_with_its_neighbours() -> None:
    with pytest.raises(ModelError, match="mobilenetv3_small_100") as caught:
        build(ModelConfig(backbone="mobilenetv3_smal_100"))
    assert caught.value.reason is Reason.UNKNOWN_MODEL


def test_a_backbone_that_does_not_pool_is_refused() -> None:
    model = ForgeryModel(ModelConfig(backbone="x"), nn.Identity(), 3)
    with pytest.raises(ModelError, match="choose one that pools"):
        model.features(crops(1))


def test_importing_models_does_not_import_timm() -> None:
    script = "import sys, unmask.presets; assert 'timm' not in sys.modules, 'timm was imported'"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
