"""Looking for many patterns at once in bytes, and telling a finding from what only looks like one."""

from __future__ import annotations

import base64
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import ahocorasick_rs as ac

from lumid.catalog.terms import LONG_ENOUGH, Pattern

HASH_DIGITS = 16
"""Runs of so many hexadecimal digits and more, letters among them, are hashes: any short number is in one by chance."""
BASE64 = re.compile(rb"(?:[A-Za-z0-9+/_-]{12,}\r?\n)*[A-Za-z0-9+/_-]{12,}={0,2}")
HEXADECIMAL = re.compile(rb"[0-9a-fA-F-]+")
HEX_RUN = re.compile(rb"[0-9a-fA-F]{2}(?:[ :-]?[0-9a-fA-F]{2}){5,}[0-9a-fA-F]?")
MARKUP = re.compile(rb"<[!/?A-Za-z][^<>]{0,1000}>")
_HEX, _DIGITS, _WORD = frozenset(b"0123456789abcdef"), frozenset(b"0123456789"), frozenset(
    b"0123456789abcdefghijklmnopqrstuvwxyz"
)  # fmt: skip
_NUMBER = frozenset(b"0123456789.e+-")
_FLOAT = re.compile(rb"-?[0-9]+\.([0-9]+)(?:e[+-]?[0-9]+)?")


@dataclass(frozen=True, slots=True)
class Match:
    """Where in some bytes a pattern is."""

    start: int
    end: int
    pattern: Pattern


@dataclass(slots=True)
class Passed:
    """Matches that were passed over, by reason: what an audit has to say beside what it found."""

    counts: Counter[str] = field(default_factory=Counter)


class Matcher:
    """Finds all patterns in one pass, in a time that does not depend on how many there are (Aho and Corasick 1975)."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = list(patterns)
        self._long = [one for one in patterns if len(one.data) >= LONG_ENOUGH and not one.alone]
        self._all = _automaton(self.patterns)
        self._only_long = _automaton(self._long)
        self.reach = max((len(one.data) for one in patterns), default=1) + 32
        """Bytes by which windows have to overlap: the longest pattern, and what adjoins it."""

    def in_text(self, data: bytes, passed: Passed, *, encoded: bool = True) -> Iterator[Match]:
        """Every finding in bytes that are, or may be, text.

        ``encoded``: in what is base64 or hexadecimal there, and across tags of markup, too.
        """
        folded = data.lower()
        for index, start, end in self._all.find_matches_as_indexes(folded, overlapping=True):
            match = Match(start, end, self.patterns[index])
            if why := _chance(folded, match):
                if why != "part of a word":
                    passed.counts[why] += 1
            else:
                yield match
        if encoded:
            yield from self._across_markup(folded)
            yield from self._in_base64(data)
            yield from self._in_hexadecimal(data)

    def in_pixels(self, data: bytes) -> Iterator[Match]:
        """Every finding in bytes that are compressed, where short patterns would be found by chance."""
        for index, start, end in self._only_long.find_matches_as_indexes(data.lower(), overlapping=True):
            yield Match(start, end, self._long[index])

    def _across_markup(self, folded: bytes) -> Iterator[Match]:
        """Findings that tags of HTML or XML interrupt: ``<b>DOE</b>^JOHN``."""
        tags = [tag.span() for tag in MARKUP.finditer(folded)]
        if not tags:
            return
        seams, removed, bare, at = [], [0], [], 0
        for start, end in tags:
            bare.append(folded[at:start])
            seams.append(start - removed[-1])
            removed.append(removed[-1] + end - start)
            at = end
        text = b"".join((*bare, folded[at:]))
        for index, start, end in self._all.find_matches_as_indexes(text, overlapping=True):
            before = bisect_right(seams, start)
            if (
                before < len(seams)
                and seams[before] < end
                and not _chance(text, Match(start, end, self.patterns[index]))
            ):
                form = f"{self.patterns[index].form}, across markup"
                yield Match(
                    start + removed[before],
                    end + removed[bisect_left(seams, end)],
                    replace(self.patterns[index], form=form),
                )

    def _in_hexadecimal(self, data: bytes) -> Iterator[Match]:
        for run in HEX_RUN.finditer(data):
            digits = run[0].translate(None, b" :-")
            step = len(run[0]) / len(digits)
            for skip in range(2):  # a digit before it can belong to something else
                even = digits[skip : skip + (len(digits) - skip) // 2 * 2]
                for match in self.in_pixels(bytes.fromhex(even.decode("ascii"))):
                    at = run.start() + int((skip + 2 * match.start) * step)
                    yield Match(at, at + 1, replace(match.pattern, form=f"{match.pattern.form}, in hexadecimal"))

    def _in_base64(self, data: bytes) -> Iterator[Match]:
        for run in BASE64.finditer(data):
            text = run[0]
            if HEXADECIMAL.fullmatch(text):
                continue
            text = text.replace(b"\r", b"").replace(b"\n", b"").rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
            for skip in range(4):  # letters before it belong to what they look like
                whole = text[skip:][: (len(text) - skip) // 4 * 4 or None]
                rest = text[skip + len(whole) :]
                padded = whole + (rest + b"=" * (4 - len(rest)) if len(rest) > 1 else b"")
                for match in self.in_pixels(base64.b64decode(padded)):
                    at = run.start() + skip + match.start * 4 // 3
                    yield Match(at, at + 1, replace(match.pattern, form=f"{match.pattern.form}, in base64"))


def _automaton(patterns: Sequence[Pattern]) -> ac.BytesAhoCorasick:
    return ac.BytesAhoCorasick([one.data for one in patterns], implementation=ac.Implementation.ContiguousNFA)


def _chance(data: bytes, match: Match) -> str:
    """Why a match is none; empty for one that is. ``data`` in lower case."""
    pattern, start, end = match.pattern, match.start, match.end
    before, after = data[start - 1] if start else 32, data[end] if end < len(data) else 32
    if pattern.alone and (before in _WORD or after in _WORD):
        return "part of a word"
    if (pattern.left and before in _DIGITS) or (pattern.right and after in _DIGITS):
        return "part of a word"
    if len(pattern.data) < HASH_DIGITS and all(one in _HEX for one in pattern.data):
        run = _run(data, start, end, _HEX)
        if len(run) >= HASH_DIGITS and not run.isdigit() and not run.isalpha():
            return "inside a hash"
    if (pattern.left or pattern.right) and pattern.data.isdigit():
        number = _FLOAT.fullmatch(_run(data, start, end, _NUMBER))
        if number and pattern.data in number[1] and len(number[1]) > len(pattern.data):
            return "inside a fraction"
    return ""


def _run(data: bytes, start: int, end: int, allowed: frozenset[int]) -> bytes:
    """The longest run of allowed bytes around a place."""
    while start and data[start - 1] in allowed:
        start -= 1
    while end < len(data) and data[end] in allowed:
        end += 1
    return data[start:end]
