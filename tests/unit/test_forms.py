"""A model exported by the command: the same AUC as ONNX, and what 8 bits cost, on people who were left."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tests.products import ten_real_people
from train.config import overridden
from train.export import app
from train.recipes import recipe
from unmask.checkpoints import Description, save
from unmask.models import build

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
    assert small["auc_lost"] == plain["auc"] - small["auc"]
    assert 0 < small["largest_difference"] < 0.2
    assert [row["bytes"] for row in (exported, small)] == [
        (tmp_path / name).stat().st_size for name in ("m.onnx", "m-int8.onnx")
    ]


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
