"""Bytes → data set: the header parsed, the pixel data left where it is.

The value of the pixel data element is a view of the file's bytes, never a copy: an object of 2 GB takes 2 GB.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydicom import Dataset, FileDataset
from pydicom.dataelem import RawDataElement
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from lumid.pipeline.elements import tag_of, value_of
from lumid.pipeline.reject import Reject
from lumid.pipeline.walk import plain_header

UNDEFINED_LENGTH = 0xFFFFFFFF
MAX_INFLATED_BYTES = 1 << 30
ZEROS = 1 << 16
"""So many of those at the end of a file may be the value of its last element."""
FIRST = 1 << 24
"""Where headers end, nearly always."""
MAX_ELEMENTS = 1 << 20
"""Of a header, those within sequences not counted; real ones have thousands at most."""
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
PIXEL_TAGS = (0x7FE00010, 0x7FE00008, 0x7FE00009)
LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"UN", b"UC", b"UR", b"UT", b"SV", b"UV", b"SQ")
"""Value representations whose length takes 4 bytes after 2 reserved ones (PS3.5 7.1.2)."""

DEFLATED_ELEMENT = b"\x02\x00\x10\x00UI\x16\x00" + DeflatedExplicitVRLittleEndian.encode()
INFLATED_ELEMENT = b"\x02\x00\x10\x00UI\x16\x00" + ExplicitVRLittleEndian.encode().ljust(22, b"\0")


@dataclass(frozen=True, slots=True)
class _PixelElement:
    """Where the pixel data element's value lies; ``length`` as stated, which may be more than there is."""

    tag: int
    vr: str
    length: int
    start: int


