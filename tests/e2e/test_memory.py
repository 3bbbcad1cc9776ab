"""How much memory the command takes, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import clips
from tests.clips import Encoding
from tests.portraits import filmed

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

FAST = Encoding("fast", "libx264", ".mp4", options={"preset": "ultrafast", "g": "250", "bf": "2"})
SCRIPT = """
import resource, sys
from typer.testing import CliRunner
from unmask.cli import app
result = CliRunner().invoke(app, sys.argv[1:], catch_exceptions=False)
print(result.stdout, end="")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def score(*arguments: object) -> tuple[dict[str, Any], float]:
    """The row of one video, and the peak of the process's memory in GB."""
    command = [sys.executable, "-c", SCRIPT, "score", "--json", "--device", "cpu", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=600)
    row, peak_kb = done.stdout.splitlines()
    return json.loads(row), int(peak_kb) / 1024**2


def test_ten_seconds_of_1080p(tmp_path: Path) -> None:
    path = clips.clip(tmp_path / "hd", FAST, images=filmed(300, 1920, 1080), width=1920, height=1080, rate=30)
    row, peak_gb = score("--out", tmp_path / "report", path)
    assert row["frames"]["scored"] == 32
    assert peak_gb <= 1.5


def test_every_frame_of_a_long_clip(tmp_path: Path) -> None:
    """Memory does not grow with the length: five minutes take hardly more than ten seconds."""
    short = clips.clip(tmp_path / "short", FAST, images=filmed(250), width=320, height=240)
    long = clips.clip(tmp_path / "long", FAST, images=filmed(7500), width=320, height=240)
    (_, short_gb), (row, long_gb) = (score("--every", 1, "--out", tmp_path / path.stem, path) for path in (short, long))
    assert row["frames"]["received"] == 7500
    assert row["frames"]["scored"] >= 7400
    assert long_gb <= short_gb + 0.1
