"""The service under what networks, callers and crowds do to it; and that a clip is the same by every way into it."""

import contextlib
import io
import json
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.annexb import access_units
from tests.clips import ENCODINGS, clip
from tests.portraits import filmed
from tests.processes import children
from tests.rtsp_server import Camera, certificate, filming
from tests.service import HEADER, Service, balanced, jpegs, live, scores, started, until, watching

BY_NAME = {encoding.name: encoding for encoding in ENCODINGS}
SIZE = {"width": 320, "height": 240}


@pytest.fixture(scope="module")
def service(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with started(tmp_path_factory.mktemp("service") / "state", max_streams=40, scorers=1, max_scorers=1) as found:
        yield found


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("film") / "film", images=filmed(40), **SIZE)


@pytest.fixture
def camera(film: Path) -> Iterator[Camera]:
    with filming(film) as found:
        yield found


def scored(service: Service, stream_id: str, more: int = 1) -> Any:
    """The stream, after so many more scores."""
    before = service.stream(stream_id)["frames"]["scored"]
    return until(lambda: (s := service.stream(stream_id))["frames"]["scored"] >= before + more and s)


# --- the socket -----------------------------------------------------------------------------------------------------


def test_the_socket_takes_h264(service: Service, film: Path, tmp_path: Path) -> None:
    """Reordered pictures, another size in the middle, a unit that is missing and one that is none."""
    units = access_units(film)
    large = access_units(clip(tmp_path / "large", images=filmed(12, 480, 360), width=480, height=360))
    faulty = [*units[:17], *units[18:24], (0.95, b"\0\0\1no unit"), *units[25:]]
    answers, told = live(service, [*faulty, *((2.0 + pts_s, data) for pts_s, data in large)])
    end = told[-1]
    assert end["event"] == "end", end
    assert balanced(end["frames"])
    assert end["frames"]["received"] == sum(e.get("count", 1) for e in answers) == len(faulty) + len(large)
    assert set(end["frames"]["dropped"]) <= {"corrupt_frame", "media_unreadable", "decode_failed"}
    assert end["frames"]["dropped"]["media_unreadable"] >= 1
    assert [e["reason"] for e in told if e["event"] == "gap"] == ["resolution_changed"]
    assert [e["media"]["codec"] for e in told if e["event"] == "state" and e["media"]] == ["h264"]
    times_s = [e["pts_s"] for e in answers if e["event"] == "score"]
    assert times_s == sorted(set(times_s))
    assert len(times_s) >= 20
    assert sum(at >= 2.0 for at in times_s) == 12


def malformed() -> Iterator[bytes]:
    """What no decoder should trip over."""
    whole, chance = jpegs(1)[0], random.Random(1)
    for n in range(24):
        broken = bytearray(whole[: chance.randrange(3, len(whole))] if n % 2 else whole)
        for _ in range(chance.randrange(1, 40)):
            broken[chance.randrange(len(broken))] = chance.randrange(256)
        yield bytes(broken)
    # Of 65500 x 65500 pixels, by its header.
    at = whole.index(b"\xff\xc0") + 5
    yield whole[:at] + b"\xff\xdc\xff\xdc" + whole[at + 4 :]
    with io.BytesIO() as file:
        Image.new("1", (20_000, 20_000)).save(file, "PNG")
        yield file.getvalue()
    yield from (b"\xff\xd8", b"GIF89a" + bytes(50), b"\0" * 100, whole * 3)


def test_malformed_pictures_are_dropped_one_by_one(service: Service) -> None:
    good = jpegs(1)[0]
    pictures = [good, *malformed(), good]
    answers, told = live(service, [(n / 10, picture) for n, picture in enumerate(pictures)])
    end = told[-1]
    assert end["event"] == "end", end
    assert end["frames"]["received"] == sum(e.get("count", 1) for e in answers) == len(pictures)
    assert balanced(end["frames"])
    assert set(end["frames"]["dropped"]) <= {"media_unreadable", "too_large", "no_face", "face_too_small"}
    assert end["frames"]["dropped"]["media_unreadable"] >= 8
    assert {answers[0]["event"], answers[-1]["event"]} == {"score"}


@pytest.mark.parametrize("message", [b"", HEADER.pack(0.0, 0), HEADER.pack(0.0, 99) + b"x", "prose", '{"end": false}'])
def test_messages_that_are_none_close_the_socket(service: Service, message: bytes | str) -> None:
    with connect(service.url.replace("http", "ws") + "/v1/live", close_timeout=5) as ws:
        ws.recv(30)
        ws.send(message)
        told = []
        with contextlib.suppress(ConnectionClosed):
            while True:
                told.append(json.loads(ws.recv(30)))
    assert ws.close_code in (1003, 1008, 1009)
    assert told[-1]["error"]["message"].endswith(".")


