"""The numbers of the service, defined once: what `/metrics` shows, and what dashboards are made from.

Every process of the service counts in a `Meter` and hands over what has grown (`drain`); the desk adds it up (`merge`)
and renders it. So one scrape sees the whole cluster, and a process that dies takes at most a second of counts along.
No label carries an address or a name that a caller chose, but for the names of models.
"""

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

__all__ = ["CONTENT_TYPE", "METRICS", "Definition", "Meter", "Numbers"]

CONTENT_TYPE = "text/plain; version=1.0.0; charset=utf-8"

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0)
_TENTHS = tuple(i / 10 for i in range(1, 11))


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One metric."""

    name: str
    """Without the suffixes that Prometheus puts on."""
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram; the infinite one is not named."""
    unit: str = ""
    """As dashboards name it: s, frames, 1."""
    from_zero: tuple[str, ...] = ()
    """Values of the one label that are shown before they are counted: the growth of a series that begins at 1 is 0."""


METRICS: Mapping[str, Definition] = {
    d.name: d
    for d in (
        Definition(name="unmask_streams", kind="gauge", labels=("state",), unit="streams", help="Streams, by state."),
        Definition(name="unmask_stream_limit", kind="gauge", unit="streams", help="Streams that may run at once."),
        Definition(
            name="unmask_stream_reconnects", kind="counter", labels=("reason",), unit="connections",
            help="Connections to sources that were lost or refused, by reason.",
        ),
        Definition(
            name="unmask_stream_resumptions", kind="counter", labels=("reason",), unit="streams",
            help="Sessions that were set up again in another process, by reason.", from_zero=("session_lost",),
        ),
        Definition(
            name="unmask_frames_received", kind="counter", labels=("via",), unit="frames",
            help="Frames that were due to be scored, from a stream or a socket.",
        ),
        Definition(
            name="unmask_frames_scored", kind="counter", labels=("via",), unit="frames", help="Of them, those scored."
        ),
        Definition(
            name="unmask_frames_dropped", kind="counter", labels=("via", "reason"), unit="frames",
            help="Of them, without a score, by reason.",
        ),
        Definition(
            name="unmask_stage_seconds", kind="histogram", labels=("stage",), buckets=_SECONDS, unit="s",
            help="Seconds of work, by stage: detect, embed, and wait for a scorer.",
        ),
        Definition(
            name="unmask_frame_to_score_seconds", kind="histogram", labels=("via",), buckets=_SECONDS, unit="s",
            help="From the arrival of a frame to its score.",
        ),
        Definition(
            name="unmask_stream_lag_seconds", kind="gauge", unit="s",
            help="Since when a live stream had no frame looked at; the longest.",
        ),
        Definition(
            name="unmask_window_fill", kind="histogram", buckets=_TENTHS, unit="1",
            help="Frames in the window of a score over the window's length.",
        ),
        Definition(
            name="unmask_window_resets", kind="counter", labels=("reason",), unit="windows",
            help="Windows begun anew, by reason.",
        ),
        Definition(
            name="unmask_scores", kind="histogram", labels=("model",), buckets=_TENTHS, unit="1",
            help="Scores of faces in windows.",
        ),
        Definition(
            name="unmask_batch_frames", kind="histogram", buckets=(1, 2, 4, 8, 16, 32, 64), unit="frames",
            help="Frames that a scorer took at once.",
        ),
        Definition(
            name="unmask_scorer_retries", kind="counter", labels=("reason",), unit="calls",
            help="Calls of a scorer that were made again, by reason.",
        ),
        Definition(
            name="unmask_analyses", kind="counter", labels=("status", "reason"), unit="videos",
            help="Videos analysed, by status and reason.",
        ),
        Definition(
            name="unmask_analyses_waiting", kind="gauge", labels=("state",), unit="videos",
            help="Videos that are queued or running.",
        ),
        Definition(
            name="unmask_refusals", kind="counter", labels=("code",), unit="requests", help="Requests refused, by code."
        ),
        Definition(
            name="unmask_callbacks", kind="counter", labels=("outcome",), unit="calls",
            help="Callbacks: delivered, failed or refused.",
        ),
        Definition(
            name="unmask_model_info", kind="gauge", labels=("name", "version", "sha256", "trained"), unit="1",
            help="1 for each model that is served.",
        ),
        Definition(name="unmask_info", kind="gauge", labels=("version",), unit="1", help="1, with the version."),
    )
}  # fmt: skip
"""All metrics, by name, in the order of `/metrics`."""

