"""The service with real processes and real sockets: uploads, events, the live socket, streams, and deaths."""

import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.browser import browsing
from tests.clips import clip
from tests.portraits import filmed, scenery
from tests.processes import children
from tests.rtsp_server import Camera, filming
from tests.service import HEADER, Service, balanced, hosts, jpegs, live, scores, sse, started, until, watching
from tests.webserver import serving as web_serving
from unmask.analysis import Analyzer
from unmask.card import Section, model_card
from unmask.inputs import Source
from unmask.plan import Sampling
from unmask.presets import resolve


@pytest.fixture(scope="module")
def service(local_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with started(tmp_path_factory.mktemp("service") / "state") as found:
        yield found


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip(tmp_path_factory.mktemp("film") / "film", frames=40, width=320, height=240, images=filmed(40))


@pytest.fixture(scope="module")
def camera(film: Path) -> Iterator[Camera]:
    with filming(film) as found:
        yield found


def test_an_upload_is_scored_as_the_command_scores_it(service: Service, film: Path) -> None:
    answer = service.upload(film.read_bytes())
    assert answer.status_code == 202, answer.text
    found = service.analysed(answer.json()["id"])
    expected = Analyzer.load(device="cpu").analyze(Source(str(film)), Sampling(frames=8)).score.to_json()
    result = found["result"]
    assert found["error"] is None
    assert set(result) == set(expected)
    assert result["input"] == "clip.mp4"
    assert result["id"] == expected["id"]
    assert result["verdict"] == expected["verdict"]
    assert result["score"] == pytest.approx(expected["score"], abs=1e-4)
    assert [f["score"] for f in result["faces"]] == pytest.approx([f["score"] for f in expected["faces"]], abs=1e-4)
    frames = result["frames"]
    assert frames["received"] == frames["scored"] + sum(frames["dropped"].values()) == 8
    assert service.spool() == []


def test_events_go_on_where_they_were_broken_off(service: Service, film: Path) -> None:
    analysis_id = service.upload(film.read_bytes()).json()["id"]
    path = f"/v1/analyses/{analysis_id}/events"
    with service.http.stream("GET", path) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = list(sse(answer.iter_lines()))
    assert [events[0][1], events[-1][1]] == ["queued", "result"]
    assert all(a[0] < b[0] for a, b in pairwise(events))
    with service.http.stream("GET", path, headers={"Last-Event-ID": str(events[0][0])}) as answer:
        assert list(sse(answer.iter_lines())) == events[1:]


def test_the_same_key_is_the_same_analysis(service: Service, film: Path) -> None:
    headers = {"Idempotency-Key": "once-only"}
    first = service.upload(film.read_bytes(), headers=headers)
    again = service.upload(film.read_bytes(), headers=headers)
    other = service.upload(film.read_bytes()[:-10], headers=headers)
    assert first.json()["id"] == again.json()["id"]
    assert (other.status_code, other.json()["error"]["code"]) == (409, "CONFLICT")


def test_two_gigabytes_are_refused_before_they_are_sent(service: Service) -> None:
    with socket.create_connection(("127.0.0.1", httpx.URL(service.url).port or 0), timeout=20) as raw:
        head = f"POST /v1/analyses HTTP/1.1\r\nHost: 127.0.0.1:{httpx.URL(service.url).port}\r\n"
        raw.sendall(f"{head}Content-Length: {2 * 2**30}\r\n\r\n".encode() + b"x" * 1000)
        answer = raw.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 413")
    until(lambda: service.spool() == [])  # other uploads are still analysed


def test_an_unannounced_flood_is_cut_off(service: Service) -> None:
    def flood() -> Iterator[bytes]:
        for _ in range(64):
            yield b"x" * 2**18

    with contextlib.suppress(httpx.WriteError, httpx.RemoteProtocolError):
        answer = service.http.post("/v1/analyses", content=flood())
        assert (answer.status_code, answer.json()["error"]["code"]) == (413, "TOO_LARGE")
    until(lambda: service.spool() == [])


@pytest.mark.parametrize(
    ("data", "code"), [(b"no video " * 100, "MEDIA_UNREADABLE"), (b"", None)], ids=["prose", "nothing"]
)
def test_what_is_no_video_says_so(service: Service, data: bytes, code: str | None) -> None:
    answer = service.upload(data, name="talk.mp4")
    if code is None:
        assert answer.status_code == 400
        return
    found = service.analysed(answer.json()["id"])
    assert found["error"]["code"] == code
    assert "talk.mp4" in found["error"]["message"]
    assert str(service.state) not in json.dumps(found)


def test_a_video_without_a_face_and_an_address(service: Service, tmp_path: Path) -> None:
    path = clip(tmp_path / "coffee", frames=8, width=320, height=240, images=scenery(8))
    with web_serving({"/clip.mp4": path.read_bytes()}) as url:
        wanted = {"url": f"{url}/moved", "frames": 4}
        found = service.analysed(service.http.post("/v1/analyses", json=wanted).json()["id"])
        gone = service.analysed(service.http.post("/v1/analyses", json={"url": f"{url}/none"}).json()["id"])
    assert found["error"]["code"] == "NO_FACE"
    assert gone["error"]["code"] == "HTTP_STATUS"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/v1/analyses/none", None, 404),
        ("GET", "/v1/streams/none/events", None, 404),
        ("DELETE", "/v1/streams/none", None, 404),
        ("POST", "/v1/streams", {"url": "file:///etc/passwd"}, 400),
        ("POST", "/v1/streams", {"url": "/etc/passwd"}, 400),
        ("POST", "/v1/streams", {"url": "rtsp://x/1", "colour": "red"}, 400),
        ("POST", "/v1/streams", {"url": "rtsp://x/1", "model": "none"}, 422),
        ("POST", "/v1/analyses", {"url": "ftp://x/1"}, 400),
        ("PUT", "/v1/models/other", {"model": "no-such-net"}, 422),
    ],
)
def test_refusals_are_typed(service: Service, method: str, path: str, body: Any, status: int) -> None:
    answer = service.http.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"].isupper()
    assert error["message"].endswith(".")


