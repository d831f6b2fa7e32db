"""Every topic, in the order in which a request flows through them."""

from __future__ import annotations

PRIORITIES = ("interactive", "standard", "bulk")

REQUESTS = "requests"  # .<priority>: from clients
BATCHES = "batches"  # .<model>.<version>.<priority>: coalesce -> actor
RESULTS = "results"  # .<priority>: coalesce, actor -> clients
DECISIONS = "decisions"  # coalesce, actor -> audit writer
DEADLETTER = "deadletter"  # coalesce -> audit writer, operators
CONTROL = "control"  # compacted: the live state


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
