"""Header → frames: the image's size checked, its frames decoded one at a time, every expected failure a reason.

A frame's values are those of its ``BitsStored`` bits with the sign that the header gives them, colours are RGB; what a
codestream says of itself is held against the header first, so that a contradiction is a reject, not a wrong value.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset
from pydicom._uid_dict import UID_dictionary
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from lumid.pipeline.codestream import Codestream, read_codestream, unboxed
from lumid.pipeline.decoders import (
    ENCAPSULATED,
    JPEG_2000_SYNTAXES,
    decode_jpeg,
    decode_jpeg_2000,
    decode_rle,
)
from lumid.pipeline.fragments import EncodedFrames, encoded_frames, is_encapsulated
from lumid.pipeline.mosaic import Sheet, sheet_of
from lumid.pipeline.native import frame_bits, native_frame, whole_frames
from lumid.pipeline.parse import (
    ends_inside_pixels,
    has_undefined_length,
    integer,
    looks_like_dicom,
    parse,
    pixel_bytes,
    pixel_element,
    transfer_syntax,
)
from lumid.pipeline.pixelformat import PixelFormat, pixel_format
from lumid.pipeline.reject import Reject
from lumid.pipeline.ybr import ybr_to_rgb

__all__ = [
    "ImageSize", "Limits", "Stored", "decode_frames", "image_size", "looks_like_dicom", "parse",
    "pixel_element", "quiet_libraries", "transfer_syntax",
]  # fmt: skip

NATIVE = (ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian)
MOST_PADDING = 512
"""Bytes after the frames that are taken for padding."""
Stored = npt.NDArray[Any]
"""Stored values of a frame: ``[rows, columns]``, or RGB ``[rows, columns, 3]``. It may be a read-only view."""


@cache
def quiet_libraries() -> None:
    """Silence what pydicom and SimpleITK would print: their warnings quote header values.

    Called at the edges (worker start, command start), once a process.
    """
    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    logging.getLogger("pydicom").propagate = False
    warnings.filterwarnings("ignore", module=r"pydicom(\..*)?")
    warnings.filterwarnings("ignore", message="The DICOM readers are highly experimental")  # nibabel's, of its wrappers
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a header may claim before it is taken for nonsense."""

    max_pixels: int = 1 << 28
    max_frames: int = 20_000


@dataclass(frozen=True, slots=True)
class ImageSize:
    """The shape that a header claims, checked against the limits and the bytes at hand.

    ``frames`` are those that are claimed; of an object that was cut, only the first may be there. ``cut``: the file
    ends inside its pixel data. ``encoded``: where the frames are, in a compressed syntax. ``sheet``: of a mosaic, whose
    slices count as the frames; rows and columns are a slice's.
    """

    rows: int
    columns: int
    frames: int
    syntax: UID
    form: PixelFormat
    encoded: EncodedFrames | None = field(default=None, repr=False)
    cut: bool = False
    sheet: Sheet | None = None

    @property
    def samples(self) -> int:
        """Samples a pixel: 1, or 3 of colour."""
        return self.form.samples


def image_size(dataset: Dataset, limits: Limits) -> ImageSize | Reject:
    """The image's shape, once it is known to be sane and to be there: at least one whole frame of it.

    A mosaic's slices are its frames.

    Reasons: ``no_pixel_data``, ``missing_tag``, ``absurd_size``, ``unsupported_syntax``, ``unsupported_format``,
    ``wrong_length``, ``truncated``, ``decode_failed``.
    """
    size = _whole_size(dataset, limits)
    if isinstance(size, Reject) or size.frames > 1 or size.samples > 1:
        return size
    sheet = sheet_of(dataset, size.rows, size.columns)
    if isinstance(sheet, Reject):
        return sheet
    return (
        size
        if sheet is None
        else replace(size, rows=sheet.rows, columns=sheet.columns, frames=sheet.slices, sheet=sheet)
    )


