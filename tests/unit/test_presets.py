from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from unmask import presets
from unmask.backbones import data_config
from unmask.checkpoints import digest, load, save
from unmask.errors import ModelError, Reason, UsageError
from unmask.presets import PRESETS, resolve
from unmask.transforms import Preprocessing


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/nonexistent")


def test_a_small_preset_needs_nothing_and_says_that_it_is_untrained(offline: None) -> None:
    model, description = resolve("mobilenetv3-small")
    assert description.name == "mobilenetv3-small"
    assert description.preprocessing == Preprocessing(size_px=224, margin=1.3, fit="square")
    assert not description.trained
    assert not description.calibration.fitted
    assert description.provenance["weights"] == "random, seed 0"
    assert description.info().sha256 == digest(model.state_dict(), description)
    again, same = resolve("mobilenetv3-small")
    assert same == description
    with torch.inference_mode():
        inputs_N3HW = torch.randn(1, 3, 224, 224)
        logits_N = model.frame_logits(model.features(inputs_N3HW))
        assert torch.equal(logits_N, again.frame_logits(again.features(inputs_N3HW)))


def test_every_preset_names_a_backbone_that_timm_has_weights_for() -> None:
    for preset in PRESETS.values():
        found = timm.get_pretrained_cfg(preset.config.backbone)
        assert found is not None
        assert found.has_weights
        Preprocessing.for_backbone(preset.config.backbone, **preset.preprocessing)


@pytest.mark.parametrize(
    ("name", "size_px", "margin", "fit", "dim", "head"),
    [
        ("celebdf-mobilenet", 224, 1.0, "stretch", 1024, "mobilenet"),
        ("dfdc-b7", 380, 5 / 3, "pad", 2560, "frame"),
        ("dfgc-convnext", 384, 1.3, "stretch", 2048, "temporal"),
        ("dfgc-eva", 336, 1.3, "stretch", 1024, "temporal"),
    ],
)
def test_the_systems_are_described_as_their_authors_built_them(
    name: str, size_px: int, margin: float, fit: str, dim: int, head: str
) -> None:
    preset = PRESETS[name]
    preprocessing = Preprocessing.for_backbone(preset.config.backbone, **preset.preprocessing)
    assert (preprocessing.size_px, preprocessing.margin, preprocessing.fit) == (size_px, margin, fit)
    assert preset.config.head == head
    assert preset.pretrained
    with torch.device("meta"):  # shapes without the memory
        backbone = timm.create_model(preset.config.backbone, num_classes=0)
    assert backbone.head_hidden_size == dim


def test_a_large_preset_that_cannot_be_fetched_names_the_remedies(offline: None) -> None:
    with pytest.raises(ModelError, match=r"--weights FILE.*--no-pretrained.*--set pretrained=false") as caught:
        resolve("dfdc-b7")
    assert caught.value.reason is Reason.PRETRAINED_UNAVAILABLE


def test_a_timm_backbone_by_name(offline: None) -> None:
    model, description = resolve("test_vit", pretrained=False)
    assert (description.config.head, description.trained) == ("frame", False)
    assert description.preprocessing.size_HW == tuple(data_config("test_vit")["input_size"][1:])
    assert not model.training
    with pytest.raises(ModelError, match="--no-pretrained"):
        resolve("test_vit")


def test_weights_from_a_file(offline: None, tmp_path: Path) -> None:
    source = timm.create_model("test_resnet")
    save_file(source.state_dict(), tmp_path / "mine.safetensors")
    model, description = resolve("test_resnet", weights=tmp_path / "mine.safetensors")
    assert torch.equal(model.backbone.state_dict()["layer1.0.conv1.weight"], source.layer1[0].conv1.weight)
    assert description.provenance["weights"] == "file mine.safetensors"
    assert not description.trained


def test_a_checkpoint_by_path_and_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, description = resolve("test_resnet", pretrained=False)
    path = tmp_path / "shipped.safetensors"
    described = save(path, model, replace(description, name="shipped", trained=True))
    assert resolve(path)[1] == resolve(str(path))[1] == described
    monkeypatch.setattr(presets, "WEIGHTS_DIR", tmp_path)
    assert resolve("shipped")[1] == described
    assert resolve("shipped")[1].trained
    options: Any
    for options in ({"weights": path}, {"pretrained": False}):
        with pytest.raises(UsageError, match="is a checkpoint with weights of its own"):
            resolve(path, **options)
    with pytest.raises(ModelError, match="the closest: shipped"):
        resolve("shiped")


def test_a_saved_preset_has_the_digest_that_it_had_before(tmp_path: Path) -> None:
    model, description = resolve("test_resnet", pretrained=False)
    save(tmp_path / "x.safetensors", model, description)
    assert load(tmp_path / "x.safetensors")[1] == description


@pytest.mark.parametrize(
    ("name", "reason", "match"),
    [
        ("mobilenetv3-smal", Reason.UNKNOWN_MODEL, "the closest: mobilenetv3-small"),
        ("", Reason.UNKNOWN_MODEL, "the closest: mobilenetv3-small"),
        ("qqqqqqqqqq", Reason.UNKNOWN_MODEL, "dfdc-b7"),
        ("absent.safetensors", Reason.MISSING_FILE, "check the path"),
        ("some/where", Reason.MISSING_FILE, "check the path"),
        (__file__, Reason.CHECKPOINT_CORRUPT, "--weights"),
    ],
)
def test_what_names_no_model(name: str, reason: Reason, match: str) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        resolve(name)
    assert caught.value.reason is reason
    assert "\n" not in caught.value.message
