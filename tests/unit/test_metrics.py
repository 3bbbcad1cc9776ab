"""The metrics of a run, as a Prometheus server fetches them."""

import gc
import math
import socket
import threading

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipelines.metrics import Metrics
from pipelines.progress import Progress, Receipt
from unmask.errors import UsageError

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(metrics: Metrics) -> Samples:
    answer = httpx.get(f"http://127.0.0.1:{metrics.port}/metrics", timeout=10)
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_a_scrape_says_what_was_counted() -> None:
    progress = Progress(videos=10, done_before=2)
    with Metrics(0) as metrics:
        metrics.follow(progress)
        for sink in (metrics, progress):
            sink.add(Receipt(frames=32, dropped={"corrupt_frame": 3}, faces=40, seconds={"decode": 0.5, "detect": 4.0}))
            sink.add(Receipt(frames=32, dropped={"corrupt_frame": 1, "decode_failed": 2}, seconds={"decode": 0.25}))
            sink.video_done("done")
            sink.video_done("failed", "not_a_video")
            sink.video_done("failed", "not_a_video")
        samples = scrape(metrics)
    assert value(samples, "unmask_videos_total", status="done", reason="") == 1
    assert value(samples, "unmask_videos_total", status="failed", reason="not_a_video") == 2
    assert value(samples, "unmask_frames_total", outcome="decoded") == 58
    assert value(samples, "unmask_frames_total", outcome="corrupt_frame") == 4
    assert value(samples, "unmask_frames_total", outcome="decode_failed") == 2
    assert value(samples, "unmask_faces_total") == 40
    assert value(samples, "unmask_stage_seconds_count", stage="decode") == 2
    assert value(samples, "unmask_stage_seconds_sum", stage="decode") == 0.75
    assert value(samples, "unmask_stage_seconds_bucket", stage="decode", le="0.25") == 1
    assert value(samples, "unmask_stage_seconds_bucket", stage="detect", le="2.5") == 0
    assert value(samples, "unmask_stage_seconds_bucket", stage="detect", le="5.0") == 1
    assert value(samples, "unmask_run_videos", state="to_do") == 5
    assert value(samples, "unmask_run_videos", state="done") == 5
    assert math.isnan(value(samples, "unmask_run_eta_seconds"))
    assert not [name for name, _ in samples if not name.startswith("unmask_")]  # nothing of other registries


def test_gauges_are_those_of_the_moment() -> None:
    now_s = 0.0
    progress = Progress(videos=30, clock=lambda: now_s)
    with Metrics(0) as metrics:
        metrics.follow(progress)
        for _ in range(10):
            now_s += 3.0
            progress.video_done("done")
        assert value(scrape(metrics), "unmask_run_eta_seconds") == pytest.approx(20 * 3.0, rel=0.15)
        for _ in range(20):
            progress.video_done("done")
        samples = scrape(metrics)
    assert value(samples, "unmask_run_eta_seconds") == 0
    assert value(samples, "unmask_run_videos", state="to_do") == 0


def test_counters_begin_at_zero() -> None:
    with Metrics(0) as metrics:
        samples = scrape(metrics)
    assert value(samples, "unmask_videos_total", status="done", reason="") == 0
    assert value(samples, "unmask_frames_total", outcome="decoded") == 0
    assert value(samples, "unmask_faces_total") == 0
    assert math.isnan(value(samples, "unmask_run_eta_seconds"))


def test_two_runs_in_one_process_do_not_share_numbers() -> None:
    with Metrics(0) as first, Metrics(0) as second:
        first.video_done("done")
        assert first.port != second.port
        assert value(scrape(second), "unmask_videos_total", status="done", reason="") == 0


def test_the_end_leaves_no_thread_and_no_socket() -> None:
    threads = set(threading.enumerate())
    metrics = Metrics(0)
    port = metrics.port
    assert port is not None
    scrape(metrics)
    metrics.close()
    metrics.close()
    gc.collect()  # an open socket would warn here, and warnings are errors
    assert metrics.port is None
    started = set(threading.enumerate()) - threads
    for thread in started:
        thread.join(10)  # the one that answered the scrape may just be going
    assert not [thread for thread in started if thread.is_alive()]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    with Metrics(port) as again:
        assert again.port == port


def test_without_a_port_nothing_listens() -> None:
    threads = threading.active_count()
    with Metrics(None) as metrics:
        metrics.add(Receipt(frames=1))
        metrics.video_done("empty", "no_face")
        assert metrics.port is None
        assert threading.active_count() == threads
        assert metrics.registry.get_sample_value("unmask_videos_total", {"status": "empty", "reason": "no_face"}) == 1


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_place_that_cannot_be_had_is_one_sentence(host: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(
            UsageError, match=rf"^metrics cannot be served at {host}:{port} \(.*\); choose .*\.$"
        ) as caught:
            Metrics(port, host)
    gc.collect()
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_that_is_none_is_one_sentence(port: int) -> None:
    with pytest.raises(UsageError, match=f"metrics cannot be served at 127.0.0.1:{port} "):
        Metrics(port)
