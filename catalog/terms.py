"""The terms of an audit: what must not be in a data set, and every way in which it may be written there.

A term stands on a line of its own. A name is looked for in the orders in which names are written, a date in the usual
forms, a number without its separators; each in common encodings and escapes, without regard to case and accents.
"""

from __future__ import annotations

import html
import html.entities
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, quote_plus

from lumid.catalog.dates import date_forms, parse_dates
from lumid.catalog.errors import UsageError

MAX_TERM = 200
LONG_ENOUGH = 6
"""Characters from which on a term is found inside other words too, and bytes from which on it is looked for in pixels."""
CODECS = (
    "utf-8", "utf-16-le", "utf-16-be", "latin-1", "cp1252", "iso8859-2", "iso8859-3", "iso8859-4", "iso8859-5", "iso8859-6",
    "iso8859-7", "iso8859-8", "iso8859-9", "cp1251", "koi8-r", "tis-620", "shift_jis", "euc_jp", "iso2022_jp", "euc_kr",
    "iso2022_kr", "gb18030", "big5",
)  # fmt: skip
"""Those of DICOM's Specific Character Set (PS3.3 C.12.1.1.2), and of texts on Windows."""
ESCAPES = re.compile(rb"\x1b[$(][()A-Z@]{1,2}|[\x0e\x0f]")
SUFFIXES = frozenset({"jr", "sr", "ii", "iii", "iv", "md", "phd", "dr", "prof", "mr", "mrs", "ms"})
TRANSLITERATED = {
    "ä": "ae",
    "ö": "oe",
    "ü": "ue",
    "ß": "ss",
    "å": "aa",
    "ø": "oe",
    "æ": "ae",
    "ł": "l",
    "đ": "d",
    "ñ": "ny",
}


@dataclass(frozen=True, slots=True)
class Term:
    """A line of the file of terms. Only its number is ever shown."""

    line: int
    text: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Pattern:
    """Bytes to look for, in lower case as far as they are ASCII; the line of their term, and the form in words.

    ``alone``: letters or digits may not adjoin; ``left``, ``right``: of digits, on that side.
    """

    data: bytes = field(repr=False)
    line: int
    form: str
    alone: bool = False
    left: bool = False
    right: bool = False


def read_terms(path: Path) -> list[Term]:
    """The terms of a UTF-8 file, one a line; empty lines, and those that begin with ``# ``, are none.

    Raises :class:`UsageError` when it cannot be read, holds nothing, or a line is too short or too long to look for.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except OSError:
        raise UsageError(f"{path}: cannot be read; --terms must be a file with one term a line") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8; save it as UTF-8") from None
    terms = [
        Term(number, unicodedata.normalize("NFC", line.strip()))
        for number, line in enumerate(lines, 1)
        if line.strip() and not line.startswith("# ")
    ]
    if not terms:
        raise UsageError(f"{path}: holds no term; write one a line")
    for term in terms:
        if not 2 <= len(term.text) <= MAX_TERM:
            raise UsageError(f"{path}, line {term.line}: a term has 2 to {MAX_TERM} characters")
    return terms


def patterns_of(term: Term, *, name_parts: bool = False) -> list[Pattern]:
    """Everything to look for because of a term. ``name_parts``: each part of a name by itself, too."""
    found: dict[tuple[bytes, bool], Pattern] = {}
    for text, form in _spellings(term.text, name_parts=name_parts):
        bare = re.sub(r"[\W_]", "", text)
        digits = bare.isdecimal()
        alone = not digits and bare.isascii() and len(bare) < LONG_ENOUGH
        left, right = text[0].isdecimal(), text[-1].isdecimal() and form != "date, YYYYMMDD"
        for data, how in _encoded(text):
            key = data.lower(), alone
            if len(data) >= 2 and key not in found:
                found[key] = Pattern(data.lower(), term.line, f"{form}{how}", alone, left, right)
    return list(found.values())


def _spellings(text: str, *, name_parts: bool) -> Iterator[tuple[str, str]]:
    """The texts that mean the term, each with the form in words."""
    seen: set[str] = set()
    for spelling, form in _forms(text, name_parts=name_parts):
        for variant, note in _folded(spelling):
            if variant and variant not in seen:
                seen.add(variant)
                yield variant, form + note


def _forms(text: str, *, name_parts: bool) -> Iterator[tuple[str, str]]:
    if not re.fullmatch(r"\d{8}", text):
        yield text, "as written"
    if days := parse_dates(text):
        for day in days:
            yield from date_forms(day)
        return
    yield text, "as written"
    joined = [text.replace(" ", by) for by in ("_", "-", "", "%20")] if " " in text else []
    yield from ((one, "without its spaces") for one in joined)
    if re.fullmatch(r"[+()\d\s./\-]{7,}", text) and sum(map(str.isdecimal, text)) >= 6:
        plain = re.sub(r"\D", "", text)
        yield plain, "without its separators"
        yield plain.lstrip("0"), "without its separators"
        return
    for group in text.split("="):
        if group != text and group.strip("^ "):
            yield group.strip("^ "), "a component group"
        yield from _name_forms(group, name_parts=name_parts)


def _name_forms(text: str, *, name_parts: bool) -> Iterator[tuple[str, str]]:
    """The orders of a name's parts, where a text looks like a name (PS3.5 6.2.1.2 has family, given, middle)."""
    name = _name(text)
    if name is None:
        return
    family, given, middle = name
    wide = () if text.isascii() else ("\u3000",)
    orders = [f"{family}{by}{given}" for by in ("^", " ", ", ", ",", "_", "-", ".", "", *wide)]
    orders += [f"{given}{by}{family}" for by in (" ", "_", "-", ".", "", "^", *wide)]
    if middle:
        orders += [f"{family}^{given}^{middle}", f"{given} {middle} {family}", f"{family} {given} {middle}",
                   f"{family}, {given} {middle}", f"{given} {middle[0]}. {family}", f"{given} {middle[0]} {family}"]  # fmt: skip
    yield from ((order, "a name, in another order") for order in orders)
    if given.isascii() and family.isascii() and len(family) > 2:
        first = given[0]
        short = [f"{first}. {family}", f"{first}.{family}", f"{first} {family}", f"{family} {first}", f"{family}, {first}",
                 f"{family},{first}", f"{family}^{first}", f"{first}_{family}", f"{family}_{first}"]  # fmt: skip
        yield from ((one, "a name, with an initial") for one in short)
    if name_parts:
        yield from ((part, "part of a name") for part in (family, given) if len(part) > (3 if part.isascii() else 1))


