"""A new data set on the base of a finished one: what is the same series in both is taken over, and only the rest is built.

A series is the same where the archive gives it the same version (of IDC), or says the same of it (TCIA: release date,
objects, size; ChestX-ray14: MD5s of all archives and the tables), or where its files have the same names and sizes and
none has changed since the base's build began; and where all settings that decide its pixels and rows are the same.
"""

from __future__ import annotations

import calendar
import time
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lumid import __version__
from lumid.catalog.errors import UsageError
from lumid.catalog.layout import Layout
from lumid.catalog.paths import AnyPath, sizes
from lumid.catalog.query import ask, connect
from lumid.dags.again import is_decided_anew
from lumid.dags.base import Base, Finished, Origins, open_finished
from lumid.dags.progress import BuildProgress
from lumid.dags.versions import PIXEL_LIBRARIES, versions
from lumid.pipeline.parts import UNFETCHED
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.sources import Series
from lumid.pipeline.unknown import unknown_by_series

SETTINGS = ("deid", "select", "pixels", "splits")
FREE = {("deid", "search"), ("deid", "key_env"), ("select", "max_series"), ("select", "exact_duplicates")}
"""Settings of these sections that decide nothing of a single series, or are looked at series by series."""
TRIED_AGAIN = (UNFETCHED, "unreadable", "collection_cap")
"""Reasons that may not hold any more."""
CLOCK_S = 2
"""Facts about a build tell its seconds, and leave out their parts."""
Listed = Mapping[int, Sequence[Series]]
"""The series of folders, by number of the recipe's source, in the order of the lock's rows."""


def open_base(root: AnyPath, recipe: Recipe, out: AnyPath | None = None) -> Finished:
    """The data set to build on.

    Raises :class:`UsageError` when a data set of this recipe cannot be built on it, with what stands against it, and
    :class:`DatasetError` when there is none.
    """
    finished = open_finished(root)
    manifest = finished.manifest
    if out == root or (isinstance(out, Path) and isinstance(root, Path) and out.resolve() == root.resolve()):
        raise UsageError(f"{root}: is the base itself; choose another --out, and remove the base when that is finished")
    if "extract" in manifest.recipe:
        raise UsageError(f"{root}: was extracted from another data set, not built; give that one as --base")
    if unknown_by_series(finished.layout.rejects) is None:
        raise UsageError(
            f"{root}: was built by an earlier lumid, and does not say which series have values that no vocabulary knows; "
            "leave out --base"
        )
    if others := _other_versions(finished):
        raise UsageError(
            f"{root}: was built with {', '.join(others)}: images of both would be in one data set; install what it was "
            "built with, or leave out --base"
        )
    if changes := _other_settings(manifest.recipe, recipe.canonical()):
        raise UsageError(
            f"{root}: was built with other settings, which decide what is in it: {'; '.join(changes[:3])}; change the "
            "recipe, or leave out --base"
        )
    return finished


def _other_versions(finished: Finished) -> list[str]:
    """What made the base's images, where it is not what would make them here. Python makes none."""
    now = versions(PIXEL_LIBRARIES) | {"lumid": __version__}
    then = finished.manifest.libraries | {"lumid": finished.manifest.lumid_version}
    return [
        f"{name} {then.get(name, 'absent')} (here {now.get(name, 'absent')})"
        for name in sorted(now.keys() | then.keys())
        if name != "python" and now.get(name) != then.get(name)
    ]


def _other_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{section}.{key} = {then.get(section, {}).get(key)!r} (here {now[section].get(key)!r})"
        for section in SETTINGS
        for key in sorted(now[section].keys() | then.get(section, {}).keys())
        if (section, key) not in FREE and now[section].get(key) != then.get(section, {}).get(key)
    ]