def test_other_websites_are_kept_out(service: Service) -> None:
    for headers in ({"Host": "rebound.example"}, {"Origin": "https://elsewhere.example"}):
        assert service.http.get("/v1/streams", headers=headers).status_code == 403


def test_the_socket_scores_what_it_is_sent(service: Service) -> None:
    pictures = jpegs(12)
    pictures[5] = pictures[5][:300]
    pictures[6] = b"no picture"
    answers, told = live(service, ((n / 10, p) for n, p in enumerate(pictures)))
    assert sum(e.get("count", 1) for e in answers) == 12
    assert sum(e["count"] for e in answers if e["event"] == "dropped" and e["reason"] == "media_unreadable") == 2
    end = told[-1]
    assert end["event"] == "end"
    assert end["frames"]["received"] == end["frames"]["scored"] + sum(end["frames"]["dropped"].values()) == 12
    assert end["frames"]["scored"] == 10


def test_a_client_that_sends_and_never_reads_is_cut_off(service: Service) -> None:
    picture = jpegs(1)[0]
    with connect(service.url.replace("http", "ws") + "/v1/live", close_timeout=5) as ws:
        with contextlib.suppress(ConnectionClosed):
            for number in range(400):
                ws.send(HEADER.pack(number / 10, 0) + picture)
        with contextlib.suppress(ConnectionClosed):
            while True:
                ws.recv(30)
    assert ws.close_code == 1008
    until(lambda: ("unmask_streams", frozenset({("state", "socket")})) not in service.metrics())


def test_a_stream_survives_the_death_of_its_session(service: Service, camera: Camera) -> None:
    with watching(service, camera.url()) as stream_id:
        until(lambda: service.stream(stream_id)["frames"]["scored"] >= 5)
        before = scores(service, stream_id)
        (pid,) = [h["pid"] for h in hosts() if stream_id in h["streams"]]
        os.kill(pid, signal.SIGKILL)
        killed_s = time.time()
        last = before[-1][0]

        def again() -> Any:
            return [e for n, e in scores(service, stream_id, last) if e["kind"] == "score" and e["at"] > killed_s]

        first = until(again, 30.0)[0]
        took_s = first["at"] - killed_s
        print(f"scored again {took_s:.2f} s after SIGKILL")
        events = scores(service, stream_id)
        assert [n for n, _ in events][: len(before)] == [n for n, _ in before]  # the history is intact
        assert [e["reason"] for _, e in events if e["kind"] == "gap"] == ["session_lost"]
        assert all(a[1]["seq"] < b[1]["seq"] for a, b in pairwise(events))
        assert balanced(service.stream(stream_id)["frames"])
        assert took_s < 5.0


