"""Values that are read from an element's bytes are the ones that pydicom reads."""

from __future__ import annotations

import io
import struct
from functools import partial
from typing import Any

import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataelem import RawDataElement

from lumid.pipeline.elements import READERS, tag_of, value_of
from lumid.pipeline.parse import parse
from lumid.pipeline.reject import Reject
from tests.dicom import SHARED, TEST_FILES

FILES = sorted(path for path in (*TEST_FILES.rglob("*"), *SHARED.rglob("*")) if path.is_file())
KEYWORDS = {"AS": "PatientAge", "CS": "Modality", "DA": "StudyDate", "UI": "StudyInstanceUID", "LO": "Manufacturer",
            "SH": "ConvolutionKernel", "DS": "RescaleSlope", "IS": "InstanceNumber", "US": "Rows"}  # fmt: skip


def plain(value: Any) -> Any:
    """A value without pydicom's own classes."""
    if isinstance(value, (list, pydicom.multival.MultiValue)):
        return [plain(item) for item in value]
    for kind in (str, float, int):
        if isinstance(value, kind):
            return kind(value)
    return value


def outcome(read: Any) -> Any:
    """What is read, or that it cannot be."""
    try:
        return plain(read())
    except Exception:
        return "raises"


def test_every_value_of_every_real_header_is_pydicoms() -> None:
    compared = 0
    for path in FILES:
        data = path.read_bytes()
        ours = parse(data, header_only=True)
        if isinstance(ours, Reject):
            continue
        theirs = parse(data, header_only=True)
        assert not isinstance(theirs, Reject)
        for tag in list(ours.keys()):
            keyword = keyword_for_tag(tag)
            if tag_for_keyword(keyword) == tag:  # not of a private element, nor of a repeating group
                found = outcome(partial(value_of, ours, keyword))
                expected = outcome(partial(theirs.get, keyword))
                assert found == expected, (path.name, keyword)
                compared += keyword in KEYWORDS.values()
    assert compared > 100


@given(st.sampled_from(sorted((*READERS, "US"))), st.binary(max_size=20) | st.from_regex(rb"[ 0-9.eE+\\-]{0,12}[ \0]?", fullmatch=True),
       st.booleans(), st.booleans())  # fmt: skip
def test_any_bytes_are_read_as_pydicom_reads_them(vr: str, data: bytes, little: bool, implicit: bool) -> None:
    def dataset() -> Dataset:
        tag = tag_of(KEYWORDS[vr])
        made = Dataset()
        made[tag] = RawDataElement(tag, None if implicit else vr, len(data), data, 0, implicit, little, True)  # type: ignore[arg-type]
        return made

    found = outcome(lambda: value_of(dataset(), KEYWORDS[vr]))
    expected = outcome(lambda: dataset().get(KEYWORDS[vr]))
    assert found == expected or (found != found and expected != expected)


def test_what_is_absent_is_none_and_a_slip_of_the_pen_is_told() -> None:
    assert value_of(Dataset(), "Rows") is None
    with pytest.raises(ValueError, match="Colums"):
        value_of(Dataset(), "Colums")


def test_a_value_set_in_memory_is_given_as_it_is() -> None:
    dataset = Dataset()
    dataset.ImageType = ["ORIGINAL", "PRIMARY"]
    assert list(value_of(dataset, "ImageType")) == ["ORIGINAL", "PRIMARY"]


def test_words_are_read_in_the_order_of_their_bytes() -> None:
    meta = (
        struct.pack("<HH2sHI", 2, 0, b"UL", 4, 28)
        + struct.pack("<HH2sH", 2, 0x10, b"UI", 20)
        + b"1.2.840.10008.1.2.2\0"
    )
    rows = struct.pack(">HH2sHH", 0x28, 0x10, b"US", 2, 258)
    dataset = pydicom.dcmread(io.BytesIO(bytes(128) + b"DICM" + meta + rows))
    assert value_of(dataset, "Rows") == 258
