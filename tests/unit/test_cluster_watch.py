"""Dashboards, alerts and scrape configurations: they name nothing that is not there, and promtool agrees."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.dashboards import DASHBOARDS, dashboard, write_dashboards
from cluster.definitions import PREPROCESS, SERVICE, Definition, definitions, series
from pipelines.metrics import Metrics
from serve.metrics import METRICS
from unmask.errors import Reason

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "cluster/prometheus"
SELECTOR = re.compile(r"(unmask_\w+)\{([^}]*)\}")


def known_series(job: str) -> dict[str, Definition]:
    return {name: d for d in definitions()[job].values() for name in series(d)}


def check(expression: str) -> None:
    """See that an expression names series and labels that there are."""
    assert len(re.findall(r"unmask_\w+", re.sub(r'"[^"]*"', "", expression))) == len(SELECTOR.findall(expression))
    for name, matchers in SELECTOR.findall(expression):
        named = dict(re.findall(r'(\w+)\s*[=!]~?\s*"([^"]*)"', matchers))
        known = known_series(named.pop("job"))
        assert name in known, expression
        assert set(named) <= set(known[name].labels), expression
    for grouped in re.findall(r"by \(([^)]*)\)", expression):
        labels = {label.strip() for label in grouped.split(",")} - {"", "le", "instance"}
        assert all(labels <= set(known_series(job)[name].labels) for name, job in jobs_of(expression)), expression


def jobs_of(expression: str) -> list[tuple[str, str]]:
    return [(name, re.findall(r'job="([^"]*)"', matchers)[0]) for name, matchers in SELECTOR.findall(expression)]


def panels(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in plan["panels"] if panel["type"] != "row"]


def test_definitions_are_those_of_the_code_that_counts() -> None:
    known = definitions()
    assert set(known[SERVICE]) == set(METRICS)
    with Metrics(None) as metrics:
        assert set(known[PREPROCESS]) == {family.name for family in metrics.registry.collect()}
    # As the module's own list of them says.
    import pipelines.metrics

    for name, labels in re.findall(
        r"^(unmask_\w+?)(?:_total)?(?:\{([\w,]+)\})?\s{2,}", pipelines.metrics.__doc__ or "", re.M
    ):
        assert set(known[PREPROCESS][name].labels) == set(filter(None, labels.split(",")))


@pytest.mark.parametrize("file", DASHBOARDS)
def test_dashboards_show_every_metric_and_nothing_else(file: str) -> None:
    job = DASHBOARDS[file]
    shown = []
    for panel in panels(dashboard(job)):
        expressions = [target["expr"] for target in panel["targets"]]
        for expression in expressions:
            check(expression)
        (name,) = {name for expression in expressions for name, _ in SELECTOR.findall(expression)}
        shown.append(known_series(job)[name].name)
    assert sorted(shown) == sorted(definitions()[job])


@pytest.mark.parametrize("file", DASHBOARDS)
def test_panels_fill_the_page_without_overlap(file: str) -> None:
    taken: set[tuple[int, int]] = set()
    plan = dashboard(DASHBOARDS[file])
    for panel in plan["panels"]:
        p = panel["gridPos"]
        cells = {(x, y) for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in plan["panels"]}) == len(plan["panels"])


def test_the_committed_dashboards_are_those_that_are_made(tmp_path: Path) -> None:
    write_dashboards(tmp_path)
    for file in DASHBOARDS:
        assert (ROOT / "cluster/grafana" / file).read_text() == (tmp_path / file).read_text(), (
            "run python -m cluster.dashboards cluster/grafana"
        )
        json.loads((tmp_path / file).read_text())


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_alerts_name_metrics_that_there_are() -> None:
    for rule in alerts():
        check(re.sub(r"up\{[^}]*\}", "", rule["expr"]))


def test_alerts_name_states_and_reasons_that_there_are() -> None:
    from serve.schemas import StreamResource

    states = StreamResource.model_fields["state"].description or ""
    for rule in alerts():
        for name, values in re.findall(r'(state|reason)\s*[=!]~?\s*"([^"]*)"', rule["expr"]):
            for value in values.split("|"):
                if name == "reason":
                    assert value in set(Reason)
                elif "unmask_streams" in rule["expr"]:
                    assert value in states


def test_every_alert_is_explained_and_tried() -> None:
    page = (ROOT / "docs/operations.md").read_text()
    tried = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    calm, storm = ({t["alertname"] for t in test["alert_rule_test"]} for test in tried)
    names = [rule["alert"] for rule in alerts()]
    assert len(names) == len(set(names))
    for rule in alerts():
        assert f"`{rule['alert']}`" in page, "say in docs/operations.md what it means and what to do"
        assert rule["labels"]["severity"] in {"page", "ticket"}
    assert set(names) == calm == storm


def test_prometheus_asks_where_the_deployments_answer() -> None:
    jobs = {}
    for name in ("kube", "compose"):
        plan = yaml.safe_load((PROMETHEUS / f"{name}.yml").read_text())
        jobs[name] = {job["job_name"]: job for job in plan["scrape_configs"]}
        assert set(jobs[name]) == {SERVICE, PREPROCESS, "ray"}
        assert "credentials_file" in jobs[name][SERVICE]["authorization"]
    services = {
        r["metadata"]["name"]: r["spec"]
        for r in yaml.safe_load_all((ROOT / "cluster/kube/watch/services.yaml").read_text())
    }
    for job in (PREPROCESS, "ray"):
        (found,) = jobs["kube"][job]["dns_sd_configs"]
        (name,) = found["names"]
        assert services[name]["ports"][0]["port"] == found["port"]
    compose = yaml.safe_load((ROOT / "cluster/compose.yaml").read_text())["services"]
    assert set(jobs["compose"]["ray"]["dns_sd_configs"][0]["names"]) <= set(compose)


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian: prometheus): rules are not checked by it")
    return found


@pytest.mark.parametrize(
    "command",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("check", "config", "--syntax-only", "kube.yml"),
        ("check", "config", "--syntax-only", "compose.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(promtool: str, command: tuple[str, ...]) -> None:
    done = subprocess.run([promtool, *command], cwd=PROMETHEUS, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_finds_what_is_wrong(promtool: str, tmp_path: Path) -> None:
    for path in PROMETHEUS.glob("alerts*.yml"):
        shutil.copy(path, tmp_path)
    text = (tmp_path / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(
        text.replace('unmask_stream_lag_seconds{job="unmask-service"} > 2', "vector(0) > 2")
    )
    done = subprocess.run([promtool, "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, timeout=60)
    assert done.returncode == 1
