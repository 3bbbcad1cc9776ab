"""The Ray that a run works on: the cluster that it was submitted to or told of, or one of its own that ends with it."""

import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unmask.errors import UsageError

__all__ = ["DECODES", "Cluster", "ray_session"]

DECODES = "unmask_decode"
"""A resource that nodes may have: where some do, videos are decoded there and nowhere else."""

# Ray talks to the console in C++, too; what matters reaches the user as one sentence.
_DEFAULTS = {"RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_DEDUP_LOGS": "1"}
_KNOCK_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What a cluster has."""

    cpus: float
    gpus: float
    store_bytes: float
    """Of the object store, on all nodes together."""
    is_own: bool
    """It was started for this run."""
    decoding_cpus: float | None = None
    """Of the nodes that have `DECODES`; None where no node has it, and all decode."""


@contextmanager
def ray_session(address: str | None = None, *, cpus: int | None = None) -> Iterator[Cluster]:
    """Be connected to Ray.

    Args:
        address: Of a cluster. If None, that of `RAY_ADDRESS` (which `ray job submit` sets); without one, a Ray of one's
            own is started on this machine and stopped at the end. A Ray to which the process is connected already is
            used, and stays.
        cpus: How many CPUs a Ray of one's own shall count; all of the machine's by default.

    Raises:
        UsageError: The cluster cannot be reached.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield _cluster(is_own=False)
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    is_own = address is None
    scratch = tempfile.mkdtemp(prefix="unmask-ray-") if is_own else None
    logging.getLogger("ray").setLevel(logging.ERROR)
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own making
            _connect(address, scratch, cpus)
        for number, handler in handlers.items():
            signal.signal(number, handler)  # Ray puts its own in their place
        yield _cluster(is_own=is_own)
    finally:
        ray.shutdown()
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _connect(address: str | None, scratch: str | None, cpus: int | None) -> None:
    import ray

    # Ray gives its daemons half a minute, which a busy machine may need and more.
    for is_last in (False, True):
        try:
            with _silence():
                if address is None:
                    ray.init(
                        address="local",
                        num_cpus=cpus,
                        include_dashboard=False,
                        log_to_driver=False,
                        logging_level=logging.ERROR,
                        _temp_dir=scratch,
                    )
                else:
                    _knock(address)
                    ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
            _leave_standard_output()
            return
        except Exception as error:  # of any class
            ray.shutdown()
            if scratch is not None:
                _end_daemons(scratch)
            if address is None and not is_last:
                del error
                gc.collect()  # else Python complains of these processes later
                continue
            cause = " ".join(str(error).split())[:200]
            raise UsageError(
                f"Ray cannot be reached at {address} ({cause}); check --address"
                if address
                else f"Ray cannot be started on this machine ({cause}); see what else runs there, or give --address"
            ) from None


def _knock(address: str) -> None:
    """See that somebody listens: Ray itself tries for minutes.

    Raises:
        OSError: Nobody does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_S).close()


def _leave_standard_output() -> None:
    """Let Ray tell its errors on standard error: it prints them among our results, and no setting of its own helps."""
    import ray._private.worker as there

    said: Any = there.print_to_stdstream
    if said.__module__ != __name__:

        def print_to_stderr(data: dict[str, Any], ignore_prefix: bool) -> None:
            said({**data, "is_err": True}, ignore_prefix)

        there.print_to_stdstream = print_to_stderr


def _end_daemons(scratch: str) -> None:
    """Kill what a Ray that never came up has left behind: the processes that were told of its folder."""
    for line in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            pid = int(line.parent.name)
            if pid != os.getpid() and scratch.encode() in line.read_bytes():
                os.kill(pid, signal.SIGKILL)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep what Ray's C++ prints while it starts off standard error; what goes wrong is raised."""
    sys.stderr.flush()
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _cluster(*, is_own: bool) -> Cluster:
    import ray

    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    decoding = sum(float(resources.get("CPU", 0.0)) for resources in alive if DECODES in resources)
    return Cluster(
        cpus=has.get("CPU", 1.0),
        gpus=has.get("GPU", 0.0),
        store_bytes=has.get("object_store_memory", 0.0),
        is_own=is_own,
        decoding_cpus=decoding or None,
    )
