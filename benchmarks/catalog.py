"""What questions to the catalog cost: lumid against plain DuckDB, polars and pandas on the same files, in one run.

    pip install polars pandas
    python benchmarks/catalog.py --rows 10000000 --folder /data/synthetic

Without --folder the catalog is made in a temporary one; with it, made there once. Prints tables in Markdown: medians of
interleaved rounds, wall milliseconds, and processor time as a ratio to plain DuckDB's.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from build import write_slices
from synthetic_catalog import chunks, write

import lumid
from lumid.catalog.catalog_files import CATALOG_SORT, DICTIONARY, ENCODINGS, ROW_GROUP_ROWS
from lumid.catalog.codecs import decode
from lumid.catalog.dataset import Dataset
from lumid.catalog.layout import Layout
from lumid.catalog.query import connect
from lumid.catalog.shards import read_range
from lumid.catalog.subset import write_subset

ROUNDS = 5
KEYS = 1000
PLACE = ["key", "shard", "offset", "length", "store_slope", "store_intercept"]
Answer = Callable[[], Any]
"""Asks, and gives the rows as plain values, sorted, so that they can be compared."""


def timed(ways: dict[str, Answer], rounds: int = ROUNDS) -> dict[str, tuple[float, float]]:
    """Median wall and processor milliseconds of each way; all must give the same."""
    answers = {name: way() for name, way in ways.items()}  # also warms the page cache
    first = next(iter(answers.values()))
    assert all(answer == first for answer in answers.values()), {k: str(v)[:200] for k, v in answers.items()}
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            way()
            spent[name].append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)))
    return {
        name: (statistics.median(wall for wall, _ in runs), statistics.median(cpu for _, cpu in runs))
        for name, runs in spent.items()
    }


# ---- questions


def questions(root: Path, ds: Dataset) -> dict[str, dict[str, Answer]]:
    files = f"{root}/catalog/*/*.parquet"
    plain = duckdb.connect()
    plain.execute(f"CREATE VIEW catalog AS FROM read_parquet('{files}', hive_partitioning = true)")
    keys = ds.sample(KEYS, seed=1, columns=["key"])["key"].to_pylist()
    rng = np.random.default_rng(0)
    keys = rng.choice(
        ds.query("SELECT key FROM catalog USING SAMPLE reservoir(20000) REPEATABLE (1)")["key"], KEYS
    ).tolist()
    listed = ", ".join(f"'{key}'" for key in keys)
    filters = "modality = 'CT' AND body_part = 'CHEST' AND slice_thickness <= 1.25"
    place = ", ".join(f'"{name}"' for name in PLACE)
    sql = {
        "count by modality": "SELECT modality, count(*) AS n FROM catalog GROUP BY ALL ORDER BY ALL",
        "three filters, mean of a fourth column": f"SELECT count(*) AS n, avg(noise) AS m FROM catalog WHERE {filters}",
        "three filters, key and place of every row": f'SELECT {place} FROM catalog WHERE {filters}',
        "group by collection × modality": "SELECT collection, modality, count(*) AS n FROM catalog GROUP BY ALL ORDER BY ALL",
        f"{KEYS:,} keys at random, their places": f"SELECT {place} FROM catalog WHERE key IN ({listed}) ORDER BY key",
    }  # fmt: skip
    lazy = pl.scan_parquet(files, hive_partitioning=True)
    chosen = (pl.col("modality") == "CT") & (pl.col("body_part") == "CHEST") & (pl.col("slice_thickness") <= 1.25)
    by_polars: list[Callable[[], pl.DataFrame]] = [
        lambda: lazy.group_by("modality").len("n").sort("modality").collect(),
        lambda: lazy.filter(chosen).select(pl.len().alias("n"), pl.col("noise").mean().alias("m")).collect(),
        lambda: lazy.filter(chosen).select(PLACE).collect(),
        lambda: lazy.group_by("collection", "modality").len("n").sort("collection", "modality").collect(),
        lambda: lazy.filter(pl.col("key").is_in(keys)).select(PLACE).sort("key").collect(),
    ]
    where = [("modality", "==", "CT"), ("body_part", "==", "CHEST"), ("slice_thickness", "<=", 1.25)]
    folder = str(root / "catalog")

    def frame(columns: list[str], filters: Any = None) -> pd.DataFrame:
        return pd.read_parquet(folder, columns=columns, filters=filters)

    def counted(columns: list[str]) -> pd.DataFrame:
        return frame(columns).groupby(columns, observed=True).size().reset_index(name="n").sort_values(columns)

    def mean() -> pd.DataFrame:
        found = frame(["noise"], where)
        return pd.DataFrame({"n": [len(found)], "m": [found["noise"].mean()]})

    by_pandas: list[Callable[[], pd.DataFrame]] = [
        lambda: counted(["modality"]),
        mean,
        lambda: frame(PLACE, where),
        lambda: counted(["collection", "modality"]),
        lambda: frame(PLACE, [("key", "in", keys)]).sort_values("key"),
    ]
    found: dict[str, dict[str, Answer]] = {}
    for (title, query), polars_way, pandas_way in zip(sql.items(), by_polars, by_pandas, strict=True):
        found[title] = {
            "plain DuckDB": lambda query=query: summary(plain.sql(query).to_arrow_table()),
            "lumid": lambda query=query: summary(ds.query(query)),
            "polars": lambda way=polars_way: summary(way().to_arrow()),
            "pandas": lambda way=pandas_way: summary(pa.Table.from_pandas(way(), preserve_index=False)),
        }
    return found


def summary(table: pa.Table) -> Any:
    """What must be the same whoever answers: the rows of a short table, else their number and the sum of a column."""
    if table.num_rows <= 2000:
        return [
            [round(value, 6) if isinstance(value, float) else str(value) for value in row.values()]
            for row in table.to_pylist()
        ]
    return table.num_rows, pa.compute.sum(table["length"]).as_py()


def ask_all(root: Path) -> None:
    ds = lumid.open(root)
    size = sum(path.stat().st_size for path in (root / "catalog").rglob("*.parquet"))
    print(f"{len(ds):,} rows, {size / 1e6:,.0f} MB, {size / len(ds):.0f} bytes a row\n")
    print("| question | lumid | plain DuckDB | polars | pandas | lumid's processor time, × DuckDB's |")
    print("|---|---|---|---|---|---|")
    for title, ways in questions(root, ds).items():
        spent = timed(ways, 15 if title.startswith("count") else ROUNDS)
        cells = " | ".join(f"{spent[name][0]:,.0f} ms" for name in ("lumid", "plain DuckDB", "polars", "pandas"))
        print(f"| {title} | {cells} | {spent['lumid'][1] / spent['plain DuckDB'][1]:.2f} |", flush=True)
    opening = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        connect(root).close()
        opening.append(1e3 * (time.perf_counter() - begin))
    print(f"\nopening it: {statistics.median(opening):.0f} ms")
    with tempfile.TemporaryDirectory() as folder:
        for condition in ("modality = 'CT'", None):
            runs, processor = [], []
            for _ in range(3):
                begin, begin_cpu = time.perf_counter(), time.process_time()
                note = write_subset(root, Path(folder) / "s.parquet", condition, limit=1_000_000)
                runs.append(time.perf_counter() - begin)
                processor.append(time.process_time() - begin_cpu)
            bytes_a_row = (Path(folder) / "s.parquet").stat().st_size / note.samples
            said = f"subset of {note.samples:,} rows ({condition or 'any'}) written"
            spent = f"{statistics.median(runs):.2f} s, {statistics.median(processor):.2f} s of processor"
            print(f"{said}: {spent}, {bytes_a_row:.0f} bytes a row")
            with lumid.open(Path(folder) / "s.parquet") as subset:
                begin = time.perf_counter()
                subset.query("SELECT collection, count(*) FROM catalog GROUP BY ALL")
                print(f"  its collections counted: {time.perf_counter() - begin:.2f} s")


# ---- layouts


def layouts(rows: int) -> None:
    """The CT file of one chunk, written in other ways."""
    table = next(iter(chunks(rows)))
    table = table.filter(pa.compute.equal(table["modality"], "CT")).drop_columns(["modality"])
    by_series, by_key = table.sort_by(CATALOG_SORT).combine_chunks(), table.sort_by("key").combine_chunks()
    rng = np.random.default_rng(0)
    keys = ", ".join(f"'{key}'" for key in rng.choice(table["key"], 100))
    series = table["series"][int(rng.integers(table.num_rows))].as_py()
    plain: dict[str, Any] = {"use_dictionary": list(DICTIONARY)}
    chosen = plain | {"column_encoding": ENCODINGS}
    variants: dict[str, tuple[pa.Table, dict[str, Any]]] = {
        "as lumid writes it": (by_series, chosen | {"row_group_size": ROW_GROUP_ROWS}),
        **{
            f"row groups of {n:,}": (by_series, chosen | {"row_group_size": n})
            for n in (8_192, 32_768, 131_072, 524_288)
        },
        "no delta, no byte streams": (by_series, plain | {"row_group_size": ROW_GROUP_ROWS}),
        "dictionaries for all columns": (by_series, {"row_group_size": ROW_GROUP_ROWS}),
        "zstd level 6": (by_series, chosen | {"row_group_size": ROW_GROUP_ROWS, "compression_level": 6}),
        "snappy": (by_series, chosen | {"row_group_size": ROW_GROUP_ROWS, "compression": "snappy"}),
        "sorted by key": (by_key, chosen | {"row_group_size": ROW_GROUP_ROWS}),
    }
    print("\n| layout | bytes a row | written | three filters | a series | 100 keys |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        paths = {}
        cells: dict[str, list[str]] = {}
        for number, (name, (rows_in, options)) in enumerate(variants.items()):
            paths[name] = Path(folder) / f"{number}.parquet"
            begin = time.process_time()
            pq.write_table(rows_in, paths[name], **({"compression": "zstd"} | options))
            seconds = time.process_time() - begin
            cells[name] = [f"{paths[name].stat().st_size / rows_in.num_rows:.0f}", f"{seconds:.2f} s"]
        connection = duckdb.connect()
        for query in (
            "SELECT count(*), round(avg(noise), 6) FROM '{}' WHERE body_part = 'CHEST' AND slice_thickness <= 2 AND sex = 'F'",
            f"SELECT key, slice_position FROM '{{}}' WHERE series = '{series}' ORDER BY ALL",
            f"SELECT {', '.join(PLACE).replace('offset', chr(34) + 'offset' + chr(34))} FROM '{{}}' WHERE key IN ({keys}) ORDER BY ALL",
        ):
            spent = timed(
                {name: lambda p=path, q=query: connection.sql(q.format(p)).fetchall() for name, path in paths.items()}
            )
            for name, (wall, _) in spent.items():
                cells[name].append(f"{wall:.0f} ms")
    for name, row in cells.items():
        print(f"| {name} | {' | '.join(row)} |")


# ---- images


def images(slices: int) -> None:
    """An image by its key, out of a data set that is built from synthetic CT of 512 × 512."""
    with tempfile.TemporaryDirectory() as folder:
        source, root = Path(folder) / "dicom", Path(folder) / "built"
        source.mkdir()
        write_slices(source, slices)
        command = [sys.executable, "-m", "lumid", "build", "--source", str(source), "--out", str(root)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ds = lumid.open(root)
        rows = ds.sample(200).to_pylist()
        ways: dict[str, Callable[[dict[str, Any]], object]] = {
            "lumid: read(key)": lambda row: ds.read(row["key"]),
            "lumid: read(key), and a column that is in the catalog only": lambda row: ds.read(row["key"])[1]["sha256"],
            "its bytes by offset, and decoded": lambda row: by_offset(root, row),
            "decoded, from memory": lambda row: decode(row["image"], row["codec"]),
        }
        for row in rows:
            with (Layout(root).shards / row["shard"]).open("rb") as shard:
                row["image"] = read_range(shard, row["offset"], row["length"])
        shape = ds.read(rows[0]["key"])[0].shape
        print(f"\nan image of {shape[0]} × {shape[1]} by its key, of {len(ds):,}, medians of {len(rows)}:\n")
        print("| | ms | the slowest in a hundred |\n|---|---|---|")
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for row in rows:
            for name, way in ways.items():
                begin = time.perf_counter()
                way(row)
                spent[name].append(1e3 * (time.perf_counter() - begin))
        for name, runs in spent.items():
            print(f"| {name} | {statistics.median(runs):.1f} | {np.percentile(runs, 99):.1f} |")


def by_offset(root: Path, row: dict[str, Any]) -> object:
    with (Layout(root).shards / row["shard"]).open("rb") as shard:
        return decode(read_range(shard, row["offset"], row["length"]), row["codec"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--folder", type=Path, help="where the synthetic catalog is, or is to be")
    parser.add_argument(
        "--only", nargs="*", choices=["questions", "layouts", "images"], default=["questions", "layouts", "images"]
    )
    parser.add_argument("--slices", type=int, default=600)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary) / "synthetic"
        if "questions" in options.only:
            if not Layout(root).manifest.is_file():
                write(root, options.rows)
            ask_all(root)
        if "layouts" in options.only:
            layouts(min(options.rows, 1_000_000))
        if "images" in options.only:
            images(options.slices)


if __name__ == "__main__":
    main()