def same_series(base: Finished, recipe: Recipe, lock: pa.Table, listed: Listed) -> dict[int, int]:
    """By row of the base's lock, the row of ``lock`` that is the same series, for those that can be taken over.

    Not among them are series of which more may become this time: of which something was not fetched or not read, or was a
    duplicate of another series'. Rows of the lock whose samples cannot be told apart are taken together or not at all.
    """
    before = _groups(base.lock, base.manifest.recipe)
    left_out, changed = _tried_again(base) | _miscounted(base), _changed(base, lock, listed)
    taken: dict[int, int] = {}
    for place, rows in _groups(lock, recipe.canonical()).items():
        mine = before.get(place, [])
        pairs = [(was, row) for (was, _), (row, _) in zip(mine, rows, strict=False)]
        same = [what for _, what in mine] == [what for _, what in rows]
        if same and not any(was in left_out or row in changed for was, row in pairs):
            taken.update(pairs)
    return taken


def _groups(lock: pa.Table, recipe: Mapping[str, Any]) -> dict[Hashable, list[tuple[int, Hashable]]]:
    """Rows of a lock by what tells their samples from others'; each with all that makes it the same series."""
    groups: defaultdict[Hashable, list[tuple[int, Hashable]]] = defaultdict(list)
    searched = frozenset(recipe["deid"]["search"])
    settings = _deciding(recipe)
    for number, row in enumerate(lock.to_pylist()):
        source, collection, series, location = (row[name] for name in ("source", "collection", "series", "location"))
        what: tuple[Hashable, ...] = (
            (collection, series, location or "", row["digest"])
            + (collection in searched, settings[row["recipe_source"]])
            # the names of these say nothing of the version
            + ((row["source_version"], row["objects"], row["bytes"]) if source in ("tcia", "pydicom") else ())
        )
        if source == "nih":
            place: Hashable = (source, collection)
        else:
            place = (source, location) if location else (source, collection, series)
        groups[place].append((number, what))
    return {place: sorted(rows, key=lambda one: repr(one[1])) for place, rows in groups.items()}


def _deciding(recipe: Mapping[str, Any]) -> list[Hashable]:
    """Of each of a recipe's sources the settings that decide the pixels and rows of a series."""
    drawn = (recipe["sample"]["fraction"], recipe["sample"]["seed"])
    return [
        (source.get("names"), source.get("modality"), source.get("benchmark"))
        + (drawn if source["kind"] == "nih" else ())  # whose patients are drawn as an archive is read
        for source in recipe["sources"]
    ]


def _tried_again(base: Finished) -> frozenset[int]:
    """Rows of the base's lock of which a reject may not be one any more."""
    rejects = base.rejects
    anew = pc.or_(pc.is_in(rejects["code"], value_set=pa.array(TRIED_AGAIN)), is_decided_anew(rejects))
    return frozenset(row for rows in Origins(base.lock).candidates(rejects.filter(anew)) for row in rows)


def _miscounted(base: Finished) -> frozenset[int]:
    """Rows of the base's lock that are folders' series of which other objects are found than there were.

    An instance that two series have belongs to the first, but its row names the series of its own header; so it may be
    that of the second.
    """
    rows: defaultdict[tuple[str, str, str], list[int]] = defaultdict(list)
    columns = [base.lock[name].to_pylist() for name in ("source", "collection", "series", "location")]
    for number, (source, collection, series, location) in enumerate(zip(*columns, strict=True)):
        if location is None:
            rows[source, collection, series].append(number)
    if not rows:
        return frozenset()
    sql = (
        "SELECT source, collection, series, count(DISTINCT source_id) AS objects FROM ("
        "SELECT source, collection, series, source_id FROM catalog WHERE source IN ('folder', 'pydicom') "
        "UNION ALL SELECT source, collection, series, source_id FROM rejects) GROUP BY ALL"
    )
    with connect(base.layout.root) as connection:
        answer = ask(connection, sql)
    names = zip(*(answer[name].to_pylist() for name in ("source", "collection", "series")), strict=True)
    found = dict(zip(names, answer["objects"].to_pylist(), strict=True))
    counted = base.lock["objects"].to_pylist()
    return frozenset(
        number
        for name, numbers in rows.items()
        for number in numbers
        if found.get(name) != sum(counted[one] for one in numbers)
    )


