"""Series found by looking through a source: DICOM by its identifiers, everything else on its own."""

from __future__ import annotations

import gzip
import io
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.convert import sniff, to_dataset
from lumid.pipeline.decode import Limits, image_size, quiet_libraries
from lumid.pipeline.deidentify import identify
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.parse import MAX_ELEMENTS, any_header, parse, pixel_element
from lumid.pipeline.reject import Reject
from lumid.pipeline.scan import HEAD_BYTES, Scanned, group_series, listing_hash, scan
from lumid.pipeline.sources import Provenance
from lumid.pipeline.sources.folder import FolderSource, pydicom_files
from tests.dicom import TEST_FILES, as_bytes, gradient, image
from tests.pipeline.test_convert import NOISE, png, written

PROVENANCE = Provenance("c", "folder", None, None, None)
KEYER = Keyer(PUBLIC_SECRET)
quiet_libraries()


def scanned(root: Path, requests: int = 1) -> dict[str, Scanned]:
    source = FolderSource(root, PROVENANCE, KEYER, plain_names=True)
    return {item.ref.source_id: item for item in scan(source, source.objects(), KEYER, "public", requests=requests)}


def test_files_and_members_of_a_series_belong_together(tmp_path: Path) -> None:
    objects = [
        as_bytes(image(gradient(), SOPInstanceUID=f"1.2.{n}", SeriesInstanceUID=f"1.9.{n % 2}")) for n in range(4)
    ]
    (tmp_path / "0").write_bytes(objects[0])
    (tmp_path / "1").write_bytes(objects[1])
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("2", objects[2])
        archive.writestr("3", objects[3])
    series = group_series(list(scanned(tmp_path).values()), PROVENANCE)
    assert sorted([m.ref.source_id for m in one.members] for one in series) == [["0", "x.zip!2"], ["1", "x.zip!3"]]
    assert [one.bytes for one in series] == [sum(m.ref.size_bytes for m in one.members) for one in series]


def test_other_formats_are_series_of_their_own_with_the_frames_they_will_have(tmp_path: Path) -> None:
    turned = written(NOISE, ".nii", direction=(0, 0, 1, 1, 0, 0, 0, 1, 0))  # its last axis runs to the left
    for name, data in {
        "v.nii.gz": gzip.compress(written(NOISE, ".nii")),
        "turned.nii": turned,
        "v.nrrd": written(NOISE, ".nrrd"),
        "v.mha": written(NOISE, ".mha", compress=True),
        "time.nii": written(np.stack([NOISE, NOISE]), ".nii"),
        "x.png": png(gradient(dtype=np.uint8, high=255)),
    }.items():
        (tmp_path / name).write_bytes(data)
    found = scanned(tmp_path)
    assert len({item.series for item in found.values()}) == 6
    for name, item in found.items():
        data = (tmp_path / name).read_bytes()
        kind = sniff(data[:HEAD_BYTES])
        assert kind is not None
        dataset = to_dataset(data, kind, modality="MR")
        assert not isinstance(dataset, Reject)
        size = image_size(dataset, Limits())
        assert not isinstance(size, Reject)
        assert item.frames == size.frames, name
        # ingesting finds the same series and instance
        identity = identify(FrameHeader(dataset, 0), KEYER, collection="c", policy="public", source_id=name)
        assert (item.series, item.instance) == (identity.series, identity.instance)
    assert [found[name].frames for name in ("v.nii.gz", "turned.nii", "time.nii", "x.png")] == [4, 5, 8, 1]


