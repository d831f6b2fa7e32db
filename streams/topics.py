"""Every topic, in the order in which a request flows through them."""

from __future__ import annotations

PRIORITIES = ("interactive", "standard", "bulk")

REQUESTS = "requests"  # .<priority>: from clients
BATCHES = "batches"  # .<model>.<version>.<priority>: coalesce -> actor
RESULTS = "results"  # .<priority>: coalesce, actor -> clients
DECISIONS = "decisions"  # coalesce, actor -> audit writer
DEADLETTER = "deadletter"  # coalesce -> audit writer, operators
CONTROL = "control"  # compacted: the live state
TALLIES = "tallies"  # actor, audit writer -> monitor, audit writer: counts of windows
FAIRNESS = "fairness"  # monitor -> whoever watches, audit writer
ALERTS = "alerts"  # monitor -> whoever is on call, audit writer
LABELS = "labels"  # from clients: what really was so
COMPLAINTS = "complaints"  # from clients
MONITOR = "monitor"  # compacted: the monitor's counts, by release
SCHEDULER = "scheduler"  # compacted: actor -> coalesce: how long answers took; what coalescers chose and learned
WATCHED = (TALLIES, FAIRNESS, ALERTS, LABELS, COMPLAINTS)
SINGLE = (TALLIES, COMPLAINTS, CONTROL, MONITOR, SCHEDULER)  # of one partition: read whole, in one order


def requests(prefix: str, priority: str) -> str:
    return f"{prefix}.{REQUESTS}.{priority}"


def results(prefix: str, priority: str) -> str:
    return f"{prefix}.{RESULTS}.{priority}"


def batches(prefix: str, model: str, version: str, priority: str) -> str:
    return f"{prefix}.{BATCHES}.{model}.{version}.{priority}"


def decisions(prefix: str) -> str:
    return f"{prefix}.{DECISIONS}"


def deadletter(prefix: str) -> str:
    return f"{prefix}.{DEADLETTER}"


def control(prefix: str) -> str:
    return f"{prefix}.{CONTROL}"


def monitor(prefix: str) -> str:
    return f"{prefix}.{MONITOR}"


def scheduler(prefix: str) -> str:
    return f"{prefix}.{SCHEDULER}"


def watched(prefix: str, name: str) -> str:
    """A topic of WATCHED."""
    return f"{prefix}.{name}"