def _whole_size(dataset: Dataset, limits: Limits) -> ImageSize | Reject:
    if pixel_element(dataset) is None:
        return Reject("decode", "no_pixel_data")
    rows, columns = integer(dataset, "Rows"), integer(dataset, "Columns")
    if not rows or not columns or rows < 1 or columns < 1:
        return Reject("decode", "missing_tag", "Rows, Columns")
    claimed = integer(dataset, "NumberOfFrames")
    if (claimed or 0) < 0 or (claimed is None and _is_filled(dataset, "NumberOfFrames")):
        return Reject("decode", "missing_tag", "NumberOfFrames")
    frames = max(claimed or 1, 1)  # 0 is written by some for "one"
    if rows * columns > limits.max_pixels or frames > limits.max_frames:
        # a number of the header's own is shown only where it cannot be a date
        many = str(frames) if frames <= limits.max_frames else f"more than {limits.max_frames}"
        return Reject("decode", "absurd_size", f"{rows} × {columns} × {many}")
    syntax = transfer_syntax(dataset)
    if syntax is None:
        return Reject("decode", "missing_tag", "TransferSyntaxUID")
    if syntax not in NATIVE and syntax not in ENCAPSULATED:
        return Reject("decode", "unsupported_syntax", syntax if syntax in UID_dictionary else "")
    data = pixel_bytes(dataset)
    cut = ends_inside_pixels(dataset)
    if data is None or not len(data):
        return Reject("decode", "truncated" if cut else "no_pixel_data", "zero length")
    form = pixel_format(dataset, syntax)
    if isinstance(form, Reject):
        return form
    if syntax in NATIVE:
        if has_undefined_length(dataset) or is_encapsulated(data):
            return Reject("decode", "decode_failed", "encapsulated pixel data in an uncompressed syntax")
        return _check_native(ImageSize(rows, columns, frames, syntax, form, cut=cut), len(data))
    encoded = _encoded(dataset, data, syntax, frames)
    if isinstance(encoded, Reject):
        return encoded
    if not encoded.frames:
        return Reject("decode", "truncated" if encoded.cut else "no_pixel_data", "no frames")
    return ImageSize(rows, columns, frames, syntax, form, encoded, encoded.cut)


def _is_filled(dataset: Dataset, keyword: str) -> bool:
    try:
        return dataset.get(keyword) not in (None, "")
    except Exception:  # there is something, and it does not parse
        return True


