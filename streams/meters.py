"""Prometheus metrics of a process; written once a window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.025, 0.035, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
FILL = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)

WINDOWS = Counter("lrai_windows_total", "windows written", ["lane"])
RECORDS = Counter("lrai_records_total", "records consumed in windows that were written", ["lane"])
OUTCOMES = Counter("lrai_outcomes_total", "requests by how they ended or went on", ["lane", "code"])
FALLBACK = Counter("lrai_decode_fallback_records_total", "requests that went through fastavro", ["lane"])
DISCARDED = Counter("lrai_windows_discarded_total", "windows aborted and read again", ["lane"])
STOPPED = Counter("lrai_partitions_stopped_total", "partitions that cannot go on without an operator", ["lane"])
WINDOW_RECORDS = Histogram("lrai_window_records", "records a window", ["lane"], buckets=FILL)
FUNCTION_S = Histogram("lrai_window_function_seconds", "time in the stage's function", ["lane"], buckets=SECONDS)
WRITE_S = Histogram("lrai_window_write_seconds", "time to write and commit", ["lane"], buckets=SECONDS)
LAG = Gauge("lrai_lag_records", "records between the committed offset and the end", ["lane", "topic", "partition"])
ROWS = Counter("lrai_rows_total", "rows run", ["model", "version", "variant"])
EXECUTIONS = Counter("lrai_executions_total", "kernel runs", ["model", "version", "variant"])
EXECUTION_S = Histogram("lrai_execution_seconds", "time of a kernel run", ["model", "version"], buckets=SECONDS)
SWITCHES = Counter("lrai_variant_switches_total", "windows answered by another variant than the one before",
                   ["model", "version", "variant"])  # fmt: skip
REFUSED = Counter("lrai_variants_refused_total", "variants that were not loaded", ["model", "version", "variant"])
OUTSIDE = Counter("lrai_outside_region_requests_total", "requests outside of a variant's certified region",
                  ["model", "version", "variant"])  # fmt: skip
LATENCY_S = Histogram("lrai_latency_seconds", "from append to answer", ["lane", "model"], buckets=SECONDS)
OBJECTIVE_S = Gauge("lrai_latency_objective_seconds", "slo_p95_ms of the model", ["model", "version", "priority"])
RESTARTS = Counter("lrai_restarts_total", "processes restarted", ["child"])
PLANNED_S = Gauge("lrai_scheduler_window_seconds", "window that the scheduler chose last", ["lane"])
REST_S = Gauge("lrai_scheduler_rest_seconds", "rest between windows, for the sake of higher lanes", ["lane"])
EPOCHS = Counter("lrai_scheduler_epochs_total", "epochs by kind: learned, tried, static", ["lane", "kind"])
GUARDED = Counter("lrai_scheduler_guarded_total", "static settings took over: worse, stale, nonsense, crashed",
                  ["lane", "why"])  # fmt: skip
GPU_BUSY = Gauge("lrai_gpu_utilisation_ratio", "share of the last sample in which a kernel ran", ["gpu"])
GPU_BYTES = Gauge("lrai_gpu_memory_bytes", "memory of the GPU that is taken", ["gpu"])
AUDIT_DELAY = Gauge("lrai_audit_delay_seconds", "age of the newest decision when its row was committed")


CPU_S = Counter("lrai_cpu_seconds_total", "CPU that the actor's process took", ["model", "version"])
GPU_S = Counter("lrai_gpu_seconds_total", "kernel runs on a GPU", ["model", "version"])
ENERGY_J = Counter("lrai_energy_joules_total", "energy, by where the figure is from", ["model", "version", "source"])
COST = Counter("lrai_cost_total", "cost at the prices of the settings", ["model", "version", "currency"])
DECISIONS = Counter("lrai_decisions_total", "decisions: favourable or otherwise", ["model", "version", "decision"])
REFUSED_RECORDS = Counter("lrai_audit_refused_records_total", "records of which the store says only why", ["topic"])
LABELS = Counter("lrai_labels_total", "labels by what became of them: joined, duplicate, refused", ["state"])
LABELS_PENDING = Gauge("lrai_labels_pending", "labels whose decision is not stored, up to 100,000")


class LaneMeters:
    """The metrics of one lane."""

    def __init__(self, lane: str) -> None:
        self.lane = lane
        self._windows = WINDOWS.labels(lane)
        self._records = RECORDS.labels(lane)
        self._fill = WINDOW_RECORDS.labels(lane)
        self._function = FUNCTION_S.labels(lane)
        self._write = WRITE_S.labels(lane)
        self._fallback = FALLBACK.labels(lane)

    def window(self, counts: Mapping[str, int], records: int, function_s: float, write_s: float) -> None:
        """A window was written."""
        self._windows.inc()
        self._records.inc(records)
        self._fill.observe(records)
        self._function.observe(function_s)
        self._write.observe(write_s)
        for code, count in counts.items():
            (self._fallback if code == "decode_fallback" else OUTCOMES.labels(self.lane, code)).inc(count)

    def discarded(self) -> None:
        DISCARDED.labels(self.lane).inc()

    def stopped(self) -> None:
        STOPPED.labels(self.lane).inc()

    def lag(self, topic: str, partition: int, records: int) -> None:
        LAG.labels(self.lane, topic, str(partition)).set(records)


def observe_latency(lane: str, model: str, seconds: Sequence[float]) -> None:
    """Latencies of a window, at most a few hundred of them: a larger window is thinned evenly."""
    histogram = LATENCY_S.labels(lane, model)
    for value in seconds:
        histogram.observe(value)
