"""The collections of LUMID: what the paper says of each, where it is, under which licence, and how to cite it."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from lumid.catalog.cite import is_non_commercial
from lumid.catalog.errors import UsageError

SourceKind = Literal["idc", "nih", "tcia_package"]


class Collection(BaseModel):
    """A collection as ``collections.toml`` describes it.

    ``paper_*``: what the paper's table says of the row that this collection is in. ``patients``, ``series``,
    ``images``, ``gb`` (10^9 bytes) and ``modalities`` (images of each): what the archive holds, for IDC its version 25
    in image modalities without analysis results; None where no index tells. ``unconfirmed``: fields nobody has checked
    at the source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    name: str
    source: SourceKind
    source_id: str
    format: Literal["dicom", "nifti", "png"]
    doi: str
    license: str
    citation: str
    paper_row: str
    paper_location: tuple[str, ...]
    paper_subjects: int
    paper_modalities: tuple[str, ...]
    paper_errors: str = ""
    patients: int | None = None
    series: int | None = None
    images: int | None = None
    gb: float | None = None
    modalities: dict[str, int] = {}
    note: str = ""
    unconfirmed: tuple[str, ...] = ()

    @property
    def commercial_use(self) -> bool:
        """Whether the licence, as the archive names it, does not exclude commercial use."""
        return not is_non_commercial(self.license)

    @property
    def doi_url(self) -> str:
        """A link to the collection's DOI."""
        return f"https://doi.org/{self.doi}"

    @property
    def shares_row_with(self) -> tuple[str, ...]:
        """Other collections in the same row of the paper's table: ``paper_subjects`` counts theirs too."""
        rows = ((one.id, one.paper_row) for one in collections().values())
        return tuple(name for name, row in rows if row == self.paper_row and name != self.id)


@cache
def collections() -> MappingProxyType[str, Collection]:
    """Every collection of LUMID by its id, in the paper's order.

    >>> collections()["lidc_idri"].license
    'CC BY 3.0'
    """
    text = (resources.files("lumid.catalog") / "collections.toml").read_text("utf-8")
    return MappingProxyType({name: Collection(id=name, **values) for name, values in tomllib.loads(text).items()})


def of_source(kind: SourceKind) -> tuple[Collection, ...]:
    """The collections that a kind of source holds."""
    return tuple(one for one in collections().values() if one.source == kind)


def find_collection(name: str) -> Collection:
    """The collection of that id or that name, however it is written; raises :class:`UsageError`.

    >>> find_collection("LIDC-IDRI").id
    'lidc_idri'
    """
    wanted = plain_name(name)
    for one in collections().values():
        if wanted in (plain_name(one.id), plain_name(one.name), plain_name(one.source_id)):
            return one
    hint = did_you_mean(name, collections()) or "; list them with: lumid collections"
    raise UsageError(f"{name}: not a collection of LUMID{hint}")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error line about an unknown name: the known one that looks most like it, or nothing.

    >>> did_you_mean("lidc_idr", ["lidc_idri", "tcga_ov"])
    "; did you mean 'lidc_idri'?"
    """
    plain = {plain_name(one): one for one in known}
    close = difflib.get_close_matches(plain_name(name), plain, n=1)
    return f"; did you mean '{plain[close[0]]}'?" if close else ""


def plain_name(name: str) -> str:
    """A name without case, spaces and marks: archives write the same one in several ways.

    >>> plain_name("LIDC-IDRI") == plain_name("lidc_idri")
    True
    """
    return "".join(char for char in name.lower() if char.isalnum())
