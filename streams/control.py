"""The live state: records of the compacted topic lrai.control, written by operators, read by every actor."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from schemas import framing
from schemas.errors import BadRecord
from streams import topics
from streams.compacted import Compacted
from streams.log import log
from streams.settings import Settings

NAME = "control"
VARIANT = "variant"
FREEZE, UNFREEZE = "freeze", "unfreeze"


@dataclass(frozen=True, slots=True)
class Control:
    """A change. `variant`: the one that answers, None where policy and load choose; `at`: ms since the epoch;
    `id`, `evidence`: of a freeze, and of the unfreeze that names it."""

    kind: str
    model: str
    version: str
    variant: str | None
    by: str
    reason: str
    at: int
    id: str | None = None
    evidence: str | None = None

    @property
    def key(self) -> str:
        """The newest record of a key counts."""
        kind = FREEZE if self.kind == UNFREEZE else self.kind
        return f"{kind}/{self.model}/{self.version}"

    def encode(self) -> bytes:
        return framing.encode(NAME, asdict(self))

    @classmethod
    def decode(cls, value: bytes) -> Control:
        """Raises BadRecord."""
        name, record = framing.decode(value)
        if name != NAME:
            raise BadRecord("unknown_schema", f"a {name} is no control record")
        return cls(**record)


class ControlState(Compacted):
    """What lrai.control says now, by key."""

    def __init__(self, settings: Settings, client_id: str) -> None:
        super().__init__(settings, topics.control(settings.prefix), client_id)
        self.state: dict[str, Control] = {}

    def poll(self, now_s: float) -> dict[str, Control]:
        """The state, with what came since. `now_s`: time.monotonic()."""
        self.look(now_s)
        return self.state

    def variant(self, model: str, version: str, now_s: float) -> str | None:
        """The variant that an operator asks for."""
        found = self.poll(now_s).get(f"{VARIANT}/{model}/{version}")
        return found.variant if found else None

    def frozen(self, model: str, version: str, now_s: float) -> Control | None:
        """The freeze that holds."""
        found = self.poll(now_s).get(f"{FREEZE}/{model}/{version}")
        return found if found and found.kind == FREEZE else None

    def put(self, key: str, value: bytes | None) -> None:
        if value is None:
            self.state.pop(key, None)
            return
        try:
            found = Control.decode(value)
        except BadRecord as err:
            log("error", "no record of LRAI's on lrai.control; passed over", key=key, error=str(err))
            return
        self.state[found.key] = found
        log("info", "control", record=asdict(found))