@pytest.mark.slow
def test_a_stream_survives_the_death_of_the_scorer(service: Service, camera: Camera) -> None:
    with watching(service, camera.url()) as stream_id:
        until(lambda: service.stream(stream_id)["frames"]["scored"] >= 3)
        pids = [p for p, title in children(os.getpid()) if "ServeReplica:unmask:scorer" in title]
        assert len(pids) == 2
        os.kill(pids[0], signal.SIGKILL)
        killed_s = time.time()
        until(lambda: service.stream(stream_id)["last"]["at"] > killed_s + 2.0)
        found = service.stream(stream_id)
        assert balanced(found["frames"])
        assert found["state"] == "live"
        at = [e["at"] for _, e in scores(service, stream_id) if e["kind"] == "score" and e["at"] > killed_s - 1]
        assert max(b - a for a, b in pairwise(at)) < 5.0


@pytest.mark.slow
def test_streams_play_on_while_the_desk_is_started_again(service: Service, camera: Camera) -> None:
    with watching(service, camera.url()) as stream_id:
        until(lambda: service.stream(stream_id)["frames"]["scored"] >= 3)
        before = [(h["pid"], h["streams"]) for h in hosts()]
        (pid,) = [p for p, title in children(os.getpid()) if "ServeReplica:unmask:desk" in title]
        os.kill(pid, signal.SIGKILL)
        killed_s = time.time()

        def goes_on() -> bool:
            answer = service.http.get("/v1/streams")
            if answer.status_code == 503:
                assert int(answer.headers["Retry-After"]) > 0
                return False
            (found,) = answer.json()  # at no time are there none
            return bool(found["id"] == stream_id and found["last"]["at"] > killed_s + 2.0)

        until(goes_on, 120.0)
        assert [(h["pid"], h["streams"]) for h in hosts()] == before
        seen = [e["seq"] for _, e in scores(service, stream_id)]
        assert seen == list(range(seen[0], seen[0] + len(seen)))  # nothing was lost
        assert balanced(service.stream(stream_id)["frames"])
    until(lambda: service.http.get("/readyz").json()["ready"])


def test_a_stream_is_removed_while_it_connects(service: Service) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        answer = service.http.post("/v1/streams", json={"url": f"rtsp://127.0.0.1:{silent.getsockname()[1]}/1"})
        stream_id = answer.json()["id"]
        started_s = time.monotonic()
        assert service.http.delete(f"/v1/streams/{stream_id}").status_code == 204
        assert time.monotonic() - started_s < 3.0
        assert service.http.get(f"/v1/streams/{stream_id}").status_code == 404
        until(lambda: not any(stream_id in h["streams"] for h in hosts()))


def test_streams_pause_resume_change_models_and_hide_passwords(service: Service, film: Path) -> None:
    with (
        filming(film, password="ann:hunter2") as locked,
        watching(service, locked.url(password="ann:hunter2")) as stream_id,
    ):
        until(lambda: service.stream(stream_id)["frames"]["scored"] >= 3)
        assert service.http.patch(f"/v1/streams/{stream_id}", json={"paused": True}).json()["state"] == "paused"
        held = service.stream(stream_id)["frames"]
        assert balanced(held)
        assert service.http.patch(f"/v1/streams/{stream_id}", json={"paused": False, "name": "door"}).status_code == 200
        until(lambda: service.stream(stream_id)["frames"]["scored"] > held["scored"] + 2)
        gaps = [e["reason"] for _, e in scores(service, stream_id) if e["kind"] == "gap"]
        assert gaps[-1:] == ["interrupted"]
        changed = service.http.put("/v1/models/default", json={"model": "mobilenetv3-small-temporal"})
        assert changed.status_code == 200, changed.text
        swapped = "mobilenetv3-small-temporal"
        told = until(lambda: [e for _, e in scores(service, stream_id) if e.get("model", {}).get("name") == swapped])
        until(lambda: service.stream(stream_id)["last"]["seq"] > told[0]["seq"] + 2)
        found = service.stream(stream_id)
        assert found["state"] == "live"
        assert (found["name"], found["reconnects"]) == ("door", {})
        everything = json.dumps([e for _, e in scores(service, stream_id)]) + service.http.get("/metrics").text
        assert "hunter2" not in everything + json.dumps(service.http.get("/v1/streams").json())
        assert service.http.put("/v1/models/default", json={"model": ""}).status_code == 200


def test_models_carry_their_cards(service: Service) -> None:
    (model,) = service.http.get("/v1/models").json()
    assert [Section.from_json(section) for section in model["card"]] == model_card(resolve()[1])


