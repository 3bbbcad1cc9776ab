import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unmask import checkpoints
from unmask.checkpoints import Description
from unmask.errors import ModelError, UsageError
from unmask.fusion import FusionConfig, FusionHead, positions
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.transforms import Preprocessing

DIM = 12
SMALL = FusionConfig(layers=2, heads=3, hidden=20)
ABLATIONS: list[dict[str, Any]] = [
    {},
    {"streams": "rgb"},
    {"streams": "depth"},
    {"cross": "none"},
    {"cross": "rgb"},
    {"cross": "depth"},
    {"residuals": False},
]


def head(dropout: float = 0.0, **changes: Any) -> FusionHead:
    torch.manual_seed(0)
    config = FusionConfig(**{"layers": 2, "heads": 3, "hidden": 20, **changes})
    return FusionHead(DIM, config, dropout).eval()


def clips(batch: int = 3, frames: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    valid_BT = torch.ones(batch, frames, dtype=torch.bool)
    valid_BT[1, 2], valid_BT[2, 1:] = False, False
    return torch.randn(batch, frames, 2 * DIM, generator=generator), valid_BT


def tiny(**changes: Any) -> ForgeryModel:
    fusion = FusionConfig(layers=1, heads=2, hidden=16, **changes)
    return build(ModelConfig(backbone="test_resnet", head="fusion", window=4, dropout=0.1, fusion=fusion))


def test_positions_are_those_of_the_paper() -> None:
    place_TD = positions(7, DIM)
    for t in range(7):
        for d in range(DIM):
            angle = t / 10_000 ** (2 * (d // 2) / DIM)
            assert place_TD[t, d].item() == pytest.approx(math.sin(angle) if d % 2 == 0 else math.cos(angle), abs=1e-5)
    assert positions(3, 5).shape == (3, 5)


def torchs_encoder(ours: nn.Module) -> nn.TransformerEncoder:
    """PyTorch's own layers with the same weights."""
    layer = nn.TransformerEncoderLayer(DIM, 3, 20, dropout=0.0, norm_first=True, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(DIM), enable_nested_tensor=False)
    for mine, other in zip(ours.layers, theirs.layers, strict=True):  # type: ignore[arg-type]
        attend(mine.attention, other.self_attn)  # type: ignore[arg-type, union-attr]
        for a, b in (("norm1", "norm1"), ("norm2", "norm2")):
            getattr(other, b).load_state_dict(getattr(mine, a).state_dict())
        other.linear1.load_state_dict(mine.inner[0].state_dict())  # type: ignore[union-attr, index, operator]
        other.linear2.load_state_dict(mine.inner[3].state_dict())  # type: ignore[union-attr, index, operator]
    theirs.norm.load_state_dict(ours.norm.state_dict())  # type: ignore[union-attr, operator]
    return theirs.train()  # without the fused kernels of evaluation


def attend(ours: nn.Module, theirs: nn.MultiheadAttention) -> None:
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.ask.weight, ours.answer.weight]))  # type: ignore[list-item, union-attr]
        theirs.in_proj_bias.copy_(torch.cat([ours.ask.bias, ours.answer.bias]))  # type: ignore[list-item, union-attr]
    theirs.out_proj.load_state_dict(ours.out.state_dict())  # type: ignore[operator, union-attr]


