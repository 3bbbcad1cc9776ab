"""Grafana dashboards, made from the metrics' definitions: a panel for each, so that none can name what is not there.

python -m cluster.dashboards cluster/grafana
"""

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.definitions import PREPROCESS, SERVICE, Definition, definitions
from unmask.atomic import replacing

__all__ = ["DASHBOARDS", "dashboard", "main", "write_dashboards"]

# Grafana's panes are 24 columns wide.
_COLUMNS, _WIDTH, _HEIGHT = 24, 8, 7
_QUANTILES = (0.5, 0.95, 0.99)
_UNITS = {"s": "s", "1": "none", "": "short"}
_SOURCE = {"type": "prometheus", "uid": "${source}"}
# Rows by what an operator asks first; a metric that none of them names comes in a row of its own at the end.
_ROWS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    SERVICE: {
        "Are streams scored, and in time?": (
            "unmask_streams", "unmask_stream_lag_seconds", "unmask_frame_to_score_seconds",
            "unmask_frames_received", "unmask_frames_scored", "unmask_frames_dropped",
        ),
        "Do sources and processes hold?": (
            "unmask_stream_reconnects", "unmask_stream_resumptions", "unmask_window_resets", "unmask_scorer_retries",
        ),
        "Uploads": ("unmask_analyses_waiting", "unmask_analyses", "unmask_refusals", "unmask_callbacks"),
        "Where the time goes": ("unmask_stage_seconds", "unmask_batch_frames"),
        "What the models say": ("unmask_scores", "unmask_window_fill", "unmask_model_info"),
    },
    PREPROCESS: {
        "Does it get on?": ("unmask_run_videos", "unmask_run_eta_seconds", "unmask_videos"),
        "What comes out": ("unmask_frames", "unmask_faces"),
        "Where the time goes": ("unmask_stage_seconds",),
    },
}  # fmt: skip
_TITLES = {SERVICE: "Unmask: service", PREPROCESS: "Unmask: datasets"}

DASHBOARDS: Mapping[str, str] = {"service.json": SERVICE, "preprocess.json": PREPROCESS}
"""Files, and whose metrics each shows."""


def dashboard(job: str) -> dict[str, Any]:
    """A dashboard as Grafana imports it.

    Args:
        job: `SERVICE` or `PREPROCESS`.
    """
    known = definitions()[job]
    rows = dict(_ROWS[job])
    rows["More"] = tuple(name for name in known if not any(name in names for names in rows.values()))
    panels: list[dict[str, Any]] = []
    y = 0
    for title, names in rows.items():
        if not names:
            continue
        panels.append({**_place(0, y, _COLUMNS, 1), "type": "row", "title": title, "collapsed": False, "panels": []})
        y += 1
        for n, name in enumerate(names):
            x = n * _WIDTH % _COLUMNS
            y += _HEIGHT if n and not x else 0
            panels.append({**_place(x, y, _WIDTH, _HEIGHT), **_panel(known[name], job)})
        y += _HEIGHT
    for number, panel in enumerate(panels, 1):
        panel["id"] = number
    return {
        "uid": job,
        "title": _TITLES[job],
        "tags": ["unmask"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [{"name": "source", "type": "datasource", "query": "prometheus", "label": "Source"}]},
        "panels": panels,
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, Any]:
    return {"gridPos": {"x": x, "y": y, "w": width, "h": height}}


def _panel(definition: Definition, job: str) -> dict[str, Any]:
    unit = _UNITS.get(definition.unit, "short")
    if definition.kind == "counter" and definition.unit != "s":
        unit = "cps"
    return {
        "type": "timeseries",
        "title": definition.help.rstrip("."),
        "description": f"{definition.name} ({definition.kind}{', ' + definition.unit if definition.unit else ''})",
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi"}},
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": _SOURCE, "expr": expression, "legendFormat": legend}
            for n, (expression, legend) in enumerate(_queries(definition, job))
        ],
    }


def _queries(definition: Definition, job: str) -> Iterator[tuple[str, str]]:
    """PromQL, and what to call its lines."""
    name, labels = definition.name, ", ".join(definition.labels)
    legend = " ".join(f"{{{{{label}}}}}" for label in definition.labels) or name
    of_job = f'{{job="{job}"}}'
    if definition.kind == "counter":
        yield f"sum by ({labels}) (rate({name}_total{of_job}[$__rate_interval]))", legend
    elif definition.kind == "gauge":
        yield f"max by ({labels}) ({name}{of_job})", legend
    else:
        by = ", ".join(["le", *definition.labels])
        for quantile in _QUANTILES:
            rate = f"sum by ({by}) (rate({name}_bucket{of_job}[$__rate_interval]))"
            yield f"histogram_quantile({quantile:g}, {rate})", f"p{quantile * 100:g} {legend}".removesuffix(f" {name}")


def write_dashboards(folder: Path) -> None:
    """Write all dashboards.

    Args:
        folder: Where.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, job in DASHBOARDS.items():
        with replacing(folder / name) as beside:
            beside.write_text(json.dumps(dashboard(job), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Entry point: one argument, the folder."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m cluster.dashboards FOLDER")
    write_dashboards(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
