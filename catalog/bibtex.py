"""BibTeX entries: text that cannot break out of a field, and an archive's citation taken apart where that is safe."""

from __future__ import annotations

import re
from collections.abc import Mapping

_INITIALS = r"[A-Z]\.(-[A-Za-z]+\.?)?( [A-Z]\.(-[A-Za-z]+\.?)?)*"
_DATA_SET = re.compile(
    r"(?P<authors>.+?) \((?P<year>\d{4})\)\. (?P<title>.+?)(?: \(Version (?P<version>[\d.]+)\))? \[Data set\]\. "
    r"(?P<publisher>The Cancer Imaging Archive)\. https://doi\.org/\S+"
)


def entry(kind: str, key: str, fields: Mapping[str, str]) -> str:
    """A BibTeX entry; the fields' values must be escaped already."""
    width = max(len(name) for name in fields)
    body = ",\n".join(f"  {name:<{width}} = {{{value}}}" for name, value in fields.items())
    return f"@{kind}{{{key},\n{body}\n}}"


def bib_key(value: str) -> str:
    """A text as (part of) an entry's key.

    >>> bib_key("CT Images in COVID-19")
    'CT_Images_in_COVID-19'
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", value)


def escape(value: str) -> str:
    """Text for a BibTeX field: what TeX would read as a command is escaped. BibTeX counts even a brace after a backslash.

    >>> escape("50 % of a_b")
    '50 \\\\% of a\\\\_b'
    """
    special = {
        "\\": "textbackslash",
        "~": "textasciitilde",
        "^": "textasciicircum",
        "{": "textbraceleft",
        "}": "textbraceright",
    }
    flat = re.sub(r"\s+", " ", value)
    return re.sub(
        r"[\\~^{}#$%&_]",
        lambda found: f"\\{special[found[0]]}{{}}" if found[0] in special else f"\\{found[0]}",
        flat,
    )


def citation_fields(citation: str) -> dict[str, str]:
    """Author, title, year, version and publisher of an archive's citation in its usual form, escaped.

    Empty for a citation of another form; without ``author`` where not every name is a surname and initials, or names
    are left out: a missing field is better than a wrong one.
    """
    match = _DATA_SET.fullmatch(citation.strip())
    if match is None:
        return {}
    authors = _authors(match["authors"])
    fields = {"author": authors} if authors else {}
    fields |= {"title": f"{{{escape(match['title'])}}}", "year": match["year"], "publisher": match["publisher"]}
    return fields | ({"version": match["version"]} if match["version"] else {})


def _authors(names: str) -> str | None:
    """``Li, M., & Wu, C.`` as ``Li, M. and Wu, C.``; a group without a comma as one name; None for anything else."""
    if "," not in names:
        return f"{{{escape(names.removesuffix('.'))}}}"
    parts = names.replace(", & ", ", ").split(", ")
    pairs = list(zip(parts[::2], parts[1::2], strict=False))
    safe = len(parts) % 2 == 0 and all(
        re.fullmatch(r"[^\W\d_][^\d_,.…&]*", surname) and re.fullmatch(_INITIALS, initials)
        for surname, initials in pairs
    )
    return " and ".join(f"{escape(surname)}, {initials}" for surname, initials in pairs) if safe else None
