"""`ray job submit` against a running cluster does the same, and its exit code and log say what happened."""

import json
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mixed import paired_dataset

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head node with a job server; its URL."""
    folder = Path("/tmp") / f"unmask-job-{os.getpid()}"  # sockets' paths must be short
    folder.mkdir()
    port, dashboard, agent = free_ports(3)
    options = ["--port", port, "--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
    with (tmp_path_factory.mktemp("ray") / "log").open("wb") as log:
        head = subprocess.Popen(
            [BIN / "ray", "start", "--head", "--block", "--num-cpus", "2", "--temp-dir", folder, *map(str, options)],
            env=environment(),
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{dashboard}"
    try:
        # The server answers before its agent can take jobs.
        for _ in range(40):
            done = submit(url, "true")
            if done.returncode == 0:
                break
        else:
            pytest.fail(done.stderr)
        yield url
    finally:
        head.terminate()  # `--block` ends its processes with it
        head.wait(60)
        subprocess.run(["rm", "-rf", folder], check=True)


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "RAY_AUTH_MODE": "disabled"}


def submit(url: str, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--address", url, "--working-dir", ".", "--", *command],
        cwd=ROOT,
        env={k: v for k, v in environment().items() if k != "RAY_ADDRESS"},
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_job_does_the_same_and_says_how_it_went(cluster: str, tmp_path: Path) -> None:
    data, out = paired_dataset(tmp_path / "ffpp"), tmp_path / "out"
    command = ["python", "-m", "pipelines.preprocess", str(data), "--out", str(out), "--frames", "4"]
    done = submit(cluster, *command)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 videos" in done.stdout
    assert json.loads((out / "summary.json").read_text())["videos"]["by_status"] == {"done": 4}
    bad = data / "original_sequences/youtube/c23/videos/999.mp4"
    bad.write_text("no video")
    failed = submit(cluster, *command[:3], str(data), "--out", str(tmp_path / "again"), "--frames", "4")
    assert failed.returncode == 1
    assert "1 videos gave nothing" in failed.stdout
    with urllib.request.urlopen(f"{cluster}/api/jobs/", timeout=30) as answer:
        codes = sorted(job["driver_exit_code"] for job in json.load(answer) if "preprocess" in job["entrypoint"])
    assert codes == [0, 1]
    refused = submit(cluster, *command[:3], str(data), "--out", str(out), "--frames", "5")
    assert refused.returncode == 1
    assert "sampling.frames was 4, now 5" in refused.stdout or "manifest" in refused.stdout
    assert "Traceback (most recent call last)" not in refused.stdout