def test_no_more_streams_than_there_is_room_for(service: Service) -> None:
    made = [service.http.post("/v1/streams", json={"url": "rtsp://127.0.0.1:9/1", "paused": False}) for _ in range(5)]
    try:
        assert [m.status_code for m in made] == [201] * 4 + [429]
        assert made[-1].json()["error"]["code"] == "BUSY"
        assert int(made[-1].headers["Retry-After"]) > 0
    finally:
        for answer in made[:4]:
            service.http.delete(f"/v1/streams/{answer.json()['id']}")


def test_one_scrape_tells_of_everything(service: Service) -> None:
    numbers = service.metrics()
    via = frozenset({("via", "stream")})
    received, scored = numbers["unmask_frames_received_total", via], numbers["unmask_frames_scored_total", via]
    dropped = sum(
        v
        for (name, labels), v in numbers.items()
        if name == "unmask_frames_dropped_total" and ("via", "stream") in labels
    )
    assert received == scored + dropped > 0
    assert numbers["unmask_frame_to_score_seconds_count", via] == scored
    assert sum(v for (n, _), v in numbers.items() if n == "unmask_analyses_total") >= 1


def webcam(path: Path) -> Path:
    """A film that Chromium takes for a webcam."""
    frames = [Image.fromarray(image) for image in filmed(20)]
    with path.open("wb") as file:
        for frame in frames:
            frame.save(file, "JPEG", quality=92)
    return path


FITS = """(() => { const root = document.documentElement; return JSON.stringify({
  wide: [...document.body.querySelectorAll("*")].filter((e) => !e.closest("svg,.skip")
    && e.getBoundingClientRect().right > root.clientWidth + 1).map((e) => e.outerHTML.slice(0, 90)),
  scroll: root.scrollWidth, client: root.clientWidth, background: getComputedStyle(document.body).backgroundColor,
  unnamed: [...document.querySelectorAll("input,select,button,[tabindex]")].filter((e) =>
    !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).map((e) => e.outerHTML.slice(0, 90)) }); })()"""


@pytest.mark.slow
def test_the_page_does_what_it_says(service: Service, film: Path, camera: Camera, tmp_path: Path) -> None:
    shots = Path(os.environ.get("UNMASK_SHOTS", tmp_path))
    fake = f"--use-file-for-fake-video-capture={webcam(tmp_path / 'webcam.mjpeg')}"
    with browsing(tmp_path, fake) as page:
        page.open(service.url + "/")
        page.until("document.body?.dataset.ready")
        # A video: chosen, watched, judged.
        page.choose("#file", film)
        verdicts = ", ".join(f"#analyses .item .badge.{v}" for v in ("authentic", "manipulated", "inconclusive"))
        page.until(f"document.querySelector('{verdicts}')", 120)
        assert page.run("document.querySelector('#analyses .item svg .line') !== null")
        # A stream, by keyboard alone.
        page.run("document.querySelector('#surl').focus()")
        page.do("Input.insertText", text=camera.url())
        page.press("Enter")
        page.until("document.querySelector('#streams .badge.live')")
        page.until("document.querySelector('#streams svg .line')")
        camera.unplug()
        page.until("document.querySelector('#streams .badge.reconnecting')")
        camera.plug_in()
        page.until("document.querySelector('#streams svg .gap')", 90)
        # The camera.
        page.run("document.querySelector('#camera').click()")
        page.until("document.querySelector('#livechart svg .line')")
        page.run("document.querySelector('#livechart .chart').focus()")
        page.press("End")
        assert "face" in page.until("document.querySelector('#livechart output').textContent")
        for name, width, dark in (("light", 1100, False), ("dark", 1100, True), ("phone", 360, True)):
            page.do("Emulation.setDeviceMetricsOverride", width=width, height=1400, deviceScaleFactor=1, mobile=False)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            page.do("Emulation.setEmulatedMedia", features=[scheme])
            facts = json.loads(page.run(FITS))
            assert facts["scroll"] <= facts["client"] == width
            assert facts["wide"] == []
            assert facts["unnamed"] == []
            assert facts["background"] == ("rgb(12, 16, 20)" if dark else "rgb(244, 246, 248)")
            page.picture(shots / f"page-{name}.png")
        page.run("document.querySelector('#camera').click()")
        page.run("[...document.querySelectorAll('#streams button')].find((b) => b.textContent === 'Remove').click()")
        page.until("!document.querySelector('#streams .item')")
        assert page.complaints == []
        assert {url.split("/")[2] for url in page.requests if "://" in url} == {service.url.split("/")[2]}