def _changed(base: Finished, lock: pa.Table, listed: Listed) -> frozenset[int]:
    """Rows of ``lock`` that are folders' series with a file that is not taken, or may be another than the base's."""
    begun = _begun_ns(base.manifest.build)
    return frozenset(
        row
        for number, found in listed.items()
        for row, one in zip(pc.indices_nonzero(pc.equal(lock["recipe_source"], number)).to_pylist(), found, strict=True)
        if any(member.reject or member.ref.changed_ns >= begun for member in one.members)
    )


def _begun_ns(build: Mapping[str, Any]) -> int:
    """When a build began, rather too early; 0 where its facts do not say."""
    try:
        finished = calendar.timegm(time.strptime(build["finished"], "%Y-%m-%dT%H:%M:%SZ"))
        return int((finished - build["seconds"] - CLOCK_S) * 1e9)
    except (KeyError, ValueError, TypeError):
        return 0


# ---- in a build


def growing_base(layout: Layout[AnyPath]) -> Base:
    """Where a build has the data set that it grows from, laid out as parts."""
    return Base(layout.work / "grown")


def check_growth(layout: Layout[AnyPath], root: AnyPath | None, recipe: Recipe) -> Finished | None:
    """The data set that a build is about to begin with: none where no base is given, or it is laid out already.

    Raises :class:`UsageError` when an unfinished build here began without, and as :func:`open_base` does.
    """
    if root is None or growing_base(layout).is_laid():
        return None
    if any(name.endswith(".parquet") for name in sizes(layout.parts)):
        raise UsageError(
            f"{layout.root}: holds an unfinished build that began without --base; go on without it, or choose another --out"
        )
    return open_base(root, recipe, layout.root)


def take(
    layout: Layout[AnyPath],
    base: Finished | None,
    recipe: Recipe,
    lock: pa.Table,
    listed: Listed,
    progress: BuildProgress,
) -> frozenset[int]:
    """The rows of ``lock`` that need not be built; they are laid out as parts when this returns.

    Raises :class:`UsageError` when there are none, or when an unfinished build here began with another lock, and
    :class:`DatasetError` when the base is damaged.
    """
    laid = growing_base(layout)
    if base is not None:
        taken = same_series(base, recipe, lock, listed)
        if not taken:
            raise UsageError(
                f"{base.layout.root}: none of its {base.lock.num_rows:,} series is the same in what is to be built (other "
                "collections, other versions, changed files or another secret); leave out --base"
            )
        laid.lay(base, lock, taken, progress)
    elif not laid.is_laid():
        return frozenset()
    elif not laid.is_laid(lock=lock):
        raise UsageError(
            f"{layout.root}: holds an unfinished build of another lock, or of files that have changed since; choose another "
            "--out, or remove it"
        )
    rows = laid.series()
    progress.taken(len(rows), lock.num_rows - len(rows))
    return rows


# ---- in a plan


@dataclass(frozen=True, slots=True)
class Growth:
    """What a build on a base would take from it, and fetch: series of archives, and GB as far as the archives say."""

    base: str
    taken: int
    fetched: int
    gb_fetched: float


def plan_growth(root: AnyPath, recipe: Recipe, lock: pa.Table) -> Growth:
    """What of a plan is in a finished data set already; folders are not looked at.

    Raises :class:`UsageError` and :class:`DatasetError` as :func:`open_base` does.
    """
    base = open_base(root, recipe)
    taken = same_series(base, recipe, lock, {})
    rows = frozenset(taken.values())
    fetched = [row for row in range(lock.num_rows) if row not in rows]
    size = pc.sum(lock["bytes"].take(pa.array(fetched, pa.int64()))).as_py() or 0
    return Growth(str(root), len(rows), len(fetched), size / 1e9)
