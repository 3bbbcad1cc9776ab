"""Training on Ray's workers: equal to one process, and to itself when a worker or the driver is killed."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.processes import children
from tests.products import ten_people
from train.config import TrainConfig, overridden
from train.context import Context
from train.distributed import fit_on_ray
from train.history import HISTORY
from train.recipes import recipe
from train.state import LAST
from train.worker import Task, train_all
from unmask.checkpoints import load
from unmask.errors import TrainingError, UsageError

ROOT = Path(__file__).parents[2]
SETTINGS = [
    "model.backbone=mobilenetv3_small_050", "pretrained=false", "size_px=64", "batch=4", "loader_workers=0", "lr=0.001",
    "dropout=0.3", "compare=false", "unfreeze_after=1", "fractions=[0.6,0.2,0.2]",
]  # fmt: skip
WORKER = re.compile(r"^ray::.*(RayTrainWorker|TrainWorker)")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ten_people(tmp_path_factory.mktemp("crops") / "ten")


def config(*more: str) -> TrainConfig:
    return overridden(recipe("celebdf-mobilenet"), [*SETTINGS, *more])


def fit(config: TrainConfig, data: Path, out: Path, workers: int = 2) -> list[str]:
    said: list[str] = []
    task = Task(config=config, data=(str(data),), out=str(out))
    fit_on_ray(task, workers=workers, address=None, device="cpu", max_failures=2, say=said.append)
    return said


def numbers(out: Path) -> list[dict[str, Any]]:
    rows = json.loads((out / "seed-0" / HISTORY).read_text())["epochs"]
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in rows]


@pytest.mark.usefixtures("local_ray")
def test_two_workers_step_as_one_with_twice_the_batch(data: Path, tmp_path: Path) -> None:
    # Without dropout and with the backbone's statistics standing still, what workers average is the whole batch.
    plain = ("dropout=0", "unfreeze_after=none", "pos_weight=none", "strategy=none", "epochs=1", "optim.name=sgd")
    said = fit(config(*plain), data, tmp_path / "two")
    assert any("2 workers on cpu" in line for line in said)
    assert any("epoch 1 of 1" in line for line in said)
    alone = Task(config=config(*plain, "batch=8"), data=(str(data),), out=str(tmp_path / "one"))
    train_all(alone, Context(device=torch.device("cpu")), said.append)
    (two,), (one,) = numbers(tmp_path / "two"), numbers(tmp_path / "one")
    assert two["train_loss"] == pytest.approx(one["train_loss"], abs=1e-5)
    assert two["val_loss"] == pytest.approx(one["val_loss"], abs=1e-5)
    models = [load(tmp_path / n / "seed-0" / "best.safetensors")[0] for n in ("one", "two")]
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=1e-4, atol=1e-6)
    assert not list((tmp_path / "two").glob(".r*"))


@pytest.mark.usefixtures("local_ray")
def test_more_workers_than_the_cluster_has_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"8 workers need 8 CPUs and the cluster has 2: give --workers 2"):
        fit(config(), data, tmp_path, workers=8)


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_what_a_worker_finds_wrong_is_said_once(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no usable face"):
        fit(config("min_face_px=500"), data, tmp_path / "faces")
    with pytest.raises(TrainingError, match=r"not finite in epoch 1, batch \d+, with ten/"):
        fit(config("lr=1e30", "unfreeze_after=none", "strategy=none"), data, tmp_path / "diverged")


def start(data: Path, out: Path) -> "subprocess.Popen[bytes]":
    options = [part for setting in [*SETTINGS, "epochs=6", "save_every_steps=3"] for part in ("--set", setting)]
    command = [sys.executable, "-m", "train.fit", "--recipe", "celebdf-mobilenet", "--data", str(data)]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--out", str(out), "--workers", "2", "--device", "cpu", "--no-evaluate", *options],
            cwd=ROOT,
            stderr=log,
            stdout=log,
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        )


def states(out: Path) -> Iterator[float]:
    """When the state was last written, again and again."""
    tick = threading.Event()
    while True:
        tick.wait(0.05)
        file = out / "seed-0" / LAST
        yield file.stat().st_mtime_ns if file.exists() else 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_worker_and_a_killed_driver_change_nothing(data: Path, tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    assert start(data, calm).wait(400) == 0
    driver = start(data, stormy)
    killed: list[str] = []
    seen = 0.0
    try:
        for state in states(stormy):
            if driver.poll() is not None:
                break
            if state <= seen:
                continue
            seen = state
            # In mid-epoch: some batches after the state was written.
            if len(killed) == 0:
                pid = next((p for p, title in children(driver.pid) if WORKER.search(title)), None)
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                    killed.append("worker")
            elif len(killed) == 1 and json_rows(stormy) >= 3:
                below = [p for p, _ in children(driver.pid)]
                driver.kill()
                driver.wait(60)
                tick = threading.Event()
                while any(Path(f"/proc/{p}").exists() for p in below):
                    tick.wait(0.1)
                driver = start(data, stormy)
                killed.append("driver")
        assert driver.wait(400) == 0
    finally:
        driver.kill()
        driver.wait(60)
    assert killed == ["worker", "driver"]
    calm_rows, stormy_rows = numbers(calm), numbers(stormy)
    assert len(stormy_rows) == len(calm_rows) == 6
    for calm_row, stormy_row in zip(calm_rows, stormy_rows, strict=True):
        assert stormy_row == pytest.approx(calm_row, abs=1e-6)
    models = [load(out / "model.safetensors")[0] for out in (calm, stormy)]
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=0, atol=1e-6)


def json_rows(out: Path) -> int:
    file = out / "seed-0" / HISTORY
    return len(json.loads(file.read_text())["epochs"]) if file.exists() else 0
