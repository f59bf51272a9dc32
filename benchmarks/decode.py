"""Which decoder reads a transfer syntax correctly, and which of those is the fastest: the table of docs/benchmarks.md.

Every frame is encoded once and decoded by every decoder that is installed: pydicom's plug-ins, the codecs of imagecodecs,
OpenCV and simplejpeg. A lossless frame must come back bit for bit; a lossy one within one step of what SimpleITK's own
GDCM reads from the same object (or, for HTJ2K, which it does not read, of the median of the decoders). Times are the
smallest of several runs, of one thread; read them as ratios.

    python benchmarks/decode.py
    python benchmarks/decode.py --syntax JPEGLossless --size 1024
    python benchmarks/decode.py --mutants 300        # how decoders take broken input: crashes and hangs, not times

Decoders that lumid does not depend on join in when they are installed: pylibjpeg, pylibjpeg-openjpeg, pylibjpeg-rle,
pylibjpeg-libjpeg (GPL: for comparison only), python-gdcm, pyjpegls, pillow, simplejpeg.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pydicom
import SimpleITK
from pydicom import uid
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.encoders.base import get_encoder

from lumid.pipeline.decode import Limits, decode_frames, image_size, parse, quiet_libraries
from lumid.pipeline.reject import Reject

Array = np.ndarray[Any, Any]
Decode = Callable[[bytes, "Frame"], Array]
NEAR = 2
MANY_CRASHES, MANY_HANGS = 20, 3
FUZZED = ("u8", "u12", "u16", "rgb8")
SYNTAXES = {
    "RLELossless": uid.RLELossless,
    "JPEGBaseline8Bit": uid.JPEGBaseline8Bit,
    "JPEGExtended12Bit": uid.JPEGExtended12Bit,
    "JPEGLossless": uid.JPEGLossless,
    "JPEGLosslessSV1": uid.JPEGLosslessSV1,
    "JPEGLSLossless": uid.JPEGLSLossless,
    "JPEGLSNearLossless": uid.JPEGLSNearLossless,
    "JPEG2000Lossless": uid.JPEG2000Lossless,
    "JPEG2000": uid.JPEG2000,
    "HTJ2KLossless": uid.HTJ2KLossless,
    "HTJ2KLosslessRPCL": uid.HTJ2KLosslessRPCL,
    "HTJ2K": uid.HTJ2K,
}
LOSSY = ("JPEGBaseline8Bit", "JPEGExtended12Bit", "JPEGLSNearLossless", "JPEG2000", "HTJ2K")


@dataclass(frozen=True)
class Frame:
    """One image as it was, as it is encoded, and as a DICOM file."""

    syntax: str
    content: str
    pixels: Array
    stored_bits: int
    encoded: bytes
    file: bytes = b""

    @property
    def signed(self) -> bool:
        return bool(self.pixels.dtype.kind == "i")

    @property
    def allocated_bits(self) -> int:
        return self.pixels.dtype.itemsize * 8

    @property
    def samples(self) -> int:
        return 3 if self.pixels.ndim == 3 else 1

    @property
    def photometric(self) -> str:
        """As PS3.5 8.2 asks for: JPEG 2000 and lossy JPEG transform the colours, the others keep RGB."""
        if self.samples == 1:
            return "MONOCHROME2"
        names = {"JPEGBaseline8Bit": "YBR_FULL_422", "JPEG2000": "YBR_ICT", "HTJ2K": "YBR_ICT"}
        return names.get(self.syntax, "YBR_RCT" if "2K" in self.syntax or "2000" in self.syntax else "RGB")


def body(size: int, low: int, high: int, seed: int = 0) -> Array:
    """A CT-like picture: a smooth body on an even ground, with noise, over the whole range."""
    rng = np.random.default_rng(seed)
    row, column = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    inside = 0.55 + 0.3 * np.cos(6 * row) * np.sin(5 * column)
    shape = np.where(row**2 + column**2 < 0.7, inside, 0.04) + rng.normal(0, 0.006, row.shape)
    picture = low + np.clip(shape, 0, 1) * (high - low)
    picture[0, 0], picture[0, 1] = low, high
    return np.rint(picture)


def contents(size: int) -> dict[str, tuple[Array, int]]:
    """Pictures of every kind that DICOM's compressed syntaxes carry, with their BitsStored."""
    grey8 = body(size, 0, 255).astype(np.uint8)
    colour8 = np.stack([grey8, np.roll(grey8, size // 5, 0), np.roll(grey8, size // 7, 1)], -1)
    grey16 = body(size, 0, 65535).astype(np.uint16)
    return {
        "u8": (grey8, 8),
        "u12": (body(size, 0, 4095).astype(np.uint16), 12),
        "u16": (grey16, 16),
        "s12": (body(size, -2048, 2047).astype(np.int16), 12),
        "s16": (body(size, -32768, 32767).astype(np.int16), 16),
        "rgb8": (np.ascontiguousarray(colour8), 8),
        "rgb16": (np.ascontiguousarray(np.stack([grey16, np.roll(grey16, 9, 0), np.roll(grey16, 9, 1)], -1)), 16),
    }


def encode(syntax: str, pixels: Array, bits: int) -> bytes | None:
    """The picture in a syntax; None where the syntax has no place for it, or no encoder here makes it."""
    colour, signed, wide = pixels.ndim == 3, pixels.dtype.kind == "i", pixels.dtype.itemsize == 2
    masked = (pixels.astype(np.int64) & ((1 << bits) - 1)).astype(np.uint16) if wide else pixels
    if syntax == "RLELossless":
        return bytes(_pydicom_encode(uid.RLELossless, pixels, bits))
    if syntax == "JPEGBaseline8Bit":
        return None if wide else bytes(imagecodecs.jpeg8_encode(pixels, 92))
    if syntax == "JPEGExtended12Bit":
        if bits != 12 or signed:
            return None
        return bytes(imagecodecs.jpeg8_encode(pixels, 92, bitspersample=12))
    if syntax in ("JPEGLossless", "JPEGLosslessSV1"):
        predictor = 1 if syntax.endswith("SV1") else 6
        space = {"colorspace": "RGB", "outcolorspace": "RGB"} if colour else {}
        return bytes(imagecodecs.jpeg8_encode(masked, lossless=True, predictor=predictor, bitspersample=bits, **space))
    if syntax == "JPEGLSLossless":
        return bytes(_pydicom_encode(uid.JPEGLSLossless, pixels, bits))
    if syntax == "JPEGLSNearLossless":
        return None if signed else bytes(_pydicom_encode(uid.JPEGLSNearLossless, pixels, bits, jls_error=NEAR))
    if syntax == "JPEG2000Lossless":
        return bytes(_pydicom_encode(uid.JPEG2000Lossless, pixels, bits))
    if syntax == "JPEG2000":
        return bytes(_pydicom_encode(uid.JPEG2000, pixels, bits, j2k_cr=[6]))
    if bits not in (8, 16):
        return None  # the encoder here knows whole bytes only
    if syntax == "HTJ2K":
        return None if signed else bytes(imagecodecs.htj2k_encode(pixels, 0.0005, reversible=False, rgb=colour))
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=True, rgb=colour))


def _pydicom_encode(syntax: uid.UID, pixels: Array, bits: int, **options: Any) -> bytes | bytearray:
    colour = pixels.ndim == 3
    kind = "RGB" if colour else "MONOCHROME2"
    if colour and syntax in (uid.JPEG2000, uid.JPEG2000Lossless):
        kind = "YBR_ICT" if syntax == uid.JPEG2000 else "YBR_RCT"
    return get_encoder(syntax).encode(
        pixels.tobytes(), rows=pixels.shape[0], columns=pixels.shape[1], samples_per_pixel=3 if colour else 1,
        bits_allocated=pixels.dtype.itemsize * 8, bits_stored=bits, pixel_representation=int(pixels.dtype.kind == "i"),
        photometric_interpretation=kind, number_of_frames=1, planar_configuration=0, **options,
    )  # fmt: skip


def frames(size: int, wanted: list[str]) -> Iterator[Frame]:
    pictures = contents(size)
    for syntax in wanted:
        for name, (pixels, bits) in pictures.items():
            encoded = encode(syntax, pixels, bits)
            if encoded is not None:
                frame = Frame(syntax, name, pixels, bits, encoded)
                yield replace(frame, file=as_object(frame))


def as_object(frame: Frame, encoded: bytes | None = None) -> bytes:
    """A DICOM file around an encoded frame."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = SYNTAXES[frame.syntax]
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = frame.pixels.shape[:2]
    data.BitsAllocated, data.BitsStored = frame.allocated_bits, frame.stored_bits
    data.HighBit, data.PixelRepresentation = frame.stored_bits - 1, int(frame.signed)
    data.SamplesPerPixel, data.PhotometricInterpretation = frame.samples, frame.photometric
    if frame.samples == 3:
        data.PlanarConfiguration = 0
    data.PixelData = encapsulate([frame.encoded if encoded is None else encoded])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    data.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def by_pydicom(plugin: str) -> Decode:
    """A plug-in of pydicom, through its decoder; colours as RGB."""

    def decode(encoded: bytes, frame: Frame) -> Array:
        pixels, _ = get_decoder(SYNTAXES[frame.syntax]).as_array(
            encapsulate([encoded], has_bot=False), index=0, raw=False, decoding_plugin=plugin,
            rows=frame.pixels.shape[0], columns=frame.pixels.shape[1], samples_per_pixel=frame.samples,
            bits_allocated=frame.allocated_bits, bits_stored=frame.stored_bits, number_of_frames=1,
            pixel_representation=int(frame.signed), photometric_interpretation=frame.photometric, planar_configuration=0,
        )  # fmt: skip
        return pixels

    return decode


def by_lumid(encoded: bytes, frame: Frame) -> Array:
    """All that lumid does from the bytes of a file to its frame."""
    dataset = parse(frame.file if encoded is frame.encoded else as_object(frame, encoded))
    assert not isinstance(dataset, Reject), dataset
    size = image_size(dataset, Limits())
    assert not isinstance(size, Reject), size
    (pixels,) = decode_frames(dataset, size)
    if isinstance(pixels, Reject):
        raise ValueError(pixels.message)
    return pixels


def _signed(pixels: Array, frame: Frame) -> Array:
    """Values of an unsigned codec as the frame's own type."""
    if not frame.signed or pixels.dtype.kind == "i":
        return pixels
    shift = pixels.dtype.itemsize * 8 - frame.stored_bits
    return (pixels.view(f"i{pixels.dtype.itemsize}") << shift) >> shift


def _rle(encoded: bytes, frame: Frame) -> Array:
    kind = frame.pixels.dtype.newbyteorder("<")
    planes = np.frombuffer(imagecodecs.dicomrle_decode(encoded, kind), kind)
    if frame.samples == 1:
        return planes.reshape(frame.pixels.shape)
    return planes.reshape(3, *frame.pixels.shape[:2]).transpose(1, 2, 0)


def _cv2(encoded: bytes, frame: Frame) -> Array:
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("refused")
    return _signed(np.asarray(pixels[..., ::-1] if pixels.ndim == 3 else pixels), frame)


def _simplejpeg(encoded: bytes, frame: Frame) -> Array:
    import simplejpeg

    pixels: Array = simplejpeg.decode_jpeg(encoded, colorspace="RGB" if frame.samples == 3 else "GRAY")
    return pixels if frame.samples == 3 else pixels[..., 0]


def _jpeg8(encoded: bytes, frame: Frame) -> Array:
    space = {"colorspace": "RGB", "outcolorspace": "RGB"} if frame.samples == 3 and "Lossless" in frame.syntax else {}
    return _signed(imagecodecs.jpeg8_decode(encoded, **space), frame)


def by_codec(name: str) -> Decode:
    return lambda encoded, frame: _signed(getattr(imagecodecs, name + "_decode")(encoded), frame)


def candidates(syntax: str) -> dict[str, Decode]:
    """Everything that says it reads the syntax, by the name of the package and, where there are several, the codec."""
    found: dict[str, Decode] = {}
    package = "rle" if syntax == "RLELossless" else "openjpeg" if "2K" in syntax or "2000" in syntax else "libjpeg"
    names = {"gdcm": "python-gdcm", "pylibjpeg": f"pylibjpeg-{package}"}
    for plugin in get_decoder(SYNTAXES[syntax]).available_plugins:
        found[names.get(plugin, plugin)] = by_pydicom(plugin)
    codecs = {
        "RLELossless": {"imagecodecs dicomrle": _rle},
        "JPEGBaseline8Bit": {"imagecodecs jpeg8": _jpeg8, "cv2": _cv2},
        "JPEGExtended12Bit": {"imagecodecs jpeg8": _jpeg8},
        "JPEGLossless": {"imagecodecs jpeg8": _jpeg8, "imagecodecs ljpeg": by_codec("ljpeg")},
        "JPEGLosslessSV1": {"imagecodecs jpeg8": _jpeg8, "imagecodecs ljpeg": by_codec("ljpeg")},
        "JPEGLSLossless": {"imagecodecs jpegls": by_codec("jpegls")},
        "JPEGLSNearLossless": {"imagecodecs jpegls": by_codec("jpegls")},
        "JPEG2000Lossless": {"imagecodecs jpeg2k": by_codec("jpeg2k"), "cv2": _cv2},
        "JPEG2000": {"imagecodecs jpeg2k": by_codec("jpeg2k"), "cv2": _cv2},
    }
    if syntax.startswith("HTJ2K"):
        found |= {"imagecodecs htj2k": by_codec("htj2k"), "imagecodecs jpeg2k": by_codec("jpeg2k")}
    if syntax == "JPEGBaseline8Bit" and importlib.util.find_spec("simplejpeg"):
        found["simplejpeg"] = _simplejpeg
    return found | codecs.get(syntax, {})


def reference(frame: Frame, decoded: list[Array]) -> Array:
    """What a lossy frame should come out as, by an implementation that is none of the candidates."""
    if frame.syntax.startswith("HTJ2K"):
        return np.median(np.stack([one.astype(np.float64) for one in decoded]), axis=0)
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        Path(file.name).write_bytes(frame.file)
        read: Array = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(file.name))[0]
        return read


