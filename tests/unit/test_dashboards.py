"""Dashboards and rules name metrics and labels that the code has; promtool, where there is one, tries the rules."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

ROOT = Path(__file__).parents[2]
DASHBOARDS = sorted((ROOT / "infra/grafana/dashboards").glob("*.json"))
RULES = ROOT / "infra/prometheus/rules.yml"
TRIALS = RULES.with_name("rules.test.yml")
METRIC = re.compile(r"(?<![\w:])lrai_\w+(?![\w:]*:)")
SELECTOR = re.compile(r"(lrai_\w+)\{([^}]*)\}")
SCRAPED = {"instance", "job"}  # labels that Prometheus adds
PROMTOOL = shutil.which("promtool")
UNITS = {"joule", "none", "ops", "percentunit", "recps", "reqps", "rowsps", "s", "short", "watt"}


def metrics() -> dict[str, set[str]]:
    """By the names under which they are scraped: their labels."""
    for path in ROOT.glob("*/*.py"):
        if "from prometheus_client import Counter" in path.read_text():
            importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found: dict[str, set[str]] = {}
    for name, collector in REGISTRY._names_to_collectors.items():
        if name.startswith("lrai_") and isinstance(collector, MetricWrapperBase):
            own = set(collector._labelnames) | ({"le"} if name.endswith("_bucket") else set())
            found[name] = own
    scraped = {name for name in found if not name.endswith("_created")}
    bare = {each.name for each in REGISTRY.collect() if each.type in ("counter", "histogram")}
    return {name: found[name] for name in scraped - bare}


METRICS = metrics()


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in dashboard["panels"]:
        yield from [panel, *panel.get("panels", [])]


def expressions(path: Path) -> list[str]:
    """All PromQL of a dashboard, variables replaced, or of the rules."""
    if path == RULES:
        text = re.sub(r">-\n\s+", "", path.read_text())
        text = re.sub(r"\n\s+(?=unless|/ \()", " ", text)
        return re.findall(r"^\s+expr: (.*)$", text, re.MULTILINE)
    dashboard = json.loads(path.read_text())
    found = [target["expr"] for panel in panels(dashboard) for target in panel.get("targets", [])]
    found += [each["expr"] for each in dashboard["annotations"]["list"]]
    return [each.replace("$__rate_interval", "1m").replace("$", "") for each in found]


def test_metrics_are_known_as_they_are_scraped() -> None:
    assert {"lrai_windows_total", "lrai_latency_seconds_bucket", "lrai_frozen", "lrai_cost_total"} <= set(METRICS)
    assert not {"lrai_windows", "lrai_latency_seconds", "lrai_windows_created"} & set(METRICS)


@pytest.mark.parametrize("path", [*DASHBOARDS, RULES], ids=lambda path: path.stem)
def test_each_metric_and_label_is_in_the_code(path: Path) -> None:
    text = path.read_text()
    names = {name for each in expressions(path) for name in METRIC.findall(each)}
    assert names
    recorded = set(re.findall(r"record: (\S+)", text))
    assert not names - set(METRICS) - recorded
    for each in expressions(path):
        for name, selector in SELECTOR.findall(each):
            labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector))
            assert labels <= METRICS.get(name, labels), f"{name} has no label {labels - METRICS[name]}"
        grouped = {label.strip() for group in re.findall(r"by \(([^)]*)\)", each) for label in group.split(",")}
        own = {label for name in METRIC.findall(each) for label in METRICS.get(name, grouped)}
        assert grouped <= own | SCRAPED, each


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_variables_are_asked_of_metrics_in_the_code(path: Path) -> None:
    for variable in json.loads(path.read_text())["templating"]["list"]:
        if variable["type"] == "query":
            ((name, label),) = re.findall(r"label_values\((lrai_\w+)(?:\{.*\})?, (\w+)\)", variable["query"]["query"])
            assert label in METRICS[name]


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_each_panel_has_a_question_a_title_and_a_unit(path: Path) -> None:
    dashboard = json.loads(path.read_text())
    assert dashboard["uid"] == f"lrai-{path.stem}" and dashboard["title"]
    known = {each["name"] for each in dashboard["templating"]["list"]}
    shown = list(panels(dashboard))
    assert len({each["id"] for each in shown}) == len(shown)
    for panel in shown:
        assert panel["title"]
        if panel["type"] != "row":
            assert panel["targets"] and all(each["expr"] for each in panel["targets"])
            assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        used = set(re.findall(r"\$\{?(\w+)", json.dumps(panel))) - {"__rate_interval"}
        assert used <= known


def test_the_interesting_is_shown() -> None:
    shown = {name for path in DASHBOARDS for each in expressions(path) for name in METRIC.findall(each)}
    families = {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in METRICS}
    unshown = families - {name.removesuffix("_bucket").removesuffix("_count") for name in shown}
    watched = ("lrai_fairness", "lrai_drift", "lrai_monitor", "lrai_cost", "lrai_energy", "lrai_frozen")
    assert not {name for name in unshown if name.startswith(watched)}


def test_rules_of_fairness_read_the_state_alone() -> None:
    rules = [each for each in expressions(RULES) if "lrai_fairness" in each and "coverage" not in each]
    assert rules and all(re.fullmatch(r'lrai_fairness_state\{state="\w+"\} == 1', each) for each in rules)


def test_alerts_say_what_to_do() -> None:
    text = RULES.read_text()
    alerts = re.split(r"\n      - (?:alert|record): ", text)[1:]
    named = [each for each in alerts if "severity:" in each]
    assert len(named) == text.count("- alert:") >= 15
    for each in named:
        assert re.match(r"Lrai([A-Z][a-z]+)+\n", each)
        assert all(f"{key}: " in each for key in ("for", "summary", "description", "expr"))
    assert all(name in TRIALS.read_text() for name in re.findall(r"alert: (\w+)", text))


def _promtool(*arguments: str) -> None:
    if PROMTOOL is None:
        pytest.skip("promtool is not on PATH: the rules are not tried; it comes with Prometheus")
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_rules_alert_when_they_should() -> None:
    _promtool("test", "rules", str(TRIALS))


def test_expressions_are_promql(tmp_path: Path) -> None:
    asked = [each for path in [*DASHBOARDS, RULES] for each in expressions(path)]
    rules = [{"record": f"asked:{number}", "expr": each} for number, each in enumerate(asked)]
    file = tmp_path / "asked.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "asked", "rules": rules}]}))
    _promtool("check", "rules", str(file))
