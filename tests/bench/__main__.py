"""`python -m tests.bench`: runs the table of targets and writes build/bench.json and docs/benchmarks.md."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
from rich.console import Console

from infra.jars import pins
from infra.parts import parts
from tests.bench import burst, cases, live, report, scheduling
from tests.bench.cases import Bench, warm_up
from tests.bench.contenders import Failed
from tests.bench.report import Outcome

ROOT = Path(__file__).resolve().parents[2]
BUSY = 0.5  # runnable processes, over the last minute
CASES: dict[str, Callable[[Bench], Outcome]] = {
    "mlp": cases.mlp,
    "mix": cases.mix,
    "watch": cases.watch,
    "live": live.live,
    "wide": cases.wide,
    "resnet": cases.resnet,
    "resnet-int8": cases.resnet_int8,
    "trees": cases.trees,
    "interactive": live.interactive,
    "audit": cases.audit,
    "memory": live.memory,
    "burst": burst.burst,
    "scheduler": scheduling.scheduler,
    "scheduler-crowded": scheduling.crowded,
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.bench", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=list(CASES), default=list(CASES), help="the rows to measure")
    parser.add_argument("--contender", nargs="+", default=[], metavar="NAME", help="who takes part; default all")
    parser.add_argument("--rounds", type=int, help="default 5, quick 2; long cases 3, quick 1")
    parser.add_argument("--quick", action="store_true", help="smaller, into build/bench-quick.json and .md")
    parser.add_argument("--cold", action="store_true", help="no warm-up round")
    return parser.parse_args()


def _versions(store: str) -> dict[str, str]:
    with psycopg.connect(store) as connection:
        row = connection.execute("show server_version").fetchone()
    broker = "that of LRAI_KAFKA" if os.environ.get("LRAI_KAFKA") else pins().version
    return {"Apache Kafka": broker, "PostgreSQL": str(row[0]) if row else "?"}


def main() -> int:
    """Runs the cases asked for. Returns the exit status: 1 when a case could not be measured."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    console = Console(width=140 if not sys.stdout.isatty() else None)
    folder = ROOT / "build"
    folder.mkdir(exist_ok=True)
    results = folder / ("bench-quick.json" if given.quick else "bench.json")
    document = folder / "bench-quick.md" if given.quick else ROOT / "docs" / "benchmarks.md"
    failures = 0
    busy = os.getloadavg()[0]

    def say(text: str) -> None:
        console.print(f"{time.strftime('%H:%M:%S')}  {text}", highlight=False, markup=False)

    if busy > BUSY:
        say(f"the machine is not idle (load {busy:.1f}): the figures will be too low and scatter")
    with parts() as running:
        rounds = given.rounds or (2 if given.quick else 5)
        only = frozenset(given.contender)
        bench = Bench(running.kafka, running.store, folder / "bench", given.quick, rounds, only, say)
        shutil.rmtree(bench.folder / "logs", ignore_errors=True)
        place = report.machine(_versions(running.store))
        if not given.cold:
            say("warming up the broker")
            warm_up(bench)
        for name in given.only:
            say(f"{name} ...")
            bench.absent.clear()
            try:
                outcome = CASES[name](bench)
            except Failed as err:
                failures += 1
                say(f"{name} could not be measured: {err}")
                continue
            failures += bool(bench.absent)
            report.show(console, outcome)
            report.save([outcome], place, results, document)
    say(f"written: {results.relative_to(ROOT)}, {document.relative_to(ROOT)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
