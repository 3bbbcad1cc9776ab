"""A model exported by the command: the same AUC as ONNX, and what 8 bits cost, on people who were left."""

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from typer.testing import CliRunner

from tests.products import ten_real_people
from train import forms
from train.catalogue import Catalogue
from train.config import overridden
from train.crops import CropReader
from train.export import app
from train.forms import Forms
from train.recipes import recipe
from train.splits import splits_of
from unmask.checkpoints import Description, save
from unmask.models import build
from unmask.onnx_export import OnnxModel, write_onnx
from unmask.provenance import USED, used_digests
from unmask.transforms import resize

CONFIG = overridden(
    recipe("selfblend"),
    ["backbone=test_efficientnet", "pyramid=false", "loss.mask=0", "size_px=48", "fractions=[0.4,0.2,0.4]"],
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_real_people(tmp_path_factory.mktemp("faces") / "faces")


def checkpoint(path: Path, provenance: dict[str, Any]) -> Path:
    preprocessing = CONFIG.input.preprocessing(CONFIG.model.backbone)
    plain = Description(name="m", version="1", config=CONFIG.model, preprocessing=preprocessing, trained=True)
    save(path, build(CONFIG.model), replace(plain, provenance=provenance))
    return path


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)


def test_all_forms_are_measured_on_the_same_faces(data: Path, tmp_path: Path) -> None:
    model = checkpoint(tmp_path / "m.safetensors", {"config": CONFIG.to_json()})
    result = run(model, "--out", tmp_path / "m.onnx", "--data", data, "--int8", "--json")
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "m.json").read_text())
    assert json.loads(result.stdout) == document
    assert (document["videos"], document["samples"], document["level"]) == (4, 16, "frame")
    plain, exported, small = document["forms"]
    assert [row["name"] for row in document["forms"]] == ["checkpoint", "m.onnx", "m-int8.onnx"]
    assert exported["largest_difference"] < 1e-4
    assert abs(exported["auc_lost"]) < 1e-9
    (caveat,) = document["caveats"]
    assert "nobody can check" in caveat
    assert small["auc_lost"] == plain["auc"] - small["auc"]
    assert 0 < small["largest_difference"] < 0.2
    assert document["timed"]["batch"] == 8
    assert [row["bytes"] for row in (exported, small)] == [
        (tmp_path / name).stat().st_size for name in ("m.onnx", "m-int8.onnx")
    ]


