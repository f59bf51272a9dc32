"""Values of a header's elements by keyword, read from their bytes where that is plain.

A header is asked for about seventy keywords an image, and most are absent or hold one short string or number. pydicom
answers what is absent by way of exceptions, and makes several objects of what is there. What is not plain is left to it:
other value representations, empty values, other character sets than ASCII, numbers that are none.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from pydicom import Dataset
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag

ESCAPE = 0x1B
"""Begins a switch of character sets (PS3.5 6.1.2.5.3)."""


class _Tags(dict[int, BaseTag]):
    """Tags by number, each made once: a look-up compares the very same object at no cost, two equal ones in Python."""

    def __missing__(self, number: int) -> BaseTag:
        tag = BaseTag(number)
        if len(self) < MOST_TAGS:
            self[number] = tag
        return tag


MOST_TAGS = 1 << 16
"""Public tags are some thousand; of private ones there is no end."""
TAGS = _Tags()


@cache
def tag_of(keyword: str) -> BaseTag:
    """The tag of a keyword. Raises ``ValueError`` for what is none: a slip of the pen."""
    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"{keyword} is no keyword of DICOM")
    return TAGS[tag]


def value_of(dataset: Dataset, keyword: str) -> Any:
    """What ``dataset.get(keyword)`` gives, None where the element is absent; several values are a list.

    Strings, and numbers of the type that the value representation says (``float`` for DS, ``int`` for IS and US), without
    pydicom's classes of them. Raises whatever pydicom raises of a value that does not parse.
    """
    tag = tag_of(keyword)
    # what get_item() does costs ten times what the look-up does
    element: Any = dataset._dict.get(tag)
    if element is None:
        return None
    if not isinstance(element, RawDataElement):
        return element.value
    data, vr = element.value, element.VR or _vr_of(tag)
    value = None
    if vr in READERS:
        if not data:
            return None if vr in ("DS", "IS") else ""
        value = READERS[vr](data) if type(data) is bytes else None
    elif vr == "US" and data is not None and len(data) == 2:
        value = int.from_bytes(data, "little" if element.is_little_endian else "big")
    return dataset[tag].value if value is None else value


@cache
def _vr_of(tag: BaseTag) -> str:
    return dictionary_VR(tag)


def _code(data: bytes) -> str | list[str]:
    """CS and others of the default repertoire: padding at the end is not part of them (PS3.5 6.2)."""
    text = data.decode("latin-1").rstrip(" \0")
    return text.split("\\") if "\\" in text else text


def _uid(data: bytes) -> str | list[str]:
    parts = [part.strip() for part in data.decode("latin-1").rstrip("\0 ").split("\\")]
    return parts if len(parts) > 1 else parts[0]


def _text(data: bytes) -> str | list[str] | None:
    if not data.isascii() or ESCAPE in data:
        return None
    text = data.decode("ascii")
    return [part.rstrip("\0 ") for part in text.split("\\")] if "\\" in text else text.rstrip("\0 ")


def _decimal(data: bytes) -> float | list[float] | None:
    try:
        numbers = [float(part) for part in data.rstrip(b" \0").split(b"\\")]
    except ValueError:
        return None
    return numbers if len(numbers) > 1 else numbers[0]


def _whole(data: bytes) -> int | None:
    digits = data.strip(b" \0")
    return int(digits) if digits.isdigit() else None


READERS: dict[str, Callable[[bytes], Any]] = {
    **dict.fromkeys(("AS", "CS", "DA"), _code), "UI": _uid, **dict.fromkeys(("LO", "SH"), _text), "DS": _decimal, "IS": _whole,
}  # fmt: skip
"""By value representation; of what it cannot read itself, a reader gives None."""
