"""The commands of docs/*.md, as they stand there, one after the other in one folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from tests.mixed import paired_dataset
from tests.portraits import filmed

ROOT = Path(__file__).parents[2]
# What training does for hours, in seconds.
SMALL = ("pretrained=false", "epochs=1", "batch=4", "loader_workers=0", "compare=false")
LARGE_BACKBONE, SMALL_BACKBONE = "vit_large_patch14_clip_224.openai", "mobilenetv3_small_050"


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    return [shlex.split(line) for block in blocks(page, "sh") for line in block.splitlines()]


def run(command: list[str], folder: Path, timeout_s: float = 300) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    env.pop("RAY_ADDRESS", None)
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, (command, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_about_datasets_works(tmp_path: Path) -> None:
    paired_dataset(tmp_path / "clips")
    found = commands("datasets.md")
    assert len(found) == 5
    for command in found:
        run(command, tmp_path)
    for folder, expected in (
        ("faces", "crops/00000.tar"),
        ("all", "folds.parquet"),
        ("pairs", "exports/dfdc/boxes/000.json"),
        ("scores", "submission.csv"),
        ("fused", "index.html"),
    ):
        assert (tmp_path / "out" / folder / expected).is_file()
    (code,) = blocks("datasets.md", "python")
    assert len(run([sys.executable, "-c", code], tmp_path).splitlines()) > 100


def small(command: list[str]) -> list[str]:
    """The same with fewer weights and epochs."""
    command = [SMALL_BACKBONE if word == LARGE_BACKBONE else word for word in command]
    if "--embed" in command:
        return [*command, "--no-pretrained"]
    if command[1] != "train" or "--out" not in command:
        return command
    settings = [*SMALL, f"model.backbone={SMALL_BACKBONE}"]
    if "cached_features=true" not in command:
        settings.append("size_px=64")
    return [*command, *(part for setting in settings for part in ("--set", setting))]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_about_training_works(tmp_path: Path) -> None:
    paired_dataset(tmp_path / "clips", pairs=5)
    (tmp_path / "photos").mkdir()
    for n, image_HWC in enumerate(filmed(40)):
        if n % 4 == 0:
            assert cv2.imwrite(str(tmp_path / "photos" / f"{n}.jpg"), image_HWC[..., ::-1])
    found = commands("training.md")
    assert len(found) == 13
    for command in found:
        run(small(command), tmp_path, 600)
    for expected in (
        "augmented.png",
        *(f"{name}/model.safetensors" for name in ("detector", "two", "selfblend", "head")),
        "detector/evaluation/evaluation.html",
        "selfblend/evaluation/selfblend.json",
        "evaluation/evaluation.html",
        "both/evaluation.json",
    ):
        assert (tmp_path / "out" / expected).is_file(), expected
    # What the page says that a training leaves.
    for name in ("config.json", "summary.json", "plots/loss.png", "seed-0/last.pt", "seed-0/history.json"):
        assert (tmp_path / "out" / "detector" / name).is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_about_fusion_students_and_onnx_works(tmp_path: Path) -> None:
    paired_dataset(tmp_path / "clips", pairs=5)
    run(["unmask", "preprocess", "clips", "--out", "out/faces", "--frames", "4", "--margin", "1.7"], tmp_path)
    for line in commands("training.md"):
        if line[:2] == ["unmask", "train"] and "out/detector" in line and "--out" in line:
            run(small(line), tmp_path, 600)
    found = commands("fusion.md")
    assert len(found) == 8
    settings = [part for each in SMALL if not each.startswith("compare") for part in ("--set", each)]
    for command in found:
        run([*command, *settings] if command[1] == "train" else command, tmp_path, 600)
    for expected in (
        "fusion/seed-0/clips.json",
        "fused/evaluation.html",
        "student/evaluation/distill.json",
        "student-int8.onnx",
        "student.json",
    ):
        assert (tmp_path / "out" / expected).is_file(), expected
    assert len(list((tmp_path / "out" / "maps" / "depth").rglob("00000.parquet"))) == 2  # maps, and only features
