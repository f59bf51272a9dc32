"""Who is to be cited, and under which licences the images inside may be used: ``CITATION.bib`` and ``LICENSES.md``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from lumid.catalog.layout import Manifest, storage_errors, write_text
from lumid.catalog.query import ask, connect

COMMERCIAL = "NOT regexp_matches(license, '(?i)\\bnc\\b|non.?commercial')"
"""SQL condition for the samples whose stated licence does not exclude commercial use."""
NOT_STATED = "not stated by the source; check before you use it"

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
    """One sentence on the share of samples under a non-commercial licence; None when there is none."""
    total = sum(use.samples for use in uses)
    bound = sum(use.samples for use in uses if use.non_commercial)
    if not bound:
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
    return "\n".join(lines) + "\n"


def _cell(value: str) -> str:
    """Text that cannot leave its cell of a Markdown table, nor be read as markup."""
    flat = re.sub(r"\s+", " ", value)
    return re.sub(r"([\\|`*_\[\]<>])", r"\\\1", flat)


def citation_bib(uses: Sequence[CollectionUse], manifest: Manifest) -> str:
    """``CITATION.bib``: the data set as built, the paper that it rebuilds, and an entry for every collection."""
    entries = [
        _entry(
            "software",
            f"lumid_{_bib_key(manifest.name)}",
            {
                "title": f"{{lumid}}: data set {{{_bib(manifest.name)}}}, rebuilt from public archives",
                "version": _bib(manifest.lumid_version),
                "note": f"{manifest.counts.kept} samples; recipe {_bib(manifest.recipe_hash[:16])}, "
                f"lock {_bib(manifest.lock_hash[:16])}, catalog {_bib(manifest.catalog_hash[:16])}",
            },
        ),
        PAPER,
    ]
    keys: set[str] = set()
    for use in _merged(uses):
        key = f"collection_{_bib_key(use.collection)}"
        while key in keys:
            key += "_"
        keys.add(key)
        doi = plain_doi(use.doi)
        fields = {
            "title": f"{{{_bib(use.collection)}}}",
            "howpublished": _bib(f"data collection, read from {use.source} {use.source_version or ''}".strip()),
            "note": f"{use.samples} samples; licence: {_bib(use.license or NOT_STATED)}"
            + ("" if doi else f"; DOI: {_bib(NOT_STATED)}"),
        }
        entries.append(_entry("misc", key, fields | ({"doi": doi, "url": f"https://doi.org/{doi}"} if doi else {})))
    return "\n\n".join(entries) + "\n"


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


def _entry(kind: str, key: str, fields: dict[str, str]) -> str:
    width = max(len(name) for name in fields)
    body = ",\n".join(f"  {name:<{width}} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}\n}}"


def _bib_key(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", value)


def _bib(value: str) -> str:
    """Text for a BibTeX field: what TeX would read as a command is escaped."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    flat = re.sub(r"\s+", " ", value)
    return re.sub(r"[\\~^{}#$%&_]", lambda found: special.get(found[0], "\\" + found[0]), flat)


def write_citations(root: Path, manifest: Manifest) -> tuple[Path, Path]:
    """Write ``CITATION.bib`` and ``LICENSES.md`` of a data set whose catalog is in place; their paths."""
    with connect(root, finished=False) as connection:
        uses = collections_in(connection)
    citation, licenses = root / "CITATION.bib", root / "LICENSES.md"
    with storage_errors(root):
        write_text(citation, citation_bib(uses, manifest))
        write_text(licenses, licenses_md(uses))
    return citation, licenses
