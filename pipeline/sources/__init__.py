"""Where bytes come from: a source opens a series as a stream of blobs; nothing after it knows what kind of place it was.

There are two kinds. A *listed* source (a folder) has to be looked through, and its headers read, before anyone knows
which series are in it. A *pinned* source (an archive) says so by itself: a plan names its series one by one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from lumid.pipeline.reject import Reject

if TYPE_CHECKING:
    from lumid.catalog.keys import Keyer
    from lumid.pipeline.recipe import FolderSettings, PydicomSettings, Recipe


@dataclass(frozen=True, slots=True)
class Provenance:
    """What every slice of a series says about where it comes from."""

    collection: str
    source: str
    license: str | None
    doi: str | None
    source_version: str | None
    modality: str | None = None
    """Modality of files whose format has no place for one."""


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object of a source: a name that may be shown, and a private handle to open it by."""

    source_id: str
    size_bytes: int
    changed_ns: int = 0
    location: str = field(default="", repr=False)  # can hold identifiers: never shown, never stored


@dataclass(frozen=True, slots=True)
class Member:
    """An object of a series that is known before it is opened, and the frames that its header claims."""

    ref: ObjectRef
    frames: int = 1
    reject: Reject | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A series to be read whole: its statistics are the series' own.

    ``objects`` is None where the archive does not say how many there are; ``members`` are those of a listed source, in
    the order of their source ids; ``location`` and ``urls`` tell a pinned source where the series is; ``lock_row`` is its
    row in the lock; ``modality`` is what the archive's index says of it.
    """

    id: str
    provenance: Provenance
    objects: int | None
    bytes: int
    members: tuple[Member, ...] = field(default=(), repr=False)
    location: str = ""
    urls: tuple[str, ...] = ()
    lock_row: int = 0
    modality: str | None = None

    @property
    def frames(self) -> int:
        """Frames, as far as is known before the series is opened."""
        return sum(member.frames for member in self.members) if self.members else self.objects or 1

    def digest(self) -> str:
        """SHA-256 over what identifies the series' content as far as a listing or the archive can."""
        lines = [f"{member.ref.source_id}\t{member.ref.size_bytes}" for member in self.members]
        return hashlib.sha256("\n".join(lines or [self.location]).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Blob:
    """An object's bytes, or why they cannot be had; then it can stand for several ``objects`` that nobody could name.

    ``labels`` and ``split`` are what an archive says of the object beside it: terms of a closed vocabulary, and the
    official split, None where there is none.
    """

    ref: ObjectRef
    data: bytes | Reject = field(repr=False)
    objects: int = 1
    labels: tuple[str, ...] | None = None
    split: str | None = None


Listing = list[ObjectRef | tuple[ObjectRef, Reject]]


class Source(Protocol):
    """The small protocol behind every kind of source. It is made anew in every process that reads from it."""

    def prefetch(self, series: Sequence[Series]) -> None:
        """Say which series :meth:`blobs` will be asked for next, in this order: their bytes may begin to arrive."""
        ...

    def close(self) -> None:
        """Forget what was prefetched and not read."""
        ...

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The objects of a series, each once, in the order of their source ids; ``only`` those with these ids.

        What cannot be had comes as a reject. The order and the number are the same at every call.
        """
        ...


@runtime_checkable
class DivisibleSource(Source, Protocol):
    """A source that can say what is in a series, and give some of it to each of several who read it."""

    def known_objects(self, series: Series) -> list[ObjectRef] | None:
        """All objects of a series, in the order of :meth:`Source.blobs`; None where only reading all of it would tell."""
        ...


class ListedSource(Source, Protocol):
    """A source that has to be looked through."""

    @property
    def provenance(self) -> Provenance:
        """What every slice of this source says about where it comes from."""
        ...

    def objects(self) -> Listing:
        """Everything that is there, sorted by ``source_id``; what cannot be opened comes with its reason."""
        ...

    def read(self, ref: ObjectRef, max_bytes: int | None = None) -> bytes | Reject:
        """The object's bytes (the first ``max_bytes`` of them), or why they cannot be had."""
        ...


def open_source(recipe: Recipe, number: int, keyer: Keyer, scratch: Path | None = None) -> Source:
    """One of a recipe's sources, ready to be read. ``scratch``: a folder for what has to be unpacked.

    Raises :class:`~lumid.catalog.errors.LumidError` when it is not there, or its cache cannot be opened.
    """
    from lumid.pipeline.recipe import IdcSettings, NihSettings, TciaSettings
    from lumid.pipeline.sources.cached import behind_cache

    settings = recipe.sources[number]
    if isinstance(settings, IdcSettings):
        from lumid.pipeline.sources.idc import IdcSource

        return behind_cache("idc", recipe.fetch, IdcSource)
    if isinstance(settings, TciaSettings):
        from lumid.pipeline.sources.tcia import TciaSource

        return behind_cache("tcia", recipe.fetch, TciaSource)
    if isinstance(settings, NihSettings):
        from lumid.pipeline.sample import kept_patients
        from lumid.pipeline.sources.nih import NihSource

        return NihSource(settings, recipe.fetch, keyer, kept_patients(recipe.sample, keyer, settings.collection))
    return open_listed(settings, recipe, keyer, scratch)


def open_listed(
    settings: FolderSettings | PydicomSettings, recipe: Recipe, keyer: Keyer, scratch: Path | None = None
) -> ListedSource:
    """A source that has to be looked through. Raises :class:`~lumid.catalog.errors.RecipeError` when it is not there."""
    from lumid.pipeline.recipe import FolderSettings
    from lumid.pipeline.sources.folder import FolderSource, pydicom_files
    from lumid.pipeline.sources.store import open_folder

    plain = settings.names == "plain"
    if isinstance(settings, FolderSettings):
        provenance = Provenance(
            settings.collection, "folder", settings.license, settings.doi, settings.version, settings.modality
        )
        fetch = recipe.fetch
        return open_folder(
            settings.path, provenance, keyer, plain_names=plain, scratch=scratch, requests=fetch.requests,
            ahead_bytes=int(fetch.ahead_mb * 1e6), timeout_s=fetch.timeout_s, attempts=fetch.attempts,
        )  # fmt: skip
    import pydicom

    version = f"pydicom {pydicom.__version__}"
    provenance = Provenance(settings.collection, "pydicom", settings.license, settings.doi, version)
    return FolderSource(pydicom_files(), provenance, keyer, plain, scratch, timeless=True)
