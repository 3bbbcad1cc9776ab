"""Whatever is killed, and whenever: after the last start the output is that of an undisturbed run, row for row."""

import os
import random
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.clips import clip
from tests.portraits import filmed
from tests.processes import children, parent_of
from unmask.products import Products
from unmask.storage import Store

ROOT = Path(__file__).parents[2]
VIDEOS, DIFFERENT = 400, 30
# What is killed, in an order of chance.
KILLS = {"driver": 3, "decode worker": 5, "actor": 6, "assembly": 2, "decoder": 4}
# Titles that Ray gives its processes, and the decoder's command line. A decode worker is a decoder's parent.
VICTIMS = {
    "decode worker": re.compile(r"-m\0?\s*pipelines\.decoder"),
    "actor": re.compile(r"^ray::.*(MapWorker|Stage)"),
    "assembly": re.compile(r"^ray::AssemblyActor"),
    "decoder": re.compile(r"-m\0?\s*pipelines\.decoder"),
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    for kind in ("real", "fake"):
        (folder / kind).mkdir()
    images = list(filmed(60))
    clips = [
        clip(folder / f"{n}", frames=24, images=images[n : n + 24], width=320, height=240) for n in range(DIFFERENT)
    ]
    for n in range(VIDEOS):
        os.link(clips[n % DIFFERENT], folder / ("fake" if n % 2 else "real") / f"{n:03d}.mp4")
    for path in clips:
        path.unlink()
    (folder / "fake" / "not-a-video.mp4").write_text("no")
    return folder


def start(dataset: Path, out: Path) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "pipelines.preprocess", str(dataset), "--out", str(out), "--every", "2"]
    with (out.parent / f"{out.name}.log").open("ab") as log:
        return subprocess.Popen(
            [*command, "--scale", "1.5", "--shard-videos", "4", "--embed", "mobilenetv3_small_050", "--no-pretrained"],
            cwd=ROOT,
            stderr=log,
            stdout=log,
            # A cluster of one's own, whatever surrounds the test.
            env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
        )


def kill(driver: int, what: str) -> bool:
    """Kill one process of a kind below the driver, if there is one."""
    for pid, title in children(driver):
        if VICTIMS[what].search(title):
            try:
                os.kill(parent_of(pid) if what == "decode worker" else pid, signal.SIGKILL)
            except OSError:
                continue
            return True
    return False


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    store = Store(out)
    return [row for s in Products(store).shards() for row in store.read_table(f"{table}/{s:05d}.parquet").to_pylist()]


def commits(out: Path) -> int:
    """A number that grows with the work that is done."""
    whole = len(list(out.glob("videos/*.parquet")))
    return whole * 5 + len(list(out.glob("state/*/*.arrow")))


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_twenty_kills_change_nothing(dataset: Path, tmp_path: Path) -> None:
    calm, stormy = tmp_path / "calm", tmp_path / "stormy"
    assert start(dataset, calm).wait(900) == 1  # one file is no video
    rng = random.Random(3)
    plan = [what for what, times in KILLS.items() for _ in range(times)]
    rng.shuffle(plan)
    tick = threading.Event()
    done: list[str] = []
    driver = start(dataset, stormy)
    try:
        seen = 0
        while driver.poll() is None:
            tick.wait(0.05)
            if not plan or commits(stormy) <= seen:
                continue
            tick.wait(rng.uniform(0, 0.3))
            # The next of the plan that is there: a worker that has nothing to do just now is not. Decoders run ahead
            # of everything and end soonest, so two times of three they come first.
            first = [w for w in plan if w.startswith("decode")] if rng.random() < 0.67 else []
            what = next((w for w in [*first, *plan] if w == "driver" or kill(driver.pid, w)), None)
            if what is None:
                continue
            if what == "driver":
                below = [pid for pid, _ in children(driver.pid)]
                driver.kill()
                driver.wait(60)
                # Its Ray ends by itself.
                while any(Path(f"/proc/{pid}").exists() for pid in below):
                    tick.wait(0.1)
                driver = start(dataset, stormy)
            plan.remove(what)
            done.append(what)
            seen = commits(stormy)
        assert driver.returncode == 1
    finally:
        driver.kill()
        driver.wait(60)
    print(f"killed: {done}")
    assert not plan
    (features,) = {f"features/{p.parent.name}" for p in calm.glob("features/*/*.parquet")}
    for table in ("videos", "faces", features):
        assert rows(stormy, table) == rows(calm, table)
    crops = {p.name: p.read_bytes() for p in calm.glob("crops/*.tar")}
    assert {p.name: p.read_bytes() for p in stormy.glob("crops/*.tar")} == crops
    assert not list(stormy.rglob("*.part"))
    assert not list(stormy.glob("state/*/"))
