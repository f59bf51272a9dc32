"""Dates as people and programs write them: from a text to the days it can mean, and from a day to its usual forms."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
_NUMBER = {name[:length].lower(): number for number, name in enumerate(MONTHS, 1) for length in (3, len(name))}
_YEAR_FIRST = re.compile(r"(\d{4})([-./]?)(\d{2})\2(\d{2})(?:[T ].*)?")
_YEAR_LAST = re.compile(r"(\d{1,2})[-./ ](\d{1,2})[-./ ](\d{4})")
_DAY_MONTH = re.compile(r"(\d{1,2})[ .-]*([A-Za-z]{3,9})[ .,-]*(\d{4})")
_YEAR_MONTH = re.compile(r"(\d{4})[ .-]*([A-Za-z]{3,9})[ .-]*(\d{1,2})")
_MONTH_DAY = re.compile(r"([A-Za-z]{3,9})[ .-]*(\d{1,2})[ .,-]+(\d{4})")


def parse_dates(text: str) -> list[date]:
    """The days that a text can mean: two where day and month can be told either way, none where it is no date.

    >>> [str(day) for day in parse_dates("12/03/1961")]
    ['1961-03-12', '1961-12-03']
    >>> parse_dates("12 Marbles")
    []
    """
    if match := _YEAR_FIRST.fullmatch(text):
        return _days((match[1], match[3], match[4]))
    if match := _YEAR_LAST.fullmatch(text):
        return _days((match[3], match[2], match[1]), (match[3], match[1], match[2]))
    if match := _DAY_MONTH.fullmatch(text):
        return _days((match[3], _NUMBER.get(match[2].lower(), 0), match[1]))
    if match := _YEAR_MONTH.fullmatch(text):
        return _days((match[1], _NUMBER.get(match[2].lower(), 0), match[3]))
    if match := _MONTH_DAY.fullmatch(text):
        return _days((match[3], _NUMBER.get(match[1].lower(), 0), match[2]))
    return []


def _days(*candidates: tuple[str | int, ...]) -> list[date]:
    days: list[date] = []
    for candidate in candidates:
        year, month, day = map(int, candidate)
        try:
            found = date(year, month, day)
        except ValueError:
            continue
        if 1800 <= year <= 2200 and found not in days:
            days.append(found)
    return days


def date_forms(day: date) -> Iterator[tuple[str, str]]:
    """The usual forms of a day, each with its name.

    >>> dict((name, text) for text, name in date_forms(date(1961, 3, 12)))["date, YYYYMMDD"]
    '19610312'
    """
    y, m, d, name = f"{day.year:04d}", f"{day.month:02d}", f"{day.day:02d}", MONTHS[day.month - 1]
    short, yy, plain_m, plain_d = name[:3], y[2:], str(day.month), str(day.day)
    yield y + m + d, "date, YYYYMMDD"
    for by in "-/._":
        yield f"{y}{by}{m}{by}{d}", "date, year first"
    for by in "./- ":
        for year in (y, yy) if by in "./" else (y,):
            for first, second in ((d, m), (plain_d, plain_m)):
                yield f"{first}{by}{second}{by}{year}", "date, day first"
                yield f"{second}{by}{first}{by}{year}", "date, month first"
    yield d + m + y, "date, day first"
    yield m + d + y, "date, month first"
    for month in (short, name):
        for number in (d, plain_d):
            for form in (f"{number} {month} {y}", f"{number}. {month} {y}", f"{number}-{month}-{y}", f"{month} {number}, {y}",
                         f"{month} {number} {y}", f"{number}{month}{y}", f"{number}-{month}-{yy}", f"{number} {month} {yy}"):  # fmt: skip
                yield form, "date, with the month's name"
    yield f"{y}-{short}-{d}", "date, with the month's name"
    yield f"{y}年{day.month}月{day.day}日", "date, year first"
