"""`lrai scheduler show`: what each lane decided last and why."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from rich.table import Table

from infra.commands.live_state import whole
from infra.commands.options import AsJson, Kafka, Prefix, group, out
from streams.log import set_level
from streams.scheduler import SHARES, STATIC
from streams.settings import load
from streams.steering import Report, Reports

OLD_S = 10.0

app = group("What the scheduler decides.")


@app.callback()
def _only() -> None:
    """`show` stays a word of its own."""


@app.command("show")
def show(as_json: AsJson = False, kafka: Kafka = None, prefix: Prefix = None) -> None:
    """Windows of each lane: what was chosen and seen, what is expected, what the static settings would do."""
    settings = load(kafka=kafka, prefix=prefix)
    set_level("error")
    reports = whole(settings, Reports(settings, f"{settings.prefix}-cli"))
    now_ms = time.time_ns() // 1_000_000
    lanes = [_lane(record, now_ms) for _, record in sorted(reports.plans.items())]
    answers = [_answers(each, now_ms) for _, each in sorted(reports.newest.items())]
    if as_json:
        print(json.dumps({"lanes": lanes, "answers": answers}, indent=2))
        return
    if not lanes:
        print("no lane is scheduled: state slo_p95_ms in a model.toml, and send requests")
        return
    out.print(_table("Lanes", lanes))
    out.print(_table("Answers, as actors reported last", answers))


def _lane(record: dict[str, Any], now_ms: int) -> dict[str, Any]:
    """A row."""
    detail = record["detail"]
    share = detail["static_share"]
    saw, chose, age_s = detail["saw"], detail["chose"], (now_ms - record["at"]) / 1000
    static = chose["arm"] == STATIC
    why = "static" if static else f"{SHARES[chose['arm']]:.0%} of the objective" + (", tried" if chose["tried"] else "")
    return {
        "lane": record["worker"], "seconds_ago": round(age_s, 1), "requests_per_s": round(saw["rate"]),
        "busy_ms": _ms(saw["busy_s"]), "behind": saw["behind"], "objective_ms": _ms(saw["objective_s"]),
        "window_ms": _ms(chose["window_s"]), "why": why, "expected_p95_ms": _ms(chose["expected_s"]),
        "static_window_ms": _ms(detail["static_window_s"]),
        "static_within_percent": None if share is None else round(100 * share, 1), "rest_ms": _ms(detail["rest_s"]),
        "tried_percent": round(100 * detail["tried_share"], 1), "guard_trips": detail["trips"],
        "guard": "failed" if detail["failed"] else "static" if detail["held"] else "old" if age_s > OLD_S else "ok",
    }  # fmt: skip


def _answers(report: Report, now_ms: int) -> dict[str, Any]:
    total = sum(answers for answers, _, _ in report.plans.values())
    within = sum(each for _, each, _ in report.plans.values())
    return {
        "model": f"{report.model}/{report.version}", "priority": report.priority,
        "seconds_ago": round((now_ms - report.at) / 1000, 1), "answers": total,
        "within_percent": round(100 * within / max(1, total), 1),
        "p95_ms": round(max((p95_ms for _, _, p95_ms in report.plans.values()), default=math.nan), 1),
        "objective_ms": report.objective_ms,
    }  # fmt: skip


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in rows[0] if rows else ():
        table.add_column(name.replace("_", " "))
    for row in rows:
        table.add_row(*map(str, row.values()))
    return table


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
