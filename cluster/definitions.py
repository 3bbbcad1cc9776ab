"""All metrics of Unmask, by who tells them: what dashboards are made from, and what alerts may name."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["PREPROCESS", "SERVICE", "Definition", "definitions", "series"]

SERVICE, PREPROCESS = "unmask-service", "unmask-preprocess"
"""Jobs of Prometheus, as the scrape configurations name them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One metric."""

    name: str
    """Without the suffixes that Prometheus puts on."""
    kind: str
    """counter, gauge or histogram."""
    help: str
    labels: tuple[str, ...]
    unit: str = ""
    """s, frames, 1; empty where nothing says so."""


def definitions() -> Mapping[str, Mapping[str, Definition]]:
    """The metrics of each job, by name, as the code that counts them has them."""
    return {
        SERVICE: {d.name: d for d in _of_service()},
        PREPROCESS: {d.name: d for d in _of_preprocess()},
    }


def series(definition: Definition) -> tuple[str, ...]:
    """The names under which Prometheus knows a metric."""
    if definition.kind == "counter":
        return (f"{definition.name}_total",)
    if definition.kind == "histogram":
        return tuple(f"{definition.name}_{end}" for end in ("bucket", "sum", "count"))
    return (definition.name,)


def _of_service() -> Iterator[Definition]:
    from serve.metrics import METRICS

    for d in METRICS.values():
        yield Definition(name=d.name, kind=d.kind, help=d.help, labels=d.labels, unit=d.unit)


def _of_preprocess() -> Iterator[Definition]:
    """Those of a run, after one of everything was counted: only then their labels show."""
    from pipelines.metrics import Metrics
    from pipelines.progress import Progress, Receipt

    with Metrics(None) as metrics:
        metrics.follow(Progress(videos=1, shards=1))
        metrics.add(Receipt(frames=1, dropped={"missing_frame": 1}, faces=1, seconds={"decode": 1.0}))
        metrics.video_done("done")
        for family in metrics.registry.collect():
            labels = {label for sample in family.samples for label in sample.labels}
            unit = "s" if family.name.endswith("_seconds") else ""
            yield Definition(
                name=family.name,
                kind=family.type,
                help=family.documentation,
                labels=tuple(sorted(labels - {"le"})),
                unit=unit,
            )
