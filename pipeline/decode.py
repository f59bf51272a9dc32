"""Bytes → header → frames: parsing and decoding, with every expected failure as a reason.

Decoding goes through pydicom's decoders, with the plug-in pinned per transfer syntax so that a frame's values do
not depend on what else is installed.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset, FileDataset
from pydicom._uid_dict import UID_dictionary
from pydicom.encaps import parse_basic_offsets, parse_fragments
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from lumid.pipeline import jpeg12
from lumid.pipeline.reject import Reject

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
PLUGINS: dict[UID, str] = {
    RLELossless: "pylibjpeg",
    JPEGBaseline8Bit: "gdcm",
    JPEGExtended12Bit: jpeg12.PLUGIN,
    JPEGLossless: "gdcm",
    JPEGLosslessSV1: "gdcm",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000: "pylibjpeg",
    JPEG2000Lossless: "pylibjpeg",
    HTJ2K: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
}
"""Which of pydicom's decoder plug-ins reads a compressed transfer syntax; the native ones need none."""

UNDEFINED_LENGTH = 0xFFFFFFFF
MAX_INFLATED_BYTES = 1 << 30
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"
PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
Stored = npt.NDArray[Any]
"""Stored values of a frame: ``[rows, columns]``, or RGB ``[rows, columns, 3]``."""


@cache
def quiet_libraries() -> None:
    """Silence what pydicom and GDCM would print: their warnings quote header values.

    Called at the edges (worker start, command start), once a process.
    """
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pydicom").propagate = False
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
    import gdcm
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # type: ignore[no-untyped-call]
    gdcm.Trace.WarningOff()
    gdcm.Trace.ErrorOff()
    gdcm.Trace.DebugOff()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a header may claim before it is taken for nonsense."""

    max_pixels: int = 1 << 28
    max_frames: int = 20_000


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The shape that a header claims, checked against the limits and, for native syntaxes, the bytes at hand."""

    rows: int
    columns: int
    samples: int
    frames: int


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
    """The data set of a DICOM file's bytes.

    Reasons: ``not_dicom``, ``dicomdir``, ``truncated``, ``broken_header``.
    """
    if not looks_like_dicom(data[:132]):
        return Reject("read", "not_dicom")
    try:
        if _inflates_beyond(data, MAX_INFLATED_BYTES):
            return Reject("read", "absurd_size", f"inflates to more than {MAX_INFLATED_BYTES >> 20} MiB")
        dataset = pydicom.dcmread(io.BytesIO(data), force=True, stop_before_pixels=header_only)
        # elements are parsed on access: touch the ones that later stages rely on while failures are expected
        empty = len(dataset) == 0
        media = str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", ""))
        sop_class = str(dataset.get("SOPClassUID", ""))
    except EOFError:
        return Reject("read", "truncated")
    except (InvalidDicomError, OSError, ValueError, KeyError, AttributeError, TypeError, NotImplementedError,
            struct.error, MemoryError, RecursionError, OverflowError, IndexError, AssertionError, LookupError) as error:  # fmt: skip
        return Reject("read", "broken_header", type(error).__name__)
    except Exception as error:  # zlib.error and whatever else a hostile header provokes in a parser
        return Reject("read", "broken_header", type(error).__name__)
    if DICOMDIR_CLASS in (media, sop_class) or "DirectoryRecordSequence" in dataset:
        return Reject("read", "dicomdir")
    if empty or (not header_only and _ends_early(dataset, data)):
        return Reject("read", "truncated")
    return dataset


def _inflates_beyond(data: bytes, limit: int) -> bool:
    """Whether a deflated data set is larger than ``limit`` once inflated, found out without holding it.

    A deflated file of some megabytes can grow a thousandfold. The stream begins after the file meta information,
    whose length its first element states (PS3.10 7.1); without that element it is not looked for.
    """
    if DeflatedExplicitVRLittleEndian.encode() not in data[:2048] or data[132:138] != b"\2\0\0\0UL":
        return False
    start = 144 + int.from_bytes(data[140:144], "little")
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total, pending = 0, data[start:]
    while pending and not inflater.eof and total <= limit:
        total += len(inflater.decompress(pending, 1 << 20))
        pending = inflater.unconsumed_tail
    return total > limit


