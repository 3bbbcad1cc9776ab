"""Two workers on one machine, connected as those of a run are, without Ray."""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist

from train.context import Context

__all__ = ["in_two_processes"]

_LONGEST_S = 240


def in_two_processes(folder: Path, work: Callable[[Context], None]) -> None:
    """Run something on two workers that PyTorch's gloo connects; both must end in time, without an exception.

    Args:
        folder: Where they meet.
        work: Gets the worker's context. Runs in a fork of this process.
    """
    pids: list[int] = []
    deadline = time.monotonic() + _LONGEST_S
    try:
        for rank in range(2):
            pid = os.fork()
            if not pid:
                _work(folder, rank, work)
            pids.append(pid)
        assert [_status(pids.pop(0), deadline) for _ in range(2)] == [0, 0]
    finally:
        for pid in pids:
            _end(pid)


def _status(pid: int, deadline: float) -> int:
    """How a process ended; it is ended where it runs past a time of the monotonic clock."""
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    return _end(pid)


def _end(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _work(folder: Path, rank: int, work: Callable[[Context], None]) -> None:
    status = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
        work(Context(device=torch.device("cpu"), rank=rank, workers=2))
        dist.destroy_process_group()
        status = 0
    except BaseException as error:
        sys.__stderr__.write(f"worker {rank}: {error!r}\n")  # type: ignore[union-attr]
    finally:
        os._exit(status)
