"""The walk over a plain header finds what pydicom finds, element by element, or leaves the header to it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset

from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.walk import plain_header
from tests.dicom import SHARED, TEST_FILES

quiet_libraries()
ABSURD = (b"\xff" * 4, b"\0" * 4, b"\xfe\xff\xdd\xe0", b"\xfe\xff\x0d\xe0", b"\xfe\xff\x00\xe0", b"SQ\0\0", b"UN\0\0")
SMALL = sorted(path for path in TEST_FILES.rglob("*.dcm") if path.stat().st_size < 60_000)


def values(dataset: Dataset) -> dict[int, Any]:
    """Every value of a data set, or the kind of error that it gives."""

    def value(element: Any) -> Any:
        if element.VR == "SQ":
            return [values(item) for item in element.value]
        return element.VR, repr(element.value)

    found: dict[int, Any] = {}
    for tag in list(dataset._dict):
        try:
            found[int(tag)] = value(dataset[tag])
        except Exception as error:
            found[int(tag)] = type(error).__name__
    return found


def assert_read_alike(data: bytes) -> bool:
    """Whether the header is plain; and if so that pydicom reads the same."""
    found = plain_header(data)
    if found is None:
        return False
    walked, at = found
    stream = io.BytesIO(data)
    read = pydicom.dcmread(stream, stop_before_pixels=True, force=True)
    assert at == stream.tell()
    assert walked.original_encoding == read.original_encoding
    assert walked.original_character_set == read.original_character_set
    assert values(walked.file_meta) == values(read.file_meta)
    assert values(walked) == values(read)
    return True


def test_pydicoms_own_files() -> None:
    plain = [assert_read_alike(path.read_bytes()) for path in sorted(TEST_FILES.glob("*.dcm"))]
    assert len(plain) > 50
    assert sum(plain) > 0.6 * len(plain)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no folder of real images beside the project")
def test_files_of_many_vendors() -> None:
    plain = [assert_read_alike(path.read_bytes()) for path in sorted(SHARED.rglob("*.dcm"))]
    assert sum(plain) > 0.9 * len(plain)


def mutant(path: Path, seed: int) -> bytes:
    """A real file with some damage to its header, the same for the same numbers."""
    rng = np.random.default_rng(seed)
    data = bytearray(path.read_bytes())
    for _ in range(int(rng.integers(1, 5))):
        place, size = int(rng.integers(128, max(min(len(data), 4000), 129))), int(rng.integers(1, 9))
        kind = int(rng.integers(0, 4))
        if kind == 0:
            data[place : place + 1] = rng.bytes(1)
        elif kind == 1:
            del data[place : place + size]
        elif kind == 2:
            data[place:place] = rng.bytes(size)
        else:
            data[place : place + 4] = ABSURD[int(rng.integers(0, len(ABSURD)))]
    return bytes(data)


@given(st.sampled_from(SMALL), st.integers(0, 1 << 32))
def test_damaged_headers(path: Path, seed: int) -> None:
    assert_read_alike(mutant(path, seed))


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small_RLE.dcm", "rtdose_1frame.dcm", "SC_rgb_jpeg_dcmtk.dcm"])
def test_a_file_that_ends_early_is_left_to_pydicom(name: str) -> None:
    data = (TEST_FILES / name).read_bytes()
    for end in range(128, min(len(data), 3000), 7):
        assert_read_alike(data[:end])
    assert plain_header(data[: data.index(b"\x28\x00\x10\x00")]) is None
    assert plain_header(b"") is None


def nested(depth: int) -> bytes:
    """Sequences of undefined length in one another, before pixel data."""
    head = (TEST_FILES / "CT_small.dcm").read_bytes()
    begin, end = (
        b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff",
        b"\xfe\xff\x0d\xe0\0\0\0\0\xfe\xff\xdd\xe0\0\0\0\0",
    )
    at = head.index(b"\x08\x00\x05\x00")
    return head[:at] + begin * depth + end * depth + head[at:]


def test_sequences_within_sequences() -> None:
    assert assert_read_alike(nested(3))
    assert plain_header(nested(1000)) is None, "no stack is deep enough for everything"
