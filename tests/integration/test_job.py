"""`ray job submit` against a running cluster does the same, and its exit code and log say what happened."""

import json
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mixed import paired_dataset
from tests.rayhead import BIN, environment, ray_head

ROOT = Path(__file__).parents[2]


@pytest.fixture
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A head node with a job server; its URL."""
    with ray_head(tmp_path_factory.mktemp("ray") / "log") as head:
        yield head.url


def submit(url: str, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [BIN / "ray", "job", "submit", "--address", url, "--working-dir", ".", "--", *command],
        cwd=ROOT,
        env=environment(),
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