def looks_like_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes begin a DICOM file, with or without preamble (PS3.10 7.1).

    Without one, the first element must be of group 0002 or 0008, in either byte order, and of a plausible length.
    """
    if head[128:132] == b"DICM":
        return True
    if len(head) < 8:
        return False
    for order in ("<", ">"):
        group, element = struct.unpack(order + "HH", head[:4])
        if group in (0x0002, 0x0008) and element <= 0x0100:
            explicit = head[4:6].isalpha() and head[4:6].isupper()
            (length,) = struct.unpack(order + "I", head[4:8])
            if explicit or length < 1 << 16:
                return True
    return False


def parse(data: bytes, *, header_only: bool = False) -> FileDataset | Reject:
    """The data set of a DICOM file's bytes, up to and with its pixel data, whose value is a ``memoryview`` of ``data``.

    Elements after the pixel data (padding, signatures) are not read. Pixel data that ends early is kept as far as it
    goes: whole frames may be in it. Reasons: ``not_dicom``, ``dicomdir``, ``truncated``, ``broken_header``,
    ``absurd_size``.
    """
    if not looks_like_dicom(data[:132]):
        return Reject("read", "not_dicom")
    try:
        deflated = DEFLATED_ELEMENT in data[:2048]
        if deflated:
            inflated = _inflate(data)
            if isinstance(inflated, Reject):
                return inflated
            data = inflated
        dataset, at = plain_header(data) or any_header(data)
        whole = memoryview(data)
        if deflated:
            dataset.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        pixels = _pixel_element(dataset, whole, at)
        # elements are parsed on access: touch the ones that later stages rely on while failures are expected
        ends_early = pixels is None and (len(dataset) == 0 or _ends_early(dataset, whole))
        media, sop_class = value_of(dataset.file_meta, "MediaStorageSOPClassUID"), value_of(dataset, "SOPClassUID")
    except EOFError:
        return Reject("read", "truncated")
    except Exception as error:  # whatever a hostile header provokes in a parser
        return Reject("read", "broken_header", type(error).__name__)
    if DICOMDIR_CLASS in (media, sop_class) or tag_of("DirectoryRecordSequence") in dataset:
        return Reject("read", "dicomdir")
    if ends_early:
        return Reject("read", "truncated")
    if pixels is not None and not header_only:
        _attach(dataset, pixels, whole)
    return dataset


def any_header(data: bytes, beyond: int | None = None) -> tuple[FileDataset, int]:
    """The data set before its pixel data as pydicom reads it, and where it stopped.

    It ends where a file was filled up with zeros, as an interrupted copy into allocated space is: there is no element
    (0000,0000) of no length, and pydicom would read a million of them in three seconds. ``beyond``: stop after this tag
    already. Raises :class:`ValueError` after :data:`MAX_ELEMENTS`, and whatever else a hostile header provokes in pydicom.
    """
    end = min(len(data), _filled(data) + ZEROS)
    if FIRST < end < len(data):  # which would be a copy of nearly all of it, where the zeros are those of an image
        with contextlib.suppress(Exception):
            found = _header_of(data[:FIRST], beyond)
            if found[1] < FIRST:
                return found
    return _header_of(data[:end], beyond)


def _header_of(data: bytes, beyond: int | None) -> tuple[FileDataset, int]:
    met = 0

    def ends(tag: BaseTag, _vr: str | None, length: int) -> bool:
        nonlocal met
        met += 1
        if met > MAX_ELEMENTS:
            raise ValueError("too many elements")
        return tag in PIXEL_TAGS or (tag == 0 and length == 0) or (beyond is not None and tag > beyond)

    stream = io.BytesIO(data)
    dataset = read_partial(stream, stop_when=ends, force=True)
    return dataset, stream.tell()


def _filled(data: bytes) -> int:
    """How many bytes there are without the zeros at the end."""
    end = len(data)
    while end:
        start = max(0, end - (1 << 20))
        if rest := len(data[start:end].rstrip(b"\0")):
            return start + rest
        end = start
    return 0


def _inflate(data: bytes) -> bytes | Reject:
    """A deflated file as the explicit little-endian one that it was made from (PS3.5 A.5), within limits.

    A deflated file of some megabytes can grow a thousandfold. The stream begins after the file meta information, which
    is explicit little endian (PS3.10 7.1).
    """
    start = 132 if data[128:132] == b"DICM" else 0
    while data[start : start + 2] == b"\2\0":
        long = data[start + 4 : start + 6] in LONG_VRS
        at, size = (start + 8, 4) if long else (start + 6, 2)
        start = at + size + int.from_bytes(data[at : at + size], "little")
    total, complete = 0, False
    for piece, at_end in _inflated(data, start):  # a first time to count, so that a bomb is never held
        total, complete = total + len(piece), at_end
        if total > MAX_INFLATED_BYTES:
            return Reject("read", "absurd_size", f"inflates to more than {MAX_INFLATED_BYTES >> 20} MiB")
    if not complete:
        return Reject("read", "truncated")
    inflated = io.BytesIO()
    inflated.write(data[:start].replace(DEFLATED_ELEMENT, INFLATED_ELEMENT, 1))
    for piece, _ in _inflated(data, start):
        inflated.write(piece)
    return inflated.getvalue()


def _inflated(data: bytes, start: int) -> Iterator[tuple[bytes, bool]]:
    """A raw deflate stream, inflated by the megabyte, and whether this was its end."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    pending = data[start:]
    while pending and not inflater.eof:
        piece = inflater.decompress(pending, 1 << 20)
        pending = inflater.unconsumed_tail
        yield piece, inflater.eof


def _pixel_element(dataset: Dataset, whole: memoryview, at: int) -> _PixelElement | None:
    """The element that parsing stopped before, if it is one of pixel data (PS3.5 7.1)."""
    implicit, little = dataset.original_encoding
    order = "<" if little else ">"
    if len(whole) < at + 8:
        return None
    group, element = struct.unpack_from(order + "HH", whole, at)
    tag = group << 16 | element
    if tag not in PIXEL_TAGS:
        return None
    vr = bytes(whole[at + 4 : at + 6])
    # files that are called implicit and are not: read as a length, the two letters of a VR give an odd one, which none is
    if implicit and vr in (b"OB", b"OW", b"OF", b"OD") and bytes(whole[at + 6 : at + 8]) == b"\0\0":
        implicit = False
    if implicit or not (b"AA" <= vr <= b"ZZ"):
        (length,) = struct.unpack_from(order + "I", whole, at + 4)
        return _PixelElement(tag, "OW" if tag == PIXEL_TAGS[0] else "OF", length, at + 8)
    if vr in LONG_VRS:
        (length,) = struct.unpack_from(order + "I", whole, at + 8)
        return _PixelElement(tag, vr.decode(), length, at + 12)
    (length,) = struct.unpack_from(order + "H", whole, at + 6)
    return _PixelElement(tag, vr.decode(), length, at + 8)


