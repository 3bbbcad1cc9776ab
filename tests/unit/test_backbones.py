import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import nn

from unmask import backbones
from unmask.backbones import create_backbone, load_weights, read_tensors
from unmask.errors import ModelError, Reason
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.pyramid import Pyramid

TINY = "test_efficientnet"


@pytest.fixture
def model() -> ForgeryModel:
    return build(ModelConfig(backbone=TINY), seed=0)


@pytest.fixture(scope="module")
def source() -> ForgeryModel:
    """Weights that differ from those of `model`."""
    return build(ModelConfig(backbone=TINY), seed=1)


def is_loaded(module: nn.Module, source: nn.Module) -> bool:
    theirs = source.state_dict()
    return all(torch.equal(v, theirs[k]) for k, v in module.state_dict().items())


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")


def test_without_a_network_an_error_names_both_remedies_at_once(
    no_network: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("the hub's client would retry for long"))
    with pytest.raises(ModelError) as caught:
        create_backbone("mobilenetv3_small_100", pretrained=True)
    assert caught.value.reason is Reason.PRETRAINED_UNAVAILABLE
    assert "--weights FILE" in caught.value.message
    assert "--no-pretrained" in caught.value.message
    assert "\n" not in caught.value.message


def test_offline_mode_of_the_hub_is_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(httpx, "head", lambda *_, **__: pytest.fail("asked the network"))
    with pytest.raises(ModelError, match="--no-pretrained"):
        create_backbone("mobilenetv3_small_075", pretrained=True)