# --- the same by every way ------------------------------------------------------------------------------------------


class Windows:
    """What the processes of the service note of their windows; see tests/traced."""

    def __init__(self) -> None:
        self._folder = Path(os.environ["UNMASK_WINDOWS"])

    def __enter__(self) -> "Windows":
        (self._folder / "wanted").touch()
        return self

    def __exit__(self, *_: object) -> None:
        (self._folder / "wanted").unlink()

    def new(self) -> NDArray[np.float64]:
        """Statistics (n, S) of the windows since the last call, in order; one way at a time."""
        notes = []
        for file in sorted(self._folder.glob("*.jsonl")):
            notes += [json.loads(line) for line in file.read_text().splitlines()]
            file.unlink()
        return np.array([note["statistics"] for note in sorted(notes, key=lambda note: note["pts_s"])])


@pytest.mark.slow
def test_a_clip_has_the_same_window_features_by_every_way(service: Service, tmp_path: Path) -> None:
    """By upload, by RTSP and by the socket (its H.264 itself: a JPEG is another picture), each at the full rate."""
    # Not much slower: from 0.12 s on, a file's frames are searched one by one, and a stream's faces are followed.
    film = clip(tmp_path / "film", BY_NAME["h264-mp4"], images=filmed(48), rate=9, **SIZE)
    with filming(film) as camera, Windows() as windows:
        answer = service.http.post("/v1/analyses", params={"every": 1}, content=film.read_bytes())
        upload = service.analysed(answer.json()["id"])["result"]
        of_upload = windows.new()
        answers, told = live(service, access_units(film))
        of_socket = windows.new()
        for _ in range(8):  # a busy machine may drop a frame, and what comes after is another window
            with watching(service, camera.url(), fps=100) as stream_id:
                until(lambda i=stream_id: service.stream(i)["frames"]["received"] >= 48, 120)
                found = [e for _, e in scores(service, stream_id) if e["kind"] in ("score", "dropped", "gap")]
            of_stream = windows.new()
            whole = next(n for n, e in enumerate([*found[:48], {"kind": "end"}]) if e["kind"] != "score")
            if whole >= 24:
                break
    assert upload["frames"] == told[-1]["frames"] == {"received": 48, "scored": 48, "dropped": {}}
    assert whole >= 24, found
    assert of_upload.shape == of_socket.shape
    assert len(of_upload) == 48
    by_socket, by_stream = np.abs(of_socket - of_upload), np.abs(of_stream[:whole] - of_upload[:whole])
    print(f"{of_upload.shape} features: by socket {by_socket.max():.1e}, {whole} by RTSP {by_stream.max():.1e} apart")
    assert by_socket.max() <= 1e-5
    assert by_stream.max() <= 1e-5
    # And what is told of them.
    told_scores = [[e["faces"][0]["window_score"] for e in events[:whole]] for events in (answers, found)]
    assert told_scores[0] == pytest.approx(told_scores[1], abs=1e-5)
    assert answers[-1]["faces"][0]["score"] == pytest.approx(upload["faces"][0]["score"], abs=1e-5)


# --- sources that go wrong ------------------------------------------------------------------------------------------


def test_lost_packets_cost_pictures_and_no_more(service: Service, camera: Camera) -> None:
    camera.loss = 0.02
    with watching(service, camera.url(), transport="udp", fps=25) as stream_id:
        until(lambda: service.stream(stream_id)["frames"]["dropped"].get("corrupt_frame"))
        found = scored(service, stream_id, 3)
    assert camera.lost > 0
    assert balanced(found["frames"])
    assert (found["state"], found["reconnects"], camera.connections) == ("live", {}, 1)


def test_another_resolution_is_a_gap_on_the_same_connection(service: Service, camera: Camera, tmp_path: Path) -> None:
    large = clip(tmp_path / "large", images=filmed(40, 480, 360), width=480, height=360)
    with watching(service, camera.url()) as stream_id:
        scored(service, stream_id, 2)
        camera.show(large)
        gaps = until(lambda: [e for _, e in scores(service, stream_id) if e["kind"] == "gap"])
        found = scored(service, stream_id, 2)
    assert [gap["reason"] for gap in gaps] == ["resolution_changed"]
    assert "320x240 to 480x360" in gaps[0]["message"]
    assert balanced(found["frames"])
    assert (found["state"], found["reconnects"], camera.connections) == ("live", {}, 1)