def test_what_is_nothing_is_on_its_own_and_known_by_no_reason_yet(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_bytes(b"hello" * 100)
    (tmp_path / "empty").touch()
    found = scanned(tmp_path)
    assert found["notes.txt"].reject is None
    assert found["empty"].reject is not None
    assert found["empty"].reject.code == "empty_file"
    assert found["notes.txt"].series != found["empty"].series


def test_claims_of_real_files_are_what_their_headers_say() -> None:
    found = scanned(pydicom_files())
    for name in ("CT_small.dcm", "MR_small.dcm", "SC_rgb_rle_2frame.dcm", "rtdose.dcm", "examples_ybr_color.dcm"):
        header = dcmread(TEST_FILES / name, stop_before_pixels=True)
        assert found[name].frames == int(header.get("NumberOfFrames", 1)), name
    assert (found["SC_rgb_rle_2frame.dcm"].frames, found["rtdose.dcm"].frames) == (2, 15)


def test_many_readers_find_what_one_does() -> None:
    assert scanned(pydicom_files()) == scanned(pydicom_files(), requests=8)


def test_a_header_beyond_the_first_bytes_is_read_whole(tmp_path: Path) -> None:
    long = image(gradient(), ImageComments="x" * 3000, PatientComments="y" * (2 * HEAD_BYTES), NumberOfFrames=1)
    (tmp_path / "long").write_bytes(as_bytes(long))
    (tmp_path / "other").write_bytes(as_bytes(image(gradient(), SOPInstanceUID="1.2.9")))
    found = scanned(tmp_path)
    assert found["long"].series == found["other"].series


def test_copies_of_an_instance_stay_together(tmp_path: Path) -> None:
    for name, series in (("a", "1.9.1"), ("b", "1.9.2")):
        (tmp_path / name).write_bytes(as_bytes(image(gradient(), SeriesInstanceUID=series)))
    (series_found,) = group_series(list(scanned(tmp_path).values()), PROVENANCE)
    assert [member.ref.source_id for member in series_found.members] == ["a", "b"]


def test_the_listing_tells_a_change_inside_an_archive(tmp_path: Path) -> None:
    def packed(*members: tuple[str, bytes]) -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, data in members:
                archive.writestr(name, data)
        return buffer.getvalue()

    def listed() -> str:
        return listing_hash(FolderSource(tmp_path, PROVENANCE, KEYER).objects())

    (tmp_path / "x.zip").write_bytes(packed(("a", b"1")))
    before = listed()
    assert before == listed()
    (tmp_path / "x.zip").write_bytes(packed(("b", b"1")))
    assert listed() != before


def test_a_sparse_file_of_terabytes_is_not_read(tmp_path: Path) -> None:
    for name, head in (("swap", b""), ("a.dcm", as_bytes(image(gradient()))), ("x.nii.gz", b"\x1f\x8b\x08")):
        (tmp_path / name).write_bytes(head)
        os.truncate(tmp_path / name, 1 << 42)
    assert {found.reject for found in scanned(tmp_path).values()} == {Reject("read", "absurd_size", "more than 4 GiB")}


@pytest.mark.parametrize("kept", [300, 700, 1_500, 20_000])
def test_a_file_filled_up_with_zeros_takes_no_time(kept: int, tmp_path: Path) -> None:
    """As an interrupted copy into space that was allocated; pydicom takes a minute for an element of every eight bytes."""
    (tmp_path / "a.dcm").write_bytes(as_bytes(image(gradient(), PatientComments="y" * 30_000))[:kept])
    os.truncate(tmp_path / "a.dcm", 100 << 20)
    begun = time.process_time()
    assert scanned(tmp_path)["a.dcm"].reject is None
    read = parse((tmp_path / "a.dcm").read_bytes())
    assert time.process_time() - begun < 10
    assert isinstance(read, Reject) or pixel_element(read) is None


def test_a_header_of_millions_of_elements_is_broken() -> None:
    whole = as_bytes(image(gradient()))
    head = whole[: whole.index(b"\xe0\x7f\x10\0")]
    more = b"\x01\x70\x10\0LO\0\0" * (MAX_ELEMENTS + 1)
    assert parse(head + more) == Reject("read", "broken_header", "ValueError")


@pytest.mark.parametrize("preamble", [True, False])
def test_an_image_that_ends_in_black_is_read_as_any_other(preamble: bool) -> None:
    pixels = np.zeros((40, 700, 700), np.uint16)
    pixels[0] = 7
    whole = as_bytes(image(pixels, NumberOfFrames=40))
    data = whole if preamble else whole[132:]
    read = parse(data)
    assert not isinstance(read, Reject)
    assert len(read.PixelData) == pixels.nbytes
    assert any_header(data)[0] == dcmread(io.BytesIO(data), force=True, stop_before_pixels=True)
