"""A batch from end to end, and the account it gives of every frame."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lumid.catalog.codecs import decode
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.shards import read_range, read_samples
from lumid.pipeline.batches import Batch, make_batches
from lumid.pipeline.decode import quiet_libraries
from lumid.pipeline.ingest import BatchResult, assign_split, ingest
from lumid.pipeline.pack import (
    build_index,
    pack_shard,
    plan_catalog,
    plan_shards,
    write_catalog_chunk,
)
from lumid.pipeline.parts import PartFiles, write_part
from lumid.pipeline.recipe import Recipe, SelectSettings, SplitSettings, make_recipe
from lumid.pipeline.reject import Reject
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
        recipe.shards.batch_slices,
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
        np.testing.assert_array_equal(decode(sample.image, "png"), np.clip(frames[sample.row.frame], 0, 4095))


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

    monkeypatch.setattr("lumid.pipeline.ingest.measure", fail)
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
    recipe = plain(folder)
    recipe = recipe.model_copy(update={"shards": recipe.shards.model_copy(update={"batch_slices": batch_slices})})
    parts = []
    for batch in batches_of(recipe):
        files = PartFiles(target / "parts", batch.id)
        write_part(files, ingest(batch, open_listed(recipe.sources[0], recipe, KEYER), recipe, KEYER), 1.0)
        parts.append(files)
    index, duplicates = build_index(parts)
    assert duplicates == []
    plans = plan_shards(index, size_mb)
    for plan in plans:
        pack_shard(plan, parts, target / "shards")
    for chunk in plan_catalog(plans):
        write_catalog_chunk(chunk, parts, target / "catalog")
    return [target / "shards" / plan.name for plan in plans]


def test_shards_do_not_depend_on_how_the_work_was_cut(tmp_path: Path) -> None:
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
    many = packed(source, tmp_path / "many", batch_slices=3)
    assert len(one) > 3
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in many]
    files = sorted((tmp_path / "one" / "catalog").rglob("*.parquet"))
    other = sorted((tmp_path / "many" / "catalog").rglob("*.parquet"))
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
