"""`unmask train` as a user meets it: what it shows, what it refuses in a sentence, what it leaves, what it takes up."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
from typer.testing import CliRunner, Result

from tests.products import BOX, Clip, faked, finished_run
from train.config import overridden
from train.fit import app
from train.project import Project
from train.recipes import RECIPES, recipe
from unmask.checkpoints import describe
from unmask.storage import Store

ROOT = Path(__file__).parents[2]
SETTINGS = (
    "backbone=test_efficientnet", "head=frame", "pretrained=false", "size_px=32", "batch=4", "loader_workers=0",
    "epochs=1", "compare=false", "strategy=none", "unfreeze_after=none", "freeze=none", "fractions=[0.5,0.25,0.25]",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight people, each real and fake."""
    folder = tmp_path_factory.mktemp("crops") / "eight"
    clips = []
    for n in range(8):
        faces = {f: [BOX] for f in (n, n + 20)}
        about = {"identity": [f"p{n}"]}
        clips.append(Clip(video=f"real/{n}", faces=faces, columns={"label": 0, **about}))
        clips.append(Clip(video=f"fake/{n}", picture=faked, faces=faces, columns={"label": 1, **about}))
    finished_run(Store(folder), clips, per_shard=20, margin=1.7)
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "200"}, catch_exceptions=False)


def said(result: Result) -> str:
    return " ".join(result.stderr.split())


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


def small(data: Path, out: Path, *more: str) -> list[object]:
    return ["--recipe", "celebdf-mobilenet", "--data", data, "--out", out, "--device", "cpu", *sets(*SETTINGS, *more)]


def test_the_recipes_are_listed_with_what_they_reproduce() -> None:
    result = run("--list")
    assert result.exit_code == 0
    shown = " ".join(result.stdout.split())
    for name, make in RECIPES.items():
        assert name in shown
        assert make().model.backbone[:20] in shown
    for word in ("DFDC", "Celeb-DF", "DFGC-VRA", "Self-blended", "LayerNorm"):
        assert word in shown


def test_fields_are_shown_as_they_would_be_trained() -> None:
    result = run("--recipe", "dfdc-b7", "--show", "--set", "lr=0.5", "--set", "seeds=[1,2]")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)  # nothing else on standard output
    assert (shown["recipe"], shown["optim"]["lr"], shown["loop"]["seeds"]) == ("dfdc-b7", 0.5, [1, 2])
    assert shown["input"]["size_px"] == 380


@pytest.mark.parametrize("name", ["dfdc-b7", "selfblend", "celebdf-mobilenet"])
def test_augmentation_is_shown_as_a_picture(data: Path, tmp_path: Path, name: str) -> None:
    sheet = tmp_path / "sheet.png"
    result = run("--recipe", name, "--data", data, "--show-augment", sheet)
    assert result.exit_code == 0, result.stderr
    assert str(sheet) in said(result).replace(" ", "")
    image = cv2.imread(str(sheet))
    assert image is not None
    assert min(image.shape[:2]) > 600
    assert (image != 245).mean() > 0.3  # faces on paper
    assert image.std() > 30


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], r"give --recipe NAME; unmask train --list shows them"),
        (["--recipe", "dfdc"], r"--recipe 'dfdc' is unknown; choose one of dfgc-convnext"),
        (["--recipe", "selfblend"], "give --data DIR, an output of unmask preprocess"),
        (["--recipe", "selfblend", "--data", "x"], "give --out DIR, where the model shall go"),
        (["--recipe", "selfblend", "--set", "lr"], "--set takes key=value; got 'lr'"),
        (["--recipe", "selfblend", "--set", "epoch=1"], "no field is called that; did you mean loop.epochs"),
        (["--recipe", "selfblend", "--set", "epochs=0", "--show"], "loop.epochs is at least 1; got 0"),
        (["--recipe", "selfblend", "--data", "x", "--out", "y", "--workers", "0"], "--workers is at least 1"),
        (["--recipe", "selfblend", "--data", "x", "--out", "y", "--max-failures", "-1"], "--max-failures 0 or more"),
        (["--recipe", "selfblend", "--data", "x", "--show-augment", "y.jpg"], "--show-augment writes a PNG file"),
        (["--recipe", "selfblend", "--data", "nowhere", "--show-augment", "y.png"], "holds nothing that was preproc"),
        (["--recipe", "selfblend", "--data", "nowhere", "--out", "y"], "nowhere holds nothing that was preprocessed"),
        (["--recipe", "selfblend", "--data", "x", "--out", "y", "--device", "cuda:99"], "cuda:99 is not there"),
    ],
)
def test_wrong_usage_is_said_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert says in said(result)
    assert said(result).startswith("unmask: ")
    assert said(result).count("unmask: ") == 1
    assert "Traceback" not in result.output
    assert not result.stdout


