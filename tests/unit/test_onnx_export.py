"""Exported models say what their checkpoints say."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unmask.calibration import Calibration
from unmask.checkpoints import Description
from unmask.errors import ModelError, UsageError
from unmask.models import ForgeryModel, ModelConfig, build
from unmask.onnx_export import OnnxModel, needed, write_onnx
from unmask.transforms import Preprocessing, normalised

SIDE = 64
INPUT = Preprocessing(size_px=SIDE, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
SIDES = {"test_vit": 160}  # a transformer's positions are of one size
CALIBRATION = Calibration(temperature=1.7, bias=-0.3, fitted=True, source="a test")


def pixels(*shape: int, side: int = SIDE) -> torch.Tensor:
    """Blocks of noise: pictures that differ, also where a backbone has averaged them."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randint(0, 256, (*shape, 4, 4, 3), dtype=torch.uint8, generator=generator)
    return coarse.repeat_interleave(side // 4, -3).repeat_interleave(side // 4, -2)


def settled(**config: Any) -> tuple[ForgeryModel, Description]:
    """A model whose random weights give logits that differ."""
    model = build(ModelConfig(**config))
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    preprocessing = replace(INPUT, size_px=SIDES.get(model.config.backbone, SIDE))
    with torch.no_grad():
        model.backbone.train()(normalised(pixels(12, side=preprocessing.size_HW[0]), preprocessing))
        for each in model.head.parameters():
            each.mul_(3)
    description = Description(
        name="m", version="1", config=model.config, preprocessing=preprocessing,
        calibration=CALIBRATION, trained=True,
    )  # fmt: skip
    return model.eval(), description


@pytest.mark.parametrize(
    "config",
    [
        {"backbone": "test_efficientnet", "dropout": 0.2},
        {"backbone": "test_efficientnet", "pyramid": True, "head": "l2"},
        {"backbone": "test_efficientnet", "pyramid": True, "stages": 2},
        {"backbone": "test_vit"},
        {"backbone": "test_vit", "head": "l2"},
        {"backbone": "mobilenetv3_small_100", "head": "mobilenet", "dropout": 0.2},
    ],
    ids=["frame", "pyramid", "cut", "vit", "vit-l2", "mobilenet"],
)
def test_scores_of_frames_are_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    model, description = settled(**config)
    write_onnx(tmp_path / "m.onnx", model, description)
    exported = OnnxModel(tmp_path / "m.onnx")
    assert exported.description == description
    assert b'File "' not in (tmp_path / "m.onnx").read_bytes()  # nor in which folder each operation's code lies
    assert not exported.takes_clips
    for count in (1, 5):
        given = pixels(count, side=description.preprocessing.size_HW[0])
        with torch.inference_mode():
            logits_N = model.frame_logits(model.features(normalised(given, description.preprocessing))).numpy()
        np.testing.assert_allclose(exported.logits(given.numpy()), logits_N, atol=1e-4)
        expected = CALIBRATION.probability(logits_N)
        np.testing.assert_allclose(exported.probabilities(given.numpy()), expected, atol=1e-4)
    assert np.ptp(logits_N) > 1e-2
    assert np.abs(logits_N).max() < 10


@pytest.mark.parametrize(
    "config", [{"dropout": 0.1}, {"pyramid": True}, {"backbone": "test_vit"}], ids=["plain", "pyramid", "vit"]
)
def test_scores_of_clips_are_the_same_whatever_is_missing(config: dict[str, Any], tmp_path: Path) -> None:
    model, description = settled(**{"backbone": "test_efficientnet", "head": "temporal", "window": 4, **config})
    side = description.preprocessing.size_HW[0]
    write_onnx(tmp_path / "m.onnx", model, description)
    exported = OnnxModel(tmp_path / "m.onnx")
    assert exported.takes_clips
    for clips, frames in ((3, 4), (1, 2)):
        given, valid_NT = pixels(clips, frames, side=side), torch.ones(clips, frames, dtype=torch.bool)
        if clips > 1:
            valid_NT[0, 1:], valid_NT[1, 2:], valid_NT[2] = False, False, False
        with torch.inference_mode():
            features_MD = model.features(normalised(given.flatten(0, 1), description.preprocessing))
            logits_N = model.clip_logits(features_MD.reshape(clips, frames, -1), valid_NT).numpy()
        np.testing.assert_allclose(exported.logits(given.numpy(), valid_NT.numpy()), logits_N, atol=1e-4)
        expected = CALIBRATION.probability(logits_N)
        np.testing.assert_allclose(exported.probabilities(given.numpy(), valid_NT.numpy()), expected, atol=1e-4)
        # What stands where nothing is has no say.
        given[~valid_NT] = 255 - given[~valid_NT]
        np.testing.assert_allclose(exported.logits(given.numpy(), valid_NT.numpy()), logits_N, atol=1e-4)
        if clips > 1:
            assert logits_N[2] == 0
            assert np.ptp(logits_N) > 1e-2
            assert np.abs(logits_N).max() < 10


def test_what_cannot_be_exported_or_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, description = settled(backbone="test_efficientnet")
    with pytest.raises(UsageError, match=r"name ends in \.onnx; got .*m\.pt"):
        write_onnx(tmp_path / "m.pt", model, description)
    fusion = ModelConfig(backbone="test_efficientnet", head="fusion")
    fused = Description(name="f", version="1", config=fusion, preprocessing=INPUT)
    with pytest.raises(ModelError, match="f takes depth maps"):
        write_onnx(tmp_path / "f.onnx", model, fused)
    opinions, described = settled(backbone="test_efficientnet", head="temporal", window=4, task="mos")
    with pytest.raises(ModelError, match=r"m predicts how real people find a fake, .*: export a detector"):
        write_onnx(tmp_path / "mos.onnx", opinions, described)
    assert not (tmp_path / "mos.onnx").exists()
    with pytest.raises(ModelError, match=r"no model .*nothing\.onnx: check the path"):
        OnnxModel(tmp_path / "nothing.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no model at all")
    with pytest.raises(ModelError, match=r"bad\.onnx is damaged or no ONNX model that Unmask wrote: export it again"):
        OnnxModel(tmp_path / "bad.onnx")
    with pytest.raises(
        UsageError, match=r"ONNX needs no_such_package, which is not installed: pip install unmask\[onnx\]"
    ):
        needed("no_such_package")