def _check_native(size: ImageSize, length: int) -> ImageSize | Reject:
    """At least one frame must be whole, and the length not one of another depth or colour model.

    A frame or padding more than is claimed does no harm; twice as much is what a wrong depth looks like. Several frames
    that are not a whole number of them are of another size: all but the first would begin in the wrong place.
    """
    form = size.form
    if form.photometric.endswith("_422") and size.columns % 2:
        return Reject("decode", "wrong_length", "an odd number of columns of which every two share their colour")
    if form.photometric == "YBR_PARTIAL_420":
        return Reject("decode", "unsupported_format", "YBR_PARTIAL_420, uncompressed")
    if whole_frames(length, form, size.rows, size.columns) < 1:
        return Reject("decode", "truncated" if size.cut else "wrong_length", f"{length} bytes")
    subsampled = form.photometric.endswith("_422")
    frame = frame_bits(form, size.rows, size.columns)
    expected = frame * size.frames // 8
    beyond = (8 * length % frame) // 8
    if size.frames > 1 and not size.cut and beyond > min(MOST_PADDING, frame // 8 // 64) + 1:
        return Reject("decode", "wrong_length", f"{length} bytes, {expected} expected")
    if length >= 2 * max(expected, 2) or (subsampled and length >= expected // 2 * 3):
        return Reject("decode", "wrong_length", f"{length} bytes, {expected} expected")
    return size


def _encoded(dataset: Dataset, data: memoryview, syntax: UID, frames: int) -> EncodedFrames | Reject:
    tables = [dataset.get(keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    extended = (tables[0], tables[1]) if isinstance(tables[0], bytes) and isinstance(tables[1], bytes) else None
    return encoded_frames(data, frames, one_fragment=syntax == RLELossless, extended=extended)


def decode_frames(dataset: Dataset, size: ImageSize, wanted: Sequence[int] | None = None) -> Iterator[Stored | Reject]:
    """The frames one after another, each ``[rows, columns]`` stored values or ``[rows, columns, 3]`` RGB.

    One outcome for every frame that is claimed, or for each of those ``wanted``, in that order: a frame that cannot be
    decoded is a reject, and the next one follows. No more than one frame is held besides the object itself. Colour
    models are converted to RGB (palette is not: see ``normalize.colour``). Reasons: ``decode_failed``, ``missing_tag``,
    ``unsupported_format``, ``wrong_length``, ``truncated``, ``no_pixel_data``.
    """
    if size.sheet is None:
        yield from _decode_frames(dataset, size, range(size.frames) if wanted is None else wanted)
        return
    sheet = size.sheet
    whole = replace(size, rows=sheet.rows * sheet.across, columns=sheet.columns * sheet.across, frames=1, sheet=None)
    for pixels in _decode_frames(dataset, whole, [0]):
        for index in range(size.frames) if wanted is None else wanted:
            yield pixels if isinstance(pixels, Reject) else sheet.cut(pixels, index)


def _decode_frames(dataset: Dataset, size: ImageSize, wanted: Sequence[int]) -> Iterator[Stored | Reject]:
    data, form, encoded = pixel_bytes(dataset), size.form, size.encoded
    assert data is not None, "image_size() has checked it"
    words = dataset.get_item(pixel_element(dataset) or "").VR == "OW"
    there = len(encoded.frames) if encoded else whole_frames(len(data), form, size.rows, size.columns)
    for index in wanted:
        if index >= there:
            yield Reject("decode", "truncated" if size.cut else "wrong_length", f"frame {index + 1} is not there")
            continue
        try:
            if encoded is None:
                pixels = native_frame(data, index, form, size.rows, size.columns, size.syntax, words=words)
                yield _finished(pixels, form, pixels.dtype.itemsize * 8)
            else:
                yield _decode_encoded(encoded.frame(index), size)
        except MemoryError:
            yield Reject("decode", "absurd_size", "out of memory")
        except Exception as error:
            yield Reject("decode", "decode_failed", type(error).__name__)


def _decode_encoded(data: bytes, size: ImageSize) -> Stored | Reject:
    """One encoded frame, held against the header before and after it is decoded."""
    form, syntax = size.form, size.syntax
    if not data:
        return Reject("decode", "no_pixel_data", "an empty frame")
    if syntax == RLELossless:
        pixels = decode_rle(data, size.rows, size.columns, size.samples, form.allocated // 8)
        return _finished(pixels, form, form.allocated)
    if syntax in JPEG_2000_SYNTAXES:
        data = unboxed(data)
    stream = read_codestream(data)
    if stream is None or (stream.family == "jpeg_2000") != (syntax in JPEG_2000_SYNTAXES):
        return Reject("decode", "decode_failed", "not a codestream of this syntax")
    if refused := _contradiction(stream, form, size):
        return refused
    if stream.family == "jpeg_2000":
        pixels = decode_jpeg_2000(data)
        model = "RGB" if stream.transform else form.photometric
    else:
        components = _colour_model(stream, form)
        # the codec makes RGB of a lossy JPEG's colours, but for those of a range that no JPEG knows
        own = stream.family != "dct" or (components == "YBR" and form.photometric.startswith("YBR_PARTIAL"))
        pixels = decode_jpeg(data, stream, "RGB" if own else components)
        model = form.photometric if own else "RGB"
    expected = (size.rows, size.columns) if size.samples == 1 else (size.rows, size.columns, 3)
    if pixels.shape != expected:
        return Reject("decode", "decode_failed", "another shape than its header's")
    return _finished(pixels, form, stream.precision, lossy=stream.lossy, model=model)


def _contradiction(stream: Codestream, form: PixelFormat, size: ImageSize) -> Reject | None:
    """What a codestream's header says against the data set's; None where they agree, or differ without harm."""
    if (stream.rows, stream.columns) != (size.rows, size.columns):
        return Reject("decode", "decode_failed", f"the encoded frame is {stream.rows} × {stream.columns}")
    if stream.samples != size.samples:
        return Reject("decode", "decode_failed", f"the encoded frame has {stream.samples} samples a pixel")
    if not stream.whole:
        return Reject("decode", "truncated", "the encoded frame ends early")
    if stream.precision > max(form.allocated, 8):
        return Reject("decode", "decode_failed", f"{stream.precision} bits encoded, {form.allocated} allocated")
    if stream.family == "dct" and form.stored is not None and stream.precision < form.stored:
        # values of 12 bits that were squeezed into a JPEG of 8: their scale is lost, and no header tells it
        return Reject("decode", "decode_failed", f"{stream.precision} bits encoded with loss, {form.stored} stored")
    if stream.lossy and form.photometric == "PALETTE COLOR":
        return Reject("decode", "unsupported_format", "a palette's indices, compressed with loss")
    return None


def _colour_model(stream: Codestream, form: PixelFormat) -> Literal["RGB", "YBR"]:
    """What a JPEG's components are: by its own markers, else by subsampling, which RGB never has, else by the header."""
    if stream.model is not None:
        return stream.model
    if stream.subsampled or form.photometric != "RGB":
        return "YBR"
    return "RGB"


def _finished(
    pixels: Stored, form: PixelFormat, precision: int, *, lossy: bool = False, model: str | None = None
) -> Stored | Reject:
    """Decoded samples as stored values, and colours as RGB.

    ``model``: of the samples, where it is not the header's.
    """
    if form.kind == "float":
        return pixels
    values = _values(pixels, form, precision, lossy)
    if isinstance(values, Reject) or values.ndim == 2:
        return values
    model = model or form.photometric
    if model in ("YBR_FULL", "YBR_FULL_422") or model.startswith("YBR_PARTIAL"):
        return ybr_to_rgb(values, partial=model.startswith("YBR_PARTIAL"))
    return values  # YBR_ICT and YBR_RCT are RGB once JPEG 2000's own transform is undone


def _values(pixels: Stored, form: PixelFormat, precision: int, lossy: bool) -> Stored | Reject:
    """Samples without what may lie in the bits that are not stored (overlays of old, junk), and with their sign.

    The bits are what counts (PS3.5 8.1.1): an encoder that took signed values for unsigned, or the other way round,
    kept them. After loss they are not the same bits, so that values beyond the range are at its end, not around it.
    """
    stored = precision if form.stored is None else min(form.stored, precision)
    signed = form.signed if form.signed is not None else pixels.dtype.kind == "i"
    own_sign = pixels.dtype.kind == "i"
    kind = np.dtype(f"{'i' if signed else 'u'}{pixels.dtype.itemsize}")
    if lossy and stored < precision and own_sign == signed:
        low, high = (-(1 << stored - 1), (1 << stored - 1) - 1) if signed else (0, (1 << stored) - 1)
        return np.clip(pixels, low, high).astype(kind, copy=False)
    allocated = pixels.dtype.itemsize * 8
    if stored == allocated:
        return pixels.view(kind) if kind != pixels.dtype else pixels
    below = 0
    if form.high is not None and form.stored is not None and form.high >= form.stored:
        below = form.high + 1 - form.stored
        if precision < form.high + 1:
            return Reject("decode", "missing_tag", "HighBit")
    pixels = pixels.view(kind)
    if below and (refused := _low_bits(pixels, form, below)):
        return refused
    if not below and stored == precision and own_sign == signed:
        return pixels  # a codec's own depth: nothing can lie above it
    up: Stored = np.left_shift(pixels, allocated - stored - below)
    return np.right_shift(up, allocated - stored, out=up)  # arithmetic for signed types: the sign is extended


def _low_bits(pixels: Stored, form: PixelFormat, below: int) -> Reject | None:
    """A HighBit above BitsStored - 1 says that values begin above bit 0; something under them says that they do not.

    Overlays may lie there, and say so.
    """
    mask = (1 << below) - 1
    for bit in form.overlay_bits:
        mask &= ~(1 << bit)
    if mask and bool(np.bitwise_and(pixels, pixels.dtype.type(mask)).any()):
        return Reject("decode", "missing_tag", "HighBit contradicts the pixel data")
    return None