def test_refusals_of_sources_have_their_codes(service: Service, film: Path, tmp_path: Path) -> None:
    with (
        filming(film, password="ann:hunter2") as locked,
        filming(film, tls=certificate(tmp_path)) as sealed,
        contextlib.ExitStack() as streams,
    ):
        expected = {
            locked.url(password="ann:guess"): "STREAM_AUTH_FAILED",
            locked.url(password="ann:hunter2", path="/elsewhere"): "STREAM_NOT_FOUND",
            sealed.url(): "STREAM_TLS_CERTIFICATE",
        }
        ids = {streams.enter_context(watching(service, url)): code for url, code in expected.items()}
        for stream_id, code in ids.items():
            found = until(lambda i=stream_id: (s := service.stream(i))["error"] and s)
            assert (found["error"]["code"], found["state"]) == (code, "reconnecting")
            assert found["error"]["message"].endswith(".")
            assert found["retry_in_s"] == 30.0
            assert "hunter2" not in json.dumps(found)
            assert "guess" not in json.dumps(found)


# --- callers and crowds ---------------------------------------------------------------------------------------------


def test_clients_that_never_read_their_events_hold_nobody_up(service: Service, camera: Camera) -> None:
    port = httpx.URL(service.url).port
    with watching(service, camera.url(), fps=10) as stream_id, contextlib.ExitStack() as open_sockets:
        for _ in range(5):
            deaf = open_sockets.enter_context(socket.socket())
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            deaf.connect(("127.0.0.1", port))
            deaf.sendall(f"GET /v1/streams/{stream_id}/events HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
        found = scored(service, stream_id, 20)
        assert balanced(found["frames"])
        with service.http.stream("GET", f"/v1/streams/{stream_id}/events?last=5") as answer:
            assert any(line.startswith("event: score") for line in answer.iter_lines())
        assert service.http.get("/healthz").status_code == 200
    assert service.http.get("/readyz").json()["ready"]


@pytest.mark.slow
def test_thirty_two_streams_are_started_at_once(service: Service, camera: Camera) -> None:
    """More than this machine can score: each is live, and every frame of each is accounted for."""

    def add(_: int) -> str:
        answer = service.http.post("/v1/streams", json={"url": camera.url()})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    with ThreadPoolExecutor(32) as pool:
        ids = list(pool.map(add, range(32)))
    try:
        streams: dict[str, Any] = {}

        def all_live() -> bool:
            streams.update({s["id"]: s for s in service.http.get("/v1/streams").json()})
            mine = [streams[stream_id] for stream_id in ids]
            return all(s["state"] == "live" and s["frames"]["received"] >= 10 for s in mine)

        until(all_live, 120)
        frames = [streams[stream_id]["frames"] for stream_id in ids]
        assert all(map(balanced, frames))
        assert sum(f["scored"] for f in frames) > 32
        dropped = {reason for f in frames for reason in f["dropped"]}
        print(sum(f["scored"] for f in frames), "of", sum(f["received"] for f in frames), dropped)
        assert dropped <= {"queue_full", "stale_frame", "scorer_failed"}
    finally:
        for stream_id in ids:
            assert service.http.delete(f"/v1/streams/{stream_id}").status_code == 204


@pytest.mark.slow
def test_a_stream_survives_the_death_of_the_only_scorer(service: Service, camera: Camera) -> None:
    """It costs the frames of the time in which another one starts."""
    with watching(service, camera.url()) as stream_id:
        scored(service, stream_id, 3)
        (pid,) = [p for p, title in children(os.getpid()) if "ServeReplica:unmask:scorer" in title]
        os.kill(pid, signal.SIGKILL)
        killed_s = time.time()
        until(lambda: (service.stream(stream_id)["last"] or {"at": 0.0})["at"] > killed_s + 0.5, 120)
        print(f"scored again {service.stream(stream_id)['last']['at'] - killed_s:.1f} s after the only scorer died")
        found = scored(service, stream_id, 3)
        events = [e for _, e in scores(service, stream_id)]
    assert balanced(found["frames"])
    assert (found["state"], found["reconnects"]) == ("live", {})
    assert set(found["frames"]["dropped"]) <= {"queue_full", "stale_frame", "scorer_failed"}
    assert "session_lost" not in {e.get("reason") for e in events}


def test_forms_are_told_what_to_send(service: Service, film: Path) -> None:
    answer = service.http.post("/v1/analyses", files={"file": film.read_bytes()})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BAD_REQUEST")
    assert "--data-binary" in answer.json()["error"]["message"]