def test_unknown_options_are_wrong_usage() -> None:
    result = run("--recipes", "selfblend")
    assert result.exit_code == 2
    assert "--recipes" in said(result)


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_what_a_training_leaves(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(*small(data, out, "epochs=2"))
    assert result.exit_code == 0, result.output
    assert contents(out) == {
        "config.json", "model.safetensors", "summary.json", "plots/loss.png", "plots/auc.png", "plots/accuracy.png",
        "plots/rate.png", "evaluation/evaluation.html", "evaluation/evaluation.json", "seed-0/last.pt",
        "seed-0/best.safetensors", "seed-0/history.json", "seed-0/summary.json",
        "seed-0/tensorboard/events.out.tfevents.0",
    }  # fmt: skip
    told = said(result)
    assert "8 videos to train, 4 to validate, 4 left (people dealt out)" in told
    assert "seed-0: epoch 2 of 2" in told
    assert f"The model lies in {out}/model.safetensors" in told
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["chosen"], summary["selected_by"]) == ("seed-0", "auc")
    assert summary["models"]["seed-0"]["epochs"] == 2
    assert describe(out / "model.safetensors").trained
    recorded = json.loads((out / "config.json").read_text())
    assert recorded["data"] == [str(data)]
    assert recorded["config"]["loop"]["epochs"] == 2
    evaluation = json.loads((out / "evaluation" / "evaluation.json").read_text())
    assert evaluation["split"] == "unseen"
    assert evaluation["results"]["overall"]["video"]["videos"] == 4


def trained_rows(out: Path, name: str = "seed-0") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((out / name / "history.json").read_text())["epochs"]
    return rows


def test_a_finished_training_is_not_done_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = [*small(data, out), "--no-evaluate"]
    first = run(*arguments)
    assert first.exit_code == 0, first.output
    model, state = (out / "model.safetensors").read_bytes(), (out / "seed-0" / "last.pt").stat().st_mtime_ns
    again = run(*arguments)
    assert again.exit_code == 0
    assert "epoch" not in said(again)
    assert said(again) == f"unmask: The model lies in {out}/model.safetensors"
    assert (out / "model.safetensors").read_bytes() == model
    assert (out / "seed-0" / "last.pt").stat().st_mtime_ns == state


def test_what_was_lost_is_made_again_and_nothing_else(data: Path, tmp_path: Path) -> None:
    """Of an ensemble one member is missing, and what is made of all."""
    out = tmp_path / "out"
    arguments = [*small(data, out, "seeds=[0,1]"), "--no-evaluate"]
    assert run(*arguments).exit_code == 0
    ensemble = json.loads((out / "ensemble.json").read_text())
    assert ensemble["members"] == [{"model": f"seed-{n}/best.safetensors", "weight": 0.5} for n in (0, 1)]
    before = {n: trained_rows(out, f"seed-{n}") for n in (0, 1)}
    for name in contents(out / "seed-1"):
        (out / "seed-1" / name).unlink()
    (out / "model.safetensors").unlink()
    again = run(*arguments)
    assert again.exit_code == 0
    assert "seed-1: epoch 1 of 1" in said(again)
    assert "seed-0: epoch" not in said(again)
    assert (out / "model.safetensors").is_file()
    timeless = [
        [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in rows]
        for rows in (trained_rows(out, "seed-1"), before[1])
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (["--set", "optim.lr=0.5"], "config.optim.lr was 0.0001, now 0.5)"),
        (
            ["--set", "data.min_face_px=20", "--set", "batch=2"],
            "config.data.min_face_px was 32, now 20; config.loop.batch",
        ),
        (["--data", "{data}"], "data"),
        (["--recipe", "dfdc-b5", "--set", "drop_path=0"], 'config.recipe was "celebdf-mobilenet", now "dfdc-b5"'),
    ],
)
def test_another_configuration_is_refused_with_the_field_named(
    data: Path, tmp_path: Path, other: list[str], named: str
) -> None:
    out, arguments = begun(tmp_path, data), small(data, tmp_path / "out")
    before = (out / "config.json").read_text()
    result = run(*arguments, *(part.format(data=data) for part in other))
    assert result.exit_code == 2
    assert "holds a training with another configuration" in said(result)
    assert f"({named}" in said(result).partition("another configuration ")[2]
    assert (out / "config.json").read_text() == before
    assert contents(out) == {"config.json", "seed-0/last.pt"}