def _attach(dataset: FileDataset, pixels: _PixelElement, whole: memoryview) -> None:
    """Give the data set its pixel data, unparsed: the stated length stays beside a value that may be shorter."""
    implicit, little = dataset.original_encoding
    end = len(whole) if pixels.length == UNDEFINED_LENGTH else min(len(whole), pixels.start + pixels.length)
    tag = Tag(pixels.tag)
    value = whole[pixels.start : end].toreadonly()
    dataset[tag] = RawDataElement(
        tag, pixels.vr, pixels.length, value, pixels.start, bool(implicit), bool(little), True  # type: ignore[arg-type]
    )  # fmt: skip


def pixel_bytes(dataset: Dataset) -> memoryview | None:
    """The pixel data as bytes, without a copy; None where there is none, or what there is holds no bytes."""
    keyword = pixel_element(dataset)
    value = dataset.get_item(keyword).value if keyword else None
    return memoryview(value) if isinstance(value, (bytes, bytearray, memoryview)) else None


def ends_inside_pixels(dataset: Dataset) -> bool:
    """Whether the file ended before its pixel data did, by the length that the element states."""
    keyword = pixel_element(dataset)
    element: object = dataset.get_item(keyword) if keyword else None
    if not isinstance(element, RawDataElement) or element.value is None:
        return False
    return element.length != UNDEFINED_LENGTH and len(element.value) < element.length


def has_undefined_length(dataset: Dataset) -> bool:
    """Whether the pixel data are items up to a delimiter, as only compressed ones are (PS3.5 A.4)."""
    keyword = pixel_element(dataset)
    element: object = dataset.get_item(keyword) if keyword else None
    return isinstance(element, RawDataElement) and element.length == UNDEFINED_LENGTH


def _ends_early(dataset: FileDataset, whole: memoryview) -> bool:
    """Whether a file without pixel data ends inside an element. pydicom keeps what it has by then, without a word."""
    last = dataset.get_item(max(dataset.keys()))
    length, position = getattr(last, "length", None), getattr(last, "value_tell", None)
    if not isinstance(length, int) or not isinstance(position, int) or length == UNDEFINED_LENGTH:
        return False  # a sequence: parsing it to its end has checked it
    end = position + length
    return end > len(whole) or bool(np.frombuffer(whole[end:], np.uint8).any())


def pixel_element(dataset: Dataset) -> str | None:
    """The keyword of the element that holds the pixels, if there is one."""
    there = dataset.keys()
    return next((keyword for keyword in PIXEL_ELEMENTS if tag_of(keyword) in there), None)


def transfer_syntax(dataset: Dataset) -> UID | None:
    """The transfer syntax: the stated one, or the one that parsing found for a file without meta information."""
    meta = getattr(dataset, "file_meta", None)
    stated = value_of(meta, "TransferSyntaxUID") if meta is not None else None
    if stated:
        return UID(str(stated))
    if dataset.original_encoding == (None, None):
        return None
    implicit, little = dataset.original_encoding
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def integer(dataset: Dataset, keyword: str) -> int | None:
    """A whole number of the data set; None where it is absent, empty, or does not parse as one."""
    try:
        value = value_of(dataset, keyword)
        return None if value is None or value == "" else int(value)
    except Exception:  # an element whose value does not parse as what it should be
        return None


def term(dataset: Dataset, keyword: str) -> str:
    """A code string of the data set in upper case; empty where it is absent or is no string."""
    try:
        value = value_of(dataset, keyword)
    except Exception:
        return ""
    return value.strip(" \0").upper() if isinstance(value, str) else ""