def _name(text: str) -> tuple[str, str, str] | None:
    """Family, given and middle name; None for what does not look like a name."""
    if any(map(str.isdecimal, text)):
        return None
    if "^" in text:
        parts = [part.strip() for part in text.split("^")]
        family, given, middle = (*parts, "", "")[:3]
    elif "," in text:
        family, _, rest = (part.strip() for part in text.partition(","))
        given, _, middle = rest.partition(" ")
    else:
        words = [word for word in text.split() if word.lower().strip(".") not in SUFFIXES]
        if not 2 <= len(words) <= 4 or not all(re.fullmatch(r"[^\W_]+(?:['’.\-][^\W_]*)*", word) for word in words):
            return None
        given, *others, family = words
        middle = " ".join(others)
    return (family, given, middle) if family and given else None


def _folded(text: str) -> Iterator[tuple[str, str]]:
    """A text in its cases, where those are more than ASCII's, composed and not, and without accents."""
    cases = [text] if text.isascii() else [text, text.lower(), text.upper(), text.title()]
    for case in cases:
        yield case, ""
        yield unicodedata.normalize("NFD", case), ""
    if not text.isascii():
        lower = text.lower()
        bare = "".join(one for one in unicodedata.normalize("NFKD", lower) if not unicodedata.combining(one))
        yield bare, ", without accents"
        yield "".join(TRANSLITERATED.get(one, one) for one in lower), ", transliterated"
        yield unicodedata.normalize("NFKC", text), ""


def _encoded(text: str) -> Iterator[tuple[bytes, str]]:
    """A text as bytes, in every encoding that has its characters and in the escapes of texts; the way in words."""
    for codec in CODECS:
        try:
            data = text.encode(codec)
        except UnicodeEncodeError:
            continue
        if codec == "utf-16-be" and text.isascii():
            continue  # found as the other order of bytes is
        if codec.startswith("iso2022"):
            runs = list(filter(None, ESCAPES.split(data)))
            data = runs[0] if len(runs) == 1 else ESCAPES.sub(b"", data[:4]) + data[4:]
        elif codec == "utf-16-le" and text.isascii():
            data = data[:-1]  # so that both orders of bytes hold it
        yield data, "" if codec == "utf-8" else f", {codec}"
    for escaped, how in _escaped(text):
        if escaped != text:
            yield escaped.encode("utf-8", "ignore"), f", {how}"


def _escaped(text: str) -> Iterator[tuple[str, str]]:
    yield json.dumps(text)[1:-1], "JSON-escaped"
    yield quote(text, safe=""), "percent-encoded"
    yield quote(text, safe="/:,"), "percent-encoded"
    yield quote_plus(text), "percent-encoded"
    if not text.isascii():
        yield quote(text.encode("latin-1", "replace"), safe=""), "percent-encoded"
    yield html.escape(text), "HTML-escaped"
    yield html.escape(text).replace("&#x27;", "&#39;"), "HTML-escaped"
    names = html.entities.codepoint2name
    for style in ("&#{:d};", "&#x{:x};"):
        for quoted in {text, html.escape(text)}:
            yield "".join(one if one.isascii() else style.format(ord(one)) for one in quoted), "HTML-escaped"
    yield "".join(f"&{names[ord(one)]};" if ord(one) in names else one for one in text), "HTML-escaped"
    yield text.encode("unicode_escape").decode("ascii"), "escaped as by Python"
    yield repr(text.encode("utf-8"))[2:-1], "escaped as by Python"
    if "^" in text:
        yield text.replace("^", "\\^"), "escaped"
