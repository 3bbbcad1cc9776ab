"""The service as its tests start and ask it: real processes and real sockets."""

import contextlib
import io
import json
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import ray
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from serve.command import serving
from serve.settings import Settings
from tests.portraits import filmed

__all__ = [
    "HEADER",
    "Service",
    "alone",
    "balanced",
    "free_port",
    "hosts",
    "jpegs",
    "live",
    "scores",
    "sse",
    "started",
    "until",
    "watching",
]

HEADER = struct.Struct(">dI")
_STARTS = 3


def free_port() -> int:
    """A port of this machine at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(found: Callable[[], Any], within_s: float = 60.0) -> Any:
    """Wait for something that is true."""
    deadline = time.monotonic() + within_s
    while not (value := found()):
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(0.05)
    return value


@dataclass(frozen=True)
class Service:
    """A service that runs, and how to ask it."""

    url: str
    state: Path
    http: httpx.Client

    def analysed(self, analysis_id: str) -> dict[str, Any]:
        def done() -> Any:
            found = self.http.get(f"/v1/analyses/{analysis_id}").json()
            return found if found["state"] == "done" else None

        return until(done, 120.0)  # type: ignore[no-any-return]

    def upload(self, data: bytes, name: str = "clip.mp4", **options: Any) -> httpx.Response:
        return self.http.post("/v1/analyses", params={"name": name, "frames": 8}, content=data, **options)

    def spool(self) -> list[Path]:
        return list((self.state / "spool").iterdir())

    def stream(self, stream_id: str) -> Any:
        return self.http.get(f"/v1/streams/{stream_id}").json()

    def metrics(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        return {(s.name, frozenset(s.labels.items())): s.value for f in families for s in f.samples}


def sse(lines: Iterator[str]) -> Iterator[tuple[int, str, Any]]:
    """Server-sent events: id, kind and data of each."""
    fields: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(":"):
            name, _, value = line.partition(": ")
            fields[name] = value
        elif not line and "data" in fields:
            yield int(fields["id"]), fields["event"], json.loads(fields["data"])
            fields = {}


@contextlib.contextmanager
def started(state: Path, **settings: Any) -> Iterator[Service]:
    """A service in the Ray of this process, if it has one."""
    port = free_port()
    values = {
        "hosts": 2,
        "scorers": 2,
        "max_streams": 4,
        "max_upload_mb": 4,
        "allow_private": True,
        "scorer_cpus": 0.1,
        **settings,
    }
    with (
        serving(Settings(port=port, state=state, **values)) as url,
        httpx.Client(base_url=url, timeout=60.0) as http,
    ):
        yield Service(url, state, http)
    if ray.is_initialized():  # one that others use too
        until(lambda: not _hosts_left(), 15.0)


def _hosts_left() -> list[str]:
    named: list[dict[str, str]] = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in named if "-host-" in actor["name"]]


@contextlib.contextmanager
def alone(state: Path, *options: str, key: str = "") -> Iterator[Service]:
    """A service as a user starts it: `unmask serve` in a process of its own, with a Ray of its own."""
    port = free_port()
    command = [sys.executable, "-m", "unmask.cli", "serve", "--port", str(port), "--state", str(state), *options]
    headers = {"X-Api-Key": key} if key else {}
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0, headers=headers) as http,
        _running([*command, "--allow-private"], http),
    ):
        yield Service(str(http.base_url), state, http)


@contextlib.contextmanager
def _running(command: list[str], http: httpx.Client) -> Iterator[None]:
    """A service, once it is ready. Ray gives its daemons half a minute, which a busy machine may need and more."""
    for _ in range(_STARTS):
        with subprocess.Popen(command) as process:
            try:
                if until(lambda p=process: _is_ready(http) or p.poll() is not None, 240.0) and process.poll() is None:
                    yield
                    return
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                    process.wait(90)
    raise AssertionError(f"it ended with {process.returncode}")


def _is_ready(http: httpx.Client) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return http.get("/readyz").status_code == 200
    return False


def jpegs(count: int) -> list[bytes]:
    """A face under a drifting camera."""
    made = []
    for image in filmed(count):
        with io.BytesIO() as file:
            Image.fromarray(image).save(file, "JPEG", quality=90)
            made.append(file.getvalue())
    return made


def live(service: Service, messages: Iterable[tuple[float, bytes]]) -> tuple[list[Any], list[Any]]:
    """Send pictures with their times by the credits; what became of each, and all events."""
    told: list[dict[str, Any]] = []
    with connect(service.url.replace("http", "ws") + "/v1/live", close_timeout=5) as ws:
        credit = json.loads(ws.recv(30))["credits"]
        for pts_s, picture in messages:
            while not credit:
                told.append(json.loads(ws.recv(30)))
                credit += told[-1]["credits"]
            ws.send(HEADER.pack(pts_s, len(told) + 1) + picture)
            credit -= 1
        ws.send('{"end": true}')
        with contextlib.suppress(ConnectionClosed):
            while True:
                told.append(json.loads(ws.recv(30)))
    return [e for e in told if e["event"] in ("score", "dropped")], told


def hosts(count: int = 2) -> list[dict[str, Any]]:
    """The processes that hold streams: pid and streams of each, once they are all up."""
    import ray

    def up() -> Any:
        try:  # one that was killed is started again in its own time
            actors = [ray.get_actor(f"unmask-host-unmask-{number}", namespace="unmask") for number in range(count)]
            return list(ray.get([actor.playing.remote() for actor in actors], timeout=30))
        except (ValueError, ray.exceptions.RayActorError):
            return None

    found: list[dict[str, Any]] = until(up)
    return found


@contextlib.contextmanager
def watching(service: Service, url: str, **wanted: Any) -> Iterator[str]:
    """A stream for as long as the block lasts; its id."""
    answer = service.http.post("/v1/streams", json={"url": url, "fps": 5, **wanted})
    assert answer.status_code == 201, answer.text
    stream_id = answer.json()["id"]
    try:
        yield stream_id
    finally:
        assert service.http.delete(f"/v1/streams/{stream_id}").status_code in (204, 404)


def scores(service: Service, stream_id: str, after: int = 0) -> list[tuple[int, Any]]:
    """Score events that are stored by now."""
    headers, found = {"Last-Event-ID": str(after)}, []
    with service.http.stream("GET", f"/v1/streams/{stream_id}/events?follow=false", headers=headers) as answer:
        for number, kind, event in sse(answer.iter_lines()):
            found.append((number, {**event, "kind": kind}))
    return found


def balanced(frames: dict[str, Any]) -> bool:
    """Whether every frame is accounted for."""
    return bool(frames["received"] == frames["scored"] + sum(frames["dropped"].values()))