def test_forms_take_turns_on_one_batch_while_nothing_loads(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def watched(runs: Any, device: torch.device) -> list[float]:
        assert "unmask-prefetch" not in {thread.name for thread in threading.enumerate()}
        first, second = runs
        assert first.args[0] is second.args[0]
        taken.append(len(first.args[0]))
        return [0.08, 0.04]

    monkeypatch.setattr(forms, "medians", watched)
    model = checkpoint(tmp_path / "m.safetensors", {"config": CONFIG.to_json()})
    result = run(model, "--out", tmp_path / "m.onnx", "--data", data, "--json")
    assert result.exit_code == 0, result.output
    assert taken == [8]
    assert [row["ms_per_sample"] for row in json.loads(result.stdout)["forms"]] == [10.0, 5.0]


def test_people_whom_the_model_knows_are_not_measured(data: Path, tmp_path: Path) -> None:
    """Trained with more data, it had another deal: here it learnt from three of the four who are left of these."""
    catalogue = Catalogue.read([str(data)])
    left = [catalogue.videos[n].about for n in splits_of(catalogue, CONFIG, 0).test]
    for count, videos, samples in ((0, 4, 16), (3, 1, 4)):
        provenance = {"config": CONFIG.to_json(), USED: used_digests({"train": left[:count]})}
        model = checkpoint(tmp_path / f"{count}.safetensors", provenance)
        result = run(model, "--out", tmp_path / "m.onnx", "--data", data, "--json")
        assert result.exit_code == 0, result.output
        document = json.loads(result.stdout)
        assert (document["videos"], document["samples"], document["caveats"]) == (videos, samples, [])
    knowing = {"config": CONFIG.to_json(), USED: used_digests({"train": left[:2], "val": left[2:]})}
    result = run(checkpoint(tmp_path / "k.safetensors", knowing), "--out", tmp_path / "k.onnx", "--data", data)
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "nobody is left for the test: all 4 videos that these splits leave are known" in said


def test_ranges_end_where_activations_are_cut_off(data: Path, tmp_path: Path) -> None:
    """What ReLU6 cuts off takes none of the 256 steps: here it is thirty times as much as what is left."""
    config = overridden(CONFIG, ["backbone=mobilenetv2_035"])
    torch.manual_seed(0)
    model = build(config.model)
    *_, last = [layer for layer in model.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        last.weight.fill_(60.0)
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.momentum = 1.0
        model.backbone.train()(torch.randn(8, 3, 48, 48))
    preprocessing = config.input.preprocessing(config.model.backbone)
    description = Description(name="m", version="1", config=config.model, preprocessing=preprocessing, trained=True)
    description = replace(description, provenance={"config": config.to_json()})
    plain, small = tmp_path / "m.onnx", tmp_path / "m-int8.onnx"
    made = Forms(model.eval(), description, [str(data)])
    write_onnx(plain, model, description)
    made.write_int8(plain, small)
    given, written = onnx.load(plain).graph.node, onnx.load(small).graph
    makers = {name: node.op_type for node in written.node for name in node.output}
    assert "DequantizeLinear" not in {makers[node.input[0]] for node in written.node if node.op_type == "Clip"}
    clipped = {node.output[0] for node in given if node.op_type == "Clip"}
    values = {each.name: onnx.numpy_helper.to_array(each) for each in written.initializer}
    rounded = [node for node in written.node if node.op_type == "QuantizeLinear" and node.input[0] in clipped]
    steps = [values[node.input[1]].item() for node in rounded]
    assert len(steps) == len(clipped) > 30
    assert max(steps) == pytest.approx(6 / 255)
    (head,) = (node for node in written.node if node.op_type == "Gemm")
    assert not {makers.get(name) for name in head.input} & {"QuantizeLinear", "DequantizeLinear"}


def test_attention_stays_in_single_precision(data: Path, tmp_path: Path) -> None:
    """One head looks at single tokens, as trained ones do: its products would take all steps of the others'."""
    config = overridden(CONFIG, ["backbone=test_vit", "size_px=160"])
    model = build(config.model)
    with torch.no_grad():
        for block in model.backbone.blocks:  # type: ignore[union-attr]
            attention, width = block.attn, block.attn.head_dim
            attention.qkv.weight.mul_(6)
            attention.qkv.weight[:width].mul_(20)
            attention.proj.weight[:, :width] = 0
        model.head.fc.weight.mul_(3)  # type: ignore[union-attr,operator]
    preprocessing = config.input.preprocessing(config.model.backbone)
    description = Description(name="v", version="1", config=config.model, preprocessing=preprocessing, trained=True)
    description = replace(description, provenance={"config": config.to_json()})
    plain, small = tmp_path / "v.onnx", tmp_path / "v-int8.onnx"
    made = Forms(model.eval(), description, [str(data)])
    write_onnx(plain, model, description)
    made.write_int8(plain, small)
    faces = CropReader(catalogue := Catalogue.read([str(data)]))
    pixels = np.stack([resize(faces.picture(n, preprocessing).image_HWC, preprocessing) for n in range(len(catalogue))])
    expected, found = (OnnxModel(path).logits(pixels) for path in (plain, small))
    assert np.ptp(expected) > 1
    assert np.corrcoef(expected, found)[0, 1] > 0.95
    graph = onnx.load(small).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    products = [[makers.get(name) for name in node.input] for node in graph.node if node.op_type == "MatMul"]
    depth = len(model.backbone.blocks)  # type: ignore[arg-type]
    assert sum("DequantizeLinear" not in each for each in products) == 2 * depth
    assert sum(each == ["DequantizeLinear"] * 2 for each in products) == 4 * depth
    takers = [node.op_type for node in graph.node if any(makers.get(name) == "Softmax" for name in node.input)]
    assert takers == ["MatMul"] * depth


def test_wrong_usage_is_said(data: Path, tmp_path: Path) -> None:
    silent = checkpoint(tmp_path / "silent.safetensors", {})
    for arguments, says in (
        ([silent, "--out", tmp_path / "x.onnx", "--int8"], "--int8 needs --data"),
        ([tmp_path / "no.safetensors", "--out", tmp_path / "x.onnx"], "no.safetensors: check the path"),
        ([silent, "--out", tmp_path / "x.pt"], "name ends in .onnx"),
    ):
        result = run(*arguments)
        assert result.exit_code == 2
        assert says in " ".join(result.stderr.split())
