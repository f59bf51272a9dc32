"""A batch from end to end, and the account it gives of every frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lumid.catalog.catalog_files import CatalogFile
from lumid.catalog.codecs import decode
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.schema import RejectRow
from lumid.catalog.shards import read_range, read_samples
from lumid.pipeline import pack, pack_catalog
from lumid.pipeline.batches import Batch, large_first, make_batches
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.ingest import BatchResult, ingest
from lumid.pipeline.pack import (
    ExactDuplicates,
    Index,
    ShardPlan,
    build_index,
    group_parts,
    pack_shard,
    plan_shards,
    read_index,
)
from lumid.pipeline.pack_catalog import plan_catalog, plan_cuts, write_catalog_chunk, write_cut
from lumid.pipeline.parts import PartFiles, write_part
from lumid.pipeline.recipe import PixelSettings, Recipe, SelectSettings, SplitSettings
from lumid.pipeline.recipe_files import make_recipe
from lumid.pipeline.reject import Reject
from lumid.pipeline.sample import cap_listed
from lumid.pipeline.samples import assign_split
from lumid.pipeline.scan import group_series, listing_hash, scan
from lumid.pipeline.sources import ListedSource, open_listed
from tests.dicom import as_bytes, gradient, image

quiet_libraries()
KEYER = Keyer(PUBLIC_SECRET)
HU = {"RescaleSlope": 1, "RescaleIntercept": -1024}


def write(folder: Path, name: str, pixels: np.ndarray | None = None, **elements: Any) -> None:
    """A file with an instance UID of its own, made from its name, unless one is given."""
    uid = "1.2.3." + str(int.from_bytes(name.encode()[:6], "big"))
    data = as_bytes(image(gradient() if pixels is None else pixels, **({"SOPInstanceUID": uid} | HU | elements)))
    (folder / name).write_bytes(data)


def plain(folder: Path, **changes: Any) -> Recipe:
    recipe = make_recipe(folder, collection="test")
    source = recipe.sources[0].model_copy(update={"names": "plain"})
    return recipe.model_copy(update={"sources": (source,)} | changes)


def listed(recipe: Recipe) -> ListedSource:
    return open_listed(recipe.sources[0], recipe, KEYER)


def batches_of(recipe: Recipe) -> list[Batch]:
    source = open_listed(recipe.sources[0], recipe, KEYER)
    return make_batches(
        group_series(scan(source, source.objects(), KEYER, "public"), source.provenance),
        0,
        recipe.hash(),
        recipe.shards.batch_slices or 1000,
    )


def run(folder: Path, **changes: Any) -> BatchResult:
    recipe = plain(folder, **changes)
    (batch,) = batches_of(recipe)
    return ingest(batch, open_listed(recipe.sources[0], recipe, KEYER), recipe, KEYER)


def reasons(result: BatchResult) -> dict[str, str]:
    return {row.source_id: row.code for row in result.rejects}


def test_every_frame_of_a_multi_frame_object_is_a_sample(tmp_path: Path) -> None:
    frames = np.stack([gradient(high=500 + 100 * number) for number in range(5)])
    write(tmp_path, "multi", frames)
    result = run(tmp_path)
    assert (result.objects, result.planned, len(result.samples)) == (1, 5, 5)
    assert sorted(sample.row.frame for sample in result.samples) == [0, 1, 2, 3, 4]
    assert {sample.row.slice_count for sample in result.samples} == {5}
    for sample in result.samples:
        np.testing.assert_array_equal(
            decode(sample.image, sample.row.codec), np.clip(frames[sample.row.frame], 0, 4095)
        )


def test_a_part_is_sorted_by_key_and_the_key_is_that_of_the_instance(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    for number in range(12):
        write(tmp_path / "source", f"f{number}", SOPInstanceUID=f"1.2.{number}")
    files = PartFiles(tmp_path, "part")
    write_part(files, run(tmp_path / "source"), 1.0)
    keys = pq.read_table(files.rows)["key"].to_pylist()
    assert keys == sorted(KEYER.key(f"1.2.{number}", 0) for number in range(12))


def test_the_same_instance_twice_is_kept_once(tmp_path: Path) -> None:
    write(tmp_path, "a", SOPInstanceUID="1.2.9")
    write(tmp_path, "b", SOPInstanceUID="1.2.9", SeriesInstanceUID="1.2.777")
    result = run(tmp_path)
    assert len(result.samples) == 1
    assert reasons(result) == {"b": "duplicate_instance"}


def test_a_readable_copy_takes_the_place_of_a_broken_one(tmp_path: Path) -> None:
    write(tmp_path, "a", SOPInstanceUID="1.2.9", Rows=65)
    write(tmp_path, "b", SOPInstanceUID="1.2.9")
    result = run(tmp_path)
    assert [sample.row.source_id for sample in result.samples] == ["b"]
    assert reasons(result) == {"a": "wrong_length"}


def test_selection_has_a_reason_for_each(tmp_path: Path) -> None:
    write(tmp_path, "kept")
    write(tmp_path, "localizer", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write(tmp_path, "small", gradient(20, 20))
    write(tmp_path, "constant", np.full((64, 64), 7, np.int16))
    speck = np.zeros((64, 64), np.int16)
    speck[0, 0] = 1000
    write(tmp_path, "blank", speck)
    write(tmp_path, "seg", Modality="SEG")
    write(tmp_path, "us", Modality="US")
    write(tmp_path, "burned", BurnedInAnnotation="YES")
    write(tmp_path, "odd", Modality="SMITH")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text").write_text("no image")
    (tmp_path / "gone").symlink_to("nowhere")
    result = run(tmp_path, select=SelectSettings(modalities=("CT",)))
    assert [sample.row.source_id for sample in result.samples] == ["kept"]
    assert reasons(result) == {
        "localizer": "localizer", "small": "too_small", "constant": "constant", "blank": "blank", "seg": "not_an_image",
        "us": "modality_not_selected", "burned": "text_in_pixels", "odd": "unsupported_modality", "empty": "empty_file",
        "text": "not_dicom", "gone": "symlink_loop",
    }  # fmt: skip
    assert result.planned == result.objects == 12


def test_mr_series_share_one_range(tmp_path: Path) -> None:
    write(tmp_path, "a", gradient(dtype=np.uint16, high=400), Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    write(tmp_path, "b", gradient(dtype=np.uint16, high=4000), Modality="MR", RescaleSlope=None, RescaleIntercept=None)
    rows = {sample.row.source_id: sample.row for sample in run(tmp_path).samples}
    assert rows["a"].store_slope == rows["b"].store_slope
    assert rows["a"].store_intercept == rows["b"].store_intercept
    assert rows["a"].p99 < 500 < rows["b"].p99


def test_images_are_shrunk_to_the_long_side_and_spacing_follows(tmp_path: Path) -> None:
    write(tmp_path, "big", gradient(512, 256), PixelSpacing=[0.5, 0.5])
    write(tmp_path, "small", gradient(64, 48), PixelSpacing=[0.5, 0.5])
    rows = {sample.row.source_id: sample.row for sample in run(tmp_path).samples}
    assert (rows["big"].height, rows["big"].width, rows["big"].pixel_spacing_row) == (256, 128, 1.0)
    assert (rows["small"].height, rows["small"].width, rows["small"].pixel_spacing_row) == (64, 48, 0.5)
    assert (rows["big"].orig_rows, rows["big"].orig_columns) == (512, 256)


def test_a_failure_of_ours_is_one_reject_and_says_nothing_of_the_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, "a", PatientName="Doe^Jane")
    write(tmp_path, "b")

    def fail(*_: object) -> None:
        raise RuntimeError("Doe^Jane")

    monkeypatch.setattr("lumid.pipeline.samples.measure", fail)
    result = run(tmp_path)
    assert set(reasons(result).values()) == {"internal_error"}
    assert all("Jane" not in row.message and "RuntimeError" in row.message for row in result.rejects)


def test_batches_hold_whole_series_and_depend_on_their_input_only(tmp_path: Path) -> None:
    for number in range(9):
        write(tmp_path, f"f{number}", SeriesInstanceUID=f"1.2.{number // 3}")
    recipe = plain(tmp_path)
    recipe = recipe.model_copy(update={"shards": recipe.shards.model_copy(update={"batch_slices": 4})})
    batches = batches_of(recipe)
    assert [batch.objects for batch in batches] == [3, 3, 3]
    assert [batch.id for batch in batches] == [batch.id for batch in batches_of(recipe)]
    (tmp_path / "f0").write_bytes((tmp_path / "f0").read_bytes() + b"\0\0")
    assert len({batch.id for batch in batches} ^ {batch.id for batch in batches_of(recipe)}) == 2


def test_listing_hash_tells_a_change_of_the_folder(tmp_path: Path) -> None:
    write(tmp_path, "a")
    before = listing_hash(listed(plain(tmp_path)).objects())
    assert before == listing_hash(listed(plain(tmp_path)).objects())
    write(tmp_path, "b")
    assert before != listing_hash(listed(plain(tmp_path)).objects())


def test_keyed_names_hide_the_path_and_lead_the_owner_back_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "J SMITH 1961"
    folder.mkdir()
    write(folder, "slice")
    source = listed(make_recipe(tmp_path, collection="test"))
    (ref,) = source.objects()
    assert not isinstance(ref, tuple)
    assert "SMITH" not in ref.source_id
    assert "SMITH" not in repr(ref)
    assert source.paths()[ref.source_id] == folder / "slice"


def test_a_folder_that_leads_back_to_itself_is_read_once(tmp_path: Path) -> None:
    write(tmp_path, "a")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    found = listed(plain(tmp_path)).objects()
    loops = [item for item in found if isinstance(item, tuple)]
    assert len(found) == 2
    assert isinstance(loops[0][1], Reject)
    assert loops[0][1].code == "symlink_loop"


def test_splits_are_by_patient_and_near_their_share() -> None:
    drawn = [assign_split(f"patient {number}", SplitSettings(val=0.2, test=0.1), KEYER) for number in range(4000)]
    assert drawn == [
        assign_split(f"patient {number}", SplitSettings(val=0.2, test=0.1), KEYER) for number in range(4000)
    ]
    assert 0.17 < drawn.count("val") / 4000 < 0.23
    assert 0.07 < drawn.count("test") / 4000 < 0.13


def packed(folder: Path, target: Path, batch_slices: int, size_mb: float = 0.02) -> list[Path]:
    parts = parts_of(folder, target, batch_slices)
    index, duplicates = indexed(parts)
    assert duplicates == []
    plans = plan_shards(index, size_mb)
    for plan in plans:
        pack_shard(plan, [files.samples for files in parts], target / "shards", target / "receipts")
    write_catalog(parts, plans, target)
    return [target / "shards" / plan.name for plan in plans]


def indexed(parts: list[PartFiles], exact: ExactDuplicates = "keep") -> tuple[Index, list[RejectRow]]:
    return build_index([read_index(group, exact) for group in group_parts(parts)], parts, exact)


def write_catalog(parts: list[PartFiles], plans: list[ShardPlan], target: Path) -> list[CatalogFile]:
    groups, chunks = group_parts(parts), plan_catalog(plans)
    for cut in plan_cuts(groups, chunks):
        write_cut(cut, target / "cuts")
    firsts = [group.first for group in groups]
    return [write_catalog_chunk(chunk, firsts, target / "cuts", target / "catalog") for chunk in chunks]


def parts_of(folder: Path, target: Path, batch_slices: int, **select: Any) -> list[PartFiles]:
    recipe = plain(folder, select=SelectSettings(**select))
    recipe = recipe.model_copy(update={"shards": recipe.shards.model_copy(update={"batch_slices": batch_slices})})
    parts = []
    for batch in batches_of(recipe):
        files = PartFiles(target / "parts", batch.id)
        write_part(files, ingest(batch, open_listed(recipe.sources[0], recipe, KEYER), recipe, KEYER), 1.0)
        parts.append(files)
    return parts


@pytest.mark.parametrize(("group_rows", "group_parts"), [(1 << 16, 256), (7, 256), (1 << 16, 2), (1, 1)])
def test_shards_and_catalog_do_not_depend_on_how_the_work_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int, group_parts: int
) -> None:
    monkeypatch.setattr(pack_catalog, "CATALOG_CHUNK_ROWS", 12)
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    for number in range(30):
        write(
            source,
            f"f{number:02}",
            rng.integers(0, 2000, (64, 64)).astype(np.int16),
            SeriesInstanceUID=f"1.2.{number % 7}",
        )
    one = packed(source, tmp_path / "one", batch_slices=1000)
    monkeypatch.setattr(pack, "GROUP_ROWS", group_rows)
    monkeypatch.setattr(pack, "GROUP_PARTS", group_parts)
    many = packed(source, tmp_path / "many", batch_slices=3)
    assert len(one) > 3
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in many]
    files = sorted((tmp_path / "one" / "catalog").rglob("*.parquet"))
    other = sorted((tmp_path / "many" / "catalog").rglob("*.parquet"))
    assert len(files) == len(other) >= 3
    assert [pq.read_table(path) for path in files] == [pq.read_table(path) for path in other]


def test_offsets_of_the_catalog_lead_to_the_images(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for number in range(10):
        write(source, f"f{number}", gradient(high=400 + number))
    shards = packed(source, tmp_path, batch_slices=4)
    rows = pq.read_table(tmp_path / "catalog" / "modality=CT" / "part-00000.parquet").to_pylist()
    by_key = {key: (image, fields) for path in shards for key, image, fields in read_samples(path)}
    assert len(rows) == len(by_key) == 10
    for row in rows:
        with (tmp_path / "shards" / row["shard"]).open("rb") as file:
            data = read_range(file, row["offset"], row["length"])
        image_bytes, fields = by_key[row["key"]]
        assert data == image_bytes
        assert fields["store_intercept"] == row["store_intercept"] == -1024
        assert json.dumps(fields)


@pytest.mark.parametrize(
    ("sizes", "order"),
    [([], []), ([5], [0]), ([5, 5, 16, 5, 4, 99, 5], [2, 5, 0, 1, 3, 4, 6]), ([5, 5, 15, 5], [0, 1, 2, 3]), ([0, 0, 0], [0, 1, 2])],
)  # fmt: skip
def test_what_is_far_larger_than_most_is_handed_out_first(sizes: list[float], order: list[int]) -> None:
    assert large_first(sizes) == order


# ---- slices beside each other


def write_volume(folder: Path, slices: int, order: list[int], **elements: Any) -> None:
    """Slices at 0, 2.5, 5 … mm, each with its own pixels and instance, in files whose names follow ``order``."""
    rng = np.random.default_rng(1)
    pixels = [rng.integers(0, 2000, (64, 64)).astype(np.int16) for _ in range(slices)]
    for file, number in enumerate(order):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, 2.5 * number]}
        write(
            folder,
            f"{file:03}",
            pixels[number],
            SOPInstanceUID=f"1.2.{number}",
            InstanceNumber=number,
            **place,
            **elements,
        )


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize("seed", range(3))
def test_a_stride_and_a_cap_take_the_same_slices_whatever_the_files_order(
    tmp_path: Path, seed: int, modality: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_volume(tmp_path, 24, np.random.default_rng(seed).permutation(24).tolist(), Modality=modality)
    if seed == 2:  # nothing is kept between the passes
        monkeypatch.setattr("lumid.pipeline.ingest.CACHE_BYTES", 0)
    result = run(tmp_path, select=SelectSettings(stride=2, max_slices=4))
    positions = sorted(sample.row.slice_position or 0 for sample in result.samples)
    assert positions == [7.5, 22.5, 37.5, 52.5]
    assert result.planned == 24
    assert sorted(reasons(result).values()) == ["series_cap"] * 8 + ["stride"] * 12
    assert {sample.row.slice_count for sample in result.samples} == {4}
    whole = run(tmp_path)
    kept = {sample.row.key: sample.row.pixel_hash for sample in whole.samples}
    assert all(kept[sample.row.key] == sample.row.pixel_hash for sample in result.samples), "the range is the series'"


def test_frames_of_one_object_are_chosen_too_and_the_rest_is_one_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(tmp_path, "multi", rng.integers(0, 900, (10, 64, 64)).astype(np.int16))
    result = run(tmp_path, select=SelectSettings(max_slices=3))
    assert sorted(sample.row.frame for sample in result.samples) == [1, 5, 8]
    assert [(row.code, row.frame, row.frames) for row in result.rejects] == [("series_cap", None, 7)]
    assert result.planned == 10


def test_copies_of_an_instance_are_told_when_slices_are_chosen(tmp_path: Path) -> None:
    write_volume(tmp_path, 6, list(range(6)))
    (tmp_path / "copy").write_bytes((tmp_path / "001").read_bytes())
    write(tmp_path, "009", SOPInstanceUID="1.2.777", Rows=65)  # does not decode
    write(tmp_path, "010", SOPInstanceUID="1.2.777")
    result = run(tmp_path, select=SelectSettings(stride=1, max_slices=100))
    assert len(result.samples) == 7
    assert reasons(result) == {"copy": "duplicate_instance", "009": "wrong_length"}


def test_near_duplicates_are_flagged_or_dropped_whatever_the_order(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = gradient(64, 64, np.int32, 1500) + 400 * (np.hypot(*(np.mgrid[:64, :64] - 20)) < 9)
    for number, pixels in enumerate([base, base[::-1], base, base + rng.normal(0, 2, base.shape), base[:, ::-1]]):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, float(number)]}
        write(tmp_path, f"f{5 - number}", pixels.astype(np.int16), SOPInstanceUID=f"1.2.{number}", **place)
    names = {KEYER.key(f"1.2.{number}", 0): number for number in range(5)}

    def repeats(**settings: Any) -> dict[int, int]:
        samples = run(tmp_path, select=SelectSettings(near_duplicate_bits=4, **settings)).samples
        return {
            names[one.row.key]: names[one.row.near_duplicate_of]
            for one in samples
            if one.row.near_duplicate_of is not None
        }

    assert repeats() == {2: 0, 3: 0}
    assert repeats(near_duplicates="keep") == {}
    dropped = run(tmp_path, select=SelectSettings(near_duplicate_bits=4, near_duplicates="drop"))
    assert sorted(names[one.row.key] for one in dropped.samples) == [0, 1, 4]
    assert reasons(dropped) == {"f3": "near_duplicate", "f2": "near_duplicate"}
    assert {one.row.slice_count for one in dropped.samples} == {3}


@pytest.mark.parametrize("batch_slices", [1, 4, 1000])
def test_the_same_pixels_are_told_in_the_whole_data_set(tmp_path: Path, batch_slices: int) -> None:
    source = tmp_path / "source"
    source.mkdir()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 2000, (64, 64)).astype(np.int16) for _ in range(5)]
    for number in range(12):
        write(
            source,
            f"f{number:02}",
            images[number % 5],
            SOPInstanceUID=f"1.2.{number}",
            SeriesInstanceUID=f"1.3.{number}",
        )
    keys = {KEYER.key(f"1.2.{number}", 0): number for number in range(12)}
    first: dict[int, str] = {}
    twins = {key: first[keys[key] % 5] for key in sorted(keys) if first.setdefault(keys[key] % 5, key) != key}
    parts = parts_of(source, tmp_path, batch_slices)

    index, rejects = indexed(parts, "flag")
    assert rejects == []
    assert {key.decode(): twin.decode() for key, twin in zip(index.keys, index.twin, strict=True) if twin} == twins
    write_catalog(parts, plan_shards(index, 1.0), tmp_path)
    rows = pq.read_table(tmp_path / "catalog" / "modality=CT" / "part-00000.parquet").to_pylist()
    assert {row["key"]: row["duplicate_of"] for row in rows if row["duplicate_of"]} == twins

    index, rejects = indexed(parts, "drop")
    assert [key.decode() for key in index.keys] == sorted(keys.keys() - twins.keys())
    assert sorted(row.source_id for row in rejects) == sorted(f"f{keys[key]:02}" for key in twins)
    assert {(row.code, row.frames) for row in rejects} == {("exact_duplicate", 1)}
    assert len(indexed(parts)[0]) == 12


def test_a_cap_on_series_leaves_whole_series_unread(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path, f"f{number:02}", SOPInstanceUID=f"1.2.{number}", SeriesInstanceUID=f"1.3.{number // 2}")
    write(tmp_path, "multi", np.stack([gradient()] * 3), SOPInstanceUID="1.2.77", SeriesInstanceUID="1.3.77")
    (tmp_path / "notes").write_text("no image")
    source = listed(plain(tmp_path))
    series = group_series(scan(source, source.objects(), KEYER, "public"), source.provenance)

    def left(most: int | None) -> set[str]:
        capped = cap_listed(series, most, KEYER)
        assert [one.id for one in capped] == [one.id for one in series]
        return {one.id for one in capped if any(m.reject and m.reject.code == "collection_cap" for m in one.members)}

    assert [len(left(most)) for most in (None, 9, 7, 4, 1)] == [0, 0, 0, 3, 6]
    assert left(4) < left(1)
    assert left(4) == {one.id for one in cap_listed(series[::-1], 4, KEYER) if one.members[0].reject}

    recipe = plain(tmp_path)
    (batch,) = make_batches(cap_listed(series, 1, KEYER), 0, recipe.hash(), 1000)
    result = ingest(batch, source, recipe, KEYER)
    assert result.objects == 14
    assert result.planned == 12 + 3 + 1
    assert [row.code for row in result.rejects].count("not_dicom") == 1
    capped = [row for row in result.rejects if row.code == "collection_cap"]
    assert len({sample.row.series for sample in result.samples}) == 1
    assert sum(row.frames for row in capped) + len(result.samples) == 15


def test_quality_columns_are_in_the_rows_unit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noisy = np.clip(1064 + rng.normal(0, 20, (128, 128)), 0, 5000)
    noisy[:8] = 5000  # brighter than the scale
    noisy[-8:] = 0  # air
    write(tmp_path, "ct", noisy.astype(np.int16))
    write(tmp_path, "mr", (noisy // 2).astype(np.int16), Modality="MR", SeriesInstanceUID="1.3", RescaleSlope=4,
          RescaleIntercept=0)  # fmt: skip
    rows = {sample.row.source_id: sample.row for sample in run(tmp_path).samples}
    assert rows["ct"].noise == pytest.approx(20, rel=0.1)
    assert rows["ct"].clipped_fraction == 8 / 128
    assert rows["mr"].noise == pytest.approx(40, rel=0.1)
    assert rows["ct"].p50 == pytest.approx(40, abs=2)


def test_a_scale_that_cannot_be_right_is_a_reject(tmp_path: Path) -> None:
    write(tmp_path, "ct", gradient(high=900), RescaleIntercept=900)
    result = run(tmp_path)
    assert reasons(result) == {"ct": "implausible"}
    assert "HU" in result.rejects[0].message
    assert len(run(tmp_path, select=SelectSettings(implausible="take")).samples) == 1


def test_native_size_keeps_every_pixel(tmp_path: Path) -> None:
    write(tmp_path, "big", gradient(700, 300), PixelSpacing=[0.5, 0.5])
    for size, expected in (("native", (700, 300)), (224, (224, 96)), (512, (512, 219))):
        (sample,) = run(tmp_path, pixels=PixelSettings(size=size)).samples
        assert (sample.row.height, sample.row.width) == expected
        assert decode(sample.image, sample.row.codec).shape == expected
