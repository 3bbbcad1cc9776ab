"""Several nodes, each a raylet with its own resources: where work goes, who is let in, what a lost node costs."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.mixed import paired_dataset
from tests.products import ten_people
from tests.rayhead import environment
from tests.raynodes import Machines, machines
from train.history import HISTORY
from unmask import __version__
from unmask.checkpoints import load
from unmask.products import Products
from unmask.storage import Store

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def start(there: Machines, *words: str) -> "subprocess.Popen[str]":
    """`unmask submit`: the driver runs on the head."""
    command = [sys.executable, "-m", "unmask.cli", "submit", "--address", there.head.url, "--no-pack", *words]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def dataset(folder: Path, copies: int) -> Path:
    """Ten clips, several times over."""
    data = paired_dataset(folder / "one", pairs=5)
    (folder / "all" / "real").mkdir(parents=True)
    for n, clip in enumerate(sorted(data.rglob("*.mp4")) * copies):
        os.link(clip, folder / "all" / "real" / f"{n:03d}.mp4")
    return folder / "all"


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    store = Store(out)
    return [row for s in Products(store).shards() for row in store.read_table(f"{table}/{s:05d}.parquet").to_pylist()]


def smoke(there: Machines, storage: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "cluster.smoke", "--address", there.head.gcs, "--storage", str(storage), *words]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900)


def test_decoding_goes_to_cpu_nodes_and_detection_to_gpu_nodes(tmp_path: Path) -> None:
    data = dataset(tmp_path, 3)
    seen: dict[str, set[str]] = {"decoding": set(), "plain": set()}
    with machines(decoding={"cpus": 2, "decodes": True}, plain={"cpus": 1, "gpus": 1}) as there:
        # The GPU is a number: what would run there runs on its node's CPU.
        words = ("--frames", "8", "--detect-gpus", "1", "--device", "cpu", "--shard-videos", "3")
        job = start(there, "preprocess", str(data), "--out", str(tmp_path / "out"), *words)
        tick = threading.Event()
        while job.poll() is None:
            for name in seen:
                for title in there.processes(name).values():
                    seen[name] |= {what for what in ("pipelines.decoder", "(Stage)") if what in title}
            tick.wait(0.2)
        said, _ = job.communicate(timeout=60)
        assert job.returncode == 0, said
    assert seen == {"decoding": {"pipelines.decoder"}, "plain": {"(Stage)"}}


def test_a_node_that_is_lost_changes_nothing(tmp_path: Path) -> None:
    data = dataset(tmp_path, 6)
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    words = ("--every", "2", "--shard-videos", "4", "--embed", "mobilenetv3_small_050", "--no-pretrained")
    with machines(first={"cpus": 1}, second={"cpus": 1}) as there:
        undisturbed = start(there, "preprocess", str(data), "--out", str(calm), *words)
        said, _ = undisturbed.communicate(timeout=900)
        assert undisturbed.returncode == 0, said
        job = start(there, "preprocess", str(data), "--out", str(stormy), *words)
        tick = threading.Event()
        while len(list(stormy.glob("videos/*.parquet"))) < 4:
            assert job.poll() is None, job.communicate()[0]
            tick.wait(0.1)
        there.kill(next(n for n in there.nodes if any("(Stage)" in title for title in there.processes(n).values())))
        # As an autoscaler would.
        there.add("third", cpus=1)
        said, _ = job.communicate(timeout=900)
        assert job.returncode == 0, said
    (features,) = {f"features/{p.parent.name}" for p in calm.glob("features/*/*.parquet")}
    for table in ("videos", "faces", features):
        assert rows(stormy, table) == rows(calm, table)
    crops = {p.name: p.read_bytes() for p in calm.glob("crops/*.tar")}
    assert len(crops) == 15
    assert {p.name: p.read_bytes() for p in stormy.glob("crops/*.tar")} == crops
    assert not list(stormy.rglob("*.part"))


def epochs(out: Path) -> list[dict[str, Any]]:
    history = out / "seed-0" / HISTORY
    rows = json.loads(history.read_text())["epochs"] if history.exists() else []
    return [{k: v for k, v in row.items() if k not in ("seconds", "samples_per_s")} for row in rows]


def test_a_training_whose_node_is_lost_goes_on_from_its_state(tmp_path: Path) -> None:
    data, calm, stormy = ten_people(tmp_path / "ten"), tmp_path / "calm", tmp_path / "stormy"
    settings = [
        "model.backbone=mobilenetv3_small_050", "pretrained=false", "size_px=64", "batch=4", "loader_workers=0",
        "dropout=0.3", "compare=false", "unfreeze_after=1", "fractions=[0.6,0.2,0.2]", "epochs=6", "save_every_steps=3",
    ]  # fmt: skip
    words = ["train", "--recipe", "celebdf-mobilenet", "--data", str(data), "--workers", "2", "--device", "cpu"]
    words += ["--no-evaluate", *(part for setting in settings for part in ("--set", setting))]
    with machines(first={"cpus": 1}, second={"cpus": 1}) as there:
        undisturbed = start(there, *words, "--out", str(calm))
        said, _ = undisturbed.communicate(timeout=600)
        assert undisturbed.returncode == 0, said
        job = start(there, *words, "--out", str(stormy))
        tick = threading.Event()
        while len(epochs(stormy)) < 2:
            assert job.poll() is None, job.communicate()[0]
            tick.wait(0.1)
        assert any("RayTrainWorker" in title for title in there.processes("second").values())
        there.kill("second")
        there.add("third", cpus=1)
        said, _ = job.communicate(timeout=600)
        assert job.returncode == 0, said
    assert "seed-0: goes on from epoch" in said
    assert len(epochs(stormy)) == len(epochs(calm)) == 6
    for stormy_row, calm_row in zip(epochs(stormy), epochs(calm), strict=True):
        assert stormy_row == pytest.approx(calm_row, abs=1e-6)
    models = [load(out / "model.safetensors")[0] for out in (calm, stormy)]
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], rtol=0, atol=1e-6)


def test_the_smoke_test_sees_a_whole_cluster_and_a_node_of_another_version(tmp_path: Path) -> None:
    with machines(first={"cpus": 2}) as there:
        done = smoke(there, tmp_path / "store", "--nodes", "2", "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        found = {line["trial"]: line for line in map(json.loads, done.stdout.splitlines())}
        assert list(found) == ["nodes", "versions", "gpus", "storage", "preprocess", "train", "serve"]
        assert all(line["ok"] for line in found.values())
        assert not list((tmp_path / "store").rglob("*.*"))
        # A node whose Unmask is another one: what is installed there says so.
        old = tmp_path / "old" / "unmask-0.0.9.dist-info"
        old.mkdir(parents=True)
        (old / "METADATA").write_text("Metadata-Version: 2.1\nName: unmask\nVersion: 0.0.9\n")
        there.add("old", cpus=1, env={"PYTHONPATH": f"{old.parent}{os.pathsep}{ROOT}"})
        skipped = [word for trial in ("preprocess", "train", "serve") for word in ("--skip", trial)]
        done = smoke(there, tmp_path / "store", "--nodes", "4", *skipped, "--json")
        assert done.returncode == 1
        found = {line["trial"]: line for line in map(json.loads, done.stdout.splitlines())}
        assert [line["ok"] for line in found.values()] == [False, False, True, True]
        assert "3 nodes and 4 were expected" in found["nodes"]["detail"]
        assert f"has other versions: unmask 0.0.9 (here {__version__})" in found["versions"]["detail"]
        assert "2 of 4 trials failed: nodes, versions" in done.stderr
