"""`python -m tests.bench.simulator.scale`: where the pipeline stops to scale, simulated; writes docs/scale.md.

A backlog in one lane, brokers with cores of their own and a core for each process: 1 to 256 actors of one model, 1 to
128 partitions. The throughput is that of a time when all are at work: later some have nothing left.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

from tests.bench.simulator import fit, measured
from tests.bench.simulator.machine import Arrivals, Machine, Model, Profile
from tests.bench.simulator.policy import Static
from tests.bench.simulator.run import Result, simulate

DOCS = Path(__file__).resolve().parents[3] / "docs"
ACTORS = (1, 4, 16, 64, 256)
PARTITIONS = (1, 8, 32, 128)
COALESCERS_MAX = 64  # as streams/settings.py allows
BROKER_CORES = 48.0  # three machines of 16
MIDDLE = (0.1, 0.5)  # of the run, that is looked at
BUSY = 0.8  # from there on a part is what holds the others up
GPU_FIXED_S, GPU_ROW_S, GPU_ROWS = 4e-4, 1e-6, 1024  # assumed, not measured
KINDS = {"mlp": "MLP 30-128-64-2, one core", "heavy": "net 256-1024-1024-1024-10, one core", "gpu": "a GPU (assumed)"}


@dataclass(frozen=True)
class Point:
    """One simulated cluster: answers a second, and how busy its parts were."""

    rate: float
    coalescers: float
    actors: float
    kernels: float
    broker: float
    idle: int
    """actors without a partition"""

    @property
    def limit(self) -> str:
        """What holds it up."""
        if self.broker > BUSY:
            return "broker"
        if self.coalescers > BUSY and self.coalescers >= self.actors:
            return "coalescers"
        if self.actors > BUSY:
            what = "kernels" if self.kernels > self.actors / 2 else "actors' own work"
            return f"partitions ({what})" if self.idle else what
        return "uneven partitions"


def model(kind: str, actors: int) -> Model:
    profile = Profile.straight(GPU_FIXED_S, GPU_ROW_S, GPU_ROWS, gpu=True) if kind == "gpu" else measured.profile(kind)
    return Model(kind, (profile,), actors=actors)


def cluster(actors: int, partitions: int) -> Machine:
    """A core for each process, brokers apart, one kernel run at once in an actor."""
    coalescers = min(partitions, COALESCERS_MAX)
    cores = float(2 * coalescers + actors + 2)
    return measured.machine(
        cores=cores, background_cores=0.0, broker_cores=BROKER_CORES, partitions=partitions, coalescers=coalescers,
        runs=1, load_record_s=0.0, reader_record_s=0.0, tick_s=0.0,
    )  # fmt: skip


def requests(machine: Machine, owners: int) -> int:
    """Enough for some windows of every lane."""
    return int(min(4_000_000, max(200_000, 40_000 * machine.coalescers, 30_000 * owners)))


def point(kind: str, actors: int, partitions: int) -> Point:
    """Simulates one cluster."""
    machine, owners = cluster(actors, partitions), min(actors, partitions)
    n = requests(machine, owners)
    # a backlog is in all partitions: times a microsecond apart spread it over them
    trace = Arrivals.alike(np.arange(n) * 1e-6 / machine.partitions, "standard", kind)
    result = simulate(trace, [model(kind, actors)], machine, Static())
    return _point(result, machine, owners, actors)


def _point(result: Result, machine: Machine, owners: int, actors: int) -> Point:
    spent = result.spent
    low_s, high_s = (share * result.ended_s for share in MIDDLE)
    coalescing_s, _ = _within(spent.busy["coalesce"], low_s, high_s)
    working_s, answers = _within(spent.busy["work"], low_s, high_s)
    span_s, rate = high_s - low_s, answers / (high_s - low_s)
    kernel_s = spent.cpu_s.get("kernel", 0.0) + spent.cpu_s.get("gpu", 0.0)
    return Point(
        rate=rate,
        coalescers=coalescing_s / (machine.coalescers * span_s),
        actors=working_s / (owners * span_s),
        kernels=rate * kernel_s / len(result.code) / owners,
        broker=rate * result.broker_s / len(result.code) / BROKER_CORES,
        idle=actors - owners,
    )


def _within(windows: Sequence[tuple[float, float, int]], low_s: float, high_s: float) -> tuple[float, float]:
    """Seconds of the windows that lie between two times, and their requests, spread evenly over each window."""
    begin, end, requests = np.array(windows).T
    inside_s = np.clip(np.minimum(end, high_s) - np.maximum(begin, low_s), 0.0, None)
    return float(inside_s.sum()), float((requests * inside_s / (end - begin)).sum())


Points = Mapping[tuple[str, int, int], Point]


def plot(points: Points, path: Path) -> None:
    """Answers a second over actors, a panel a kind, a line a number of partitions."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(KINDS), figsize=(12, 4), sharey=True)
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        for partitions in sorted({key[2] for key in points}):
            line = [(key[1], each.rate) for key, each in points.items() if key[0] == kind and key[2] == partitions]
            axis.loglog(*zip(*line, strict=True), marker="o", markersize=3, label=f"{partitions}")
        axis.set(title=title, xlabel="actors")
        axis.grid(True, which="major", alpha=0.3)
    axes[0].set_ylabel("answers/s (simulated)")
    axes[0].legend(title="partitions")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def plot_parts(points: Points, path: Path) -> None:
    """How busy each part is, with the most partitions."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    most = max(key[2] for key in points)
    figure, axes = pyplot.subplots(1, len(KINDS), figsize=(12, 3.6), sharey=True)
    for axis, (kind, title) in zip(axes, KINDS.items(), strict=True):
        mine = [(key[1], each) for key, each in points.items() if key[0] == kind and key[2] == most]
        for part in ("coalescers", "actors", "kernels", "broker"):
            axis.semilogx([n for n, _ in mine], [100 * getattr(each, part) for _, each in mine], marker="o", label=part)
        axis.set(title=title, xlabel="actors")
        axis.grid(True, alpha=0.3)
    axes[0].set_ylabel(f"% busy, {most} partitions (simulated)")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def table(points: Points, kind: str) -> list[str]:
    """Answers a second and what limits them."""
    actors, partitions = sorted({key[1] for key in points}), sorted({key[2] for key in points})
    lines = ["| actors | " + " | ".join(f"{each} partitions" for each in partitions) + " |"]
    lines.append("|--:|" + "---|" * len(partitions))
    for n in actors:
        cells = [points[kind, n, each] for each in partitions]
        lines.append(f"| {n} | " + " | ".join(f"{each.rate:,.0f} {each.limit}" for each in cells) + " |")
    return lines


def sections(points: Points) -> str:
    """The tables, in the order of KINDS."""
    return "\n\n".join(f"**{title}**\n\n" + "\n".join(table(points, kind)) for kind, title in KINDS.items())


BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"


def rewrite(text: str, points: Points, machine: Machine) -> str:
    """The document with new tables between BEGIN and END."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    compared = "\n".join(fit.table(measured.runs(), machine))
    clusters = f"## Simulated clusters\n\nAnswers a second, and what holds them up.\n\n{sections(points)}"
    return f"{before}{BEGIN}\n{compared}\n\n{clusters}\n{END}{after}"


def main() -> None:
    """All clusters; the plots and the tables of docs/scale.md."""
    parser = argparse.ArgumentParser(prog="tests.bench.simulator.scale")
    parser.add_argument("--quick", action="store_true", help="a few clusters, nothing is written")
    given = parser.parse_args()
    actors, partitions = (ACTORS[::3], PARTITIONS[::2]) if given.quick else (ACTORS, PARTITIONS)
    points: dict[tuple[str, int, int], Point] = {}
    for kind in KINDS:
        for n in actors:
            for parts in partitions:
                points[kind, n, parts] = found = point(kind, n, parts)
                print(
                    f"{kind}, {n} actors, {parts} partitions: {found.rate:,.0f}/s, {found.limit}, {found}", flush=True
                )
    if given.quick:
        return
    plot(points, DOCS / "scale-actors.png")
    plot_parts(points, DOCS / "scale-parts.png")
    path = DOCS / "scale.md"
    path.write_text(rewrite(path.read_text(), points, measured.machine()))


if __name__ == "__main__":
    main()
