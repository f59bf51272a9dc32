"""What a build and a repair begin with: archives that answer, a cache that can serve, and the recipe's sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa

from lumid.catalog.errors import LumidError, RecipeError
from lumid.catalog.paths import AnyPath
from lumid.pipeline.connections import is_reachable
from lumid.pipeline.lock import series_of
from lumid.pipeline.rawcache import check_cache
from lumid.pipeline.recipe import AnySource, FolderSettings, NihSettings, PydicomSettings, Recipe, make_keyer
from lumid.pipeline.sources import ListedSource, Listing, open_listed
from lumid.pipeline.sources.nih import check_tables


def check_fetching(recipe: Recipe, out: AnyPath, pinned: pa.Table | None) -> None:
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


def check_listings(recipe: Recipe, listings: Mapping[int, Listing]) -> None:
    """Refuse a folder with nothing in it, such as a disk that is not mounted: it would be a data set that lacks it all.

    ``listings``: by number of the source. Raises :class:`~lumid.catalog.errors.RecipeError`.
    """
    for number, listing in listings.items():
        settings = recipe.sources[number]
        if not listing and isinstance(settings, FolderSettings) and not settings.by_hand:
            raise RecipeError(f"{settings.path}: there is no file in it; is its disk mounted?")


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
