"""What is mutated: real files of every kind, and made ones that are hostile as they stand."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import SimpleITK as sitk  # noqa: N813

from tests.dicom import SHARED, TEST_FILES, as_bytes, gradient, image

DATA = Path(__file__).resolve().parents[2] / "data"
LARGEST = 400_000
"""Seeds are smaller than this: what is wrong with headers does not need large files."""
BOMB_BYTES = 200 << 20
UP = "../" * 12


@cache
def dicom() -> list[bytes]:
    """pydicom's own files of every syntax, and others where they are."""
    paths = [path for path in sorted(TEST_FILES.rglob("*")) if path.is_file()]
    paths += [path for path in sorted(SHARED.rglob("*")) if path.suffix in (".dcm", "") and path.is_file()][::7]
    found = [path.read_bytes() for path in paths if 132 < path.stat().st_size <= LARGEST]
    return [data for data in found if data[128:132] == b"DICM" or data[:4] == b"\x08\0\x05\0"]


def _png_bomb(rows: int, columns: int, depth: int = 8, colour: int = 0) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = bytes(1 + columns * depth // 8 * (3 if colour else 1))
    body = b"".join(packer.compress(row) for _ in range(min(rows, BOMB_BYTES // len(row)))) + packer.flush()
    head = struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@cache
def png() -> list[bytes]:
    """Small images of several kinds, and some that become large."""
    rng = np.random.default_rng(3)
    made = []
    for shape, kind in (((64, 80), np.uint8), ((64, 80), np.uint16), ((64, 80, 3), np.uint8), ((64, 80, 4), np.uint16)):
        top = 250 if kind is np.uint8 else 60_000
        pixels = (rng.random(shape) * 40 + np.linspace(0, top - 50, 80).reshape(1, 80, *[1] * (len(shape) - 2))).astype(
            kind
        )
        made.append(cv2.imencode(".png", pixels)[1].tobytes())
    return made


@cache
def png_bombs() -> list[bytes]:
    """Images that become large: as large as is allowed, larger, and larger than any."""
    return [
        _png_bomb(14_000, 14_000),
        _png_bomb(9000, 9000, 8, 2),
        _png_bomb(60_000, 60_000),
        _png_bomb(1 << 30, 1 << 30),
    ]


def _volume(suffix: str, compress: bool) -> bytes:
    rng = np.random.default_rng(4)
    pixels = (rng.normal(0, 40, (4, 40, 44)) + np.linspace(-900, 900, 44)).astype(np.int16)
    folder = Path(os.environ.get("TMPDIR", "/tmp"))
    path = folder / f"lumid-seed-{os.getpid()}{suffix}"
    try:
        sitk.WriteImage(sitk.GetImageFromArray(pixels), str(path), compress)
        return path.read_bytes()
    finally:
        path.unlink(missing_ok=True)


def _others(suffixes: tuple[str, ...]) -> list[bytes]:
    paths = [*sorted(DATA.rglob("*")), *sorted(SHARED.rglob("*"))]
    chosen = [path for path in paths if path.name.endswith(suffixes) and path.is_file()]
    return [path.read_bytes() for path in chosen if path.stat().st_size <= LARGEST]


@cache
def nifti() -> list[bytes]:
    """Plain and packed ones, made and real."""
    return [_volume(".nii", False), _volume(".nii.gz", True), *_others((".nii", ".nii.gz"))]


@cache
def nifti_bombs() -> list[bytes]:
    """Much more packed than the header says, as much as it says, and a header that asks for more than there can be."""
    plain = _volume(".nii", False)
    small = plain[:352]
    sizes = struct.pack("<8h", 3, 1000, 1000, 100, 1, 1, 1, 1)
    honest = small[:40] + sizes + small[56:]
    absurd = small[:40] + struct.pack("<8h", 7, 32767, 32767, 32767, 32767, 32767, 1, 1) + small[56:]
    zeros = _packed_zeros(b"")
    return [gzip.compress(honest) + zeros, gzip.compress(plain) + zeros, gzip.compress(absurd) + zeros, absurd]


def _packed_zeros(head: bytes) -> bytes:
    """A gzip stream of something and many zeros."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    return (
        packer.compress(head)
        + b"".join(packer.compress(bytes(1 << 20)) for _ in range(BOMB_BYTES >> 20))
        + packer.flush()
    )


@cache
def nrrd() -> list[bytes]:
    """NRRD files, made and real, attached; and headers whose voxels are elsewhere."""
    whole = _volume(".nrrd", False)
    head = whole.partition(b"\n\n")[0]
    away = [
        head + b"\ndata file: " + where + b"\n\n"
        for where in (b"/etc/passwd", UP.encode() + b"etc/passwd", b"LIST\na\nb")
    ]
    return [whole, _volume(".nrrd", True), *_others((".nrrd",)), *away]


@cache
def mha() -> list[bytes]:
    """MetaImage files, attached; and headers whose voxels are elsewhere."""
    whole = _volume(".mha", False)
    head = whole.partition(b"ElementDataFile")[0]
    away = [
        head + b"ElementDataFile = " + where + b"\n" for where in (b"/etc/passwd", UP.encode() + b"etc/passwd", b"LIST")
    ]
    return [whole, _volume(".mha", True), *_others((".mha", ".mhd")), *away]


def _slice(number: int) -> bytes:
    return as_bytes(image(gradient(40, 40), SOPInstanceUID=f"1.2.{number}", SeriesInstanceUID="1.2.3"))


HOSTILE_NAMES = ("/etc/cron.d/x", f"{UP}tmp/escaped", "a/../../../escaped", "C:\\x", "\\\\host\\x", "a\0b", "", ".", "..", "a" * 300, "x" + "/y" * 400)  # fmt: skip


@cache
def zipped() -> list[bytes]:
    """Zips: stored and packed, with names that lead out, links, doubles, encrypted and nested members."""
    made = []
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        made.append(_zip([(f"s/{k}.dcm", _slice(k)) for k in range(3)], packing))
    made.append(_zip([(name, _slice(k)) for k, name in enumerate(HOSTILE_NAMES) if name]))
    made.append(_zip([("twice", _slice(1)), ("twice", _slice(2))]))
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    made.append(_zip([(link, b"/etc/passwd"), ("s.dcm", _slice(1))]))
    locked = bytearray(_zip([("s.dcm", _slice(1))]))
    locked[6] |= 1
    locked[locked.rfind(b"PK\1\2") + 8] |= 1
    made.append(bytes(locked))
    inner = _zip([("s.dcm", _slice(1))])
    for _ in range(8):
        inner = _zip([("inner.zip", inner)])
    made.append(inner)
    made.append(_zip([(f"m{k}", b"x") for k in range(3000)]))
    large = io.BytesIO()
    with zipfile.ZipFile(large, "w") as archive, archive.open("s.dcm", "w", force_zip64=True) as file:
        file.write(_slice(1))
    return [*made, large.getvalue()]


def _zip(members: list[tuple[str | zipfile.ZipInfo, bytes]], packing: int = zipfile.ZIP_STORED) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a double name
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


@cache
def tarred() -> list[bytes]:
    """Tars of every dialect, plain and packed: names that lead out, links, devices, doubles, long names."""
    plain = [
        _tar([(f"s/{k}.dcm", _slice(k)) for k in range(3)], kind)
        for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
    ]
    hostile = _tar([(name, _slice(k)) for k, name in enumerate(HOSTILE_NAMES) if name and "\0" not in name])
    special = []
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo(f"kind-{kind.decode()}")
        info.type, info.linkname = kind, f"{UP}etc/passwd"
        special.append((info, b""))
    links = _tar([*special, ("s.dcm", _slice(1))])
    twice = _tar([("twice", _slice(1)), ("twice", _slice(2))])
    packed = [pack(plain[1]) for pack in (lambda data: gzip.compress(data, 1), bz2.compress, lzma.compress)]
    return [*plain, hostile, links, twice, *packed]


@cache
def tar_bombs() -> list[bytes]:
    """A member of zeros."""
    head = tarfile.TarInfo("zeros")
    head.size = BOMB_BYTES
    return [_packed_zeros(head.tobuf())]


@cache
def zip_bombs() -> list[bytes]:
    """The same in a zip."""
    return [_zip([("zeros", bytes(BOMB_BYTES)), ("s.dcm", _slice(1))], zipfile.ZIP_DEFLATED)]


def _tar(members: list[tuple[str | tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@cache
def recipe() -> list[bytes]:
    """The shipped recipes, and one that says much."""
    folder = Path(__file__).resolve().parents[3]
    found = [path.read_bytes() for path in sorted((folder / "pipeline" / "recipes").glob("*.toml"))]
    return [*found, *(path.read_bytes() for path in sorted((folder / "model" / "recipes").glob("*.toml")))]


OBJECTS: dict[str, Callable[[], list[bytes]]] = {
    "dicom": dicom, "png": png, "nifti": nifti, "nrrd": nrrd, "mha": mha, "zip": zipped, "tar": tarred,
}  # fmt: skip
"""Files that a folder of images may hold."""


BOMBS: dict[str, Callable[[], list[bytes]]] = {
    "png": png_bombs,
    "nifti": nifti_bombs,
    "zip": zip_bombs,
    "tar": tar_bombs,
}
BOMB_SHARE = 0.03
"""They take seconds each."""


def drawn(kind: str, rng: random.Random) -> tuple[bytes, list[bytes]]:
    """A seed of a kind to be mutated, and the others; a bomb now and then."""
    made = OBJECTS[kind]()
    if kind in BOMBS and rng.random() < BOMB_SHARE:
        return rng.choice(BOMBS[kind]()), made
    return rng.choice(made), made
