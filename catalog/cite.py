"""Who is to be cited, and under which licences the images inside may be used: ``CITATION.bib`` and ``LICENSES.md``.

The citations are the archives' own, word for word, as :mod:`lumid.catalog.collections` has them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import duckdb

from lumid.catalog.bibtex import bib_key, citation_fields, entry, escape
from lumid.catalog.layout import Manifest, storage_errors, write_text
from lumid.catalog.paths import AnyPath
from lumid.catalog.query import ask, connect

if TYPE_CHECKING:
    from lumid.catalog.collections import Collection

COMMERCIAL = "NOT regexp_matches(license, '(?i)\\bnc\\b|non.?commercial')"
"""SQL condition for the samples whose stated licence does not exclude commercial use."""
NOT_STATED = "not stated by the source; check before you use it"

NIH_ATTRIBUTION = (
    "The chest X-rays of ChestX-ray14 come from the NIH Clinical Center, which is to be credited as their provider: "
    "https://nihcc.app.box.com/v/ChestXray-NIHCC. Cite Wang et al., CVPR 2017, https://doi.org/10.1109/CVPR.2017.369."
)
"""What the NIH asks of those who use its images: link, credit and citation."""
UNCONFIRMED = "not checked at the archive"

PAPER_TEXT = (
    "Gupta, A., Osman, I., Shehata, M. S., Braun, J., & Feldman, R. E. (2025). MedMAE: A Self-Supervised Backbone for "
    "Medical Imaging Tasks. Computation, 13(4), 88. https://doi.org/10.3390/computation13040088"
)
PAPER = """@article{gupta2025medmae,
  title   = {{MedMAE}: A Self-Supervised Backbone for Medical Imaging Tasks},
  author  = {Gupta, Anubhav and Osman, Islam and Shehata, Mohamed S. and Braun, John and Feldman, Rebecca E.},
  journal = {Computation},
  year    = {2025},
  volume  = {13},
  number  = {4},
  pages   = {88},
  doi     = {10.3390/computation13040088}
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectionUse:
    """A collection under one licence, and how much of it is in the data set."""

    collection: str
    source: str
    source_version: str | None
    license: str | None
    doi: str | None
    samples: int
    patients: int
    series: int

    @property
    def non_commercial(self) -> bool:
        """Whether the licence's name excludes commercial use."""
        return is_non_commercial(self.license)

    @property
    def doi_url(self) -> str | None:
        """A link to the DOI; None where there is none, or where it does not have a DOI's form."""
        found = plain_doi(self.doi)
        return f"https://doi.org/{found}" if found else None


def is_non_commercial(license: str | None) -> bool:
    """Whether a licence's name says NC or non-commercial.

    >>> [is_non_commercial(name) for name in ("CC BY-NC 4.0", "CC BY 4.0", "Attribution-NonCommercial", None)]
    [True, False, True, False]
    """
    return bool(license and re.search(r"(?<![a-z])nc(?![a-z])|non[\s-]?commercial", license, re.IGNORECASE))


def plain_doi(doi: str | None) -> str | None:
    """A DOI without ``https://doi.org/`` or ``doi:`` before it; None for what does not have a DOI's form.

    >>> plain_doi("https://doi.org/10.7937/K9/TCIA.2015.PF0M9REI")
    '10.7937/K9/TCIA.2015.PF0M9REI'
    """
    bare = re.sub(r"^(https?://(dx\.)?doi\.org/|doi:\s*)", "", (doi or "").strip(), flags=re.IGNORECASE)
    return bare if re.fullmatch(r"10\.\d{4,9}/[-._;()/:<>A-Za-z0-9+]+", bare) else None


def collections_in(connection: duckdb.DuckDBPyConnection) -> list[CollectionUse]:
    """The collections of a data set, each once for every licence, DOI and version it has; the largest first."""
    table = ask(
        connection,
        "SELECT collection, source, source_version, license, doi, count(*) AS samples, "
        "count(DISTINCT patient) AS patients, count(DISTINCT series) AS series "
        "FROM catalog GROUP BY ALL ORDER BY samples DESC, collection, license, doi, source_version",
    )
    return [CollectionUse(**row) for row in table.to_pylist()]


def non_commercial_line(uses: Sequence[CollectionUse]) -> str | None:
    """One sentence on the share of samples under a non-commercial licence; None when there are no samples."""
    total = sum(use.samples for use in uses)
    bound = sum(use.samples for use in uses if use.non_commercial)
    if not total:
        return None
    return (
        f"{bound:,} of {total:,} samples ({_percent(bound, total)}) are under a licence that excludes commercial use."
    )


def unstated_line(uses: Sequence[CollectionUse]) -> str | None:
    """One sentence on the samples whose licence nobody stated; None when there is none."""
    total = sum(use.samples for use in uses)
    unknown = sum(use.samples for use in uses if not use.license)
    if not unknown:
        return None
    return f"For {unknown:,} of {total:,} samples ({_percent(unknown, total)}) the licence is {NOT_STATED}."


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole
    return (
        f"{share:.1f} %" if 0.05 <= share <= 99.95 or part in (0, whole) else ("< 0.1 %" if share < 1 else "> 99.9 %")
    )


def registered(use: CollectionUse) -> Collection | None:
    """The collection of LUMID that a collection of a data set is, by its DOI or else by its name; None for any other."""
    # the registry asks this module what a non-commercial licence is
    from lumid.catalog.collections import collections

    known = collections()
    doi = (plain_doi(use.doi) or "").lower()
    of_doi = [one for one in known.values() if one.doi.lower() == doi]
    name = re.sub(r"[^a-z0-9]+", "_", use.collection.lower()).strip("_")
    return of_doi[0] if of_doi else known.get("nih_chest_xray" if use.source == "nih" else name)


def archive_citation(use: CollectionUse) -> str | None:
    """The archive's own citation, word for word; None where it is not known, or is that of another DOI."""
    known = registered(use)
    if known is None or (use.doi and (plain_doi(use.doi) or "").lower() != known.doi.lower()):
        return None
    return known.citation


def citation_confirmed(use: CollectionUse) -> bool:
    """Whether the archive's citation was checked at the archive."""
    known = registered(use)
    return known is not None and "citation" not in known.unconfirmed


def is_nih(use: CollectionUse) -> bool:
    """Whether these are the NIH's chest X-rays, whose terms ask for an attribution."""
    known = registered(use)
    return use.source == "nih" or (known is not None and known.source == "nih")


def licenses_md(uses: Sequence[CollectionUse]) -> str:
    """``LICENSES.md``: a table of the collections inside, with licence, DOI and counts."""
    lines = [
        "# Licences of the images inside",
        "",
        "lumid does not license these images: each stays under the terms of its source. The catalog says the same,",
        "sample by sample, in the columns `license`, `doi` and `collection`.",
        "",
    ]
    for sentence in (non_commercial_line(uses), unstated_line(uses)):
        if sentence:
            lines += [sentence, ""]
    if non_commercial_line(uses):
        lines += [f"A condition that selects the rest, as far as a licence is stated: `{COMMERCIAL}`", ""]
    lines += [
        "| collection | licence | DOI | samples | patients | source |",
        "|---|---|---|---:|---:|---|",
    ]
    for use in uses:
        doi = f"[{plain_doi(use.doi)}]({use.doi_url})" if use.doi_url else _cell(use.doi or NOT_STATED)
        source = " ".join(part for part in (use.source, use.source_version) if part)
        lines.append(
            f"| {_cell(use.collection)} | {_cell(use.license or NOT_STATED)} | {doi} "
            f"| {use.samples:,} | {use.patients:,} | {_cell(source)} |"
        )
    if not uses:
        lines.append("| none: the data set holds no samples | | | 0 | 0 | |")
    if any(is_nih(use) for use in uses):
        lines += ["", NIH_ATTRIBUTION]
    cited = [(use, citation) for use in _merged(uses) if (citation := archive_citation(use))]
    if cited:
        lines += ["", "## How the archives ask to be cited", ""]
        lines += [f"- {_cell(use.collection)}: {_cell(_said(use, citation))}" for use, citation in cited]
    return "\n".join(lines) + "\n"


def _said(use: CollectionUse, citation: str) -> str:
    return citation if citation_confirmed(use) else f"{citation} ({UNCONFIRMED})"


def _cell(value: str) -> str:
    """Text that cannot leave its cell of a Markdown table, nor be read as markup."""
    flat = re.sub(r"\s+", " ", value)
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", flat)


def citation_bib(uses: Sequence[CollectionUse], manifest: Manifest) -> str:
    """``CITATION.bib``: the data set as built, the paper that it rebuilds, and an entry for every collection."""
    entries = [
        entry(
            "software",
            f"lumid_{bib_key(manifest.name)}",
            {
                "title": f"{{lumid}}: data set {{{escape(manifest.name)}}}, rebuilt from public archives",
                "version": escape(manifest.lumid_version),
                "note": f"{manifest.counts.kept} samples; recipe {escape(manifest.recipe_hash[:16])}, "
                f"lock {escape(manifest.lock_hash[:16])}, catalog {escape(manifest.catalog_hash[:16])}",
            },
        ),
        PAPER,
    ]
    keys: set[str] = set()
    for use in _merged(uses):
        key = f"collection_{bib_key(use.collection)}"
        while key in keys:
            key += "_"
        keys.add(key)
        entries.append(entry("misc", key, _collection_fields(use)))
    return "\n\n".join(entries) + "\n"


def _collection_fields(use: CollectionUse) -> dict[str, str]:
    """An entry's fields: the archive's citation word for word, and taken apart where that is safe."""
    citation = archive_citation(use)
    known = registered(use)
    doi = plain_doi(use.doi) or (known.doi if known and citation else None)
    said = [f"Cited by the archive as: {escape(_said(use, citation))}"] if citation else []
    said += [escape(NIH_ATTRIBUTION)] if is_nih(use) else []
    said.append(f"{use.samples} samples; licence: {escape(use.license or NOT_STATED)}")
    said += [] if doi else [f"DOI: {escape(NOT_STATED)}"]
    read_from = f"data collection, read from {use.source} {use.source_version or ''}".strip()
    return {
        "title": f"{{{escape(use.collection)}}}",
        **(citation_fields(citation) if citation else {}),
        "howpublished": escape(read_from),
        "note": "; ".join(said),
        **({"doi": doi, "url": f"https://doi.org/{doi}"} if doi else {}),
    }


def citation_text(uses: Sequence[CollectionUse], manifest: Manifest) -> str:
    """What to cite, to be read: the data set, the paper, and every collection with its licence."""
    lines = [
        f"{manifest.name}: {manifest.counts.kept:,} samples, rebuilt from public archives with lumid "
        f"{manifest.lumid_version} (recipe {manifest.recipe_hash[:16]}, lock {manifest.lock_hash[:16]})",
        "",
        f"The paper: {PAPER_TEXT}",
    ]
    for use in _merged(uses):
        lines += ["", f"{use.collection}: {use.samples:,} samples, licence {use.license or NOT_STATED}"]
        citation = archive_citation(use)
        lines.append(f"  {_said(use, citation)}" if citation else f"  DOI: {use.doi_url or use.doi or NOT_STATED}")
        lines += [f"  {NIH_ATTRIBUTION}"] if is_nih(use) else []
    notes = [line for line in (non_commercial_line(uses), unstated_line(uses)) if line]
    return "\n".join(_printable(line) for line in [*lines, *([""] if notes else []), *notes]) + "\n"


def _printable(line: str) -> str:
    return "".join(char if char.isprintable() else " " for char in line)


def _merged(uses: Sequence[CollectionUse]) -> list[CollectionUse]:
    """One entry for a collection and DOI; its licences listed together."""
    groups: dict[tuple[str, str | None], list[CollectionUse]] = {}
    for use in uses:
        groups.setdefault((use.collection, plain_doi(use.doi)), []).append(use)
    return [
        CollectionUse(
            collection=collection,
            source=", ".join(dict.fromkeys(use.source for use in group)),
            source_version=", ".join(dict.fromkeys(use.source_version for use in group if use.source_version)) or None,
            license=", ".join(dict.fromkeys(use.license or NOT_STATED for use in group)),
            doi=doi,
            samples=sum(use.samples for use in group),
            patients=max(use.patients for use in group),
            series=sum(use.series for use in group),
        )
        for (collection, doi), group in groups.items()
    ]


def write_citations(root: AnyPath, manifest: Manifest) -> tuple[AnyPath, AnyPath]:
    """Write ``CITATION.bib`` and ``LICENSES.md`` of a data set whose catalog is in place; their paths."""
    with connect(root, finished=False) as connection:
        uses = collections_in(connection)
    citation, licenses = root / "CITATION.bib", root / "LICENSES.md"
    with storage_errors(root):
        write_text(citation, citation_bib(uses, manifest))
        write_text(licenses, licenses_md(uses))
    return citation, licenses
