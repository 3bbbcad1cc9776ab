"""Every recipe, from a dataset laid out as its authors laid it out to an evaluated model, by the commands of users.

The clips are real ones of FaceForensics++ and DFDC and official portraits, linked into each dataset's layout; backbones
are small ones. The published architectures are built and stepped once with random weights.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.products import BOX, Clip, faked, finished_run
from train.catalogue import Catalogue
from train.config import overridden, runs
from train.context import Context
from train.loop import Training
from train.material import Material
from train.recipes import RECIPES, recipe
from unmask.checkpoints import describe
from unmask.storage import Store

ROOT = Path(__file__).parents[2]
SMALL = ("pretrained=false", "loader_workers=0", "batch=4", "epochs=2")
MOBILE = "model.backbone=mobilenetv3_small_050"

pytestmark = pytest.mark.slow


def unmask(*arguments: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "unmask.cli", *map(str, arguments)],
        cwd=cwd,
        env={**{k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def ffpp_clips(shared: Path) -> tuple[list[Path], list[Path]]:
    root = shared / "videos" / "ffpp"
    return sorted(root.glob("original_sequences/**/*.mp4")), sorted(root.glob("manipulated_sequences/**/*.mp4"))


def sets(*settings: str) -> list[str]:
    return [part for setting in (*SMALL, *settings) for part in ("--set", setting)]


def train(name: str, data: Path, out: Path, *settings: str) -> dict[str, Any]:
    said = unmask("train", "--recipe", name, "--data", data, "--out", out, *sets(*settings), cwd=out.parent)
    assert "The model lies in" in said
    assert describe(out / "model.safetensors").trained
    summary: dict[str, Any] = json.loads((out / "summary.json").read_text())
    return summary


@pytest.mark.timeout(1200)
def test_celebdf(shared_dir: Path, tmp_path: Path) -> None:
    real, fake = ffpp_clips(shared_dir)
    celeb = tmp_path / "Celeb-DF"
    for n, path in enumerate(real):
        link(path, celeb / "Celeb-real" / f"id{n}_0000.mp4")
    for n, path in enumerate(fake[: len(real)]):
        link(path, celeb / "Celeb-synthesis" / f"id{n}_id{n + 20}_0000.mp4")
    out = tmp_path / "faces"
    unmask("preprocess", celeb, "--out", out, "--frames", 10, "--margin", 1.3, cwd=tmp_path)
    model = tmp_path / "celebdf"
    summary = train("celebdf-mobilenet", out, model, MOBILE, "fractions=[0.34,0.33,0.33]", "size_px=96")
    assert set(summary["models"]) == {"seed-0", "seed-0-plain"}
    assert (model / "plots" / "auc.png").exists()
    assert (model / "evaluation" / "evaluation.html").exists()


@pytest.mark.timeout(1200)
def test_dfdc(shared_dir: Path, tmp_path: Path) -> None:
    real, fake = ffpp_clips(shared_dir)
    for n, (original, made) in enumerate(zip(real, fake, strict=False)):
        part = tmp_path / "dfdc" / f"dfdc_train_part_{20 * n}"
        link(original, part / f"real{n}.mp4")
        link(made, part / f"fake{n}.mp4")
        about = {
            f"real{n}.mp4": {"label": "REAL", "split": "train", "original": None},
            f"fake{n}.mp4": {"label": "FAKE", "split": "train", "original": f"real{n}.mp4"},
        }
        (part / "metadata.json").write_text(json.dumps(about))
    out = tmp_path / "faces"
    products = ("--products", "crops,masks,folds", "--folds", 3, "--boxes-from-originals")
    unmask("preprocess", tmp_path / "dfdc", "--out", out, "--every", 30, "--margin", 1.6667, *products, cwd=tmp_path)
    for name in ("dfdc-b7", "dfdc-b5"):
        settings = ("seeds=[0,1]", "steps_per_epoch=3", "size_px=96", "only_changed=true", "val_fold=0")
        train(name, out, tmp_path / name, MOBILE, *settings)
        members = json.loads((tmp_path / name / "ensemble.json").read_text())["members"]
        assert len(members) == 2
    scored = unmask(
        "evaluate", "--model", tmp_path / "dfdc-b7" / "ensemble.json", "--data", out, "--split", "val", "--out",
        tmp_path / "evaluated", cwd=tmp_path,
    )  # fmt: skip
    assert "no test" in scored


@pytest.mark.timeout(1200)
def test_dfgc(shared_dir: Path, tmp_path: Path) -> None:
    _, fake = ffpp_clips(shared_dir)
    dfgc = tmp_path / "DFGC"
    rows = []
    for n in range(9):
        name = f"C{n % 3 + 1}/{n + 1}-{n % 2 + 1}-1-submit-7000{n % 3}.mp4"
        link(fake[n % len(fake)], dfgc / name)
        rows.append((name, 1.0 + n / 3))
    with (dfgc / "mos.csv").open("w") as file:
        csv.writer(file).writerows([("file", "mos"), *rows])
    out = tmp_path / "faces"
    unmask("preprocess", dfgc, "--out", out, "--fps", 5, "--margin", 1.3, cwd=tmp_path)
    for name in ("dfgc-convnext", "dfgc-eva"):
        settings = ("checkpoint_activations=false", "size_px=96", "split=identity", "fractions=[0.5,0.25,0.25]")
        train(name, out, tmp_path / name, MOBILE, *settings, "clips_per_video_tested=3")
        page = json.loads((tmp_path / name / "evaluation" / "evaluation.json").read_text())
        assert "plcc" in json.dumps(page)
    blend = [part for n, w in (("convnext", 0.75), ("eva", 0.25)) for part in
             ("--model", f"{tmp_path / f'dfgc-{n}' / 'model.safetensors'}:{w}")]  # fmt: skip
    unmask("evaluate", *blend, "--data", out, "--split", "unseen", "--out", tmp_path / "blend", cwd=tmp_path)


@pytest.mark.timeout(1200)
def test_selfblend_and_ln_tune(shared_dir: Path, tmp_path: Path) -> None:
    portraits = sorted((shared_dir / "faces").rglob("*.jpg"))[:24]
    for path in portraits:
        link(path, tmp_path / "people" / path.name)
    faces = tmp_path / "faces"
    unmask("preprocess", tmp_path / "people", "--dataset", "unlabelled", "--frames", 1, "--margin", 1.5, "--size", 352,
           "--out", faces, cwd=tmp_path)  # fmt: skip
    train("selfblend", faces, tmp_path / "selfblend", MOBILE, "size_px=96")
    found = json.loads((tmp_path / "selfblend" / "evaluation" / "selfblend.json").read_text())
    assert found["metrics"]["auc"]["value"] is not None
    videos = tmp_path / "crops"
    unmask("preprocess", shared_dir / "videos" / "ffpp", "--frames", 8, "--margin", 2, "--out", videos, cwd=tmp_path)
    settings = ("model.backbone=test_vit", "size_px=160", "alignment=0.1", "uniformity=0.1", "fractions=[0.4,0.3,0.3]")
    train("ln-tune", videos, tmp_path / "ln", *settings)


@pytest.mark.timeout(1200)
def test_ffpp_fusion(shared_dir: Path, tmp_path: Path) -> None:
    clips, model = tmp_path / "clips", tmp_path / "fusion"
    unmask("preprocess", shared_dir / "videos" / "ffpp", "--out", clips, "--frames", 20, "--margin", 1.3, "--box",
           cwd=tmp_path)  # fmt: skip
    settings = ("input.depth=random", "depth_px=56", "copies=1", "size_px=96", "fractions=[0.4,0.3,0.3]")
    train("ffpp-fusion", clips, model, *settings)
    told = json.loads((model / "seed-0" / "clips.json").read_text())
    assert told["kept_features"]["made"] == told["kept_features"]["clips"] > 0
    assert told["train"]["clips_left_out"] == {}
    said = unmask("evaluate", "--model", model / "model.safetensors", "--data", clips, "--split", "unseen", "--out",
                  tmp_path / "fused", cwd=tmp_path)  # fmt: skip
    assert " kept, 0 made" in " ".join(said.split())
    rows = json.loads((tmp_path / "fused" / "evaluation.json").read_text())["videos"]
    assert rows
    assert all(row["status"] == "scored" for row in rows)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RECIPES)
def test_the_published_architecture_takes_a_step(name: str, tmp_path: Path) -> None:
    clips = []
    for n in range(3):
        about = {"identity": [f"person-{n}"], "mos": 1.0 + n}
        faces = {0: [BOX], 3: [BOX]}
        clips.append(Clip(video=f"real/{n}", faces=faces, columns={"label": 0, **about}))
        fake = {"label": 1, "source": f"real/{n}", "method": "flip", **about}
        clips.append(Clip(video=f"fake/{n}", picture=faked, faces=faces, columns=fake))
    data = tmp_path / "data"
    finished_run(Store(data), clips, margin=2.2)
    config = overridden(
        recipe(name),
        ["pretrained=false", "epochs=1", "steps_per_epoch=1", "batch=2", "loader_workers=0", "seeds=0", "accumulate=1",
         "fractions=[0.34,0.33,0.33]", "clips_per_video_tested=1", "compare=false", "ema=none", "input.depth=random",
         "depth_px=126"],
    )  # fmt: skip
    (run,) = runs(config)
    material = Material.of(Catalogue.read([str(data)]), config, seed=0)
    training = Training(run, material, Store(tmp_path / "out"), Context(device=torch.device("cpu")))
    trained = [p for p in training.network.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained[-2:]]
    training.fit()
    assert training.progress.updates == 1
    assert any(not torch.equal(a, b) for a, b in zip(before, trained[-2:], strict=True))
    assert describe(tmp_path / "out" / "best.safetensors").config == recipe(name).model
    shutil.rmtree(tmp_path)  # some of these states have several gigabytes
