"""The elements of a plain header, found where they lie, without a look into their values.

An element costs pydicom about four microseconds, and one of undefined length all that is in it, whoever asks for it or
not. Here it costs one, and sequences are stepped over. What is not plain is left to pydicom, which has seen more broken
files than we have: files without meta information, big endian, private syntaxes, unknown value representations, lengths
beyond the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from struct import Struct

from pydicom.charset import convert_encodings, default_encoding
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import DataElement, RawDataElement, empty_value_for_VR
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.tag import BaseTag
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pydicom.valuerep import EXPLICIT_VR_LENGTH_16, EXPLICIT_VR_LENGTH_32
from pydicom.values import convert_string

from lumid.pipeline.decoders import ENCAPSULATED
from lumid.pipeline.elements import TAGS

PREAMBLE = 132
UNDEFINED = 0xFFFFFFFF
ITEM, END_OF_ITEM, END_OF_SEQUENCE = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = frozenset({0x7FE00008, 0x7FE00009, 0x7FE00010})
CHARACTER_SET = BaseTag(0x00080005)
TRANSFER_SYNTAX = BaseTag(0x00020010)
EXPLICIT = frozenset({str(ExplicitVRLittleEndian), *map(str, ENCAPSULATED)})
DEEPEST = 16
"""Sequences within sequences; deeper ones are nobody's."""

EXPLICIT_HEAD, IMPLICIT_HEAD, LENGTH = (
    Struct("<HH2sH").unpack_from,
    Struct("<HHI").unpack_from,
    Struct("<I").unpack_from,
)
SHORT: Mapping[bytes, str] = {str(vr).encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_16}
LONG: Mapping[bytes, str] = {str(vr).encode(): str(vr) for vr in EXPLICIT_VR_LENGTH_32}
EMPTY = {name: empty_value_for_VR(name, raw=True) for name in (*SHORT.values(), *LONG.values())}
Elements = dict[BaseTag, RawDataElement | DataElement]


class _NotPlainError(Exception):
    """Something that pydicom should look at."""


def plain_header(data: bytes) -> tuple[FileDataset, int] | None:
    """The data set before its pixel data, and where their element begins; None where the header is not plain.

    ``data``: a whole file, inflated. Every element is raw, sequences too. A header without pixel data is not plain.
    """
    try:
        return _plain_header(data)
    except _NotPlainError:
        return None
    except Exception:  # whatever a hostile header provokes: pydicom's answer to it is the one that counts
        return None


def _plain_header(data: bytes) -> tuple[FileDataset, int]:
    if data[128:132] != b"DICM":
        raise _NotPlainError
    meta: Elements = {}
    start = _explicit(data, PREAMBLE, meta, group=2)
    stated = meta.get(TRANSFER_SYNTAX)
    syntax = bytes(stated.value).rstrip(b"\0 ").decode("latin-1") if stated and stated.value else ""
    elements: Elements = {}
    implicit = syntax == ImplicitVRLittleEndian
    if implicit:
        at = _implicit(data, start, elements)
    elif syntax in EXPLICIT:
        at = _explicit(data, start, elements)
    else:
        raise _NotPlainError
    file_meta = FileMetaDataset(meta)
    file_meta.set_original_encoding(False, True, default_encoding)
    dataset = FileDataset("", elements, data[:128], file_meta, implicit, True)
    charset = elements.get(CHARACTER_SET)
    dataset.set_original_encoding(implicit, True, _encodings(charset.value or b"") if charset else default_encoding)
    return dataset, at


@lru_cache(maxsize=64)
def _encodings(stated: bytes) -> str | list[str]:
    return convert_encodings(convert_string(stated, True))