def milliseconds(decode: Decode, frame: Frame, seconds: float) -> float:
    times: list[float] = []
    until = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < until:
        begin = time.perf_counter()
        decode(frame.encoded, frame)
        times.append(time.perf_counter() - begin)
    return min(times) * 1000


def measure(frame: Frame, seconds: float) -> dict[str, str]:
    """By decoder: milliseconds where it is right (with how far a lossy frame is off), else what is wrong with it."""
    decoded: dict[str, Array | str] = {}
    tried = candidates(frame.syntax) | {"lumid, file to frame": by_lumid}
    for name, decode in tried.items():
        try:
            decoded[name] = decode(frame.encoded, frame)
        except Exception:
            decoded[name] = "refuses"
    shaped = {
        name: one for name, one in decoded.items() if not isinstance(one, str) and one.shape == frame.pixels.shape
    }
    lossy = frame.syntax in LOSSY
    truth = reference(frame, list(shaped.values())) if lossy else frame.pixels
    cells = {}
    for name, one in decoded.items():
        if isinstance(one, str) or name not in shaped:
            cells[name] = one if isinstance(one, str) else "wrong shape"
            continue
        away = int(np.abs(one.astype(np.int64) - truth.astype(np.int64)).max())
        if away > (1 if lossy else 0) or one.dtype.newbyteorder("=") != frame.pixels.dtype:
            cells[name] = f"off by {away}"
        else:
            cells[name] = f"{milliseconds(tried[name], frame, seconds):.2f}"
    return cells


