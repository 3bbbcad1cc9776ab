"""A Ray head of a test's own, with a job server: on free ports, and ended by its process id."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

__all__ = ["BIN", "Head", "environment", "free_ports", "ray_head"]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """Where a head answers."""

    url: str
    """Of its job server."""
    gcs: str
    """HOST:PORT, which `ray.init` and other nodes take."""
    agent: str
    """Where a node tells its health."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def environment(**more: str) -> dict[str, str]:
    """What commands of Ray need, and no cluster that surrounds the test."""
    path = os.pathsep.join([str(BIN), os.environ["PATH"]])
    env = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")}
    return {**env, "PATH": path, "RAY_AUTH_MODE": "disabled", **more}


@contextmanager
def ray_head(log: Path, *options: str, cpus: int = 2) -> Iterator[Head]:
    """Start a head, and end it with all its processes.

    Args:
        log: What it prints goes there.
        options: More of `ray start`.
        cpus: How many it counts.
    """
    folder = Path(tempfile.mkdtemp(prefix="ur-", dir="/tmp"))  # sockets' paths must be short
    port, dashboard, agent, client = free_ports(4)
    told = ["--port", port, "--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
    told += ["--ray-client-server-port", client]  # another Ray may have the usual one
    with log.open("wb") as file:
        head = subprocess.Popen(
            [
                BIN / "ray",
                "start",
                "--head",
                "--block",
                "--num-cpus",
                str(cpus),
                "--temp-dir",
                folder,
                *map(str, told),
                *options,
            ],
            env=environment(),
            stdout=file,
            stderr=file,
        )
    found = Head(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", f"http://127.0.0.1:{agent}")
    try:
        # The server answers before its agent can take jobs.
        for _ in range(40):
            done = subprocess.run(
                [BIN / "ray", "job", "submit", "--address", found.url, "--", "true"],
                env=environment(), capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            if done.returncode == 0:
                break
            assert head.poll() is None, log.read_text()[-3000:]
        else:
            raise AssertionError(done.stderr + log.read_text()[-2000:])
        yield found
    finally:
        head.send_signal(signal.SIGTERM)  # `--block` ends its processes with it
        head.wait(60)
        shutil.rmtree(folder, ignore_errors=True)
