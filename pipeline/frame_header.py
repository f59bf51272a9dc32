"""A data set's header as one frame sees it: numbers, code strings and items, whatever the header may be wrong about."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydicom import Dataset
from pydicom.multival import MultiValue

from lumid.pipeline.elements import value_of

SEVERAL = (list, tuple, MultiValue)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """A data set seen from one frame: per-frame functional groups, then shared ones, then the data set itself."""

    dataset: Dataset
    frame: int
    known: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def at(self, frame: int) -> FrameHeader:
        """Another frame's, which shares what has been read of the data set itself."""
        return FrameHeader(self.dataset, frame, self.known)

    def get(self, keyword: str, macro: str | None = None) -> Any:
        """The value of a keyword, inside a functional group macro where the object has them (PS3.3 C.7.6.16)."""
        if macro is not None:
            for group in self._groups():
                try:
                    items = value_of(group, macro)
                    if items:
                        value = value_of(items[0], keyword)
                        if value is not None:
                            return value
                except Exception:
                    continue
        if keyword in self.known:
            return self.known[keyword]
        try:
            value = value_of(self.dataset, keyword)
        except Exception:  # a value that does not parse counts as absent
            value = None
        self.known[keyword] = value
        return value

    def _groups(self) -> Iterator[Dataset]:
        try:
            per_frame = self.get("PerFrameFunctionalGroupsSequence")
            if per_frame and self.frame < len(per_frame):
                yield per_frame[self.frame]
            shared = self.get("SharedFunctionalGroupsSequence")
            if shared:
                yield shared[0]
        except Exception:
            return

    def items(self, sequence: str) -> list[FrameHeader]:
        """The items of a sequence: of the frame's own functional groups, else of the shared ones, else of the data set."""
        for holder in (*self._groups(), self.dataset):
            try:
                if found := value_of(holder, sequence):
                    return [FrameHeader(item, 0) for item in found]
            except Exception:  # a sequence that does not parse counts as absent
                continue
        return []

    def number(self, keyword: str, macro: str | None = None) -> float | None:
        """A finite number, or None."""
        values = self.numbers(keyword, macro)
        return values[0] if values else None

    def numbers(self, keyword: str, macro: str | None = None) -> list[float]:
        """All values of a numeric element; empty when any of them is not a finite number."""
        value = self.get(keyword, macro)
        if value is None or value == "":
            return []
        items = value if isinstance(value, SEVERAL) else (value,)
        try:
            numbers = [float(item) for item in items]
        except (TypeError, ValueError, OverflowError):
            return []
        return numbers if all(map(math.isfinite, numbers)) else []

    def term(self, keyword: str, macro: str | None = None) -> str:
        """A code string in upper case without surrounding space; empty when absent."""
        value = self.get(keyword, macro)
        return value.strip().upper() if isinstance(value, str) else ""

    def terms(self, keyword: str, macro: str | None = None) -> list[str]:
        """All values of a multi-valued code string, in upper case."""
        value = self.get(keyword, macro)
        if isinstance(value, str):
            return [value.strip().upper()]
        if isinstance(value, SEVERAL):
            return [str(item).strip().upper() for item in value]
        return []