def begun(folder: Path, data: Path) -> Path:
    """A training that was begun and stopped."""
    config = overridden(recipe("celebdf-mobilenet"), SETTINGS)
    Project.begin(str(folder / "out"), config, (str(data),)).store.write("seed-0/last.pt", b"...")
    return folder / "out"


def test_what_was_refused_can_be_mended_in_the_same_place(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wrong in (
        small(tmp_path / "nowhere", out),
        small(data, out, "min_face_px=500"),
        small(data, out, "split=official"),
    ):
        assert run(*wrong).exit_code == 2
    result = run(*small(data, out), "--no-evaluate")
    assert result.exit_code == 0, result.output
    assert json.loads((out / "config.json").read_text())["config"]["data"]["min_face_px"] == 32
    assert not (out / "stopped.json").exists()


def test_a_damaged_record_is_said(data: Path, tmp_path: Path) -> None:
    (begun(tmp_path, data) / "config.json").write_text("{")
    result = run(*small(data, tmp_path / "out"))
    assert result.exit_code == 2
    assert "config.json is damaged; choose another --out" in said(result)


def test_where_nothing_can_be_written_it_is_said(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = run(*small(data, tmp_path / "file" / "out"))
    assert result.exit_code == 2
    assert "cannot be written" in said(result)


def test_training_that_cannot_go_on_ends_with_1(data: Path, tmp_path: Path) -> None:
    result = run(*small(data, tmp_path / "out", "optim.name=sgd", "lr=1e30", "epochs=3"))
    assert result.exit_code == 1, result.output
    assert "not finite" in said(result)
    assert "Traceback" not in result.output
    # Mended, it is another configuration, and elsewhere it works.
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_what_the_data_cannot_give_is_wrong_usage(data: Path, tmp_path: Path) -> None:
    result = run(*small(data, tmp_path / "out", "min_face_px=500"))
    assert result.exit_code == 2
    assert "no usable face" in said(result)
    stopped = json.loads((tmp_path / "out" / "stopped.json").read_text())
    assert "no usable face" in stopped["message"]


def test_with_nobody_left_the_model_is_there_all_the_same(data: Path, tmp_path: Path) -> None:
    result = run(*small(data, tmp_path / "out", "fractions=[0.5,0.5,0]"))
    assert result.exit_code == 0
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert "Traceback" not in result.output
    assert "nothing is left to test it on" in said(result)


def as_a_user(module: str, *arguments: object) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def test_the_module_and_the_command_are_the_same() -> None:
    module, command = (as_a_user(*start, "--recipe", "nothing") for start in (("train.fit",), ("unmask.cli", "train")))
    assert module.returncode == command.returncode == 2
    assert module.stderr == command.stderr
    assert "Traceback" not in module.stderr
    shown = as_a_user("unmask.cli", "train", "--help")
    assert shown.returncode == 0
    assert "unmask train" in shown.stdout
    for option in ("--recipe", "--data", "--out", "--set", "--workers", "--list", "--show", "--show-augment"):
        assert option in shown.stdout
