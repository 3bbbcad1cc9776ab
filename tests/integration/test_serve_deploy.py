"""The service as it is started: by `unmask serve` with keys, and by Ray Serve's own commands on a cluster."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from websockets.sync.client import connect

from tests.clips import clip
from tests.portraits import filmed
from tests.rayhead import BIN, environment, ray_head
from tests.rtsp_server import filming
from tests.service import Service, alone, balanced, free_port, scores, started, until

ROOT = Path(__file__).parents[2]
KEY = "a-key-of-this-test-1234"


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("film") / "film"
    return clip(path, frames=8, width=320, height=240, images=filmed(8)).read_bytes()


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text(f"# for tests\n{KEY}\n")
    return path


@pytest.mark.slow
def test_with_keys_nobody_gets_in_without_one(tmp_path: Path, keys: Path, film: bytes) -> None:
    options = ("--api-key-file", str(keys), "--hosts", "1")
    with alone(tmp_path / "state", *options, key=KEY) as service, httpx.Client(base_url=service.url) as stranger:
        for headers in ({}, {"X-Api-Key": "a-guess-of-this-test-1234"}, {"Authorization": "Bearer none"}):
            for path in ("/v1/streams", "/v1/models", "/v1/openapi.json", "/metrics", "/readyz"):
                refused = stranger.get(path, headers=headers)
                assert (refused.status_code, refused.json()["error"]["code"]) == (401, "KEY_REQUIRED")
                assert refused.headers["WWW-Authenticate"] == "Bearer"
        assert stranger.get("/healthz").status_code == 200
        assert stranger.get("/").status_code == 200  # the page asks for the key
        assert stranger.get("/v1/streams", headers={"Authorization": f"Bearer {KEY}"}).json() == []
        assert service.http.get("/v1/streams").status_code == 200
        check_scores(service, film)
        with connect(service.url.replace("http", "ws") + "/v1/live") as ws:
            assert json.loads(ws.recv(30))["error"]["code"] == "KEY_REQUIRED"
        with connect(service.url.replace("http", "ws") + "/v1/live", additional_headers={"X-Api-Key": KEY}) as ws:
            assert json.loads(ws.recv(30))["event"] == "credits"


def test_other_machines_are_let_in_with_keys_only(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unmask.cli", "serve", "--host", "0.0.0.0", "--state", str(tmp_path / "state")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2
    (sentence,) = refused.stderr.strip().splitlines()
    assert "--host 0.0.0.0" in sentence
    assert "--api-key-file" in sentence
    assert not (tmp_path / "state").exists()


def check_scores(service: Service, film: bytes) -> None:
    answer = service.http.post("/v1/analyses", params={"frames": 2}, content=film)
    assert answer.status_code == 202, answer.text
    found = service.analysed(answer.json()["id"])
    assert found["error"] is None
    assert found["result"]["frames"]["scored"] == 2


@contextmanager
def asked(port: int, state: Path, key: str = "") -> Iterator[Service]:
    """A service that others start, once it is ready."""
    headers = {"X-Api-Key": key} if key else {}
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, headers=headers) as http:

        def ready() -> Any:
            with suppress(httpx.TransportError):
                return http.get("/readyz").status_code == 200
            return False

        until(ready, 240.0)
        yield Service(str(http.base_url), state, http)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_config_file_is_deployed(tmp_path: Path, keys: Path, film: bytes) -> None:
    """As cluster/serve.yaml is, but for its paths and port."""
    config, port = yaml.safe_load((ROOT / "cluster/serve.yaml").read_text()), free_port()
    config["http_options"]["port"] = port
    (application,) = config["applications"]
    application["args"] |= {"port": port, "state": str(tmp_path / "state"), "api_key_file": str(keys), "hosts": 1}
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump(config))
    with ray_head(tmp_path / "log", "--resources", '{"unmask_state": 1}', cpus=4) as head:
        command = [BIN / "serve", "deploy", "--address", head.url, str(tmp_path / "serve.yaml")]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        with asked(port, tmp_path / "state", KEY) as service:
            assert httpx.get(f"{service.url}/v1/streams").status_code == 401
            check_scores(service, film)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_serve_run_takes_the_application_by_name(tmp_path: Path, film: bytes) -> None:
    """`serve run` listens where Serve of that cluster does."""
    port, state = free_port(), tmp_path / "state"
    with ray_head(tmp_path / "log", cpus=4) as head:
        told = {"env": environment(), "cwd": ROOT}
        start = [BIN / "serve", "start", "--address", head.gcs, "--http-port", str(port)]
        subprocess.run(start, check=True, capture_output=True, timeout=300, **told)  # type: ignore[call-overload]
        run = [BIN / "serve", "run", "--address", head.gcs, "serve.app:build", f"state={state}", "hosts=1"]
        with (tmp_path / "run").open("wb") as log, subprocess.Popen(run, stdout=log, stderr=log, **told) as process:  # type: ignore[call-overload]
            try:
                with asked(port, state) as service:
                    check_scores(service, film)
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(120)


@pytest.mark.slow
def test_streams_come_back_after_a_restart(local_ray: None, tmp_path: Path, film: bytes) -> None:
    path = clip(tmp_path / "camera", frames=40, width=320, height=240, images=filmed(40))
    with filming(path) as camera:
        with started(tmp_path / "state", hosts=1, scorers=1) as service:
            stream_id = service.http.post("/v1/streams", json={"url": camera.url(), "name": "door"}).json()["id"]
            until(lambda: service.stream(stream_id)["frames"]["scored"] >= 4)
            analysis = service.analysed(service.upload(film).json()["id"])
            events = scores(service, stream_id)
        with started(tmp_path / "state", hosts=1, scorers=1) as service:
            assert service.http.get(f"/v1/analyses/{analysis['id']}").json() == analysis
            before = events[-1][1]["seq"]
            until(lambda: (service.stream(stream_id)["last"] or {"seq": 0})["seq"] > before + 1)
            now = scores(service, stream_id)
            assert [n for n, _ in now][: len(events)] == [n for n, _ in events]
            assert "session_lost" in [e["reason"] for _, e in now if e["kind"] == "gap"]
            assert balanced(service.stream(stream_id)["frames"])
            assert service.stream(stream_id)["name"] == "door"
