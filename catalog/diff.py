"""What two data sets share and what they do not, by key and by pixels, and why: recipe, lock, versions, secret."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from lumid.catalog.errors import DatasetError
from lumid.catalog.layout import Manifest, atomic_file, read_manifest, storage_errors
from lumid.catalog.lock import load_lock
from lumid.catalog.paths import AnyPath
from lumid.catalog.query import connect, read_catalog, text
from lumid.catalog.schema import CATALOG

BATCH_ROWS = 65_536
EXAMINED_ROWS = 1000
"""Samples that two data sets describe differently, of which the columns are looked at."""
DESCRIPTION = tuple(
    name for name in CATALOG.names if name not in {"key", "pixel_hash", "shard", "offset", "length", "codec", "sha256"}
)
"""Columns that say something of a sample's image; the others say where it is and how it is stored."""

DATABASE: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": False,
    "memory_limit": "1GB",
    "preserve_insertion_order": False,
}
"""What does not fit into this memory is put beside the temporary database."""

Secrets = Literal["same", "different", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How many samples of a group are where. Every sample of A is counted once, and so is every one of B.

    ``same``: one key, same pixels (in both); ``other_pixels``: one key, other pixels (in both); ``renamed_a``: in A,
    and the same pixels are in B, under another key; ``renamed_b`` the other way round; ``only_a``, ``only_b``: neither
    key nor pixels are in the other.
    """

    name: str = ""
    same: int = 0
    other_pixels: int = 0
    renamed_a: int = 0
    renamed_b: int = 0
    only_a: int = 0
    only_b: int = 0

    @property
    def in_a(self) -> int:
        """All of the group in A."""
        return self.same + self.other_pixels + self.renamed_a + self.only_a

    @property
    def in_b(self) -> int:
        """All of the group in B."""
        return self.same + self.other_pixels + self.renamed_b + self.only_b


STATUSES = tuple(field.name for field in fields(Sharing) if field.name != "name")


@dataclass(frozen=True, slots=True)
class Change:
    """A value that differs; None where one side does not have it."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Described:
    """Samples with one key and the same pixels whose rows differ otherwise, and in which columns.

    ``columns``: name and number of samples, among the first ``examined`` of them.
    """

    samples: int
    examined: int
    columns: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class LockDifference:
    """Which series the locks have, as (collection, pseudonym). ``changed``: in both, in another version."""

    shared: int
    changed: tuple[tuple[str, str], ...]
    only_a: tuple[tuple[str, str], ...]
    only_b: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """Two data sets side by side.

    ``locks`` is None where a lock cannot be read, or where the secrets differ and with them every pseudonym.
    ``secrets``: whether the keys were made under one secret, as far as policies and keys tell.
    """

    a: str
    b: str
    total: Sharing
    by_collection: tuple[Sharing, ...]
    by_modality: tuple[Sharing, ...]
    described: Described
    recipe: tuple[Change, ...]
    versions: tuple[Change, ...]
    rejects: tuple[Change, ...]
    hashes: tuple[Change, ...]
    policies: tuple[str | None, str | None]
    secrets: Secrets
    locks: LockDifference | None

    @property
    def equal(self) -> bool:
        """Whether both hold the same samples with the same descriptions, however they were made and are stored."""
        total = self.total
        return total.same == total.in_a == total.in_b and self.described.samples == 0


def diff(a: AnyPath, b: AnyPath, keys: Path | None = None) -> Difference:
    """Compare two finished data sets, in folders or in object stores.

    Millions of rows are compared on disk, in a temporary database. ``keys``: a Parquet file to write, with every key
    and its status (a field of :class:`Sharing`), the ``other_key`` of the same pixels, and both pixel hashes. Raises
    :class:`DatasetError` when one of them is not a finished, readable data set.
    """
    manifests = read_manifest(a), read_manifest(b)
    with _compared(a, b) as work:
        total = _counted(work, "''")
        by_collection, by_modality = _counted(work, "collection"), _counted(work, "modality")
        described = _described(work, a, b)
        if keys is not None:
            _write_keys(work, keys)
    sharing = total[0] if total else Sharing()
    policies = tuple(_policy(manifest) for manifest in manifests)
    secrets = _secrets(policies[0], policies[1], sharing)
    return Difference(
        a=str(a),
        b=str(b),
        total=sharing,
        by_collection=by_collection,
        by_modality=by_modality,
        described=described,
        recipe=_changes(_flat(manifests[0].recipe), _flat(manifests[1].recipe)),
        versions=_changes(_versions(manifests[0]), _versions(manifests[1])),
        rejects=_changes(manifests[0].rejects, manifests[1].rejects),
        hashes=_changes(_hashes(manifests[0]), _hashes(manifests[1])),
        policies=(policies[0], policies[1]),
        secrets=secrets,
        locks=None if secrets == "different" else _locks(a / "lock.parquet", b / "lock.parquet"),
    )


# ---- samples


@contextmanager
def _compared(a: AnyPath, b: AnyPath) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the table ``pairs``: every key of both, with its status. It lies on disk, and goes at the end."""
    with tempfile.TemporaryDirectory(prefix="lumid-diff-") as folder, storage_errors(Path(folder)):
        work = duckdb.connect(str(Path(folder) / "diff.duckdb"), config=DATABASE)
        try:
            for name, root in (("a", a), ("b", b)):
                _fill(work, name, root)
            work.execute(PAIRS)
            yield work
        finally:
            work.close()


def _fill(work: duckdb.DuckDBPyConnection, name: str, root: AnyPath) -> None:
    """Copy what is compared of a catalog into the table ``name``, a batch of rows at a time."""
    description = ", ".join(f'"{column}"' for column in DESCRIPTION)
    with connect(root) as catalog:
        try:
            rows = catalog.sql(
                f"SELECT key, pixel_hash, collection, modality, hash({description}) AS description FROM catalog"
            ).to_arrow_reader(BATCH_ROWS)
            work.register("incoming", rows)
            work.execute(f"CREATE TABLE {name} AS SELECT * FROM incoming")
            work.unregister("incoming")
        except (duckdb.Error, pa.ArrowException):
            raise DatasetError(f"{root}: a file of the catalog cannot be read; see: lumid verify {root}") from None
    found = work.execute(f"SELECT count(*), count(DISTINCT key) FROM {name}").fetchone()
    if found is None or found[0] != found[1]:
        raise DatasetError(f"{root}: the catalog has a key more than once; see: lumid verify {root}")


PAIRS = """
CREATE TABLE pairs AS
WITH
    pixels_a AS (SELECT pixel_hash, min(key) AS key FROM a GROUP BY pixel_hash),
    pixels_b AS (SELECT pixel_hash, min(key) AS key FROM b GROUP BY pixel_hash),
    keys AS (
        SELECT
            coalesce(a.key, b.key) AS key,
            a.pixel_hash AS pixel_hash_a,
            b.pixel_hash AS pixel_hash_b,
            coalesce(a.collection, b.collection) AS collection,
            coalesce(a.modality, b.modality) AS modality,
            a.description IS DISTINCT FROM b.description AS described_differently,
            -- joins on one equality each: with a condition beside it DuckDB compares every row with every other
            CASE WHEN b.key IS NULL THEN a.pixel_hash END AS alone_a,
            CASE WHEN a.key IS NULL THEN b.pixel_hash END AS alone_b
        FROM a FULL JOIN b ON a.key = b.key
    )
SELECT
    CASE
        WHEN pixel_hash_a = pixel_hash_b THEN 'same'
        WHEN pixel_hash_a IS NOT NULL AND pixel_hash_b IS NOT NULL THEN 'other_pixels'
        WHEN pixels_b.key IS NOT NULL THEN 'renamed_a'
        WHEN pixels_a.key IS NOT NULL THEN 'renamed_b'
        WHEN pixel_hash_a IS NOT NULL THEN 'only_a'
        ELSE 'only_b'
    END AS status,
    keys.*,
    coalesce(pixels_a.key, pixels_b.key) AS other_key
FROM keys
LEFT JOIN pixels_b ON pixels_b.pixel_hash = alone_a
LEFT JOIN pixels_a ON pixels_a.pixel_hash = alone_b
"""


def _counted(work: duckdb.DuckDBPyConnection, group: str) -> tuple[Sharing, ...]:
    counts = ", ".join(f"count(*) FILTER (status = '{status}')" for status in STATUSES)
    rows = work.execute(f"SELECT {group}, {counts} FROM pairs GROUP BY 1 ORDER BY count(*) DESC, 1").fetchall()
    return tuple(Sharing(name=row[0], **dict(zip(STATUSES, row[1:], strict=True))) for row in rows)


def _described(work: duckdb.DuckDBPyConnection, a: AnyPath, b: AnyPath) -> Described:
    condition = "FROM pairs WHERE status = 'same' AND described_differently"
    count = work.execute(f"SELECT count(*) {condition}").fetchone()
    samples = int(count[0]) if count else 0
    if not samples:
        return Described(0, 0, ())
    keys = [row[0] for row in work.execute(f"SELECT key {condition} ORDER BY key LIMIT {EXAMINED_ROWS}").fetchall()]
    where = f"key IN ({', '.join(text(key) for key in keys)})"
    left, right = (read_catalog(root, where, DESCRIPTION) for root in (a, b))
    differing = {
        name: sum(one != other for one, other in zip(left[name].to_pylist(), right[name].to_pylist(), strict=True))
        for name in DESCRIPTION
    }
    return Described(samples, len(keys), tuple((name, count) for name, count in differing.items() if count))


def _write_keys(work: duckdb.DuckDBPyConnection, path: Path) -> None:
    rows = work.sql(
        "SELECT status, key, other_key, pixel_hash_a, pixel_hash_b, collection, modality FROM pairs ORDER BY key"
    ).to_arrow_reader(BATCH_ROWS)
    with (
        storage_errors(path),
        atomic_file(path) as file,
        pq.ParquetWriter(file, rows.schema, compression="zstd") as out,
    ):
        for batch in rows:
            out.write_batch(batch)


# ---- why


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key: ``pixels.size``, ``sources[0].kind``; lists of plain values stay whole."""
    if isinstance(value, Mapping):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found |= _flat(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        found = {}
        for number, inner in enumerate(value):
            found |= _flat(inner, f"{prefix}[{number}]")
        return found
    return {prefix: value}


def _changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[Change, ...]:
    names = [*a, *(name for name in b if name not in a)]
    return tuple(Change(name, a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name))


def _versions(manifest: Manifest) -> dict[str, Any]:
    return {"format": manifest.format_version} | manifest.libraries | {"lumid": manifest.lumid_version}


def _hashes(manifest: Manifest) -> dict[str, str]:
    return {"recipe": manifest.recipe_hash, "lock": manifest.lock_hash, "catalog": manifest.catalog_hash}


def _policy(manifest: Manifest) -> str | None:
    deid = manifest.recipe.get("deid")
    policy = deid.get("policy") if isinstance(deid, Mapping) else None
    return policy if isinstance(policy, str) else None


def _secrets(a: str | None, b: str | None, total: Sharing) -> Secrets:
    """Whether the keys were made under one secret. Policy ``public`` has one for everybody; others are not known."""
    if total.same or total.other_pixels or a == b == "public":
        return "same"
    if "public" in (a, b) and a and b and a != b:
        return "different"
    return "different" if total.renamed_a else "unknown"


def _locks(a: AnyPath, b: AnyPath) -> LockDifference | None:
    try:
        left, right = _digests(a), _digests(b)
    except DatasetError:
        return None
    both = left.keys() & right.keys()
    changed = {one for one in both if left[one] != right[one]}
    return LockDifference(
        shared=len(both) - len(changed),
        changed=tuple(sorted(changed)),
        only_a=tuple(sorted(left.keys() - right.keys())),
        only_b=tuple(sorted(right.keys() - left.keys())),
    )


def _digests(path: AnyPath) -> dict[tuple[str, str], Counter[str]]:
    """The content of each series, by collection and pseudonym; two sources of a recipe may have the same one."""
    found: dict[tuple[str, str], Counter[str]] = {}
    columns = (load_lock(path)[name].to_pylist() for name in ("collection", "series", "digest"))
    for collection, series, digest in zip(*columns, strict=True):
        found.setdefault((collection, series or ""), Counter())[digest] += 1
    return found
