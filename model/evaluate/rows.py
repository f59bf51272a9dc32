"""Some rows of an array on disk, read as they are needed: what is fitted on them may exceed memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from lumid.catalog.errors import UsageError

BLOCK = 4096
SHARE = 0.5
"""Of the memory that is free: what may be held at once."""


@dataclass(frozen=True, slots=True)
class Rows:
    """``values[indices]``, of which nothing is read before it is asked for.

    >>> Rows.of(np.arange(6).reshape(3, 2)).subset(np.array([2, 0])).take(np.array([0])).tolist()
    [[4, 5]]
    """

    values: npt.NDArray[Any] = field(repr=False)
    indices: npt.NDArray[np.int64] = field(repr=False)

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> Rows:
        """All rows of an array."""
        return cls(values, np.arange(len(values)))

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def width(self) -> int:
        """Numbers in the last dimension."""
        return int(self.values.shape[-1])

    def subset(self, places: npt.NDArray[np.int64]) -> Rows:
        """Some of these rows."""
        return Rows(self.values, self.indices[places])

    def take(self, places: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
        """Copies of some rows, in the order asked for; read in the order in which they lie."""
        wanted = self.indices[places]
        order = np.argsort(wanted, kind="stable")
        found = np.empty((len(wanted), *self.values.shape[1:]), self.values.dtype)
        found[order] = self.values[wanted[order]]
        return found

    def blocks(self, size: int = BLOCK) -> Iterator[npt.NDArray[Any]]:
        """All rows in their order, ``size`` at a time."""
        for begin in range(0, len(self), size):
            yield self.take(np.arange(begin, min(begin + size, len(self))))

    def whole(self, what: str, share: float = SHARE) -> npt.NDArray[Any]:
        """All rows at once. Raises :class:`UsageError` where half of the free memory would not hold them."""
        needed = len(self) * self.values[:1].nbytes
        if needed > share * psutil.virtual_memory().available:
            raise UsageError(
                f"{what}: {needed / 1e9:,.1f} GB of features do not fit into memory; linear, knn and paper take any number"
            )
        return self.take(np.arange(len(self)))
