"""Which series have samples whose header states what no vocabulary knows: kept with the rejects, in the file's metadata.

``dataset.json`` has the sums by column. By series they are needed where another data set takes over some of the series.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping

from lumid.catalog.paths import AnyPath, parquet_metadata, sizes
from lumid.pipeline.parts import PartAccount

UNKNOWN = b"lumid.unknown"
BySeries = Mapping[int, tuple[tuple[str, int], ...]]
"""By row of the lock: columns, and in how many samples."""


def unknown_metadata(accounts: Iterable[PartAccount]) -> dict[bytes, bytes] | None:
    """The metadata of the rejects' file; None where a part does not tell it by series."""
    columns: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
    for account in accounts:
        if account.earlier:
            return None
        for one in account.series:
            for column, samples in one.unknown:
                columns[column].append((one.lock_row, samples))
    return {UNKNOWN: json.dumps({column: sorted(found) for column, found in sorted(columns.items())}).encode()}


def unknown_by_series(rejects: AnyPath) -> BySeries | None:
    """What the files of the folder ``rejects`` tell; None where they do not, as those of earlier lumids."""
    found: defaultdict[int, list[tuple[str, int]]] = defaultdict(list)
    for name in sorted(sizes(rejects)):
        told = (parquet_metadata(rejects / name).metadata or {}).get(UNKNOWN)
        if told is None:
            return None
        try:
            for column, series in json.loads(told).items():
                for lock_row, samples in series:
                    found[lock_row].append((column, samples))
        except (ValueError, TypeError, AttributeError):
            return None
    return {row: tuple(columns) for row, columns in found.items()}