def _ends_early(dataset: FileDataset, data: bytes) -> bool:
    """Whether the file ends inside an element. pydicom keeps what it has by then, without a word.

    Bytes after the last element count only where no pixel data was found: some writers pad their files.
    """
    if transfer_syntax(dataset) == DeflatedExplicitVRLittleEndian:
        return False  # positions are those of the inflated stream; a cut one does not inflate
    last = dataset.get_item(max(dataset.keys()))
    length, position = getattr(last, "length", None), getattr(last, "value_tell", None)
    if not isinstance(length, int) or not isinstance(position, int) or length == UNDEFINED_LENGTH:
        return False  # a sequence, or encapsulated frames: parsing them to their end has checked it
    end = position + length
    return end > len(data) or (pixel_element(dataset) is None and bool(data[end:].strip(b"\0")))


def image_size(dataset: Dataset, limits: Limits) -> ImageSize | Reject:
    """The image's shape, once it is known to be sane and to fit the pixel data.

    Reasons: ``no_pixel_data``, ``missing_tag``, ``absurd_size``, ``unsupported_syntax``, ``wrong_length``, ``truncated``.
    """
    element = pixel_element(dataset)
    if element is None:
        return Reject("decode", "no_pixel_data")
    numbers: dict[str, int] = {}
    for keyword, default in (
        ("Rows", None),
        ("Columns", None),
        ("SamplesPerPixel", 1),
        ("BitsAllocated", None),
        ("NumberOfFrames", 1),
    ):
        value = _integer(dataset, keyword, default)
        if value is None or value < 0:
            return Reject("decode", "missing_tag", keyword)
        numbers[keyword] = value
    rows, columns, samples = numbers["Rows"], numbers["Columns"], numbers["SamplesPerPixel"]
    frames = max(numbers["NumberOfFrames"], 1)  # 0 is written by some for "one"
    if rows < 1 or columns < 1:
        return Reject("decode", "missing_tag", "Rows, Columns")
    if rows * columns > limits.max_pixels or frames > limits.max_frames:
        return Reject("decode", "absurd_size", f"{rows} × {columns} × {frames}")
    if samples not in (1, 3):
        return Reject("decode", "missing_tag", "SamplesPerPixel")
    if not dataset.get("PhotometricInterpretation"):
        return Reject("decode", "missing_tag", "PhotometricInterpretation")
    syntax = transfer_syntax(dataset)
    if syntax is None:
        return Reject("decode", "missing_tag", "TransferSyntaxUID")
    data = dataset[element].value
    if not isinstance(data, bytes) or not data:
        return Reject("decode", "no_pixel_data", "zero length")
    size = ImageSize(rows, columns, samples, frames)
    if syntax in NATIVE:
        return _check_native(dataset, size, numbers["BitsAllocated"], len(data))
    if syntax not in PLUGINS:
        return Reject("decode", "unsupported_syntax", syntax if syntax in UID_dictionary else "")
    return _check_encapsulated(data, size)


def _check_native(dataset: Dataset, size: ImageSize, bits_allocated: int, length: int) -> ImageSize | Reject:
    if bits_allocated not in (1, 8, 16, 32, 64):
        return Reject("decode", "missing_tag", "BitsAllocated")
    values = size.rows * size.columns * size.samples * size.frames
    if str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422":
        values = values // 3 * 2
    expected = (values * bits_allocated + 7) // 8
    if length < expected:
        return Reject("decode", "wrong_length", f"{length} bytes, {expected} expected")
    return size


def _check_encapsulated(data: bytes, size: ImageSize) -> ImageSize | Reject:
    """Fragments must be there for every frame: a claim of 10,000 frames over one fragment is nonsense."""
    try:
        buffer = io.BytesIO(data)
        parse_basic_offsets(buffer)
        fragments, _ = parse_fragments(buffer)
    except Exception as error:
        return Reject("decode", "truncated", type(error).__name__)
    if fragments == 0:
        return Reject("decode", "no_pixel_data", "no fragments")
    if fragments < size.frames:
        return Reject("decode", "wrong_length", f"{fragments} fragments, {size.frames} frames")
    return size


def pixel_element(dataset: Dataset) -> str | None:
    """The keyword of the element that holds the pixels, if there is one."""
    return next((keyword for keyword in PIXEL_ELEMENTS if keyword in dataset), None)


def transfer_syntax(dataset: Dataset) -> UID | None:
    """The transfer syntax: the stated one, or the one that parsing found for a file without meta information."""
    meta = getattr(dataset, "file_meta", None)
    stated = meta.get("TransferSyntaxUID") if meta is not None else None
    if stated:
        return UID(str(stated))
    implicit, little = dataset.original_encoding
    if implicit is None or little is None:
        return None
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little else ExplicitVRBigEndian


def _integer(dataset: Dataset, keyword: str, default: int | None) -> int | None:
    try:
        value = dataset.get(keyword)
        if value is None or value == "":
            return default
        return int(value)
    except Exception:  # an element whose value does not parse as what it should be
        return None


