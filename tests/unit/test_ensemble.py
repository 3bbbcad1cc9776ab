"""Which models are meant, with which weights."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluated import checkpoint, fitted_model
from train.ensemble import Ensemble, shares, weighted_names
from unmask.calibration import Calibration
from unmask.errors import ModelError, UsageError
from unmask.fusion import FusionConfig
from unmask.models import ModelConfig, build


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    checkpoint(place / "a.safetensors", fitted_model())
    sure = Calibration(threshold=0.7, band=(0.7, 0.7), fitted=True, source="a test")
    checkpoint(place / "b.safetensors", fitted_model("temporal"), calibration=sure)
    checkpoint(place / "mos.safetensors", fitted_model("temporal", task="mos"), calibration=Calibration())
    return place


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([None], [1.0]),
        ([None, None], [0.5, 0.5]),
        ([3.0, 1.0], [0.75, 0.25]),
        ([None, 0.25], [0.75, 0.25]),
        ([None, 0.5, None], [0.25, 0.5, 0.25]),
        ([7.0], [1.0]),
    ],
)
def test_shares(weights: list[float | None], expected: list[float]) -> None:
    assert shares(weights) == pytest.approx(expected)


@pytest.mark.parametrize("weights", [[0.0, 1.0], [None, 1.0], [None, 2.0], [float("inf")]])
def test_weights_that_make_no_shares_are_refused(weights: list[float | None]) -> None:
    with pytest.raises(UsageError, match="weight"):
        shares(weights)


def test_names_with_weights() -> None:
    assert weighted_names(["a:0.75", "b/c.safetensors:.25"]) == [("a", 0.75), ("b/c.safetensors", 0.25)]
    assert weighted_names(["tf_efficientnet_b7.ns_jft_in1k"]) == [("tf_efficientnet_b7.ns_jft_in1k", 1.0)]
    with pytest.raises(UsageError, match="no model"):
        weighted_names([])


def test_a_file_whose_name_looks_like_a_weight_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model:2"
    path.write_bytes(b"")
    assert weighted_names([str(path)]) == [(str(path), 1.0)]


def test_an_ensemble_file_names_checkpoints_beside_it(checkpoints: Path) -> None:
    path = checkpoints / "ensemble.json"
    path.write_text(
        json.dumps({"members": [{"model": "a.safetensors", "weight": 1}, {"model": "b.safetensors", "weight": 3}]})
    )
    a, b = str(checkpoints / "a.safetensors"), str(checkpoints / "b.safetensors")
    assert weighted_names([str(path)]) == [(a, 0.25), (b, 0.75)]
    assert weighted_names([f"{path}:0.8", a]) == [
        (a, pytest.approx(0.2)),
        (b, pytest.approx(0.6)),
        (a, pytest.approx(0.2)),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"members": []}',
        '{"members": [{"weight": 1}]}',
        '{"members": [{"model": "a", "weight": "b"}]}',
        '{"members": ["a.safetensors"]}',
    ],
)
def test_files_that_are_no_ensemble_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "ensemble.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="is no ensemble"):
        weighted_names([str(path)])
    with pytest.raises(UsageError, match="cannot be read"):
        weighted_names([str(tmp_path / "absent.json")])


def test_members_keep_what_they_are(checkpoints: Path) -> None:
    a, b = str(checkpoints / "a.safetensors"), str(checkpoints / "b.safetensors")
    ensemble = Ensemble.load([f"{a}:1", f"{b}:3"])
    assert [m.name for m in ensemble.members] == ["a", "b"]
    assert ensemble.name == "0.25 a + 0.75 b"
    assert ensemble.threshold == pytest.approx(0.25 * 0.5 + 0.75 * 0.7)
    assert ensemble.trained
    assert ensemble.calibrated
    assert not ensemble.is_mos
    plain = ensemble.members[1].to_json()
    assert plain["given"] == b
    assert plain["weight"] == 0.75
    assert json.dumps(plain)


def test_members_of_one_name_are_told_apart(checkpoints: Path) -> None:
    a = str(checkpoints / "a.safetensors")
    assert [m.name for m in Ensemble.load([a, a]).members] == ["a (1)", "a (2)"]


def test_what_cannot_be_averaged_is_refused(checkpoints: Path) -> None:
    with pytest.raises(UsageError, match="opinion scores cannot be averaged"):
        Ensemble.load([str(checkpoints / "a.safetensors"), str(checkpoints / "mos.safetensors")])
    with pytest.raises(ModelError, match=r"no checkpoint .*absent\.safetensors"):
        Ensemble.load([str(checkpoints / "absent.safetensors")])


def test_models_that_judge_other_faces_are_not_averaged(checkpoints: Path, tmp_path: Path) -> None:
    """A model with depth maps judges the faces that have one: there is no mean with what others say of more faces."""
    small = FusionConfig(layers=1, heads=4, hidden=16)
    fusion = build(ModelConfig(backbone="test_efficientnet", head="fusion", fusion=small))
    maps: dict[str, Any] = {"sha256": "0", "size_px": 518}
    same, again, others = (
        str(checkpoint(tmp_path / f"{name}.safetensors", fusion, provenance={"depth": {**maps, "size_px": px}}))
        for name, px in (("same", 518), ("again", 518), ("others", 252))
    )
    assert [m.name for m in Ensemble.load([same, again]).members] == ["same", "again"]
    for other in (others, str(checkpoints / "a.safetensors")):
        with pytest.raises(UsageError, match=r"is averaged only with models of the same maps; got same \(fusion\), "):
            Ensemble.load([same, other])
