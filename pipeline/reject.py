"""Expected failures, as values: why a frame or an object does not reach the shards."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

from lumid.catalog.schema import REASONS


@dataclass(frozen=True, slots=True)
class Reject:
    """Why something was left out: the stage, a code of :data:`~lumid.catalog.schema.REASONS`, and its meaning.

    ``detail`` may hold numbers and names of lumid's and the standard's own making, never text of a header.
    """

    stage: str
    code: str
    detail: str = ""

    def __post_init__(self) -> None:
        if self.code not in REASONS:
            raise ValueError(f"unknown reason code {self.code}")

    @property
    def message(self) -> str:
        """One line for the rejects table."""
        return f"{REASONS[self.code]} ({self.detail})" if self.detail else REASONS[self.code]


def internal_error(stage: str, error: Exception) -> Reject:
    """The reason for what should not happen: kind and place of the exception, never its text, which may quote a header."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].name}:{frames[-1].lineno}" if frames else "unknown"
    return Reject(stage, "internal_error", f"{type(error).__name__} in {place}")
