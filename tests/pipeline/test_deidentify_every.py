"""Every element of DICOM's dictionary with a name and a date in it: none of them has a way into a row or a reject."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import asdict

import pydicom
import pytest
from pydicom import Dataset, FileDataset, dcmread
from pydicom._dicom_dict import DicomDictionary

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.shards import sample_json
from lumid.pipeline.batches import Batch
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.ingest import ingest
from lumid.pipeline.recipe_files import make_recipe
from lumid.pipeline.sources import Blob, ObjectRef, Provenance, Series
from tests.dicom import TEST_FILES, as_bytes

TEXT, DAY = "ZQJANEDOE 19610312", 19610312
STRINGS = frozenset(["AE", "AS", "CS", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"])
NUMBERS = frozenset(["DS", "IS", "FL", "FD", "UL", "SL", "UV", "SV"])
PIXELS = frozenset({"PixelData", "FloatPixelData", "DoubleFloatPixelData"})


class One:
    """A source of one object."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def prefetch(self, series: object) -> None: ...

    def close(self) -> None: ...

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        yield Blob(series.members[0].ref, self.data)


def written(dataset: FileDataset) -> tuple[str, int]:
    """Everything that an object gives, rows, JSON and rejects, as one text; and how many samples."""
    from lumid.pipeline.sources import Member

    data = as_bytes(dataset)
    ref = ObjectRef("f" * 16, len(data))
    series = Series("f" * 16, Provenance("c", "folder", None, None, None), 1, len(data), (Member(ref),))
    result = ingest(Batch("b", 0, (series,)), One(data), make_recipe(TEST_FILES, collection="c"), Keyer(PUBLIC_SECRET))
    rows = [json.dumps(asdict(one.row)) + sample_json(one.row).decode() for one in result.samples]
    return "".join(rows + [json.dumps(asdict(one)) for one in result.rejects]), len(result.samples)


def planted(base: FileDataset, keywords: list[str]) -> FileDataset:
    """A copy of an object with a name, or a number that is a date, in each of these elements, and in an item of a sequence."""
    dataset = copy.deepcopy(base)
    inner = Dataset()
    for keyword in keywords:
        tag = pydicom.datadict.tag_for_keyword(keyword)
        assert tag is not None
        vr = pydicom.datadict.dictionary_VR(tag).split(" or ")[0]
        multiplicity = pydicom.datadict.dictionary_VM(tag)
        value = TEXT if vr in STRINGS else DAY
        values = [value] * int(multiplicity) if multiplicity.isdigit() and multiplicity != "1" else value
        dataset.add_new(tag, vr, values)
        inner.add_new(tag, vr, values)
    dataset.ReferencedImageSequence = [inner]
    dataset.SharedFunctionalGroupsSequence = [copy.deepcopy(inner)]
    return dataset


def keywords_of(kinds: frozenset[str]) -> list[str]:
    return [
        row[4]
        for tag, row in DicomDictionary.items()
        if row[4] and row[0].split(" or ")[0] in kinds and tag >> 16 > 2 and row[4] not in PIXELS
    ]


@pytest.mark.parametrize("name", ["CT_small.dcm", "MR_small.dcm"])
@pytest.mark.parametrize("kinds", [STRINGS, NUMBERS], ids=["texts", "numbers"])
@pytest.mark.parametrize("together", [25, pytest.param(1, marks=pytest.mark.slow)])
def test_no_element_has_a_way_out(
    name: str, kinds: frozenset[str], together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet_libraries()
    monkeypatch.setattr(pydicom.config.settings, "writing_validation_mode", pydicom.config.IGNORE)
    base = dcmread(TEST_FILES / name)
    keywords = keywords_of(kinds)
    assert len(keywords) > 300
    kept = groups = 0
    for begin in range(0, len(keywords), together):
        group = keywords[begin : begin + together]
        text, samples = written(planted(base, group))
        assert "ZQJANE" not in text, group
        assert str(DAY) not in text, group
        kept += samples
        groups += 1
    assert kept > 0.8 * groups, "most of them are kept, so that rows were looked at and not only rejects"
