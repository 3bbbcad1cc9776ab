"""Several Ray nodes on one machine: separate raylets with resources of their own, any of which may be killed."""

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.processes import children
from tests.rayhead import BIN, Head, environment, ray_head

__all__ = ["Machines", "machines"]

ROOT = Path(__file__).parents[1]
_OBJECTS = "200000000"


class Machines:
    """A head that takes no work, and nodes.

    Attributes:
        head: Where it answers.
        nodes: Process ids of `ray start`, by name.
    """

    def __init__(self, head: Head, folder: Path) -> None:
        self.head, self._folder = head, folder
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def add(self, name: str, *, cpus: int = 1, gpus: int = 0, env: dict[str, str] | None = None) -> None:
        """Start a node; it counts GPUs that are not there."""
        options = [
            "--num-cpus",
            str(cpus),
            "--num-gpus",
            str(gpus),
            "--object-store-memory",
            _OBJECTS,
        ]
        # As many nodes on one machine need.
        options += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        with (self._folder / f"{name}.log").open("wb") as log:
            self.nodes[name] = subprocess.Popen(
                [BIN / "ray", "start", "--address", self.head.gcs, "--block", *options],
                env=environment(**{"PYTHONPATH": str(ROOT), **(env or {})}),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def await_nodes(self, within_s: float = 180.0) -> None:
        """Wait until the head counts all nodes."""
        deadline = time.monotonic() + within_s
        while self.alive() < len(self.nodes) + 1:
            assert time.monotonic() < deadline, {name: self.log(name)[-500:] for name in self.nodes}
            time.sleep(0.5)

    def alive(self) -> int:
        """Nodes that the head takes for alive, itself among them."""
        with urllib.request.urlopen(f"{self.head.url}/nodes?view=summary", timeout=30) as answer:
            summary = json.load(answer)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in summary)

    def log(self, name: str) -> str:
        """What a node's start has said."""
        return (self._folder / f"{name}.log").read_text()

    def processes(self, name: str) -> list[str]:
        """Titles and command lines of all that runs on a node."""
        return [title for _, title in children(self.nodes[name].pid)]

    def kill(self, name: str) -> None:
        """Pull a node's plug: all its processes at once, without a word."""
        node = self.nodes.pop(name)
        for pid in [*(pid for pid, _ in children(node.pid)), node.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, 9)
        node.wait(30)

    def end(self) -> None:
        """End all nodes."""
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            try:
                node.wait(60)
            except subprocess.TimeoutExpired:
                node.kill()
                node.wait(30)


@contextmanager
def machines(**nodes: dict[str, int]) -> Iterator[Machines]:
    """Nodes by name, with their `cpus` and `gpus`; all are up at the beginning."""
    folder = Path(tempfile.mkdtemp(prefix="un-", dir="/tmp"))
    try:
        with ray_head(folder / "head.log", "--object-store-memory", _OBJECTS, cpus=0) as head:
            found = Machines(head, folder)
            try:
                for name, resources in nodes.items():
                    found.add(name, **resources)
                found.await_nodes()
                yield found
            finally:
                found.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
