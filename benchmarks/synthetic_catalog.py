"""A catalog of any size with the shares, hierarchies and precisions of a real one, and no images behind it.

    python benchmarks/synthetic_catalog.py FOLDER --rows 10000000

Series are drawn first, each with a collection, a patient, a modality and a scanner; their slices get uniform keys, so
every chunk of the catalog holds some slices of every series, as in a data set that is built.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lumid.catalog.catalog_files import CATALOG_CHUNK_ROWS, write_catalog_rows
from lumid.catalog.layout import Counts, Layout, Manifest, Shard, write_table, write_text
from lumid.catalog.schema import CATALOG, FORMAT_VERSION, REJECTS

SHARD_SAMPLES = 4_000
SHARES = {"CT": .62, "MR": .24, "PT": .07, "US": .02, "DX": .012, "MG": .01, "XA": .01, "NM": .005, "CR": .004, "RF": .004,
          "SC": .003, "OT": .002}  # fmt: skip
SLICES = {"CT": 130, "MR": 60, "PT": 220, "US": 20, "XA": 40, "NM": 60, "RF": 10}
BODY_PARTS = (
    "CHEST",
    "ABDOMEN",
    "HEAD",
    "BREAST",
    "PROSTATE",
    "PELVIS",
    "KIDNEY",
    "LIVER",
    "COLON",
    "NECK",
    "SPINE",
    None,
)
LICENSES = ("CC BY 3.0", "CC BY 4.0", "CC BY-NC 3.0", "CC BY-NC 4.0", None)
MAKERS = ("Siemens", "GE", "Philips", "Canon", "Hologic", None)
COLLECTIONS = 60
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class Drawn:
    """All series, by number: values of their columns; and the slices: series, place in it, and 64 bits of a key."""

    columns: dict[str, npt.NDArray[Any]]
    series: npt.NDArray[np.int32]
    place: npt.NDArray[np.int32]
    key: npt.NDArray[np.uint64]


def hex_digits(rng: np.random.Generator, rows: int, digits: int) -> pa.Array:
    """Random lower-case hex digits: ``rows`` strings of ``digits`` each."""
    data = rng.bytes(rows * digits // 2).hex().encode()
    offsets = np.arange(0, rows * digits + 1, digits, dtype=np.int32)
    return pa.StringArray.from_buffers(rows, pa.py_buffer(offsets), pa.py_buffer(data))


@dataclass(frozen=True, slots=True)
class Pseudonyms:
    """Sixteen hex digits for every number, the same ones at every call, of which none have to be kept."""

    salt: int

    def take(self, numbers: pa.Array) -> pa.Array:
        """Those of these numbers."""
        mixed = (np.asarray(numbers).astype(np.uint64) + np.uint64(self.salt)) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(31)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        digits = (mixed ^ (mixed >> np.uint64(29))).astype(">u8").tobytes().hex().encode()
        offsets = np.arange(0, len(digits) + 1, 16, dtype=np.int32)
        return pa.StringArray.from_buffers(len(numbers), pa.py_buffer(offsets), pa.py_buffer(digits))


def pseudonyms(seed: int) -> dict[str, Pseudonyms]:
    """Those of patients, studies, frames of reference and series."""
    names = ("patient", "study", "frame_of_reference", "series")
    return {name: Pseudonyms((seed * len(names) + number) << 40) for number, name in enumerate(names)}


def draw(rows: int, seed: int) -> Drawn:
    """The series and slices of a catalog of ``rows`` rows."""
    rng = np.random.default_rng(seed)
    modalities = np.array(list(SHARES))
    mean = np.array([SLICES.get(name, 2) for name in modalities])
    share = np.array(list(SHARES.values())) / mean
    count = int(rows * (share.sum() / sum(SHARES.values())) * 1.3) + 50
    kind = rng.choice(len(modalities), count, p=share / share.sum())
    sizes = np.maximum(1, rng.gamma(3.0, mean[kind] / 3.0)).astype(np.int64)
    count = int(np.searchsorted(np.cumsum(sizes), rows)) + 1
    kind, sizes = kind[:count], sizes[:count]
    sizes[-1] -= sizes.sum() - rows
    weight = 1.0 / np.arange(1, COLLECTIONS + 1)
    collection = rng.choice(COLLECTIONS, count, p=weight / weight.sum())
    patient = rng.integers(0, np.maximum(1, (count * weight[collection] / weight.sum() / 8).astype(np.int64)))
    name = modalities[kind]
    slice_like = np.isin(name, ["CT", "MR", "PT", "NM"])
    spacing = np.where(
        rng.random(count) < 0.7, rng.choice(np.linspace(0.5, 0.98, 25), count), rng.uniform(0.3, 4, count).round(6)
    )
    columns: dict[str, npt.NDArray[Any]] = {
        "modality": name, "collection": collection, "patient": patient, "study": patient * 4 + rng.integers(0, 3, count),
        "slices": sizes, "body_part": np.array(BODY_PARTS, object)[(collection + rng.choice([0, 0, 0, 1, 2], count)) % 12],
        "slice_thickness": np.where(slice_like, rng.choice([0.625, 1.0, 1.25, 2.0, 2.5, 3.0, 5.0], count), np.nan),
        "pixel_spacing": np.where(name == "US", np.nan, spacing), "begin": rng.uniform(-900, 300, count).round(3),
        "manufacturer": np.array(MAKERS, object)[rng.choice(6, count, p=[.35, .3, .2, .08, .04, .03])],
        "model_name": np.array([f"Model {n}" for n in range(80)] + [None], object)[rng.integers(0, 81, count)],
        "kvp": np.where(name == "CT", rng.choice([80.0, 100.0, 120.0, 120.0, 120.0, 140.0], count), np.nan),
        "kernel": np.where(name == "CT", np.array([f"B{n}f" for n in range(20)], object)[rng.integers(0, 20, count)], None),
        "field_strength": np.where(name == "MR", rng.choice([1.5, 3.0], count), np.nan),
        "sequence": np.where(name == "MR", np.array(["SE", "GR", "EP", "IR", "GR|IR"], object)[rng.integers(0, 5, count)], None),
        "contrast": rng.random(count) < 0.4, "slope": np.where(name == "CT", 1.0, rng.uniform(1e-3, 2, count)),
        "side": rng.choice([256, 512, 512, 512], count), "plane": np.where(slice_like, rng.choice(["axial", "axial", "coronal", "sagittal"], count), "projection"),
    }  # fmt: skip
    series = np.repeat(np.arange(count, dtype=np.int32), sizes)
    place = (np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)).astype(np.int32)
    key = rng.integers(0, 2**64, rows, dtype=np.uint64)
    order = np.argsort(key)
    return Drawn(columns, series[order], place[order], key[order])


def chunk_table(drawn: Drawn, begin: int, end: int, seed: int, ids: dict[str, Pseudonyms]) -> pa.Table:
    """The catalog's rows of the slices ``begin`` to ``end``, which are consecutive by key."""
    rng = np.random.default_rng((seed, begin))
    n, of, place = end - begin, drawn.series[begin:end], drawn.place[begin:end]
    number = np.arange(begin, end)
    shard = number // SHARD_SAMPLES
    series = {name: values[of] for name, values in drawn.columns.items()}
    kind, slope = series["modality"], series["slope"]
    is_ct = kind == "CT"
    length = rng.lognormal(11.6, 0.5, n).astype(np.int64)
    offset = 512 + np.cumsum(-(-length // 512) * 512 + 2048)
    first = np.unique(shard, return_index=True)[1]
    offset -= np.repeat(offset[first] - 512, np.diff([*first, n]))
    low = np.where(is_ct, -1024.0, rng.integers(0, 50, n) * slope)
    mid = np.where(is_ct, rng.integers(-900, 60, n), rng.integers(50, 5000, n) * slope)
    high = np.where(is_ct, rng.integers(100, 1500, n), rng.integers(5000, 65000, n) * slope)
    head = b"".join(value.to_bytes(8, "big") for value in drawn.key[begin:end].tolist()).hex()
    tail = rng.bytes(4 * n).hex()
    keys = [head[16 * i : 16 * i + 16] + tail[8 * i : 8 * i + 8] for i in range(n)]
    collection = np.array([f"collection_{one:02d}" for one in range(COLLECTIONS)], object)[series["collection"]]
    unit = np.where(
        is_ct, "HU", np.where(kind == "PT", "SUVbw", np.where(np.isin(kind, ["MR", "NM"]), "a.u.", "display"))
    )
    has_slices = ~np.isnan(series["slice_thickness"])
    nothing = np.full(n, None, object)
    values: dict[str, Any] = {
        "key": keys, "shard": pa.array([f"lumid-{one:06d}.tar" for one in range(shard[0], shard[-1] + 1)]).take(pa.array(shard - shard[0])),
        "offset": offset, "length": length, "codec": np.full(n, "jhc", object), "sha256": hex_digits(rng, n, 64),
        "pixel_hash": hex_digits(rng, n, 64), "width": series["side"], "height": series["side"], "bits": np.full(n, 16),
        "channels": np.where(kind == "US", 3, 1), "modality": kind.astype(object), "body_part": series["body_part"],
        "laterality": np.where(kind == "MG", np.array(["L", "R"], object)[of % 2], None),
        "view_position": np.where(kind == "DX", np.array(["AP", "PA"], object)[of % 2], None), "plane": series["plane"].astype(object),
        "image_type": np.full(n, "ORIGINAL|PRIMARY|AXIAL", object), "contrast": series["contrast"], "collection": collection,
        "source": np.full(n, "idc", object), "license": np.array(LICENSES, object)[series["collection"] % 5],
        "doi": np.array([f"10.7937/k9/tcia.{one:08d}" for one in range(COLLECTIONS)], object)[series["collection"]],
        "source_version": np.full(n, "IDC v23", object), "source_id": hex_digits(rng, n, 32),
        "patient": ids["patient"].take(pa.array(series["collection"] * 100_000 + series["patient"])),
        "study": ids["study"].take(pa.array(series["collection"] * 400_000 + series["study"])),
        "series": ids["series"].take(pa.array(of)), "instance": hex_digits(rng, n, 16),
        "frame_of_reference": ids["frame_of_reference"].take(pa.array(series["collection"] * 400_000 + series["study"])), "frame": np.zeros(n, np.int64),
        "slice_position": _null_nan(np.where(has_slices, series["begin"] + place * np.nan_to_num(series["slice_thickness"], nan=1), np.nan)),
        "slice_count": series["slices"], "slice_index": place.astype(np.int64),
        "slice_spacing": _null_nan(series["slice_thickness"]), "slice_gap": rng.random(n) < 0.01, "slice_repeats": np.ones(n, np.int64),
        "orig_rows": series["side"], "orig_columns": series["side"], "pixel_spacing_row": _null_nan(series["pixel_spacing"]),
        "pixel_spacing_column": _null_nan(series["pixel_spacing"]), "spacing_kind": np.where(has_slices, "patient", "detector"),
        "slice_thickness": _null_nan(series["slice_thickness"]), "transfer_syntax": np.full(n, "1.2.840.10008.1.2.1", object),
        "photometric": np.where(kind == "US", "RGB", "MONOCHROME2"), "manufacturer": series["manufacturer"],
        "model_name": series["model_name"], "kvp": _null_nan(series["kvp"]),
        "exposure": _null_nan(np.where(is_ct, rng.integers(10, 300, n), np.nan)), "kernel": series["kernel"],
        "field_strength": _null_nan(series["field_strength"]), "sequence": series["sequence"],
        "sex": np.array(["F", "M", "M", None], object)[series["patient"] % 4], "age_years": 20 + series["patient"] % 71,
        "intensity_unit": unit, "store_slope": slope, "store_intercept": np.where(is_ct, -1024.0, 0.0), "p01": low,
        "p50": mid.astype(float), "p99": high.astype(float), "foreground_fraction": rng.integers(0, 65536, n) / 65536,
        "sharpness": rng.lognormal(-2, 1, n), "noise": rng.gamma(4, 3, n),
        "clipped_fraction": np.where(rng.random(n) < 0.8, 0.0, rng.integers(0, 2000, n) / 262144), "duplicate_of": nothing,
        "near_duplicate_of": nothing, "burned_in_text": np.full(n, "none", object), "labels": [None] * n,
        "split": np.array(["train"] * 8 + ["val", "test"], object)[series["patient"] % 10], "deid_policy": np.full(n, "public-1", object),
    }  # fmt: skip
    return pa.table([pa.array(values[field.name], field.type) for field in CATALOG], schema=CATALOG)


def _null_nan(values: npt.NDArray[np.float64]) -> pa.Array:
    return pa.array(values, mask=np.isnan(values))


def chunks(rows: int, seed: int = 0) -> Iterator[pa.Table]:
    """The chunks of a catalog of ``rows`` rows, in the order of keys; unsorted within."""
    drawn = draw(rows, seed)
    ids = pseudonyms(seed)
    for begin in range(0, rows, CATALOG_CHUNK_ROWS):
        yield chunk_table(drawn, begin, min(begin + CATALOG_CHUNK_ROWS, rows), seed, ids)


def write(root: Path, rows: int) -> None:
    """A finished data set under ``root`` whose shards are not there."""
    layout = Layout(root)
    counts: Counter[str] = Counter()
    shards: list[Shard] = []
    started = time.monotonic()
    for number, table in enumerate(chunks(rows)):
        counts.update(dict(write_catalog_rows(table, number, layout.catalog).modalities))
        shards += _shards(table)
        print(f"{(number + 1) * CATALOG_CHUNK_ROWS:,} rows, {time.monotonic() - started:,.0f} s", file=sys.stderr)
    write_table(layout.rejects / "part-00000.parquet", REJECTS.empty_table())
    about = Manifest(
        name="synthetic", format_version=FORMAT_VERSION, lumid_version="0", recipe={}, recipe_hash="", lock_hash="", catalog_hash=f"{rows}",
        libraries={}, counts=Counts(rows, rows, rows, 0), modalities=dict(sorted(counts.items())), rejects={}, shards=tuple(shards), build={},
    )  # fmt: skip
    write_text(layout.manifest, json.dumps(asdict(about)))


def _shards(table: pa.Table) -> list[Shard]:
    named = table.group_by("shard").aggregate([("key", "min"), ("key", "max"), ("key", "count")]).sort_by("shard")
    return [Shard(row["shard"], row["key_count"], 0, "", row["key_min"], row["key_max"]) for row in named.to_pylist()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a synthetic catalog.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    options = parser.parse_args()
    write(options.folder, options.rows)
