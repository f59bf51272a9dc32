"""What grows with the number of samples, and how fast: catalog, planning, packing's index, opening. Exponents of growth.

Everything is synthetic (:mod:`synthetic_catalog`, :mod:`synthetic_parts`): rows with the columns and shares of a real
catalog, no images; a lock of a series for every 87 samples, as in IDC's collections of LUMID; parts of 1,000 rows, as
a build leaves them, without their samples. Every step runs in a process of its own, whose peak memory is told.

    python benchmarks/growth.py                                        # up to a million samples: minutes
    python benchmarks/growth.py --rows 100000 300000 1000000 3000000 10000000
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from slices import peak_mb
from synthetic_catalog import write
from synthetic_parts import idc_recipe, synthetic_lock, synthetic_rows

import lumid
from lumid.catalog.layout import write_table
from lumid.catalog.schema import REJECTS
from lumid.model.stream.selection import select
from lumid.pipeline.batches import make_batches
from lumid.pipeline.lock import series_of
from lumid.pipeline.pack import build_index, group_parts, plan_shards, read_index
from lumid.pipeline.pack_catalog import plan_catalog, plan_cuts, write_catalog_chunk, write_cut
from lumid.pipeline.parts import PartAccount, PartFiles, SeriesAccount, write_rejects_of, write_rows

IN_SERIES, IN_PART = 87, 1000
SAMPLE_BYTES = 56_000
Figures = dict[str, float]


def figures(work: Callable[..., Figures], *given: Any) -> Figures:
    """What a fresh process has found, and its peak beyond what it held with everything imported."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_with_peak, (work, *given))


def _with_peak(work: Callable[..., Figures], *given: Any) -> Figures:
    before = peak_mb()
    found = work(*given)
    return found | {f"{work.__name__}: memory, MB": peak_mb() - before}


class Timed:
    """Wall seconds by name."""

    def __init__(self) -> None:
        self.found: Figures = {}
        self.since = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.found[f"{name}, s"] = now - self.since
        self.since = time.perf_counter()


def written(folder: Path, rows: int) -> Figures:
    timed = Timed()
    write(folder, rows)
    timed.lap("the catalog written")
    size = sum(path.stat().st_size for path in (folder / "catalog").rglob("*.parquet"))
    return timed.found | {"the catalog, MB": size / 1e6}


def opened(folder: Path) -> Figures:
    timed = Timed()
    dataset = lumid.open(folder)
    timed.lap("opened")
    dataset.query("SELECT modality, count(*) FROM catalog GROUP BY ALL")
    timed.lap("the first question (count by modality)")
    dataset.query(
        "SELECT collection, avg(noise) FROM catalog WHERE modality = 'CT' AND slice_thickness < 2 GROUP BY ALL"
    )
    timed.lap("a question with filters")
    return timed.found


def streamed(folder: Path) -> Figures:
    timed = Timed()
    select(folder, "modality = 'CT'")
    timed.lap("selected for the stream (CT)")
    return timed.found


def planned(rows: int, folder: Path) -> Figures:
    lock, recipe = synthetic_lock(max(1, rows // IN_SERIES), IN_SERIES), idc_recipe(IN_PART)
    timed = Timed()
    write_table(folder / "lock.parquet", lock)
    read = pq.read_table(folder / "lock.parquet")
    timed.lap("the lock written and read")
    make_batches(series_of(read, 0), 0, recipe.hash(), IN_PART)
    timed.lap("batches made")
    return timed.found


def laid(folder: Path, rows: int, begin: int) -> None:
    """Parts of a number of rows, from the part ``begin`` on: only what packing reads before any sample."""
    table = synthetic_rows(rows, seed=begin)
    parts = rows // IN_PART
    offsets = 512 + SAMPLE_BYTES * np.arange(IN_PART)
    at = table.schema.get_field_index("offset")
    for number in range(parts):
        mine = table.take(np.arange(number, rows, parts)[:IN_PART])
        mine = mine.set_column(at, table.schema.field("offset"), [offsets])
        account = PartAccount((SeriesAccount(begin + number, IN_PART, IN_PART, 0),), 0, SAMPLE_BYTES * IN_PART, 0.0)
        write_rejects_of(PartFiles(folder, f"{begin + number:024x}"), REJECTS.empty_table(), [])
        write_rows(PartFiles(folder, f"{begin + number:024x}"), mine, [begin + number] * IN_PART, account)


def indexed(folder: Path, count: int) -> Figures:
    parts = [PartFiles(folder, f"{number:024x}") for number in range(count)]
    timed = Timed()
    groups = group_parts(parts)
    timed.lap("parts' accounts read")
    pieces = [read_index(group) for group in groups]
    timed.lap("parts' keys and places read")
    index, duplicates = build_index(pieces, parts)
    timed.lap("samples sorted")
    chunks = plan_catalog(plan_shards(index, 256.0))
    cuts = plan_cuts(groups, chunks)
    timed.lap("shards and catalog planned")
    assert len(index) == count * IN_PART
    assert not duplicates
    for cut in cuts:
        write_cut(cut, folder / "cuts")
    timed.lap("parts cut for the catalog")
    firsts = [group.first for group in groups]
    for chunk in chunks:
        write_catalog_chunk(chunk, firsts, folder / "cuts", folder / "catalog")
    timed.lap("catalog packed")
    return timed.found


def exponent(rows: Sequence[int], values: Sequence[float]) -> float:
    """The slope of a straight line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(rows), np.log(np.maximum(values, 1e-9)), 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where to write; by default a temporary folder")
    chosen = parser.parse_args()
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        parts, have = Path(scratch) / "parts", 0
        for rows in sorted(chosen.rows):
            root = Path(scratch) / f"{rows}"
            steps: list[tuple[Callable[..., Figures], tuple[Any, ...]]] = [
                (written, (root, rows)), (opened, (root,)), (streamed, (root,)), (planned, (rows, root)),
            ]  # fmt: skip
            for work, given in steps:
                for name, value in figures(work, *given).items():
                    found[name][rows] = value
            while have < rows // IN_PART:
                more = min(1000, rows // IN_PART - have)
                laid(parts, more * IN_PART, have)
                have += more
            for name, value in figures(indexed, parts, have).items():
                found[name][rows] = value
            print(f"{rows:,} rows done", flush=True)
    counts = sorted(chosen.rows)
    print("| samples | " + " | ".join(f"{one / 1e6:g} M" for one in counts) + " | exponent |")
    print("|---|" + "---|" * (len(counts) + 1))
    for name, values in found.items():
        shown = " | ".join(f"{values[one]:,.2f}" if values[one] < 10 else f"{values[one]:,.0f}" for one in counts)
        print(f"| {name} | {shown} | {exponent(counts, [values[one] for one in counts]):.2f} |")


if __name__ == "__main__":
    main()
