"""Where slices lie: by hand, against SimpleITK and dcm2niix on real series, and whatever the order of the files."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk  # noqa: N813
from hypothesis import given, settings
from hypothesis import strategies as st

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.batches import Batch, make_batches
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import Arranged, Geometry, Placed, arrange, geometry
from lumid.pipeline.ingest import BatchResult, ingest
from lumid.pipeline.parts import PartFiles, write_part
from lumid.pipeline.recipe import SelectSettings
from lumid.pipeline.recipe_files import make_recipe
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.sources import open_listed
from tests.dicom import SHARED, as_bytes, gradient, image

quiet_libraries()
KEYER = Keyer(PUBLIC_SECRET)
AXIAL = (0.0, 0.0, 1.0)
ENHANCED = ("neurolabusc__dcm_qa_enh", "neurolabusc__dcm_qa_xa30", "neurolabusc__dcm_qa_agfa")
SERIES = {
    "CT": SHARED / "neurolabusc__dcm_qa_ct",
    "PET": SHARED / "FNNDSC__data" / "dicom" / "rsna_2" / "PET",
}
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason="needs the folder of real images, which is not part of the project"
)


needs_dcm2niix = pytest.mark.skipif(
    shutil.which("dcm2niix") is None, reason="dcm2niix is not installed (Debian: apt-get install dcm2niix)"
)


def header(**elements: Any) -> FrameHeader:
    return FrameHeader(image(gradient(), **elements), 0)


def placed(*positions: float, normal: tuple[float, float, float] = AXIAL) -> list[Placed | None]:
    return [Placed(normal, position) for position in positions]


# ---- spacing


@pytest.mark.parametrize(
    ("modality", "elements", "spacing", "kind"),
    [
        ("CT", {"PixelSpacing": [0.7, 0.8]}, (0.7, 0.8), "patient"),
        ("CT", {"ImagerPixelSpacing": [0.7, 0.8]}, (None, None), None),
        ("DX", {"ImagerPixelSpacing": [0.15, 0.16]}, (0.15, 0.16), "detector"),
        ("DX", {"ImagerPixelSpacing": [0.15, 0.15], "PixelSpacing": [0.15, 0.15]}, (0.15, 0.15), "detector"),
        ("DX", {"ImagerPixelSpacing": [0.15, 0.15], "PixelSpacing": [0.1, 0.1]}, (0.1, 0.1), "calibrated"),
        ("DX", {"ImagerPixelSpacing": [0.15, 0.15], "PixelSpacing": [0, 0]}, (0.15, 0.15), "detector"),
        ("CR", {"PixelSpacing": [0.1, 0.1]}, (0.1, 0.1), "unstated"),
        ("CR", {"PixelSpacing": [0.1, 0.1], "PixelSpacingCalibrationType": "FIDUCIAL"}, (0.1, 0.1), "calibrated"),
        ("CR", {"PixelSpacing": [0.2, 0.2], "ImagerPixelSpacing": [0.2, 0.2], "PixelSpacingCalibrationType": "GEOMETRY"},
         (0.2, 0.2), "calibrated"),
        ("SC", {"NominalScannedPixelSpacing": [0.17, 0.17]}, (0.17, 0.17), "nominal"),
        ("CR", {"NominalScannedPixelSpacing": [0.17, 0.17], "ImagerPixelSpacing": [0.2]}, (0.17, 0.17), "nominal"),
        ("CT", {"PixelSpacing": [0.7, 700]}, (None, None), None),
        ("US", {}, (None, None), None),
    ],
)  # fmt: skip
def test_spacing_and_what_it_is(modality: str, elements: dict[str, Any], spacing: Any, kind: str | None) -> None:
    found = geometry(header(**elements), modality)
    assert (found.spacing_row, found.spacing_column) == spacing
    assert found.spacing_kind == kind


def test_ultrasound_has_the_spacing_of_its_one_region() -> None:
    region = pydicom.Dataset()
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.02, -0.03
    found = geometry(header(SequenceOfUltrasoundRegions=[region]), "US")
    assert (found.spacing_row, found.spacing_column) == (pytest.approx(0.3), pytest.approx(0.2))
    assert geometry(header(SequenceOfUltrasoundRegions=[region, region]), "US").spacing_kind is None


@settings(deadline=None, max_examples=25)
@given(st.integers(32, 700), st.integers(32, 700), st.floats(0.1, 3), st.floats(0.1, 3))
def test_an_image_has_the_same_size_in_mm_after_resizing(rows: int, columns: int, down: float, across: float) -> None:
    with_size = image(gradient(rows, columns), PixelSpacing=[round(down, 4), round(across, 4)], **HU)
    (row,) = [sample.row for sample in ingest_bytes({"a": as_bytes(with_size)}).samples]
    assert max(row.height, row.width) <= 256
    assert row.pixel_spacing_row * row.height == pytest.approx(round(down, 4) * rows, rel=1e-5)
    assert row.pixel_spacing_column * row.width == pytest.approx(round(across, 4) * columns, rel=1e-5)


# ---- nuclear medicine, which states one position for all slices


@pytest.mark.parametrize(("step", "expected"), [(4.0, [10.0, 14.0, 18.0]), (-4.0, [10.0, 6.0, 2.0])])
def test_slices_of_reconstructed_nm_follow_along_the_normal(step: float, expected: list[float]) -> None:
    detector = pydicom.Dataset()
    detector.ImageOrientationPatient, detector.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-50, -60, 10]
    dataset = image(
        np.stack([gradient()] * 3), Modality="NM", ImageType=["ORIGINAL", "PRIMARY", "RECON TOMO", "EMISSION"],
        DetectorInformationSequence=[detector], SpacingBetweenSlices=step, SliceVector=[1, 2, 3],
    )  # fmt: skip
    found = [geometry(FrameHeader(dataset, frame), "NM") for frame in range(3)]
    assert [one.slice_position for one in found] == expected
    assert {one.plane for one in found} == {"axial"}
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "WHOLE BODY", "EMISSION"]
    assert geometry(FrameHeader(dataset, 0), "NM").plane is None


# ---- a slice among the others


def test_places_by_hand() -> None:
    found = arrange([*placed(10, 0, 4.999, 5.001, 25), None])
    assert found == [
        Arranged(2, 5.0, True, 1),  # 10: the next is 15 mm away
        Arranged(0, 5.0, False, 1),
        Arranged(1, 5.0, False, 2),
        Arranged(1, 5.0, False, 2),
        Arranged(3, 5.0, True, 1),
        Arranged(),
    ]
    assert arrange(placed(7)) == [Arranged(0, None, None, 1)]
    assert arrange([]) == []


def test_orientations_of_one_series_do_not_mix() -> None:
    coronal = placed(0, 4, 8, normal=(0.0, 1.0, 0.0))
    nearly = placed(5, normal=(0.001, 0.0, 0.9999995))
    found = arrange([*placed(0, 10), *coronal, *nearly])
    assert sorted(place.index for place in found if place.index is not None) == [0, 1, 2, 3, 4, 5]
    assert {place.spacing for place in found[2:5]} == {4.0}
    assert {place.spacing for place in (*found[:2], found[5])} == {5.0}


@given(st.lists(st.floats(-500, 500), max_size=30), st.integers(0, 1000), st.booleans())
def test_places_do_not_depend_on_the_order(positions: list[float], seed: int, two: bool) -> None:
    slices = [
        Placed((1.0, 0.0, 0.0) if two and number % 2 else AXIAL, round(position, 4))
        for number, position in enumerate(positions)
    ]
    order = list(range(len(slices)))
    random.Random(seed).shuffle(order)
    shuffled = arrange([slices[number] for number in order])
    assert [shuffled[order.index(number)] for number in range(len(slices))] == arrange(slices)


@given(st.integers(3, 40), st.floats(0.5, 10), st.floats(-300, 300), st.data())
def test_a_missing_slice_is_a_gap_on_both_sides(count: int, step: float, start: float, data: st.DataObject) -> None:
    missing = data.draw(st.integers(1, count - 2)) if count > 4 else None
    positions = [round(start + number * step, 4) for number in range(count) if number != missing]
    found = arrange(placed(*positions))
    assert [place.index for place in found] == list(range(len(positions)))
    assert found[0].spacing == pytest.approx(step, abs=2e-4)
    gaps = [number for number, place in enumerate(found) if place.gap]
    assert gaps == ([] if missing is None else [missing - 1, missing])


# ---- through the whole of ingest

HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def batches_in(folder: Path, **select: Any) -> tuple[Any, Any, list[Batch]]:
    recipe = make_recipe(folder, collection="test")
    source = recipe.sources[0].model_copy(update={"names": "plain"})
    recipe = recipe.model_copy(update={"sources": (source,), "select": SelectSettings(**select)})
    listed = open_listed(source, recipe, KEYER)
    series = group_series(scan(listed, listed.objects(), KEYER, "public"), listed.provenance)
    return recipe, listed, make_batches(series, 0, recipe.hash(), 1000)


def ingest_folder(folder: Path, **select: Any) -> BatchResult:
    recipe, listed, batches = batches_in(folder, **select)
    return BatchResult(tuple(one for batch in batches for one in ingest(batch, listed, recipe, KEYER).series))


def ingest_bytes(files: dict[str, bytes], **select: Any) -> BatchResult:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        return ingest_folder(Path(folder), **select)


def a_series() -> list[bytes]:
    """CT and MR (whose range is that of the series), two orientations, a gap, a repeated position, a multi-frame object."""
    rng = np.random.default_rng(3)
    made = []
    for modality in ("CT", "MR"):
        for number, place in enumerate((0, 5, 10, 10, 25, 30)):
            noise = rng.integers(0, 300 * (number + 1), (48, 40)).astype(np.int16)
            sagittal = number >= 4
            made.append(
                image(
                    noise, Modality=modality, SeriesInstanceUID=f"1.2.{modality == 'CT':d}", SOPInstanceUID=f"1.3.{len(made)}",
                    ImageOrientationPatient=[0, 1, 0, 0, 0, 1] if sagittal else [1, 0, 0, 0, 1, 0],
                    ImagePositionPatient=[place, 0, 0] if sagittal else [0, 0, place], PixelSpacing=[1, 1],
                    **(HU if modality == "CT" else {}),
                )
            )  # fmt: skip
    frames = rng.integers(0, 900, (3, 48, 40)).astype(np.int16)
    made.append(image(frames, Modality="MR", SeriesInstanceUID="1.2.0", SOPInstanceUID="1.3.99"))
    return [as_bytes(one) for one in made]


def part_of(files: dict[str, bytes], folder: Path, **select: Any) -> tuple[bytes, list[Any]]:
    """The samples of a part and its rows, names of the source left out."""
    result = ingest_bytes(files, **select)
    written = PartFiles(folder, "part")
    write_part(written, result, 1.0)
    rows = sorted((replace(sample.row, source_id="") for sample in result.samples), key=lambda row: row.key)
    return written.samples.read_bytes(), rows


@settings(deadline=None, max_examples=12)
@given(st.permutations(range(13)))
def test_permuting_a_series_changes_nothing(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    files = a_series()
    assert len(files) == 13
    straight = {f"{number:02}.dcm": data for number, data in enumerate(files)}
    permuted = {f"{place:02}.dcm": files[number] for place, number in enumerate(order)}
    expected, rows = part_of(straight, tmp_path_factory.mktemp("straight"))
    samples, other = part_of(permuted, tmp_path_factory.mktemp("permuted"))
    assert len(rows) == 15
    assert other == rows
    assert samples == expected
    assert {row.slice_repeats for row in rows if row.plane == "axial"} == {1, 2}


@settings(deadline=None, max_examples=12)
@given(st.permutations(range(13)), st.sampled_from([{"stride": 2}, {"stride": 2, "max_slices": 2}, {"max_slices": 3}]))
def test_permuting_a_series_takes_the_same_slices(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], choice: dict[str, int]
) -> None:
    """Of two orientations, a repeated position and frames without one, and with those near to others marked."""
    files = a_series()
    straight = {f"{number:02}.dcm": data for number, data in enumerate(files)}
    permuted = {f"{place:02}.dcm": files[number] for place, number in enumerate(order)}
    select: dict[str, Any] = {"near_duplicates": "flag", "near_duplicate_bits": 24} | choice
    expected, rows = part_of(straight, tmp_path_factory.mktemp("straight"), **select)
    samples, other = part_of(permuted, tmp_path_factory.mktemp("permuted"), **select)
    assert 4 <= len(rows) < 15
    assert other == rows
    assert samples == expected


# ---- real series


def read_series(folder: Path) -> dict[str, list[tuple[Path, Geometry]]]:
    """Grey slices of every series below a folder that have a position, along their normal."""
    found = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True)
        except Exception:
            continue
        kinds = {str(kind) for kind in dataset.get("ImageType", [])}
        if dataset.get("SamplesPerPixel") == 1 and "LOCALIZER" not in kinds and "NumberOfFrames" not in dataset:
            where = geometry(FrameHeader(dataset, 0), str(dataset.Modality))
            if where.slice_position is not None:
                found[str(dataset.SeriesInstanceUID)].append((path, where))
    return {uid: sorted(items, key=lambda item: item[1].slice_position or 0) for uid, items in found.items()}


def straightness(slices: list[tuple[Path, Geometry]]) -> float:
    """Cosine between the normal and the way from the first slice's corner to the last's: 1 but for a tilted gantry."""
    first, last = (
        np.array(pydicom.dcmread(slices[at][0], stop_before_pixels=True).ImagePositionPatient, float) for at in (0, -1)
    )
    where = slices[0][1].placed
    assert where is not None
    return float(np.dot(where.normal, last - first) / np.linalg.norm(last - first))


@real
@pytest.mark.parametrize("name", SERIES)
def test_slices_are_in_the_order_of_gdcm(name: str) -> None:
    checked = 0
    for uid, slices in read_series(SERIES[name]).items():
        places = arrange([where.placed for _, where in slices])
        folder = slices[0][0].parent
        if len(slices) < 3 or any(path.parent != folder for path, _ in slices) or any(p.repeats != 1 for p in places):
            continue
        ordered = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), uid)
        ordered = [Path(path) for path in ordered if Path(path) in {path for path, _ in slices}]
        assert ordered == [path for path, _ in slices]
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames([str(path) for path in ordered])
        if not any(place.gap for place in places):
            spacing = reader.Execute().GetSpacing()
            first = slices[0][1]
            assert first.spacing_column == pytest.approx(spacing[0], rel=1e-5)
            assert first.spacing_row == pytest.approx(spacing[1], rel=1e-5)
            # of a tilted gantry SimpleITK takes the way between the corners, not the distance of the planes
            assert places[0].spacing == pytest.approx(spacing[2] * straightness(slices), rel=1e-3)
        checked += 1
    assert checked > 0


def dcm2niix(files: list[Path], scratch: Path) -> list[sitk.Image]:
    """What dcm2niix makes of files; not what it makes in addition, corrected for a tilt or for uneven spacing."""
    (scratch / "in").mkdir(parents=True)
    (scratch / "out").mkdir()
    for number, path in enumerate(files):
        shutil.copy(path, scratch / "in" / f"{number}.dcm")
    command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "x", "-o", scratch / "out", scratch / "in"]
    subprocess.run(command, check=True, capture_output=True)
    made = [
        path for path in sorted((scratch / "out").glob("*.nii")) if "_Tilt" not in path.name and "_Eq" not in path.name
    ]
    return [sitk.ReadImage(str(path)) for path in made]


@real
@needs_dcm2niix
def test_frames_of_enhanced_objects_lie_where_dcm2niix_says(tmp_path: Path) -> None:
    checked = 0
    for folder in ENHANCED:
        for path in sorted((SHARED / folder).rglob("*")):
            try:
                dataset = pydicom.dcmread(path, stop_before_pixels=True)
            except Exception:
                continue
            if "PerFrameFunctionalGroupsSequence" not in dataset:
                continue
            found = [geometry(FrameHeader(dataset, frame), "MR") for frame in range(int(dataset.NumberOfFrames))]
            places = arrange([where.placed for where in found])
            for volume in dcm2niix([path], tmp_path / str(checked)):
                assert volume.GetSize()[2] == len({place.index for place in places})
                stated = (found[0].spacing_column, found[0].spacing_row, places[0].spacing)
                np.testing.assert_allclose(volume.GetSpacing(), stated, rtol=1e-4)
                assert found[0].placed is not None
                along = [
                    float(np.dot(found[0].placed.normal, volume.TransformIndexToPhysicalPoint((0, 0, at))))
                    for at in range(volume.GetSize()[2])
                ]
                ours = sorted({(place.index, where.slice_position) for place, where in zip(places, found, strict=True)})
                np.testing.assert_allclose(sorted(along), [position for _, position in ours], atol=0.02)
            checked += 1
    assert checked > 10


@real
@needs_dcm2niix
@pytest.mark.parametrize("name", SERIES)
def test_geometry_is_that_of_dcm2niix(name: str, tmp_path: Path) -> None:
    """Of each series, its regular stacks: number of slices, spacing in all three directions, where the slices lie."""
    checked = 0
    for number, (_, slices) in enumerate(read_series(SERIES[name]).items()):
        places = arrange([where.placed for _, where in slices])
        if len(slices) < 3 or any(place.gap or place.repeats != 1 for place in places):
            continue
        (volume,) = dcm2niix([path for path, _ in slices], tmp_path / str(number))
        first = slices[0][1]
        assert volume.GetSize()[2] == len(slices)
        assert volume.GetSpacing()[0] == pytest.approx(first.spacing_column, rel=1e-4)
        assert volume.GetSpacing()[1] == pytest.approx(first.spacing_row, rel=1e-4)
        assert volume.GetSpacing()[2] == pytest.approx(places[0].spacing, rel=1e-3)
        if straightness(slices) > 0.9999:  # else a NIfTI without shear cannot say where they lie
            assert first.placed is not None
            along = [
                float(np.dot(first.placed.normal, volume.TransformIndexToPhysicalPoint((0, 0, at))))
                for at in range(len(slices))
            ]
            ours = [where.slice_position for _, where in slices]
            np.testing.assert_allclose(sorted(along), ours, atol=0.02)
        checked += 1
    assert checked > 0