Numbers = list[tuple[str, tuple[str, ...], list[float]]]
"""What grew: name, labels' values, and the growth (a histogram: of each bucket, the infinite one too, and the sum)."""


class Meter:
    """Counts, for several threads. Metrics are those of `METRICS`; anything else is an error of ours."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, tuple[str, ...]], list[float]] = {}
        self._lock = threading.Lock()

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        assert by >= 0
        self._add(name, "counter", labels, [by])

    def observe(self, name: str, value: float, *labels: str) -> None:
        """Add an observation to a histogram."""
        buckets = METRICS[name].buckets
        growth = [0.0] * (len(buckets) + 2)
        growth[bisect_left(buckets, value)], growth[-1] = 1.0, value
        self._add(name, "histogram", labels, growth)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        self._check(name, "gauge", labels)
        with self._lock:
            self._values[name, labels] = [value]

    def forget(self, name: str) -> None:
        """Drop all values of a gauge, to set those that still hold."""
        with self._lock:
            for key in [key for key in self._values if key[0] == name]:
                del self._values[key]

    def _add(self, name: str, kind: str, labels: tuple[str, ...], growth: Sequence[float]) -> None:
        self._check(name, kind, labels)
        with self._lock:
            values = self._values.setdefault((name, labels), [0.0] * len(growth))
            for i, step in enumerate(growth):
                values[i] += step

    def _check(self, name: str, kind: str, labels: tuple[str, ...]) -> None:
        definition = METRICS[name]
        assert (definition.kind, len(definition.labels)) == (kind, len(labels)), (name, kind, labels)

    def drain(self) -> Numbers:
        """What counters and histograms gained since the last call. Gauges are not handed over."""
        with self._lock:
            values, self._values = self._values, {}
        return [(name, labels, v) for (name, labels), v in values.items() if METRICS[name].kind != "gauge"]

    def merge(self, numbers: Numbers) -> None:
        """Add what another meter gained."""
        for name, labels, growth in numbers:
            self._add(name, METRICS[name].kind, tuple(labels), growth)

    def total(self, name: str, *labels: str) -> float:
        """The value of a counter or gauge, or the number of a histogram's observations; 0 where there is none."""
        with self._lock:
            values = self._values.get((name, labels), [0.0])
        return sum(values[:-1]) if METRICS[name].kind == "histogram" else values[0]

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        registry = CollectorRegistry()
        registry.register(_Families(self._snapshot()))
        return generate_latest(registry)

    def _snapshot(self) -> dict[str, list[tuple[tuple[str, ...], list[float]]]]:
        grouped: dict[str, list[tuple[tuple[str, ...], list[float]]]] = {}
        with self._lock:
            for (name, labels), values in sorted(self._values.items()):
                grouped.setdefault(name, []).append((labels, list(values)))
        return grouped


class _Families(Collector):
    def __init__(self, grouped: dict[str, list[tuple[tuple[str, ...], list[float]]]]) -> None:
        self._grouped = grouped

    def collect(self) -> Iterator[Metric]:
        for definition in METRICS.values():
            yield _family(definition, self._grouped.get(definition.name, []))


def _family(definition: Definition, rows: Sequence[tuple[tuple[str, ...], list[float]]]) -> Metric:
    name, labels = definition.name, definition.labels
    known = {values for values, _ in rows}
    rows = [*rows, *(((value,), [0.0]) for value in definition.from_zero if (value,) not in known)]
    if not rows and not labels and definition.kind != "gauge":
        # A rate begins at the second value that Prometheus sees: the first is to be 0.
        rows = [((), [0.0] * (len(definition.buckets) + 2 if definition.kind == "histogram" else 1))]
    family: Any
    if definition.kind == "counter":
        family = CounterMetricFamily(name, definition.help, labels=labels)
    elif definition.kind == "gauge":
        family = GaugeMetricFamily(name, definition.help, labels=labels)
    else:
        family = HistogramMetricFamily(name, definition.help, labels=labels)
    for values, numbers in rows:
        if definition.kind == "histogram":
            family.add_metric(values, _cumulated(definition.buckets, numbers), numbers[-1])
        else:
            family.add_metric(values, numbers[0])
    return family  # type: ignore[no-any-return]


def _cumulated(buckets: Sequence[float], numbers: Sequence[float]) -> list[tuple[str, float]]:
    bounds = [*(f"{b:g}" for b in buckets), "+Inf"]
    return [(bound, sum(numbers[: i + 1])) for i, bound in enumerate(bounds)]
