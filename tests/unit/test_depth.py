"""Depth maps by a tiny network of Depth-Anything's architecture, with random weights."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.depths import tiny_depth
from tests.heads import head
from unmask.depth import DepthEstimator, as_rgb
from unmask.errors import ModelError, UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


def test_maps_have_the_size_of_their_crops_and_all_levels(folder: Path) -> None:
    estimator = DepthEstimator.load(str(folder), size_px=56)
    crops = [head(60, 40).image_HWC, head(90, 90).image_HWC]
    first, second = estimator.maps(crops)
    assert first is not None
    assert second is not None
    assert (first.shape, second.shape) == ((60, 40), (90, 90))
    assert first.dtype == np.uint8
    assert (first.min(), first.max()) <= (30, 225) or np.ptp(first) > 100
    (alone,) = estimator.maps(crops[1:])
    assert alone is not None
    assert np.abs(alone.astype(int) - second).max() <= 1  # whoever stands beside it
    assert as_rgb(first).shape == (60, 40, 3)
    again = DepthEstimator.load(str(folder), size_px=56)
    assert again.to_json() == estimator.to_json()
    assert DepthEstimator.load(str(folder), size_px=70).to_json() != estimator.to_json()


@pytest.mark.parametrize("value", [np.nan, np.inf, 3.0])
def test_a_map_that_says_nothing_is_none(value: float, folder: Path) -> None:
    class Flat(torch.nn.Module):
        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            depth_NHW = torch.full((len(pixel_values), 56, 56), value)
            if len(pixel_values) > 1:
                depth_NHW[1] = torch.linspace(0, 1, 56)
            return SimpleNamespace(predicted_depth=depth_NHW)

    estimator = DepthEstimator(Flat(), torch.device("cpu"), 56, "flat")
    nothing, ramp = estimator.maps([head().image_HWC] * 2)
    assert nothing is None
    assert ramp is not None
    assert (np.diff(ramp.astype(int), axis=1) >= 0).all()
    assert (ramp.min(), ramp.max()) == (0, 255)


def test_weights_that_cannot_be_had_are_said(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ModelError, match=r"there is no folder .*nowhere with depth weights: name one that holds config"
    ):
        DepthEstimator.load(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"empty holds no depth network in safetensors \(\w+\): it needs config\.json"):
        DepthEstimator.load(str(tmp_path / "empty"))
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "config.json").write_bytes((folder / "config.json").read_bytes())
    (cut / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(ModelError, match=r"cut holds no depth network in safetensors"):
        DepthEstimator.load(str(cut))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the depth weights somebody/nothing are not in the cache and cannot be down"):
        DepthEstimator.load("somebody/nothing")
    with pytest.raises(UsageError, match="multiple of 14 up to 1036; got 100"):
        DepthEstimator.load(str(folder), size_px=100)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"need transformers, which is not installed: pip install unmask\[depth\]"):
        DepthEstimator.load(str(folder))
