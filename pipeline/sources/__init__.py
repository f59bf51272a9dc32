"""Where bytes come from: a source lists objects and opens them; nothing after it knows what kind of place it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lumid.catalog.keys import Keyer
from lumid.pipeline.recipe import SourceSettings
from lumid.pipeline.reject import Reject


@dataclass(frozen=True, slots=True)
class Provenance:
    """What every slice of a collection says about where it comes from."""

    collection: str
    source: str
    license: str | None
    doi: str | None
    source_version: str | None


@dataclass(frozen=True, slots=True)
class ObjectRef:
    """One object of a source: a name that may be shown, and a private handle to open it by."""

    source_id: str
    size_bytes: int
    changed_ns: int
    location: str = field(repr=False)  # can hold identifiers: never shown, never stored


class Source(Protocol):
    """The small protocol behind every kind of source."""

    @property
    def provenance(self) -> Provenance:
        """What every slice of this source says about where it comes from."""
        ...

    def objects(self) -> list[ObjectRef | tuple[ObjectRef, Reject]]:
        """Everything that is there, sorted by ``source_id``; what cannot be opened comes with its reason."""
        ...

    def read(self, ref: ObjectRef, max_bytes: int | None = None) -> bytes | Reject:
        """The object's bytes (the first ``max_bytes`` of them), or why they cannot be had."""
        ...


def open_source(settings: SourceSettings, keyer: Keyer) -> Source:
    """The source that the settings describe.

    Raises :class:`~lumid.catalog.errors.RecipeError` when it is not there or this version cannot read its kind.
    """
    from lumid.catalog.errors import RecipeError
    from lumid.pipeline.sources.folder import FolderSource, pydicom_files

    if settings.kind not in ("folder", "pydicom"):
        raise RecipeError(
            f"sources.kind = '{settings.kind}': this version fetches nothing from the network; download the collection, "
            "then use kind = 'folder' (or: lumid build --source FOLDER --collection NAME --out DATASET)"
        )
    root = Path(settings.path or "") if settings.kind == "folder" else pydicom_files()
    version = settings.version
    if settings.kind == "pydicom":
        import pydicom

        version = f"pydicom {pydicom.__version__}"
    provenance = Provenance(settings.collection, settings.kind, settings.license, settings.doi, version)
    return FolderSource(root, provenance, keyer, plain_names=settings.names == "plain")