def test_it_computes_what_pytorchs_own_layers_compute() -> None:
    ours, (features_BTE, valid_BT) = head(), clips()
    place_TD = positions(5, DIM)
    streams = {
        name: torchs_encoder(ours.encoders[name])(given + place_TD, src_key_padding_mask=~valid_BT)
        for name, given in zip(("rgb", "depth"), features_BTE.chunk(2, -1), strict=True)
    }
    after, maps = [], {}
    for name, other in (("rgb", "depth"), ("depth", "rgb")):
        theirs = nn.MultiheadAttention(DIM, 3, batch_first=True)
        cross = ours.crosses[name]
        attend(cross.attention, theirs)  # type: ignore[arg-type]
        answer, maps[name] = theirs(
            streams[name], streams[other], streams[other], key_padding_mask=~valid_BT, average_attn_weights=False
        )
        after.append(cross.norm(streams[name] + answer))  # type: ignore[operator]
    joined_BTD = torch.relu(ours.join(torch.cat(after, -1)))
    rows = [torch.cat([j[v].mean(0), j[v].amax(0)]) for j, v in zip(joined_BTD, valid_BT, strict=True)]
    torch.testing.assert_close(ours(features_BTE, valid_BT), ours.classify(torch.stack(rows)), atol=1e-5, rtol=1e-4)
    for name, found in ours.attention(features_BTE, valid_BT).items():
        # What a masked frame would ask is nobody's business.
        asking = found.transpose(1, 2)[valid_BT], maps[name].transpose(1, 2)[valid_BT]
        torch.testing.assert_close(*asking, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", ABLATIONS)
def test_masked_frames_change_nothing(changes: dict[str, Any]) -> None:
    model, (features_BTE, valid_BT) = head(**changes), clips()
    other_BTE = torch.where(valid_BT[..., None], features_BTE, torch.full_like(features_BTE, torch.nan))
    assert torch.equal(model(features_BTE, valid_BT), model(other_BTE, valid_BT))
    before, after = model.attention(features_BTE, valid_BT), model.attention(other_BTE, valid_BT)
    assert before.keys() == after.keys()
    for name, map_BAQK in before.items():
        assert torch.equal(map_BAQK, after[name])
        torch.testing.assert_close(map_BAQK.sum(-1), torch.ones(3, 3, 5))
        assert map_BAQK.transpose(1, 3)[~valid_BT].abs().max() == 0  # nobody asks a masked frame


def test_a_valid_frame_changes_something_and_its_place_does_too() -> None:
    model, (features_BTE, valid_BT) = head(), clips()
    other_BTE = features_BTE.clone()
    other_BTE[0, 3] *= -1
    assert not torch.allclose(model(features_BTE, valid_BT)[0], model(other_BTE, valid_BT)[0])
    assert not torch.allclose(model(features_BTE, valid_BT)[0], model(features_BTE.flip(1), valid_BT.flip(1))[0])


def test_gradients_reach_both_streams_and_stay_finite_without_a_valid_frame() -> None:
    model, (features_BTE, valid_BT) = head(0.1).train(), clips()
    valid_BT[2] = False
    features_BTE.requires_grad_(True)
    model(features_BTE, valid_BT)[:, 1].sum().backward()
    grad_BTE = features_BTE.grad
    assert grad_BTE is not None
    assert torch.isfinite(grad_BTE).all()
    assert grad_BTE[~valid_BT].abs().max() == 0
    for stream in grad_BTE[0].chunk(2, -1):
        assert (stream.abs().sum(-1) > 0).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(
    ("changes", "rgb", "depth"),
    [({"streams": "rgb"}, True, False), ({"streams": "depth"}, False, True), ({"cross": "none"}, True, True)],
)
def test_an_ablated_stream_has_no_say(changes: dict[str, Any], rgb: bool, depth: bool) -> None:
    model, (features_BTE, valid_BT) = head(**changes), clips()
    features_BTE.requires_grad_(True)
    model(features_BTE, valid_BT)[:, 1].sum().backward()
    assert features_BTE.grad is not None
    heard = [bool(part.abs().max() > 0) for part in features_BTE.grad.chunk(2, -1)]
    assert heard == [rgb, depth]
    assert not model.crosses


def test_one_way_attention_and_residuals_are_what_they_say() -> None:
    assert set(head(cross="rgb").crosses) == {"rgb"}
    assert set(head().crosses) == {"rgb", "depth"}
    features_BTE, valid_BT = clips()
    model, plain = head(), head(residuals=False)
    assert not torch.allclose(model(features_BTE, valid_BT), plain(features_BTE, valid_BT))
    # Without residuals what asked is gone, once the questions weigh nothing.
    for name in ("rgb", "depth"):
        with torch.no_grad():
            plain.crosses[name].attention.ask.weight.zero_()  # type: ignore[union-attr, operator]
            plain.crosses[name].attention.ask.bias.zero_()  # type: ignore[union-attr, operator]
    maps = plain.attention(features_BTE, valid_BT)
    share_B = 1 / valid_BT.sum(1)
    for map_BAQK in maps.values():
        assert torch.allclose(map_BAQK.amax((1, 2, 3)), share_B)


def test_the_size_is_that_of_the_system() -> None:
    """S4: a stream has 4 layers of 384 features and 2048 inner ones; two cross-attentions; 768 -> 384; 768 -> 2."""
    model = FusionHead(384, FusionConfig(), 0.1)
    layer = 4 * 384 * 384 + 4 * 384 + 2 * 384 * 2048 + 2048 + 384 + 4 * 384
    cross = 4 * 384 * 384 + 4 * 384 + 2 * 384
    assert sum(p.numel() for p in model.parameters()) == (
        2 * (4 * layer + 2 * 384) + 2 * cross + 768 * 384 + 384 + 768 * 2 + 2
    )


def test_a_model_with_it_judges_clips_and_refuses_pictures_alone() -> None:
    model = tiny()
    assert model.is_temporal
    crops_N3HW, depths_N3HW = torch.randn(2, 8, 3, 64, 64).unbind(0)
    features_NE = model.fused_features(crops_N3HW, depths_N3HW)
    torch.testing.assert_close(features_NE[:, : model.dim], model.backbone(crops_N3HW))
    torch.testing.assert_close(features_NE[:, model.dim :], model.backbone(depths_N3HW))
    valid_BT = torch.tensor([[True] * 4, [False] * 4])
    features_BTE = features_NE.unflatten(0, (2, 4))
    logits_B, classes_B2 = model.clip_logits(features_BTE, valid_BT), model.head(features_BTE, valid_BT)
    assert logits_B[0] == classes_B2[0, 1] - classes_B2[0, 0]
    assert logits_B[1] == 0
    # The loss on the difference is the cross-entropy of the two classes.
    torch.testing.assert_close(
        nn.functional.binary_cross_entropy_with_logits(logits_B[:1], torch.ones(1)),
        nn.functional.cross_entropy(classes_B2[:1], torch.ones(1, dtype=torch.int64)),
    )
    with pytest.raises(ModelError, match="depth maps, and here are pictures alone"):
        model.features(crops_N3HW)


def test_it_is_saved_described_and_loaded_as_every_other(tmp_path: Path) -> None:
    model = tiny(cross="rgb", residuals=False)
    description = Description(
        name="f", version="1", config=model.config, preprocessing=Preprocessing.for_backbone("test_resnet")
    )
    written = checkpoints.save(tmp_path / "f.safetensors", model, description)
    assert checkpoints.describe(tmp_path / "f.safetensors").config == model.config
    loaded, found = checkpoints.load(tmp_path / "f.safetensors")
    assert found == written
    features_BTE, valid_BT = torch.randn(2, 4, 2 * model.dim), torch.ones(2, 4, dtype=torch.bool)
    assert torch.equal(loaded.clip_logits(features_BTE, valid_BT), model.clip_logits(features_BTE, valid_BT))
    with pytest.raises(ModelError, match=r"f judges faces with their depth maps, and here are pictures alone: .*\.$"):
        found.check_detects()


def test_other_heads_say_nothing_of_it_so_that_old_digests_stand() -> None:
    plain = ModelConfig(backbone="x").to_json()
    assert set(plain) == {"backbone", "head", "dropout", "drop_path", "window", "pyramid", "task"}
    config = ModelConfig(backbone="x", head="fusion", fusion=SMALL)
    assert ModelConfig.from_json(config.to_json()) == config
    assert config.takes_clips
    cut = ModelConfig(backbone="x", pyramid=True, stages=2)
    assert ModelConfig.from_json(cut.to_json()) == cut


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FusionConfig(streams="no"), "fusion.streams is one of both, rgb, depth; got 'no'"),  # type: ignore[arg-type]
        (lambda: FusionConfig(cross="no"), "fusion.cross is one of both, rgb, depth, none"),  # type: ignore[arg-type]
        (lambda: FusionConfig(heads=0), "fusion.heads is a number of 1 or more; got 0"),
        (lambda: FusionConfig(residuals=1), "fusion.residuals is true or false"),  # type: ignore[arg-type]
        (lambda: ModelConfig(backbone="x", head="fusion", pyramid=True), "pyramid is true or false, and false with"),
        (lambda: ModelConfig(backbone="x", head="fusion", task="mos"), "and detection with fusion"),
        (lambda: ModelConfig.from_json({"backbone": "x", "fusion": {"wrong": 1}}), "not a description of a model"),
        (lambda: head(heads=5), "fusion.heads=5 does not divide the backbone's 12 features"),
    ],
)
def test_what_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
