"""Workers that take unlike long wait for one another, and not for ever."""

import contextlib
import datetime as dt
import time
from pathlib import Path

import pytest
import torch

from tests.workers import in_two_processes
from train.context import Context

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def test_one_worker_waits_for_nobody() -> None:
    with Context(device=torch.device("cpu")).apart(dt.timedelta(0)):
        pass


def test_each_waits_for_all(tmp_path: Path) -> None:
    def work(context: Context) -> None:
        with context.apart(dt.timedelta(seconds=100)):
            if not context.leads:
                time.sleep(0.5)  # a worker that takes longer
                (tmp_path / "done").touch()
        assert (tmp_path / "done").exists()

    in_two_processes(tmp_path, work)


def test_a_worker_that_is_late_or_lost_ends_the_wait(tmp_path: Path) -> None:
    def late(context: Context) -> None:
        given_up, deadline = tmp_path / "given-up", time.monotonic() + 30
        if context.leads:
            with pytest.raises(RuntimeError), context.apart(dt.timedelta(seconds=1)):
                pass
            given_up.touch()
        else:
            with contextlib.suppress(RuntimeError), context.apart(dt.timedelta(seconds=1)):
                while not given_up.exists():
                    assert time.monotonic() < deadline
                    time.sleep(0.02)

    def lost(context: Context) -> None:
        began = time.monotonic()
        if context.leads:
            with pytest.raises(RuntimeError), context.apart(dt.timedelta(hours=6)):
                pass
            assert time.monotonic() - began < 100
        else:
            with contextlib.suppress(ZeroDivisionError), context.apart(dt.timedelta(hours=6)):
                raise ZeroDivisionError

    for work in (late, lost):
        folder = tmp_path / work.__name__
        folder.mkdir()
        in_two_processes(folder, work)
