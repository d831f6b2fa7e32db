"""Prometheus metrics of the monitor. Labels are bounded: attributes and groups by the model's groups_max."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prometheus_client import Counter, Gauge

STATES = ("ok", "warn", "alarm", "insufficient")
_RELEASE = ("model", "version")
_ATTRIBUTE = (*_RELEASE, "attribute")
_DEFINITION = (*_ATTRIBUTE, "definition")
_FEATURE = (*_RELEASE, "feature")

SELECTION_RATE = Gauge("lrai_fairness_selection_rate", "share of favourable decisions since the epoch began",
                       (*_ATTRIBUTE, "group"))  # fmt: skip
SELECTION_LOW = Gauge("lrai_fairness_selection_rate_low", "lower end of its Wilson interval", (*_ATTRIBUTE, "group"))
SELECTION_HIGH = Gauge("lrai_fairness_selection_rate_high", "upper end of its Wilson interval", (*_ATTRIBUTE, "group"))
DIFFERENCE = Gauge("lrai_fairness_difference", "largest rate less smallest, by definition", _DEFINITION)
RATIO = Gauge("lrai_fairness_ratio", "smallest rate over largest, by definition", _DEFINITION)
LIMIT = Gauge("lrai_fairness_limit", "the model's disparity_limit", _RELEASE)
STATE = Gauge("lrai_fairness_state", "1 for the state that holds", (*_DEFINITION, "state"))
COVERAGE = Gauge("lrai_fairness_coverage_ratio", "share of decisions that carry the attribute, or a label", _DEFINITION)
DECISIONS = Counter("lrai_fairness_decisions_total", "decisions counted", (*_ATTRIBUTE, "group"))
PSI = Gauge("lrai_drift_psi", "population stability index against the reference sample", _FEATURE)
PSI_LIMIT = Gauge("lrai_drift_psi_limit", "its limit, which grows as the samples get smaller", _FEATURE)
DRIFT_STATE = Gauge("lrai_drift_state", "1 for the state that holds", (*_FEATURE, "state"))
FROZEN = Gauge("lrai_frozen", "1 while the deployment is frozen", _RELEASE)
FREEZES = Counter("lrai_freezes_total", "freezes by the monitor", _RELEASE)
ALERTS = Counter("lrai_alerts_total", "alerts by the monitor", ("kind", "severity"))
COMPLAINTS = Counter("lrai_complaints_total", "complaints opened", ("model",))
COMPLAINTS_WEEK = Gauge("lrai_complaints_week", "complaints opened in the last seven days", ("model",))
UTILISATION = Gauge("lrai_device_utilisation_ratio", "share of the day so far that kernels ran", _RELEASE)
TALLIES = Counter("lrai_monitor_tallies_total", "tallies counted", ("kind",))
PASSED_OVER = Counter("lrai_monitor_passed_over_total", "records that were not counted, by reason", ("reason",))
LAG_S = Gauge("lrai_monitor_lag_seconds", "age of the newest tally when it was counted")
LAG = Gauge("lrai_monitor_lag_records", "records between what is counted and the end", ("topic", "partition"))
TAKE_S = Gauge("lrai_monitor_take_seconds", "time of the last take: counts, tests, records, state")


def set_state(gauge: Gauge, labels: tuple[str, ...], state: str) -> None:
    """1 for the state that holds, 0 for the others."""
    for each in STATES:
        gauge.labels(*labels, each).set(float(each == state))


def show(kind: str, record: Mapping[str, Any]) -> None:
    """What a record that the monitor sends says."""
    if kind == "fairness":
        _show_fairness(record)
    elif kind == "drift":
        labels = (record["model"], record["version"], record["feature"])
        PSI.labels(*labels).set(record["psi"])
        PSI_LIMIT.labels(*labels).set(record["psi_limit"])
        set_state(DRIFT_STATE, labels, record["state"])
    elif kind == "alert":
        ALERTS.labels(record["kind"], record["severity"]).inc()
    elif kind == "control" and record["kind"] == "freeze":
        FREEZES.labels(record["model"], record["version"]).inc()


def _show_fairness(record: Mapping[str, Any]) -> None:
    release = record["model"], record["version"]
    labels = (*release, record["attribute"], record["definition"])
    DIFFERENCE.labels(*labels).set(record["value"])
    RATIO.labels(*labels).set(record["ratio"])
    COVERAGE.labels(*labels).set(record["coverage"])
    LIMIT.labels(*release).set(record["limit"])
    set_state(STATE, labels, record["state"])
    if record["definition"] != "demographic_parity_difference":
        return
    for each in record["groups"]:
        group = (*release, record["attribute"], each["group"])
        SELECTION_RATE.labels(*group).set(each["rate"])
        SELECTION_LOW.labels(*group).set(each["low"])
        SELECTION_HIGH.labels(*group).set(each["high"])
