"""Exported models say what their checkpoints say."""

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
CALIBRATION = Calibration(temperature=1.7, bias=-0.3, fitted=True, source="a test")


def settled(**config: Any) -> tuple[ForgeryModel, Description]:
    """A model whose random weights give logits that differ."""
    model = build(ModelConfig(**config))
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.backbone.train()(torch.randn(4, 3, SIDE, SIDE))
        for each in model.head.parameters():
            each.mul_(3)
    description = Description(
        name="m", version="1", config=model.config, preprocessing=INPUT, calibration=CALIBRATION, trained=True
    )
    return model.eval(), description


def pixels(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, (*shape, SIDE, SIDE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "config",
    [
        {"backbone": "test_efficientnet", "dropout": 0.2},
        {"backbone": "test_efficientnet", "pyramid": True, "head": "l2"},
        {"backbone": "test_efficientnet", "pyramid": True, "stages": 2},
    ],
    ids=["frame", "pyramid", "cut"],
)
def test_scores_of_frames_are_the_same(config: dict[str, Any], tmp_path: Path) -> None:
    model, description = settled(**config)
    write_onnx(tmp_path / "m.onnx", model, description)
    exported = OnnxModel(tmp_path / "m.onnx")
    assert exported.description == description
    assert b'File "' not in (tmp_path / "m.onnx").read_bytes()  # nor in which folder each operation's code lies
    assert not exported.takes_clips
    for count in (1, 5):
        given = pixels(count)
        with torch.inference_mode():
            logits_N = model.frame_logits(model.features(normalised(given, INPUT))).numpy()
        np.testing.assert_allclose(exported.logits(given.numpy()), logits_N, atol=1e-4)
        expected = CALIBRATION.probability(logits_N)
        np.testing.assert_allclose(exported.probabilities(given.numpy()), expected, atol=1e-4)
    assert np.ptp(logits_N) > 1e-2


def test_scores_of_clips_are_the_same_whatever_is_missing(tmp_path: Path) -> None:
    model, description = settled(backbone="test_efficientnet", head="temporal", window=4, dropout=0.1)
    write_onnx(tmp_path / "m.onnx", model, description)
    exported = OnnxModel(tmp_path / "m.onnx")
    assert exported.takes_clips
    for clips, frames in ((3, 4), (1, 2)):
        given, valid_NT = pixels(clips, frames), torch.ones(clips, frames, dtype=torch.bool)
        if clips > 1:
            valid_NT[0, 1:], valid_NT[1, 2:], valid_NT[2] = False, False, False
        with torch.inference_mode():
            features_MD = model.features(normalised(given.flatten(0, 1), INPUT))
            logits_N = model.clip_logits(features_MD.unflatten(0, (clips, frames)), valid_NT).numpy()
        np.testing.assert_allclose(exported.logits(given.numpy(), valid_NT.numpy()), logits_N, atol=1e-4)
        if clips > 1:
            assert logits_N[2] == 0
            assert np.ptp(logits_N) > 1e-2


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
