"""Depth maps by a tiny network of Depth-Anything's architecture, with random weights."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.depths import tiny_depth
from tests.heads import head
from unmask.depth import DepthEstimator, as_rgb, is_published
from unmask.errors import ModelError, UsageError

FORMAT = {"format": "pt"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_depth(tmp_path_factory.mktemp("depth") / "tiny")


def test_names_on_the_hub_are_told_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "weights").mkdir(parents=True)
    names = ("depth-anything/Small-hf", "random", "my/weights", "./my/other", str(tmp_path / "x"), "weights", "a/b/c")
    assert [is_published(name) for name in names] == [True, True, False, False, False, False, False]


def test_maps_have_the_size_of_their_crops_and_all_levels(folder: Path) -> None:
    estimator = DepthEstimator.load(str(folder), size_px=56)
    crops = [head(60, 40).image_HWC, head(90, 90).image_HWC]
    first, second = estimator.maps(crops)
    assert first is not None
    assert second is not None
    assert (first.shape, second.shape) == ((60, 40), (90, 90))
    assert first.dtype == np.uint8
    for map_HW in (first, second):  # shrunk to a small crop, the nearest point and the farthest are blurred a little
        assert map_HW.min() <= 30
        assert map_HW.max() >= 225
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


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_taken_in_single(kind: torch.dtype, tmp_path: Path, folder: Path) -> None:
    half, rounded = tmp_path / "half", tmp_path / "rounded"
    tensors = {k: v.to(kind) for k, v in load_file(folder / "model.safetensors").items()}
    for place, written in ((half, tensors), (rounded, {k: v.float() for k, v in tensors.items()})):
        place.mkdir()
        (place / "config.json").write_bytes((folder / "config.json").read_bytes())
        save_file(written, place / "model.safetensors", FORMAT)
    config = json.loads((folder / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({**config, "dtype": str(kind).removeprefix("torch.")}))
    found, expected = (DepthEstimator.load(str(place), size_px=56) for place in (half, rounded))
    assert found.to_json() == expected.to_json()
    np.testing.assert_array_equal(found.maps([head().image_HWC]), expected.maps([head().image_HWC]))


def test_weights_that_cannot_be_had_are_said(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    part = tmp_path / "part"
    part.mkdir()
    (part / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith("backbone.")}, part / "model.safetensors", FORMAT)
    lost = sum(not k.startswith("backbone.") for k in tensors)
    capsys.readouterr()
    with pytest.raises(ModelError, match=rf"part lack {lost} of the network's tensors, such as head\.conv1\.bias: get"):
        DepthEstimator.load(str(part))
    save_file({"x": tensors["head.conv1.bias"]}, part / "model.safetensors", FORMAT)
    with pytest.raises(ModelError, match=rf"part lack {len(tensors)} of the network's tensors"):
        DepthEstimator.load(str(part))
    assert capsys.readouterr() == ("", "")  # no table of what is missing
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="the depth weights somebody/nothing are not in the cache and cannot be down"):
        DepthEstimator.load("somebody/nothing")
    with pytest.raises(UsageError, match="multiple of 14 up to 1036; got 100"):
        DepthEstimator.load(str(folder), size_px=100)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"need transformers, which is not installed: pip install unmask\[depth\]"):
        DepthEstimator.load(str(folder))
