"""What a build and a repair begin with: a folder for this process alone, and the recipe's sources."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pyarrow as pa

from lumid.catalog.errors import LumidError
from lumid.catalog.layout import Layout
from lumid.dags.status import write_state
from lumid.pipeline.connections import is_reachable
from lumid.pipeline.lock import series_of
from lumid.pipeline.rawcache import check_cache
from lumid.pipeline.recipe import AnySource, FolderSettings, NihSettings, PydicomSettings, Recipe, make_keyer
from lumid.pipeline.sources import ListedSource, open_listed
from lumid.pipeline.sources.nih import check_tables


def check_fetching(recipe: Recipe, out: Path, pinned: pa.Table | None) -> None:
    """What can be known of the archives before anything is fetched: the cache's place, and tables that have to be there.

    ``pinned``: the lock's rows, where something is pinned already. Raises
    :class:`~lumid.catalog.errors.RecipeError`.
    """
    check_cache(recipe, out, pinned=pinned is not None)
    for number, settings in enumerate(recipe.sources):
        if isinstance(settings, NihSettings) and pinned is not None and (series := series_of(pinned, number)):
            check_tables(settings, series)


def archives_answer(recipe: Recipe) -> bool:
    """Whether each of the recipe's archives can be reached at one of its addresses at least; a cache may do without."""
    fetch = recipe.fetch
    if fetch.offline or fetch.cache:
        return True
    addresses = {"idc": (fetch.s3_endpoint, fetch.gs_endpoint), "tcia": (fetch.nbia_url,)}
    needed = {source.kind for source in recipe.sources} & addresses.keys()
    return all(any(is_reachable(url) for url in addresses[kind]) for kind in sorted(needed))


def unreachable() -> LumidError:
    """What to say when :func:`archives_answer` is not so."""
    return LumidError(
        "the archives cannot be reached: check the network, or the addresses in the recipe's [fetch]; what an earlier "
        "build has kept with --cache can be read with --offline"
    )


@contextmanager
def claimed(layout: Layout, recipe: Recipe) -> Iterator[None]:
    """The work folder for this process alone; what a killed process left half-written is swept away.

    Raises :class:`LumidError` when another process has it.
    """
    with _lock(layout):
        _sweep(layout)
        for leftover in layout.work.rglob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        if not layout.state.is_file():
            write_state(layout, recipe_name=recipe.name, recipe_hash=recipe.hash(), phase="scan", batches=0)
        yield


@contextmanager
def nothing_unpacked_left(layout: Layout) -> Iterator[None]:
    """What a build unpacks is as its source is, names and all: one that fails does not leave it beside its data set."""
    try:
        yield
    except BaseException:
        if layout.unpacked.exists():
            with contextlib.suppress(LumidError, OSError), _lock(layout):  # another build may be at it
                shutil.rmtree(layout.unpacked, ignore_errors=True)
        raise


@contextmanager
def nobody_builds(layout: Layout) -> Iterator[None]:
    """As long as this lasts, no build of this data set begins. Raises :class:`LumidError` when one is under way."""
    was_there = layout.work.exists()
    with _lock(layout):
        try:
            yield
        finally:
            if not was_there:
                remove_work(layout)


def _lock(layout: Layout) -> TextIO:
    """The file that whoever builds here holds locked."""
    path = layout.work / "running"
    for patience in range(5, -1, -1):
        layout.parts.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # whoever had it may have taken the folder away with it
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
        if patience:  # `lumid status` has it for a moment
            time.sleep(0.1)
    raise LumidError(f"{layout.root}: another lumid is building here; see `lumid status`")


def remove_work(layout: Layout) -> None:
    """Remove what a build needed. It goes by one rename: nobody takes a half of it for the state of a build."""
    going = layout.root / f"{layout.work.name}.{secrets.token_hex(4)}.gone"
    with contextlib.suppress(FileNotFoundError):
        layout.work.rename(going)
    _sweep(layout)


def _sweep(layout: Layout) -> None:
    for gone in layout.root.glob(f"{layout.work.name}.*.gone"):
        shutil.rmtree(gone, ignore_errors=True)


def open_listed_sources(recipe: Recipe, scratch: Path | None) -> dict[int, ListedSource]:
    """The sources that have to be looked through, by their number in the recipe.

    Those that have to be filled by hand and are not there are left out. Raises
    :class:`~lumid.catalog.errors.RecipeError` for any other that is not there.
    """
    keyer = make_keyer(recipe.deid)
    return {
        number: open_listed(settings, recipe, keyer, scratch)
        for number, settings in enumerate(recipe.sources)
        if isinstance(settings, FolderSettings | PydicomSettings) and not _awaited(settings)
    }


def _awaited(settings: FolderSettings | PydicomSettings) -> bool:
    """Whether a folder has to be filled by hand and is not there: a plan says from where; a build leaves it out."""
    if not isinstance(settings, FolderSettings) or not settings.by_hand or "://" in settings.path:
        return False
    return not Path(settings.path).is_dir()


def reads_remotely(recipe: Recipe) -> bool:
    """Whether any source has to be waited for: then the next batch's bytes should arrive while one is processed."""
    return any(_is_remote(settings) for settings in recipe.sources)


def _is_remote(settings: AnySource) -> bool:
    if isinstance(settings, FolderSettings):
        return "://" in settings.path and not settings.path.startswith("file:")
    return not isinstance(settings, PydicomSettings)
