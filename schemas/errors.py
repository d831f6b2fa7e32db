"""The errors of LRAI, by who must act."""

from __future__ import annotations


class LraiError(Exception):
    """LRAI could not go on."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__)


class BadRecord(LraiError):
    """The record can never be processed; its sender must correct it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class BadSetting(LraiError):
    """A setting or the model repository must be corrected by the operator."""


class StoreUnavailable(LraiError):
    """The audit store does not answer; the operator must bring it back."""


class IntegrityError(LraiError):
    """Counts, offsets or hashes contradict each other; do not go on before the cause is known."""
