"""`lrai equity`: look at the evidence of a freeze, end it, or freeze by hand; each act has a name and a reason."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from infra.commands import evidence, live_state
from infra.commands.options import AsJson, Kafka, Prefix, Store, Version, errors, group, out
from schemas.errors import BadSetting, LraiError
from streams import topics
from streams.admin import Admin
from streams.control import FREEZE, UNFREEZE, Control
from streams.settings import Settings, load

GROUP_MIN = 30  # smaller groups are not shown outside of the auditor's role
app = group("Evidence of unfair treatment, and what is done about it.")
Model = Annotated[str, typer.Argument(help="Name of the model.")]
By = Annotated[str, typer.Option("--by", help="Who answers for it.")]
Reason = Annotated[str, typer.Option("--reason", help="Why; kept with the freeze.")]
Freezes = Mapping[str, Control]


@app.command("review")
def review(
    model: Model, version: Version = None, as_json: AsJson = False,
    kafka: Kafka = None, store: Store = None, prefix: Prefix = None,
) -> None:  # fmt: skip
    """Groups, counts, intervals, since when, examples, alerts, complaints. The frozen version, else the newest."""
    settings = load(kafka=kafka, store=store, prefix=prefix)
    freezes, there = _freezes(settings), _versions(settings, model)
    chosen = version or next(iter(_frozen(freezes, model)), None) or _newest(model, there)
    if chosen not in there:
        raise BadSetting(f"--version {chosen!r}: model {model!r} has the versions {', '.join(there) or 'none'}")
    freeze = _frozen(freezes, model).get(chosen)
    found = evidence.gather(settings.store, model, chosen, _groups(freeze))
    if as_json:
        frozen = asdict(freeze) if freeze else None
        shown = {"model": model, "version": chosen, "frozen": frozen, **asdict(found)}
        print(json.dumps(shown, default=str, ensure_ascii=False))
    else:
        _show(model, chosen, freeze, found)
    raise SystemExit(int(bool(found.problem)))


@app.command("unfreeze")
def unfreeze(
    model: Model, by: By, reason: Reason, version: Version = None, kafka: Kafka = None, prefix: Prefix = None
) -> None:
    """Ends the freeze. The counts start anew: what led to it cannot freeze again, new evidence can."""
    settings = load(kafka=kafka, prefix=prefix)
    _stated(by, reason)
    frozen = _frozen(_freezes(settings), model)
    if not frozen or (version and version not in frozen):
        what = f"{model} {version}" if version else model
        others = ", ".join(f"{model} {each}" for each in frozen)
        raise LraiError(f"{what} is not frozen; {f'frozen: {others}' if others else '`lrai status` shows what is'}")
    if version is None and len(frozen) > 1:
        raise BadSetting(f"{model} is frozen in the versions {', '.join(frozen)}; say which: --version")
    freeze = frozen[version or next(iter(frozen))]
    record = Control(UNFREEZE, model, freeze.version, None, by, reason, live_state.now_ms(), freeze.id)
    live_state.write(settings, record)
    out.print(f"{model} {freeze.version}: freeze {freeze.id} is ended", markup=False, highlight=False)


@app.command("freeze")
def freeze(
    model: Model, by: By, reason: Reason, version: Version = None, kafka: Kafka = None, prefix: Prefix = None
) -> None:
    """Freezes by hand: the newest version, or the one that is named. What then happens is `on_freeze` in model.toml."""
    settings = load(kafka=kafka, prefix=prefix)
    _stated(by, reason)
    there = _versions(settings, model)
    chosen = version or _newest(model, there)
    if chosen not in there:
        raise BadSetting(f"--version {chosen!r}: model {model!r} has the versions {', '.join(there) or 'none'}")
    if already := _frozen(_freezes(settings), model).get(chosen):
        raise LraiError(f"{model} {chosen} is frozen already, {_since(already)} by {already.by}: {already.reason}")
    at = live_state.now_ms()
    name = sha256(json.dumps([model, chosen, "by hand", by, reason, at]).encode()).hexdigest()
    live_state.write(settings, Control(FREEZE, model, chosen, None, by, reason, at, name))
    out.print(f"{model} {chosen} is frozen: {name}", markup=False, highlight=False)


def _stated(by: str, reason: str) -> None:
    for option, text in (("--by", by), ("--reason", reason)):
        if not text.strip():
            raise BadSetting(f"{option} is empty; nobody freezes or unfreezes without a name and a reason")


def _freezes(settings: Settings) -> Freezes:
    return {key: each for key, each in live_state.read(settings).items() if each.kind == FREEZE}


def _frozen(freezes: Freezes, model: str) -> dict[str, Control]:
    """By version, the newest first."""
    found = {each.version: each for each in freezes.values() if each.model == model}
    return dict(sorted(found.items(), key=lambda each: int(each[0]), reverse=True))


def _versions(settings: Settings, model: str) -> list[str]:
    """Those that ever ran here: they have topics."""
    start = f"{topics.BATCHES}."
    names = [name.removeprefix(f"{settings.prefix}.") for name in Admin(settings).existing()]
    parts = [name.removeprefix(start).split(".") for name in names if name.startswith(start)]
    return sorted({part[1] for part in parts if len(part) == 3 and part[0] == model}, key=int)


def _newest(model: str, there: list[str]) -> str:
    if not there:
        raise BadSetting(f"model {model!r} never ran here; `lrai status` shows what did")
    return there[-1]


def _groups(freeze: Control | None) -> tuple[str, list[str]] | None:
    """Attribute and groups that the freeze is about, the furthest apart first."""
    if freeze is None or not freeze.evidence:
        return None
    record = json.loads(freeze.evidence)
    far = [each for each in record["groups"] if each["state"] == "alarm"]
    far.sort(key=lambda each: abs(each["difference"]), reverse=True)
    return record["attribute"], [each["group"] for each in far]


def _since(freeze: Control) -> str:
    return f"since {datetime.fromtimestamp(freeze.at / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _show(model: str, version: str, freeze: Control | None, found: evidence.Evidence) -> None:
    _line(f"{model} {version}: " + (f"FROZEN {_since(freeze)} by {freeze.by}" if freeze else "not frozen"))
    if freeze:
        _line(f"  {freeze.reason}\n  freeze {freeze.id}")
        if freeze.evidence:
            record = json.loads(freeze.evidence)
            kept = [each for each in record["groups"] if each["decided"] >= GROUP_MIN]
            left_out = f" (groups under {GROUP_MIN} left out)" if len(kept) < len(record["groups"]) else ""
            _line(f"\nThe evidence of the freeze{left_out}")
            _tests([{**each, **record, "group_state": each["state"]} for each in kept])
    if found.tests:
        _line("\nNow")
        _tests(found.tests)
    _rows("Examples", found.examples)
    _rows("Alerts", found.alerts)
    _rows("Open complaints", found.complaints)
    _rows("Freezes so far", found.incidents)
    if found.problem:
        errors.print(found.problem, style="red", markup=False, highlight=False)


def _tests(rows: list[dict[str, Any]]) -> None:
    table = _table("attribute", "definition", "state", "value", "limit", "group", "decided", "favourable", "rate",
                   "compared with", "difference", "group state")  # fmt: skip
    for row in rows:
        rate = _interval(row["rate"], row["low"], row["high"])
        difference = _interval(row["difference"], row["difference_low"], row["difference_high"])
        cells = (row["attribute"], row["definition"], row["state"], _number(row["value"]), f"{row['limit']:g}",
                 row["group"], row["decided"], row["favourable"], rate, row["compared_with"], difference,
                 row["group_state"])  # fmt: skip
        table.add_row(*(Text("-" if each is None else str(each)) for each in cells))
    out.print(table)
    for text in dict.fromkeys(map(_counted, rows)):
        _line(text)


def _counted(row: Mapping[str, Any]) -> str:
    when = f"from {_time(row['since'])} to {_time(row['at'])}, coverage {_number(row['coverage'])}"
    return f"  {row['attribute']}, {row['definition']}: {row['decisions']} decisions {when}; {row['method']}"


def _rows(title: str, rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    _line(f"\n{title}")
    table = _table(*(name.replace("_", " ") for name in rows[0]))
    for row in rows:  # clients wrote some of it: no markup
        table.add_row(*(Text("-" if each is None else _time(each)) for each in row.values()))
    out.print(table)


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _line(text: str) -> None:
    out.print(text, markup=False, highlight=False)


def _time(value: object) -> str:
    """A moment in UTC, from a datetime or ms since the epoch; anything else as it is."""
    if isinstance(value, int) and value > 10**11:
        value = datetime.fromtimestamp(value / 1000, UTC)
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "-" if value is None else f"{value:.3f} [{_number(low)}, {_number(high)}]"
