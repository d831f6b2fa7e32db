"""What the command line prints: tables, a progress bar, sums."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from types import TracebackType

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from audit.verify import Report
from infra.commands.deadletters import Letter, hexdump
from infra.commands.request_files import FileRequest
from infra.commands.sending import Progress as SendingProgress
from infra.commands.sending import Sent
from infra.commands.status import Status
from kernels.spec import ModelSpec
from streams.topics import PRIORITIES
from streams.trace import Trace, dispersion

ANSWER_CHARACTERS = 600
PROBLEMS_MAX = 50
TRACE_ROWS_MAX = 40
READ_EVERY = 500
STYLES = {"ready": "green", "starting": "yellow", "hung": "red", "stopped": "dim"}


class SendProgress:
    """The bars of `lrai send`."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=console)

    def __enter__(self) -> SendProgress:
        self._progress.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, tb: TracebackType | None) -> None:
        self._progress.stop()

    def reading(self, requests: Iterable[FileRequest]) -> int:
        """Reads all; how many there are. Raises BadFile."""
        task = self._progress.add_task("reading", total=None)
        count = 0
        for count, _ in enumerate(requests, 1):
            if count % READ_EVERY == 0:
                self._progress.update(task, completed=count)
        self._progress.update(task, completed=count, total=count)
        return count

    def sending(self, count: int, wait: bool) -> SendingProgress:
        """The progress of that many requests."""
        sent = self._progress.add_task("sent", total=count)
        answered = self._progress.add_task("answered", total=count, visible=wait)

        def progress(sent_now: int, answered_now: int) -> None:
            self._progress.update(sent, completed=sent_now)
            self._progress.update(answered, completed=answered_now)

        return progress


def sent(console: Console, found: Sent, waited: bool) -> None:
    """The sums of a send."""
    if not waited:
        console.print(f"{found.sent} request(s) sent")
        return
    table = _table(status="left", code="left", answers="right")
    for (status, code), count in found.outcomes.most_common():
        table.add_row(status, code, str(count), style="" if status == "OK" else "red")
    if missing := found.sent - found.answered:
        table.add_row("(no answer)", "", str(missing), style="red")
    console.print(table)
    if found.latency_s:
        p50, p95 = 1e3 * found.percentile_s(50), 1e3 * found.percentile_s(95)
        console.print(f"{found.sent} sent, {found.answered} answered; latency p50 {p50:.0f} ms, p95 {p95:.0f} ms")
    for record in found.first:
        print(json.dumps(record, ensure_ascii=False)[:ANSWER_CHARACTERS])


def status(console: Console, found: Status) -> None:
    """Lanes, processes, problems."""
    lanes = _table(lane="left", topic="left", partitions="right", end="right", lag="right")
    for lane in found.lanes:
        lag = "-" if lane.lag is None else str(lane.lag)
        lanes.add_row(lane.lane, lane.topic, str(lane.partitions), str(lane.end), lag)
    actors = _table(process="left", state="left", pid="right", heartbeat_s="right", starts="right", last_error="left")
    for actor in found.actors:
        beat = "-" if actor.heartbeat_s is None or actor.state == "stopped" else f"{actor.heartbeat_s:.1f}"
        style = STYLES[actor.state]
        actors.add_row(
            actor.name, f"[{style}]{actor.state}[/]", str(actor.pid), beat, str(actor.starts), actor.last_error
        )
    for table in (lanes, actors):
        if table.row_count:
            console.print(table)
    for each in found.frozen:
        text = f"{each.model} {each.version} is FROZEN by {each.by}: {each.reason}"
        console.print(f"{text}; look: lrai equity review {each.model}", style="red", markup=False, highlight=False)
    for problem in found.problems:
        console.print(problem, style="red", markup=False, highlight=False)


def models(console: Console, specs: Sequence[ModelSpec]) -> None:
    """Each model with its inputs and outputs."""
    table = _table(model="left", version="left", inputs="left", outputs="left", score="left")
    for spec in specs:
        tensors = [
            ", ".join(f"{each.name} {each.datatype} {['rows', *each.shape]}".replace("'", "") for each in group)
            for group in (spec.inputs, spec.outputs)
        ]
        score = "-" if spec.score is None else spec.score[0]
        table.add_row(spec.model, spec.version, *(each.replace("[", r"\[") for each in tensors), score)
    console.print(table)


