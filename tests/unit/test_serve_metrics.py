"""The service's numbers: counted in many processes, added up in one, read by Prometheus's own parser."""

import json
import threading

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from serve.metrics import METRICS, Meter


def samples(meter: Meter) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(meter.render().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for f in families for s in f.samples}


def test_the_first_loss_of_a_session_is_growth() -> None:
    """Prometheus sees no growth in a series that begins at 1."""
    meter, lost = Meter(), ("unmask_stream_resumptions_total", (("reason", "session_lost"),))
    assert samples(meter)[lost] == 0
    meter.count("unmask_stream_resumptions", "session_lost")
    assert samples(meter)[lost] == 1
    assert meter.render().count(b"resumptions_total{") == 1


def test_counts_of_many_meters_add_up() -> None:
    desk, hosts = Meter(), [Meter(), Meter()]
    for _ in range(3):
        for number, host in enumerate(hosts):
            host.count("unmask_frames_dropped", "stream", "no_face", by=number + 1)
            host.observe("unmask_stage_seconds", 0.02, "detect")
            desk.merge(json.loads(json.dumps(host.drain())))  # as it travels
    found = samples(desk)
    assert found["unmask_frames_dropped_total", (("reason", "no_face"), ("via", "stream"))] == 9
    assert found["unmask_stage_seconds_count", (("stage", "detect"),)] == 6
    assert found["unmask_stage_seconds_sum", (("stage", "detect"),)] == pytest.approx(0.12)
    assert all(host.drain() == [] for host in hosts)


def test_histograms_are_those_of_prometheus_client() -> None:
    values = [0.0, 0.05, 0.1, 0.1000001, 0.5, 0.95, 1.0, 3.0]
    registry, meter = CollectorRegistry(), Meter()
    theirs = Histogram("unmask_window_fill", "x", buckets=METRICS["unmask_window_fill"].buckets, registry=registry)
    for value in values:
        theirs.observe(value)
        meter.observe("unmask_window_fill", value)
    text = generate_latest(registry).decode()
    expected = {
        (s.name, tuple(sorted((k, float(v)) for k, v in s.labels.items()))): s.value
        for f in text_string_to_metric_families(text)
        for s in f.samples
        if not s.name.endswith("_created")
    }
    found = {
        (name, tuple((k, float(v)) for k, v in labels)): value
        for (name, labels), value in samples(meter).items()
        if name.startswith("unmask_window_fill")
    }
    assert found == expected


def test_every_metric_is_named_and_described() -> None:
    text = Meter().render().decode()
    for definition in METRICS.values():
        assert f"# HELP {definition.name}" in text
        assert definition.help.endswith(".")
        assert not {"url", "source", "input", "address"} & set(definition.labels)
        assert bool(definition.buckets) == (definition.kind == "histogram")


def test_metrics_without_labels_begin_at_zero() -> None:
    assert samples(Meter())["unmask_window_fill_count", ()] == 0


def test_gauges_are_set_and_forgotten_and_stay_at_home() -> None:
    meter = Meter()
    meter.set("unmask_streams", 3, "live")
    meter.set("unmask_streams", 2, "live")
    assert meter.total("unmask_streams", "live") == 2
    meter.forget("unmask_streams")
    meter.set("unmask_streams", 1, "waiting")
    assert samples(meter) == {**samples(Meter()), ("unmask_streams", (("state", "waiting"),)): 1.0}
    assert meter.drain() == []


@pytest.mark.parametrize("labels", [(), ("a", "b")])
def test_wrong_labels_are_an_error(labels: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        Meter().count("unmask_refusals", *labels)


def test_threads_do_not_lose_counts() -> None:
    meter, total = Meter(), Meter()

    def work() -> None:
        for _ in range(2000):
            meter.count("unmask_refusals", "BUSY")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        total.merge(meter.drain())
    for thread in threads:
        thread.join()
    total.merge(meter.drain())
    assert total.total("unmask_refusals", "BUSY") == 8000
