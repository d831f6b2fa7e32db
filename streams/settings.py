"""The one configuration of LRAI: command line over LRAI_* environment over lrai.toml over defaults."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict, TomlConfigSettingsSource

from kernels.spec import DEVICE
from schemas.errors import BadSetting
from streams.topics import PRIORITIES

FILE = "lrai.toml"
BESIDE_BYTES = 2 * 1024 * 1024  # keys, headers and columns beside the bytes that a bound counts
ACTIONS = ("latency",)  # the early warnings that LRAI can do something about


class Settings(BaseSettings):
    """Every setting with its unit last in its name; unknown names are errors."""

    model_config = SettingsConfigDict(env_prefix="LRAI_", toml_file=FILE, frozen=True, extra="forbid")

    kafka: str = "localhost:9092"
    kafka_options: dict[str, str] = Field({}, description="librdkafka properties for every client, e.g. security")
    store: str = "postgresql://localhost/lrai"
    models: Path = Path("models")
    registry: str | None = Field(None, description="URL of a Confluent-compatible schema registry")
    prefix: str = Field("lrai", pattern=r"^[A-Za-z0-9._-]{1,100}$", description="begins every topic and group")
    node: str = Field(default_factory=lambda: socket.gethostname().replace(".", "-"), pattern=r"^[A-Za-z0-9_-]{1,63}$")
    slot: int = Field(0, ge=0, le=9999, description="which instance of its role on this node a process is")
    state: Path = Field(Path.home() / ".local/state/lrai", description="slot files; the pseudonym key if none is set")
    pseudonym_key: SecretStr | None = Field(None, description="keys the HMAC of subjects; the same on every node")
    reply_topics: tuple[str, ...] = Field((), description="topics or patterns that a client may name")

    partitions: int = Field(4, ge=1, le=1000)
    replication: int = Field(1, ge=1, le=16)
    retention_ms: int = Field(7 * 24 * 3600 * 1000, ge=60_000)
    record_bytes_max: int = Field(8 * 1024 * 1024, ge=4 * 1024 * 1024, description="the largest record of any topic")

    window_interactive_ms: float = Field(5, ge=0, le=10_000)
    window_standard_ms: float = Field(10, ge=0, le=10_000)
    window_bulk_ms: float = Field(100, ge=0, le=10_000)
    window_records_max: int = Field(4000, ge=1, le=100_000)
    window_bytes_max: int = Field(16 * 1024 * 1024, ge=1024)
    actor_records_max: int = Field(16, ge=1, description="batch records of one window of an actor")
    run_rows_max: int = Field(2048, ge=1, description="rows of one kernel run, and of one batch record")
    batch_bytes_max: int = Field(2 * 1024 * 1024, ge=1024, description="of a batch record, about")

    request_bytes_max: int = Field(1024 * 1024, ge=1024)
    result_bytes_max: int = Field(1000 * 1000, ge=1024, description="below max.message.bytes of all reply topics")
    request_id_bytes_max: int = Field(256, ge=1, le=10_000)
    text_bytes_max: int = Field(1024, ge=1, description="of subject, consent_id, purpose, attributes, parameters")
    dead_letter_bytes_max: int = Field(4 * 1024 * 1024, ge=1024)

    transaction_timeout_ms: int = Field(10_000, ge=1000, le=900_000)
    session_timeout_ms: int = Field(10_000, ge=6000)
    hang_s: float = Field(15, gt=0.5, description="a process without a heartbeat for this long is killed and restarted")
    drain_s: float = Field(20, gt=0)
    leave: bool = Field(False, description="leave the groups on stop: for scale-down, not for a restart")
    audit_writers: int = Field(1, ge=1, le=64)
    coalescers: int = Field(1, ge=1, le=64, description="processes a priority")
    threads: int = Field(1, ge=1, le=256, description="of a kernel run")
    device: str = Field("cpu", pattern=DEVICE, description="of actors whose model.toml names none")
    runs: int = Field(0, ge=0, le=256, description="kernel runs at once in an actor; 0 is as many as cores for them")
    fairness_alpha: float = Field(0.01, gt=0, lt=1, description="of a release: how likely it is ever frozen falsely")
    fairness_every_ms: int = Field(1000, ge=0, description="between two records of a test whose state is the same")
    coverage_min: float = Field(0.5, ge=0, le=1, description="of decisions with a sensitive feature, before an alert")
    latency_rise: float = Field(0.2, gt=0, description="of the daily p95, before an alert")
    latency_days: int = Field(3, ge=1, le=13)
    utilisation_min: float = Field(0.2, ge=0, le=1, description="of a day that kernels run, before an alert")
    utilisation_days: int = Field(7, ge=1, le=13)
    complaints_max: int = Field(15, ge=0, description="in complaints_days, before an alert")
    complaints_days: int = Field(7, ge=1, le=14)
    actions_allowed: tuple[str, ...] = Field((), description="alerts that the monitor may act on by itself: latency")
    scheduler: Literal["static", "adaptive"] = Field("adaptive", description="of models whose model.toml says nothing")
    watch: bool = Field(True, description="count windows by group and cost, and run the monitor")
    metrics_port: int = Field(0, ge=0, le=65_000, description="the first port; each process has the next; 0 is none")
    currency: str = Field("EUR", pattern=r"^[A-Z]{3}$", description="of the prices")
    cpu_hour_price: float = Field(0, ge=0, allow_inf_nan=False, description="of an hour of one core")
    gpu_hour_price: float = Field(0, ge=0, allow_inf_nan=False)
    watts_per_core: float = Field(10, ge=0, le=10_000, description="of a busy core, where its energy cannot be read")
    watts_per_gpu: float = Field(300, ge=0, le=10_000, description="of a busy GPU, where its energy cannot be read")
    log_level: str = Field("info", pattern="^(debug|info|warning|error)$")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls))

    @field_validator("reply_topics")
    @classmethod
    def _bounded(cls, topics: tuple[str, ...]) -> tuple[str, ...]:
        if len(topics) > 1000:
            raise ValueError(f"has {len(topics)} entries; name at most 1000 topics or use patterns")
        return topics

    @field_validator("actions_allowed")
    @classmethod
    def _possible(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if others := sorted(set(names) - set(ACTIONS)):
            why = "a disparity freezes as freeze_on in model.toml says, the others are for people"
            raise ValueError(f"names {', '.join(others)}; the monitor can act on {', '.join(ACTIONS)} alone: {why}")
        return names

    @model_validator(mode="after")
    def _fits(self) -> Settings:
        """What a stage produces must fit into a record, or a client could stop it."""
        for name in ("result_bytes_max", "batch_bytes_max", "dead_letter_bytes_max"):
            if getattr(self, name) + BESIDE_BYTES > self.record_bytes_max:
                text = f"{name} = {getattr(self, name)}: keep it {BESIDE_BYTES} below record_bytes_max"
                raise ValueError(f"{text} = {self.record_bytes_max}")
        return self

    def window_s(self, priority: str) -> float:
        """How long a coalesce window stays open after its first record."""
        windows = (self.window_interactive_ms, self.window_standard_ms, self.window_bulk_ms)
        return dict(zip(PRIORITIES, windows, strict=True))[priority] / 1000


def load(**given: Any) -> Settings:
    """The settings; what is given wins unless it is None. Raises BadSetting that names each wrong field."""
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as err:
        places = [(".".join(map(str, each["loc"])), each) for each in err.errors()]
        lines = [f"{place} = {each['input']!r}: {each['msg']}" if place else each["msg"] for place, each in places]
        where = "command line, LRAI_* environment or lrai.toml"
        raise BadSetting(f"wrong settings ({where}):\n  " + "\n  ".join(lines)) from err
