"""Several Ray nodes on one machine: separate raylets with resources of their own, any of which may be killed."""

import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.session import DECODES
from tests.processes import children
from tests.rayhead import BIN, Head, environment, kill_all, ray_head

__all__ = ["Machines", "machines"]

ROOT = Path(__file__).parents[1]
_OBJECTS = "200000000"
_STARTS = 3


class Machines:
    """A head that takes no work, and nodes.

    Attributes:
        head: Where it answers.
        nodes: Process ids of `ray start`, by name.
    """

    def __init__(self, head: Head, folder: Path, env: Mapping[str, str]) -> None:
        self.head, self._folder = head, folder
        self._env = {"PYTHONPATH": str(ROOT), **env}
        self.nodes: dict[str, subprocess.Popen[bytes]] = {}

    def add(
        self, name: str, *, cpus: int = 1, gpus: int = 0, decodes: bool = False, env: Mapping[str, str] | None = None
    ) -> None:
        """Start a node, and wait until the head counts it; it counts GPUs that are not there."""
        options = ["--num-cpus", str(cpus), "--num-gpus", str(gpus), "--object-store-memory", _OBJECTS]
        options += ["--resources", json.dumps({DECODES: 1})] if decodes else []
        # As many nodes on one machine need.
        options += ["--min-worker-port", "0", "--max-worker-port", "0", "--dashboard-agent-listen-port", "0"]
        before = self.alive()  # one that was killed a moment ago may still be among them
        for _ in range(_STARTS):
            with (self._folder / f"{name}.log").open("ab") as log:
                self.nodes[name] = subprocess.Popen(
                    [BIN / "ray", "start", "--address", self.head.gcs, "--block", *options],
                    env=environment(**{**self._env, **(env or {})}),
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            # Ray gives a node half a minute, which a busy machine may need and more.
            while self.nodes[name].poll() is None:
                if self.alive() - before:
                    return
                time.sleep(0.5)
        raise AssertionError(self.log(name)[-3000:])

    def alive(self) -> set[str]:
        """Ids of the nodes that the head takes for alive, itself among them."""
        with urllib.request.urlopen(f"{self.head.url}/nodes?view=summary", timeout=30) as answer:
            summary = json.load(answer)["data"]["summary"]
        return {node["raylet"]["nodeId"] for node in summary if node["raylet"].get("state") == "ALIVE"}

    def log(self, name: str) -> str:
        """What a node's start has said."""
        return (self._folder / f"{name}.log").read_text()

    def processes(self, name: str) -> dict[int, str]:
        """Titles and command lines of all that runs on a node, by process id."""
        return dict(children(self.nodes[name].pid))

    def kill(self, name: str) -> None:
        """Pull a node's plug: all its processes at once, without a word."""
        kill_all(self.nodes.pop(name))

    def end(self) -> None:
        """End all nodes."""
        for node in self.nodes.values():
            node.terminate()
        for node in self.nodes.values():
            try:
                node.wait(60)
            except subprocess.TimeoutExpired:
                kill_all(node)


@contextmanager
def machines(*options: str, env: Mapping[str, str] | None = None, **nodes: Mapping[str, Any]) -> Iterator[Machines]:
    """Nodes by name, with their `cpus`, `gpus`, and whether they alone decode; all are up at the beginning.

    Args:
        options: More of the head's `ray start`.
        env: More variables of all of them.
        nodes: Beside the head.
    """
    folder = Path(tempfile.mkdtemp(prefix="un-", dir="/tmp"))
    try:
        with ray_head(folder / "head.log", "--object-store-memory", _OBJECTS, *options, cpus=0, env=env) as head:
            found = Machines(head, folder, env or {})
            try:
                for name, resources in nodes.items():
                    found.add(name, **resources)
                yield found
            finally:
                found.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