def _explicit(data: bytes, at: int, elements: Elements, *, group: int | None = None) -> int:
    """Elements with stated value representations, up to the pixel data, or to the end of a group; where that is."""
    end = len(data)
    make = tuple.__new__
    while at + 12 <= end:  # the longest head there is
        in_group, number, vr, length = EXPLICIT_HEAD(data, at)
        tag = in_group << 16 | number
        if tag in PIXELS:
            return at
        if in_group != group and (group is not None or in_group < 8):
            if group is None:
                raise _NotPlainError
            return at
        name = SHORT.get(vr)
        if name is not None:
            start = at + 8
        else:
            name = LONG.get(vr)
            if name is None:
                raise _NotPlainError
            (length,) = LENGTH(data, at + 8)
            start = at + 12
            if length == UNDEFINED:
                if name != "SQ":
                    raise _NotPlainError
                stop, at = _end_of_sequence(data, start, False, 0)
                length = stop - start
                elements[TAGS[tag]] = make(
                    RawDataElement, (TAGS[tag], name, length, data[start:stop], start, False, True, True, False)
                )
                continue
        at = start + length
        key = TAGS[tag]
        value = data[start:at] if length else EMPTY[name]
        elements[key] = make(RawDataElement, (key, name, length, value, start, False, True, True, False))
    raise _NotPlainError  # the end of the file, and no pixel data


def _implicit(data: bytes, at: int, elements: Elements) -> int:
    """Elements without value representations, up to the pixel data; where these are."""
    end = len(data)
    if data[at + 4 : at + 6].isalpha():
        raise _NotPlainError  # explicit, whatever the syntax says
    make = tuple.__new__
    while at + 8 <= end:
        group, number, length = IMPLICIT_HEAD(data, at)
        tag = group << 16 | number
        if tag in PIXELS:
            return at
        if group < 8:
            raise _NotPlainError
        start, vr = at + 8, None
        key = TAGS[tag]
        if length == UNDEFINED:
            if not _is_sequence(tag, data[start : start + 4]):
                raise _NotPlainError
            stop, at = _end_of_sequence(data, start, True, 0)
            length, vr = stop - start, "SQ"
        else:
            stop = at = start + length
        value = data[start:stop] if length else None
        elements[key] = make(RawDataElement, (key, vr, length, value, start, True, True, True, False))
    raise _NotPlainError


@lru_cache(maxsize=4096)
def _stated_vr(tag: int) -> str | None:
    try:
        return dictionary_VR(tag)
    except KeyError:
        return None


def _is_sequence(tag: int, first: bytes) -> bool:
    return _stated_vr(tag) == "SQ" or (_stated_vr(tag) is None and first == b"\xfe\xff\x00\xe0")


def _end_of_sequence(data: bytes, at: int, implicit: bool, depth: int) -> tuple[int, int]:
    """Of a sequence of undefined length: where its last item ends, and where its delimiter does (PS3.5 7.5)."""
    if depth > DEEPEST:
        raise _NotPlainError
    while True:
        group, number, length = IMPLICIT_HEAD(data, at)
        tag = group << 16 | number
        if tag == END_OF_SEQUENCE:
            return at, at + 8
        if tag != ITEM:
            raise _NotPlainError
        at += 8
        at = _end_of_item(data, at, implicit, depth) if length == UNDEFINED else at + length
        if at > len(data):
            raise _NotPlainError


def _end_of_item(data: bytes, at: int, implicit: bool, depth: int) -> int:
    """Where an item of undefined length ends, its delimiter included."""
    while True:
        group, number, length = IMPLICIT_HEAD(data, at)
        tag = group << 16 | number
        if tag == END_OF_ITEM:
            return at + 8
        start, is_sequence = at + 8, True
        if not implicit:
            vr = data[at + 4 : at + 6]
            if vr in SHORT:
                at = start + (length >> 16)
                continue
            if vr not in LONG:
                raise _NotPlainError
            (length,) = LENGTH(data, at + 8)
            start, is_sequence = at + 12, vr == b"SQ"
        elif length == UNDEFINED:
            is_sequence = _is_sequence(tag, data[start : start + 4])
        if length != UNDEFINED:
            at = start + length
        elif is_sequence:
            _, at = _end_of_sequence(data, start, implicit, depth + 1)
        else:
            raise _NotPlainError
