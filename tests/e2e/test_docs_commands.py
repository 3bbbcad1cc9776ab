"""The commands of docs/datasets.md, as they stand there, one after the other in one folder."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mixed import paired_dataset

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "datasets.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_command_of_the_page_works(tmp_path: Path) -> None:
    paired_dataset(tmp_path / "clips")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    env.pop("RAY_ADDRESS", None)
    commands = [shlex.split(line) for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 5
    for command in commands:
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, (command, done.stderr)
        assert "Traceback" not in done.stderr
    for folder, expected in (
        ("faces", "crops/00000.tar"),
        ("all", "folds.parquet"),
        ("pairs", "exports/dfdc/boxes/000.json"),
        ("scores", "submission.csv"),
        ("fused", "index.html"),
    ):
        assert (tmp_path / "out" / folder / expected).is_file()
    (code,) = blocks("python")
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=True
    )
    assert len(shown.stdout.splitlines()) > 100
