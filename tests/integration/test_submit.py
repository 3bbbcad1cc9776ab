"""`unmask submit` against a running head: the log and the exit code come back, and Ctrl-C stops what it is to stop."""

import json
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.dockerfile import stages
from tests.mixed import paired_dataset
from tests.rayhead import Head, environment, ray_head

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("ray") / "log") as found:
        yield found


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paired_dataset(tmp_path_factory.mktemp("data") / "ffpp")


def command(head: Head, *words: str) -> list[str]:
    return [sys.executable, "-m", "unmask.cli", "submit", "--address", head.url, *words]


def submit(head: Head, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(head, *words), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600
    )


def jobs(head: Head) -> dict[str, Any]:
    with urllib.request.urlopen(f"{head.url}/api/jobs/", timeout=30) as answer:
        return {job["submission_id"]: job for job in json.load(answer) if job["submission_id"]}


def until(found: Callable[[], Any], within_s: float = 180.0) -> Any:
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return value


def test_the_image_says_that_this_node_is_well(head: Head) -> None:
    """The Dockerfile's own healthcheck, at this head's port."""
    (check,) = stages((ROOT / "cluster/Dockerfile").read_text())[-1].all_of("HEALTHCHECK")
    line = check.text.partition("CMD ")[2]
    for url, code in ((f"{head.agent}/api/local_raylet_healthz", 0), ("http://127.0.0.1:9/", 1)):
        done = subprocess.run(["sh", "-c", line], env={**environment(), "HEALTH_URL": url}, timeout=60)
        assert done.returncode == code


def test_log_and_exit_code_come_back(head: Head, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = submit(head, "preprocess", str(data), "--out", str(out), "--frames", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 videos" in done.stdout
    assert "unmask: Job unmask-preprocess-" in done.stderr
    assert json.loads((out / "summary.json").read_text())["videos"]["by_status"] == {"done": 4}
    # A wrong configuration: status 2 and a sentence, as on this machine.
    refused = submit(head, "preprocess", str(data), "--out", str(out), "--frames", "5")
    assert refused.returncode == 2
    assert "sampling.frames was 4, now 5" in refused.stdout
    assert "Traceback" not in refused.stdout + refused.stderr


# What training does for hours, in seconds; and a service would be one more Ray than this machine likes.
FEWER = {
    "train.fit": [
        "--device", "cpu", "--no-evaluate", *(
            part for setting in (
                "model.backbone=mobilenetv3_small_050", "pretrained=false", "epochs=1", "size_px=64", "batch=4",
                "loader_workers=0", "compare=false",
            ) for part in ("--set", setting)
        ),
    ],
    "cluster.smoke": ["--skip", "serve"],
}  # fmt: skip


@pytest.mark.timeout(2400)
def test_the_lines_of_the_readme_work(head: Head, tmp_path: Path) -> None:
    paired_dataset(tmp_path / "videos", pairs=5)
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "http://HEAD:8265" in line]
    assert len(lines) == 6
    for line in lines:
        text = line.partition(" #")[0].replace("http://HEAD:8265", head.url).replace("/data/", f"{tmp_path}/")
        # The environment may lie elsewhere.
        text = text.replace(".venv/bin", str(Path(sys.executable).parent))
        words = [*shlex.split(text), *(word for name, more in FEWER.items() if name in text for word in more)]
        done = subprocess.run(words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, (line, done.stdout, done.stderr)
    for expected in (
        "faces/summary.json",
        "model/model.safetensors",
        "evaluation/evaluation.html",
        "scores/submission.csv",
    ):
        assert (tmp_path / expected).is_file(), expected


def test_a_job_with_videos_that_fail_has_their_exit_code(head: Head, tmp_path: Path) -> None:
    data = tmp_path / "clips"
    (data / "real").mkdir(parents=True)
    (data / "real" / "bad.mp4").write_text("no video")
    done = submit(head, "preprocess", str(data), "--out", str(tmp_path / "out"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 videos gave nothing" in done.stdout


@pytest.mark.parametrize("stop", [True, False], ids=["stop", "leave"])
def test_ctrl_c_stops_the_job_when_asked(head: Head, data: Path, tmp_path: Path, stop: bool) -> None:
    before = set(jobs(head))
    # A decoder that hangs for ever keeps the job busy.
    words = [
        "preprocess",
        str(data),
        "--out",
        str(tmp_path / "out"),
        "--debug-fault",
        "000=hang",
        "--decode-timeout",
        "600",
    ]
    asked = ["--stop-on-interrupt"] if stop else []
    mine = subprocess.Popen(
        command(head, *asked, *words),
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        (name,) = until(lambda: set(jobs(head)) - before)
        until(lambda: jobs(head)[name]["status"] == "RUNNING")
        mine.send_signal(signal.SIGINT)
        _, said = mine.communicate(timeout=120)
        assert mine.returncode == 130
        if stop:
            assert f"Stopped job {name}" in said
            assert jobs(head)[name]["status"] == "STOPPED"
        else:
            assert f"The job goes on: ray job logs --follow {name}" in said
            assert jobs(head)[name]["status"] == "RUNNING"
            ended = urllib.request.Request(f"{head.url}/api/jobs/{name}/stop", method="POST")
            urllib.request.urlopen(ended, timeout=30).close()
    finally:
        mine.kill()
        mine.wait(30)