def decode_frames(dataset: FileDataset, size: ImageSize) -> Iterator[Stored | Reject]:
    """The frames one after another, each ``[rows, columns]`` stored values or ``[rows, columns, 3]`` RGB.

    Colour models are converted to RGB (palette is not: see ``normalize.colour``). A frame that the decoder refuses
    ends the object: the rest would be of unknown alignment. Reasons: ``decode_failed``, ``missing_tag``, ``wrong_length``.
    """
    syntax = transfer_syntax(dataset)
    assert syntax is not None, "image_size() has checked it"
    if getattr(dataset.file_meta, "TransferSyntaxUID", None) is None:
        dataset.file_meta.TransferSyntaxUID = syntax
    if dataset.get("NumberOfFrames") is not None:
        dataset.NumberOfFrames = size.frames
    if "PixelRepresentation" not in dataset and "PixelData" in dataset:
        dataset.PixelRepresentation = 0
    jpeg12.register()
    try:
        decoder = get_decoder(syntax)
        # an explicit list of frames: an encapsulated object can hold more fragments than the header claims frames
        plugin = PLUGINS.get(syntax, "")
        for pixels, _ in decoder.iter_array(dataset, indices=range(size.frames), raw=False, decoding_plugin=plugin):
            yield _clean_bits(pixels, dataset, syntax)
    except (AttributeError, KeyError) as error:
        yield Reject("decode", "missing_tag", type(error).__name__)
    except NotImplementedError:
        yield Reject("decode", "unsupported_syntax")
    except Exception as error:
        yield Reject("decode", "decode_failed", type(error).__name__)


def _clean_bits(pixels: Stored, dataset: Dataset, syntax: UID) -> Stored:
    """Stored values without what may lie in the bits above ``BitsStored`` (overlays of old, junk)."""
    allocated, stored = pixels.dtype.itemsize * 8, _integer(dataset, "BitsStored", None)
    if syntax not in NATIVE or pixels.dtype.kind not in "iu" or not stored or not 0 < stored < allocated:
        return pixels
    high = _integer(dataset, "HighBit", stored - 1)
    shift = allocated - 1 - (high if high is not None and stored - 1 <= high < allocated else stored - 1)
    up: Stored = np.left_shift(pixels, shift)
    return np.right_shift(up, allocated - stored)  # arithmetic for signed types: the sign is extended


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """A data set seen from one frame: per-frame functional groups, then shared ones, then the data set itself."""

    dataset: Dataset
    frame: int

    def get(self, keyword: str, macro: str | None = None) -> Any:
        """The value of a keyword, inside a functional group macro where the object has them (PS3.3 C.7.6.16)."""
        if macro is not None:
            for group in self._groups():
                try:
                    items = group.get(macro)
                    if items:
                        value = items[0].get(keyword)
                        if value is not None:
                            return value
                except Exception:
                    continue
        try:
            return self.dataset.get(keyword)
        except Exception:  # a value that does not parse counts as absent
            return None

    def _groups(self) -> Iterator[Dataset]:
        try:
            per_frame = self.dataset.get("PerFrameFunctionalGroupsSequence")
            if per_frame and self.frame < len(per_frame):
                yield per_frame[self.frame]
            shared = self.dataset.get("SharedFunctionalGroupsSequence")
            if shared:
                yield shared[0]
        except Exception:
            return

    def number(self, keyword: str, macro: str | None = None) -> float | None:
        """A finite number, or None."""
        values = self.numbers(keyword, macro)
        return values[0] if values else None

    def numbers(self, keyword: str, macro: str | None = None) -> list[float]:
        """All values of a numeric element; empty when any of them is not a finite number."""
        value = self.get(keyword, macro)
        if value is None or value == "":
            return []
        items = list(value) if isinstance(value, (list, tuple, pydicom.multival.MultiValue)) else [value]
        try:
            numbers = [float(item) for item in items]
        except (TypeError, ValueError, OverflowError):
            return []
        return numbers if all(np.isfinite(numbers)) else []

    def term(self, keyword: str, macro: str | None = None) -> str:
        """A code string in upper case without surrounding space; empty when absent."""
        value = self.get(keyword, macro)
        return value.strip().upper() if isinstance(value, str) else ""

    def terms(self, keyword: str, macro: str | None = None) -> list[str]:
        """All values of a multi-valued code string, in upper case."""
        value = self.get(keyword, macro)
        if isinstance(value, str):
            return [value.strip().upper()]
        if isinstance(value, (list, tuple, pydicom.multival.MultiValue)):
            return [str(item).strip().upper() for item in value]
        return []