def letters(console: Console, found: Sequence[Letter], as_json: bool) -> None:
    """Dead letters, one a line."""
    rows = [
        {
            "partition": each.partition, "offset": each.offset, "at": each.at.isoformat(timespec="seconds"),
            "origin": each.origin, "reason": each.reason, "message": each.named.get("message", ""),
            "bytes": len(each.value), "replays": each.replays,
        }
        for each in found
    ]  # fmt: skip
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    table = _table(partition="right", offset="right", at="left", origin="left", reason="left", message="left",
                   bytes="right", replays="right")  # fmt: skip
    for row in rows:
        table.add_row(*(str(value).replace("[", r"\[") for value in row.values()))
    console.print(table)
    console.print(f"{len(rows)} dead letter(s)")


def letter(found: Letter) -> None:
    """Key, headers, bytes."""
    print(f"partition {found.partition} offset {found.offset} at {found.at.isoformat()}")
    print(f"key {found.key!r}")
    for name, value in found.headers:
        print(f"{name}: {'(null)' if value is None else value.decode(errors='backslashreplace')}")
    print()
    for line in hexdump(found.value):
        print(line)


def report(console: Console, found: Report) -> None:
    """The counts of an audit, and its problems."""
    console.print(
        f"{found.records} records in {found.ranges} source ranges of {found.partitions} partitions: "
        f"{found.decisions} decisions, {found.dead_letters} dead letters, {found.refused} refused; "
        f"{found.records_in_flight + found.decisions_in_flight} in flight"
    )
    for problem in found.problems[:PROBLEMS_MAX]:
        console.print(str(problem), style="red", markup=False, highlight=False)
    hidden = max(0, len(found.problems) - PROBLEMS_MAX) + found.problems_omitted
    if hidden:
        console.print(f"and {hidden} more", style="red")
    console.print("[green]complete: no hole, nothing twice[/]" if found.ok else "[red]NOT complete[/]")


def _table(**columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in columns.items():
        table.add_column(name.replace("_", " "), justify="right" if justify == "right" else "left", overflow="fold")
    return table


def trace(console: Console, found: Trace) -> None:
    """Rates of a trace, of all requests and by model and priority; dispersion: see `streams.trace`."""
    table = _table(
        model="left", priority="left", requests="right", mean="right", peak="right", dispersion="right",
        rows="right", bytes="right", deadlines="right",
    )  # fmt: skip
    groups = found.model.astype(np.int64) * len(PRIORITIES) + found.priority
    kinds, sizes = np.unique(groups, return_counts=True)
    largest = kinds[np.argsort(-sizes, kind="stable")[:TRACE_ROWS_MAX]].tolist()
    table.add_row("all", "", *_trace_row(found, np.ones(len(found), bool)))
    for kind in largest:
        index, rank = divmod(kind, len(PRIORITIES))
        table.add_row(found.models[index], PRIORITIES[rank], *_trace_row(found, groups == kind))
    console.print(table)
    if len(kinds) > TRACE_ROWS_MAX:
        console.print(f"and {len(kinds) - TRACE_ROWS_MAX} more")
    console.print(f"{len(found):,} request(s) in {found.seconds:,.3f} s", highlight=False)


def _trace_row(found: Trace, chosen: npt.NDArray[np.bool_]) -> list[str]:
    n = int(chosen.sum())
    a_second = np.bincount(found.at_s[chosen].astype(np.int64), minlength=int(found.seconds) + 1)
    spread = dispersion(a_second)
    return [
        f"{n:,}",
        f"{n / found.seconds:,.1f}/s" if found.seconds else "-",
        f"{a_second.max():,}/s",
        "-" if np.isnan(spread) else f"{spread:.2f}",
        f"{found.rows[chosen].mean():.1f}",
        f"{found.bytes[chosen].mean():.0f}",
        f"{100 * (~np.isnan(found.deadline_s[chosen])).mean():.0f} %",
    ]
