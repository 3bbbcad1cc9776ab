"""A Ray head of a test's own, with a job server: on free ports, and ended by its process id."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.processes import children

__all__ = ["BIN", "Head", "environment", "free_ports", "kill_all", "ray_head"]

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
# Ray gives its daemons half a minute to come up, which a busy machine may need and more.
_STARTS, _KNOCKS = 3, 40


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
    # Else a node that is to end waits half a minute for work that might still run there.
    quick = {"RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    return {**env, "PATH": path, **quick, **more}


def kill_all(root: "subprocess.Popen[bytes]") -> None:
    """Pull the plug: a process and all below it at once, without a word."""
    for pid in [*(pid for pid, _ in children(root.pid)), root.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    root.wait(30)


class Head:
    """A head node; it may be killed and started again, with the same ports and the same folder.

    Args:
        log: What it prints goes there.
        options: More of `ray start`.
        cpus: How many it counts.
        env: More variables.

    Attributes:
        url: Of its job server.
        gcs: HOST:PORT, which `ray.init` and other nodes take.
        agent: Where a node tells its health.
        started_s: When it was last started; not all starts come to something on a busy machine.
    """

    def __init__(self, log: Path, options: tuple[str, ...], cpus: int, env: Mapping[str, str]) -> None:
        self._log, self._env = log, environment(**env)
        self._folder = Path(tempfile.mkdtemp(prefix="ur-", dir="/tmp"))  # sockets' paths must be short
        port, dashboard, agent, client = free_ports(4)
        self.url, self.gcs, self.agent = (
            f"http://127.0.0.1:{dashboard}",
            f"127.0.0.1:{port}",
            f"http://127.0.0.1:{agent}",
        )
        told = ["--port", port, "--dashboard-port", dashboard, "--dashboard-agent-listen-port", agent]
        told += ["--ray-client-server-port", client]  # another Ray may have the usual one
        told += ["--num-cpus", cpus, "--temp-dir", self._folder]
        self._command = [str(BIN / "ray"), "start", "--head", "--block", *map(str, told), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self.started_s = 0.0

    @property
    def pid(self) -> int:
        """Of `ray start`."""
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Start it, and wait until it takes jobs."""
        for _ in range(_STARTS):
            self.started_s = time.time()
            with self._log.open("ab") as file:
                self._process = subprocess.Popen(self._command, env=self._env, stdout=file, stderr=file)
            if self._takes_jobs():
                return
            kill_all(self._process)
        raise AssertionError(self._log.read_text()[-3000:])

    def _takes_jobs(self) -> bool:
        """The server answers before its agent can take jobs. False where the head has ended."""
        assert self._process is not None
        for _ in range(_KNOCKS):
            done = subprocess.run(
                [BIN / "ray", "job", "submit", "--address", self.url, "--", "true"],
                env=self._env, capture_output=True, timeout=300,
            )  # fmt: skip
            if done.returncode == 0:
                return True
            if self._process.poll() is not None:
                return False
        return False

    def kill(self) -> None:
        """Pull its plug."""
        assert self._process is not None
        kill_all(self._process)
        # A new container knows of no cluster. Where this note is left, Ray takes the other nodes, which name the head's
        # address, for a head that lives, and refuses to start another.
        (self._folder / "ray_current_cluster").unlink(missing_ok=True)

    def end(self) -> None:
        """End it, with all its processes."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)  # `--block` ends its processes with it
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                kill_all(self._process)
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def ray_head(log: Path, *options: str, cpus: int = 2, env: Mapping[str, str] | None = None) -> Iterator[Head]:
    """Start a head, and end it with all its processes.

    Args:
        log: What it prints goes there.
        options: More of `ray start`.
        cpus: How many it counts.
        env: More variables.
    """
    head = Head(log, options, cpus, env or {})
    try:
        head.start()
        yield head
    finally:
        head.end()