def test_any_failure_of_a_download_names_the_remedies(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(backbones, "_reachable", lambda _: True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(timm, "create_model", fail)
    with pytest.raises(ModelError, match=r"\(ConnectionResetError\): give the weights with --weights FILE"):
        create_backbone(TINY, pretrained=True)


def test_a_backbone_that_timm_has_no_weights_for_says_so() -> None:
    with pytest.raises(ModelError, match="timm has none") as caught:
        create_backbone("convnext_atto_rms", pretrained=True)
    assert caught.value.reason is Reason.PRETRAINED_UNAVAILABLE


def test_cached_weights_need_no_network(
    no_network: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, source: ForgeryModel
) -> None:
    file = tmp_path / "model.safetensors"
    save_file(timm.create_model(TINY).state_dict() | source.backbone.state_dict(), file)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(file))
    assert is_loaded(create_backbone(TINY, pretrained=True), source.backbone)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.encoder."])
@pytest.mark.parametrize(
    ("suffix", "nesting"), [(".pth", ""), (".pth", "state_dict"), (".pth", "model"), (".safetensors", "")]
)
def test_weights_are_found_under_the_usual_names(
    tmp_path: Path, model: ForgeryModel, source: ForgeryModel, nesting: str, prefix: str, suffix: str
) -> None:
    tensors = {f"{prefix}{k}": v for k, v in source.backbone.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({nesting: tensors, "epoch": 3} if nesting else tensors, path)
    else:
        save_file(tensors, path)
    head = {k: v.clone() for k, v in model.head.state_dict().items()}
    assert load_weights(model.backbone, model.head, path) is False
    assert is_loaded(model.backbone, source.backbone)
    assert all(torch.equal(v, head[k]) for k, v in model.head.state_dict().items())


def test_the_head_is_taken_where_it_fits(tmp_path: Path, model: ForgeryModel, source: ForgeryModel) -> None:
    save_file(source.state_dict(), tmp_path / "ours.safetensors")
    assert load_weights(model.backbone, model.head, tmp_path / "ours.safetensors") is True
    assert is_loaded(model, source)


def test_the_dfdc_winners_names_are_known(tmp_path: Path, model: ForgeryModel, source: ForgeryModel) -> None:
    tensors = {f"module.encoder.{k}": v for k, v in timm.create_model(TINY, num_classes=1000).state_dict().items()}
    tensors |= {f"module.encoder.{k}": v for k, v in source.backbone.state_dict().items()}
    tensors |= {f"module.fc.{k}": v for k, v in source.head.fc.state_dict().items()}  # type: ignore[union-attr]
    torch.save({"epoch": 1, "state_dict": tensors}, tmp_path / "b7.pth")
    assert load_weights(model.backbone, model.head, tmp_path / "b7.pth") is True
    assert is_loaded(model, source)


@pytest.mark.parametrize("backbone", [TINY, "test_vit", "test_convnext", "test_resnet", "repvit_m0_9"])
def test_timms_own_classifier_is_left_out(tmp_path: Path, backbone: str) -> None:
    full, bare = timm.create_model(backbone, num_classes=10), create_backbone(backbone, pretrained=False)
    save_file({k: v.contiguous() for k, v in full.state_dict().items()}, tmp_path / "full.safetensors")
    assert load_weights(bare, nn.Linear(3, 1), tmp_path / "full.safetensors") is False
    assert is_loaded(bare, full)


def test_original_weights_are_translated_by_timm(tmp_path: Path) -> None:
    """A ConvNeXt in the names of its authors' release."""
    source, bare = (timm.create_model("test_convnext", num_classes=0) for _ in range(2))
    theirs = {}
    for name, tensor in source.state_dict().items():
        name = name.replace("stem.", "downsample_layers.0.").replace("head.norm", "norm").replace("mlp.fc", "pwconv")
        name = re.sub(r"stages\.(\d)\.blocks", r"stages.\1", name.replace("conv_dw", "dwconv"))
        theirs[re.sub(r"stages\.(\d)\.downsample", r"downsample_layers.\1", name)] = tensor
    assert not {k for k in theirs if "blocks" in k or "head" in k or "fc" in k}
    torch.save({"model": theirs}, tmp_path / "convnext.pth")
    load_weights(bare, nn.Linear(3, 1), tmp_path / "convnext.pth")
    assert is_loaded(bare, source)


def melas_kyriazi(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of an EfficientNet under the names of `efficientnet_pytorch`."""
    inverted = {"conv_pw": "_expand_conv", "bn1": "_bn0", "conv_dw": "_depthwise_conv", "bn2": "_bn1",
                "se.conv_reduce": "_se_reduce", "se.conv_expand": "_se_expand", "conv_pwl": "_project_conv",
                "bn3": "_bn2"}  # fmt: skip
    first = {**inverted, "bn1": "_bn1", "conv_pw": "_project_conv", "bn2": "_bn2"}
    ends = {"conv_stem": "_conv_stem", "bn1": "_bn0", "conv_head": "_conv_head", "bn2": "_bn1", "classifier": "_fc"}
    blocks: list[str] = []
    theirs = {}
    for name, tensor in state.items():
        inside = re.match(r"(blocks\.(\d)\.\d)\.(.+)\.(\w+)$", name)
        if inside is None:
            module, _, leaf = name.rpartition(".")
            theirs[f"{ends[module]}.{leaf}"] = tensor
            continue
        block, stage, module, leaf = inside.groups()
        blocks += [] if block in blocks else [block]
        names = first if stage == "0" else inverted
        theirs[f"_blocks.{blocks.index(block)}.{names[module]}.{leaf}"] = tensor
    return theirs


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "tf_efficientnet_b0"])
@pytest.mark.parametrize("pyramid", [False, True])
def test_names_of_efficientnet_pytorch_are_known(tmp_path: Path, backbone: str, pyramid: bool) -> None:
    full = timm.create_model(backbone, num_classes=10)
    torch.save(melas_kyriazi(full.state_dict()), tmp_path / "theirs.pth")
    model = build(ModelConfig(backbone=backbone, pyramid=pyramid), weights=tmp_path / "theirs.pth")
    assert is_loaded(model.backbone.inner if isinstance(model.backbone, Pyramid) else model.backbone, full)


def test_a_pyramid_takes_a_whole_backbone_or_another_pyramid(tmp_path: Path) -> None:
    config = ModelConfig(backbone="mobilenetv3_small_050", pyramid=True)
    full = timm.create_model(config.backbone, num_classes=10)
    save_file(full.state_dict(), tmp_path / "full.safetensors")
    pyramid = build(config, weights=tmp_path / "full.safetensors")
    assert isinstance(pyramid.backbone, Pyramid)
    assert is_loaded(pyramid.backbone.inner, full)
    save_file(pyramid.state_dict(), tmp_path / "pyramid.safetensors")
    temporal = build(replace(config, head="temporal"), seed=5, weights=tmp_path / "pyramid.safetensors")
    assert is_loaded(temporal.backbone, pyramid.backbone)
    del (cut := dict(full.state_dict()))["conv_stem.weight"]
    save_file(cut, tmp_path / "cut.safetensors")
    with pytest.raises(ModelError, match="1 tensors are missing"):
        build(config, weights=tmp_path / "cut.safetensors")


def test_a_cut_pyramid_takes_the_first_stages_of_a_whole_one(tmp_path: Path) -> None:
    config = ModelConfig(backbone="mobilenetv3_small_050", pyramid=True)
    whole = build(config)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    sizes = []
    for stages in (1, 2):
        cut = build(replace(config, stages=stages), seed=7, weights=tmp_path / "whole.safetensors")
        assert isinstance(cut.backbone, Pyramid)
        assert isinstance(whole.backbone, Pyramid)
        assert is_loaded(cut.backbone, whole.backbone)
        assert cut.dim == whole.dim
        assert not torch.equal(cut.head.fc.weight, whole.head.fc.weight)  # type: ignore[union-attr,arg-type]
        features_ND, where_Nhw = cut.located(torch.randn(2, 3, 64, 96))
        assert (features_ND.shape, where_Nhw.shape) == ((2, cut.dim), (2, 8, 12))
        sizes.append(sum(p.numel() for p in cut.parameters()))
    assert sizes[0] < sizes[1] < sum(p.numel() for p in whole.parameters())


@pytest.mark.parametrize("damage", ["missing", "foreign", "shape"])
def test_weights_of_another_architecture_are_refused(
    tmp_path: Path, model: ForgeryModel, source: ForgeryModel, damage: str
) -> None:
    tensors = dict(source.backbone.state_dict())
    if damage == "missing":
        del tensors["conv_stem.weight"]
    elif damage == "foreign":
        tensors["blocks.99.weight"] = torch.zeros(2)
    else:
        tensors["conv_stem.weight"] = torch.zeros(2, 2)
    save_file(tensors, tmp_path / "other.safetensors")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ModelError, match="give weights of the same architecture") as caught:
        load_weights(model.backbone, model.head, tmp_path / "other.safetensors")
    assert caught.value.reason is Reason.BAD_OPTION
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_missing_weights_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.pth") as caught:
        read_tensors(tmp_path / "none.pth")
    assert caught.value.reason is Reason.MISSING_FILE


class Payload:
    """What a hostile pickle holds: a call on loading."""

    called = False

    def __reduce__(self) -> tuple[Any, ...]:
        return setattr, (Payload, "called", True)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short", b"\x80\x02."])
def test_what_is_no_weights_file_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match="without unpickling") as caught:
        read_tensors(tmp_path / name)
    assert caught.value.reason is Reason.CHECKPOINT_CORRUPT
    assert "\n" not in caught.value.message


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    torch.save({"state_dict": Payload()}, tmp_path / "hostile.pth")
    with pytest.raises(ModelError, match="without unpickling"):
        read_tensors(tmp_path / "hostile.pth")
    assert not Payload.called


def test_a_file_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ModelError, match="no named tensors"):
        read_tensors(tmp_path / "empty.pth")