def table(measured: dict[str, dict[str, dict[str, str]]], columns: list[str]) -> Iterator[str]:
    """Markdown: a row a syntax and decoder, a column a content."""
    yield "| syntax | decoder | " + " | ".join(columns) + " |"
    yield "|---|---|" + "---|" * len(columns)
    for syntax, by_content in measured.items():
        names = dict.fromkeys(name for cells in by_content.values() for name in cells)
        for name in names:
            row = [by_content.get(content, {}).get(name, "") for content in columns]
            yield f"| {syntax} | {name} | " + " | ".join(row) + " |"


def mutants(encoded: bytes, count: int) -> Iterator[bytes]:
    """Broken copies of a frame: cut, bits flipped, numbers in its header made absurd. The same ones every time."""
    rng = np.random.default_rng(len(encoded))
    for number in range(count):
        broken = bytearray(encoded)
        kind = number % 4
        if kind == 0:
            broken = broken[: int(rng.integers(1, len(broken)))]
        elif kind == 1:
            for place in rng.integers(0, len(broken), int(rng.integers(1, 20))):
                broken[int(place)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 2:
            for place in rng.integers(0, min(len(broken), 120), int(rng.integers(1, 5))):
                broken[int(place)] = int(rng.integers(0, 256))
        else:
            place = int(rng.integers(0, min(len(broken), 120)))
            broken[place : place + 2] = b"\xff\xff"
        yield bytes(broken)


def survive(syntax: str, content: str, name: str, count: int, first: int) -> None:
    """Decode mutants from the given one on, telling on standard output which one is next. May not return."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    (frame,) = (one for one in frames(96, [syntax]) if one.content == content)
    decode = (candidates(syntax) | {"lumid, file to frame": by_lumid})[name]
    undamaged = decode(frame.encoded, frame)
    for number, broken in enumerate(mutants(frame.encoded, count)):
        if number < first:
            continue
        print(f"at {number}", flush=True)
        begin = time.perf_counter()
        try:
            found = decode(broken, frame)
            # damage that leaves the values alone is none; a frame of other values, without a word, is what must not be
            outcome = "same" if np.array_equal(found, undamaged) else "wrong"
        except Exception:
            outcome = "error"
        print(f"{outcome} {time.perf_counter() - begin:.3f}", flush=True)


def crashes(syntax: str, content: str, name: str, count: int) -> str:
    """Mutants that ended the process / kept it for half a minute / gave another frame or shape without an error."""
    killed, hung, first, outcomes = 0, 0, 0, []
    while first < count:
        command = [sys.executable, __file__, "--survive", syntax, content, name, str(count), str(first)]
        try:
            ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
            output, died = ended.stdout, ended.returncode != 0
        except subprocess.TimeoutExpired as error:
            output, died = (error.stdout or b"").decode(), False
            hung += 1
        lines = output.splitlines()
        outcomes += [line.split()[0] for line in lines if not line.startswith("at")]
        last = max((int(line.split()[1]) for line in lines if line.startswith("at")), default=-1)
        if last < 0:
            return "could not be run"
        killed += died
        first = last + 1
        if killed >= MANY_CRASHES or hung >= MANY_HANGS:
            return f"{killed} / {hung} in {first}, given up"
    return f"{killed} / {hung} / {outcomes.count('wrong')}"


def quiet() -> None:
    quiet_libraries()
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    cv2.setNumThreads(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--syntax", choices=SYNTAXES, action="append", help="only this transfer syntax")
    parser.add_argument("--size", type=int, default=512, help="rows and columns of the pictures (default 512)")
    parser.add_argument("--seconds", type=float, default=0.25, help="how long a decoder is timed (default 0.25)")
    parser.add_argument("--mutants", type=int, help="count crashes on this many broken copies of each frame instead")
    parser.add_argument("--content", choices=FUZZED, action="append", help="only this content, with --mutants")
    parser.add_argument("--decoder", help="only this decoder, with --mutants")
    parser.add_argument("--survive", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    quiet()
    if chosen.survive:
        syntax, content, name, count, first = chosen.survive
        survive(syntax, content, name, int(count), int(first))
        return
    measured: dict[str, dict[str, dict[str, str]]] = {}
    for frame in frames(96 if chosen.mutants else chosen.size, chosen.syntax or list(SYNTAXES)):
        cells = measured.setdefault(frame.syntax, {})
        if not chosen.mutants:
            cells[frame.content] = measure(frame, chosen.seconds)
        elif frame.content in (chosen.content or FUZZED):
            tried = candidates(frame.syntax) | {"lumid, file to frame": by_lumid}
            cells[frame.content] = {
                name: crashes(frame.syntax, frame.content, name, chosen.mutants)
                for name in tried
                if chosen.decoder in (None, name)
            }
    print("\n".join(table(measured, list(FUZZED if chosen.mutants else contents(8)))))


if __name__ == "__main__":
    main()
