from __future__ import annotations

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumid.catalog.codecs import Codec
from lumid.catalog.errors import DatasetError
from lumid.catalog.findings import DamagedShard, Verification
from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.lock import LOCK, load_lock, lock_hash
from lumid.catalog.query import read_catalog
from lumid.catalog.shards import BLOCK, END_OF_TAR, member
from lumid.catalog.verify import verify
from tests.catalog.sound import (
    catalog_files,
    change_cell,
    change_manifest,
    change_shard,
    change_table,
    flip,
    hash_of_catalog,
    make_sound,
)

SAMPLES = 12


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound data set of twelve samples in two shards; tests must not change it."""
    return make_sound(tmp_path_factory.mktemp("sound") / "ds")


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    """A copy of it, to damage."""
    return Path(shutil.copytree(sound, tmp_path / "ds"))


def codes(found: Verification) -> set[str]:
    return {finding.code for finding in found.findings}


def shard_path(root: Path, number: int = 0) -> Path:
    return Layout(root).shards / f"lumid-{number:06d}.tar"


def rows_of(root: Path, number: int = 0) -> list[dict[str, Any]]:
    return read_catalog(root, f"shard = 'lumid-{number:06d}.tar'").to_pylist()


# ---- sound


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("workers", [1, 3])
def test_a_sound_data_set_gives_no_finding(sound: Path, deep: bool, workers: int) -> None:
    found = verify(sound, deep=deep, workers=workers)
    assert found.findings == ()
    assert found.sound
    assert found.damaged == ()
    assert (found.counts.shards, found.counts.samples, found.counts.catalog_rows) == (2, SAMPLES, SAMPLES)
    assert found.counts.images_decoded == (SAMPLES if deep else 0)
    assert found.counts.bytes == sum(shard.bytes for shard in read_manifest(sound).shards)


def test_a_data_set_without_samples_is_sound(tmp_path: Path) -> None:
    root = make_sound(tmp_path / "ds", n=0)
    Layout(root).catalog.mkdir(exist_ok=True)
    assert verify(root, deep=True).findings == ()


@pytest.mark.parametrize("shards", [1, 5])
def test_a_catalog_in_chunks_is_sound(tmp_path: Path, shards: int) -> None:
    """As builds of more than half a million samples write it: consecutive shards to a file."""
    root = make_sound(tmp_path / "ds", n=30, shards=shards)
    for path in catalog_files(root):
        table = pq.read_table(path, partitioning=None)
        late = pc.greater(table["shard"], "lumid-000002.tar")
        for number, mask in enumerate((pc.invert(late), late)):
            if table.filter(mask).num_rows:
                pq.write_table(table.filter(mask), path.with_name(f"part-{number:05d}.parquet"))
    change_manifest(root, catalog_hash=hash_of_catalog(root))
    assert verify(root, deep=True, workers=2).findings == ()
    flip(shard_path(root, shards - 1), rows_of(root, shards - 1)[0]["offset"])
    assert len(verify(root).damaged_keys[f"lumid-{shards - 1:06d}.tar"]) == 1


def test_progress_ends_at_its_total(copy: Path) -> None:
    for deep, damaged in ((False, False), (True, False), (False, True), (True, True)):
        if damaged:
            shard_path(copy).unlink(missing_ok=True)
        seen: list[tuple[int, int]] = []
        verify(copy, deep=deep, workers=2, progress=lambda done, total: seen.append((done, total)))  # noqa: B023
        done = [one for one, _ in seen]
        assert done == sorted(done)
        assert len({total for _, total in seen}) == 1
        assert damaged or done[-1] == seen[-1][1]


# ---- shards


def extents(root: Path, number: int) -> list[tuple[str, int, int]]:
    """Key, begin and end of every sample of a shard, as a plain tar reader finds them."""
    with tarfile.open(shard_path(root, number)) as archive:
        members = archive.getmembers()
    found = []
    for image, text in zip(members[::2], members[1::2], strict=True):
        end = text.offset_data + -(-text.size // BLOCK) * BLOCK
        found.append((image.name.partition(".")[0], image.offset, end))
    return found


@given(shard=st.integers(0, 1), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_flipped_bit_is_found_and_blamed_on_its_sample(sound: Path, shard: int, where: float, bit: int) -> None:
    path = shard_path(sound, shard)
    byte = int(where * path.stat().st_size)
    flip(path, byte, bit)
    try:
        found = verify(sound, workers=2)
        try:
            with tarfile.open(path) as archive:
                readable = len(archive.getnames()) == SAMPLES
        except tarfile.TarError:
            readable = False
    finally:
        flip(path, byte, bit)
    assert not found.sound
    blamed = tuple(key for key, begin, end in extents(sound, shard) if begin <= byte < end)
    assert [(one.name, one.keys) for one in found.damaged] == [(path.name, blamed)]
    if found.damaged[0].framing == "intact":
        assert readable
    assert "shard_hash" in codes(found)


@pytest.mark.parametrize(
    ("place", "kind", "framing"),
    [
        (lambda row: row["offset"] + 40, "image", "intact"),
        (lambda row: row["offset"] + -(-row["length"] // BLOCK) * BLOCK + BLOCK + 3, "JSON", "intact"),
        (lambda row: row["offset"] - BLOCK + 5, "tar member", "broken"),
        (lambda row: row["offset"] + -(-row["length"] // BLOCK) * BLOCK + 130, "tar member", "broken"),
    ],
)
def test_what_a_flipped_bit_has_hit(
    copy: Path, place: Callable[[dict[str, Any]], int], kind: str, framing: str
) -> None:
    row = rows_of(copy, 1)[2]
    flip(shard_path(copy, 1), place(row))
    for deep in (False, True):
        found = verify(copy, deep=deep)
        assert found.damaged == (DamagedShard("lumid-000001.tar", (row["key"],), framing),)  # type: ignore[arg-type]
        (finding,) = [finding for finding in found.findings if finding.code == "sample_damaged"]
        assert f"1 × {kind}" in finding.what
        assert row["key"] in finding.what
        assert ("framing_broken" in codes(found)) == (framing == "broken")


@pytest.mark.parametrize("cut", ["in the third image", "before the third sample", "end of archive", "all of it"])
def test_a_truncated_shard(copy: Path, cut: str) -> None:
    path, rows = shard_path(copy), rows_of(copy)
    lengths = {
        "in the third image": rows[2]["offset"] + 10,
        "before the third sample": rows[2]["offset"] - BLOCK,
        "end of archive": path.stat().st_size - len(END_OF_TAR),
        "all of it": 0,
    }
    os.truncate(path, lengths[cut])
    found = verify(copy, deep=True)
    left = {"end of archive": 6, "all of it": 0}.get(cut, 2)
    assert found.damaged == (DamagedShard(path.name, tuple(row["key"] for row in rows[left:]), "broken"),)
    assert "shard_size" in codes(found)
    assert not found.sound


def test_a_longer_shard(copy: Path) -> None:
    with shard_path(copy).open("ab") as file:
        file.write(bytes(BLOCK))
    found = verify(copy)
    assert codes(found) == {"shard_size", "framing_broken"}
    assert found.damaged_keys == {"lumid-000000.tar": ()}


def test_a_missing_shard_counts_all_its_samples(copy: Path) -> None:
    shard_path(copy, 1).unlink()
    found = verify(copy)
    assert codes(found) == {"shard_missing"}
    assert found.damaged == (
        DamagedShard("lumid-000001.tar", tuple(row["key"] for row in rows_of(copy, 1)), "missing"),
    )


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_something_else_in_place_of_a_shard(copy: Path, make: Callable[[Path], None]) -> None:
    shard_path(copy, 1).unlink()
    make(shard_path(copy, 1))
    found = verify(copy)
    assert "shard_unreadable" in codes(found)
    assert found.damaged[0].framing == "missing"


def test_two_shards_that_have_changed_places(copy: Path) -> None:
    one, other = shard_path(copy, 0), shard_path(copy, 1)
    one.rename(copy / "aside")
    other.rename(one)
    (copy / "aside").rename(other)
    found = verify(copy)
    assert sorted(key for keys in found.damaged_keys.values() for key in keys) == read_catalog(copy)["key"].to_pylist()


# ---- files


def test_files_that_no_build_wrote(copy: Path) -> None:
    shutil.copy(shard_path(copy), copy / "shards" / "lumid-000009.tar")
    assert codes(verify(copy)) == {"stray_file"}
    assert not verify(copy).sound
    (copy / "shards" / "lumid-000009.tar").unlink()
    (copy / "shards" / "notes.txt").write_text("mine")
    found = verify(copy)
    assert [(finding.severity, finding.where) for finding in found.findings] == [("warning", "shards/notes.txt")]
    assert found.sound


def test_a_copied_catalog_file(copy: Path) -> None:
    path = catalog_files(copy)[0]
    shutil.copy(path, path.with_name("part-00001.parquet"))
    assert {"catalog_count", "catalog_hash", "catalog_order"} <= codes(verify(copy))
    path.with_name("part-00001.parquet").rename(path.with_name("copy.parquet"))
    assert codes(verify(copy)) == {"stray_file"}  # every query would read it


@pytest.mark.parametrize(
    ("name", "severity"), [("CITATION.bib", "damage"), ("LICENSES.md", "damage"), ("report.html", "warning")]
)
def test_missing_pages(copy: Path, name: str, severity: str) -> None:
    (copy / name).unlink()
    (finding,) = verify(copy).findings
    assert (finding.code, finding.where, finding.severity) == ("file_missing", name, severity)


# ---- the catalog


@pytest.mark.parametrize(
    ("column", "change", "expected"),
    [
        ("offset", lambda value: value + BLOCK, "catalog_header"),
        ("offset", lambda value: value + 1, "catalog_range"),
        ("offset", lambda _: 1 << 62, "catalog_range"),
        ("offset", lambda _: -5, "catalog_range"),
        ("length", lambda value: value - 1, "catalog_header"),
        ("length", lambda _: (1 << 63) - 1, "catalog_range"),
        ("length", lambda _: 0, "catalog_range"),
        ("codec", lambda _: "jhc", "catalog_header"),
        ("key", lambda value: value[::-1], "catalog_header"),
        ("key", lambda _: "0" * 24, "catalog_order"),
        ("shard", lambda _: "lumid-000077.tar", "catalog_shard"),
        ("shard", lambda value: f"lumid-{1 - int(value[6:12]):06d}.tar", "catalog_count"),
        ("sha256", lambda value: value[::-1], "catalog_hash"),
        ("body_part", lambda _: "FOOT", "catalog_hash"),
        ("age_years", lambda _: None, "catalog_hash"),
        ("p50", lambda value: value + 1e-9, "catalog_hash"),
        ("license", lambda _: "CC0", "lock_provenance"),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_changed_row(copy: Path, column: str, change: Callable[[Any], Any], expected: str, deep: bool) -> None:
    change_cell(catalog_files(copy)[0], column, change, row=1)
    found = verify(copy, deep=deep)
    assert {"catalog_hash", expected} <= codes(found)
    assert found.damaged == ()


@pytest.mark.parametrize(
    "change",
    [
        lambda table: table.slice(1),
        lambda table: pa.concat_tables([table, table.slice(0, 1)]),
        lambda table: table.take(pa.array([1, 0, *range(2, table.num_rows)])),
    ],
)
def test_rows_lost_doubled_or_in_another_order(copy: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    change_table(catalog_files(copy)[1], change)
    assert "catalog_hash" in codes(verify(copy))


def test_a_missing_catalog_file(copy: Path) -> None:
    catalog_files(copy)[0].unlink()
    found = verify(copy)
    assert {"catalog_hash", "catalog_count"} <= codes(found)
    flip(shard_path(copy), rows_of(copy)[0]["offset"])  # of a sample that is still in the catalog
    assert verify(copy).damaged_keys == {"lumid-000000.tar": (rows_of(copy)[0]["key"],)}


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_cut_off_catalog_file(copy: Path, part: float) -> None:
    path = catalog_files(copy)[0]
    os.truncate(path, int(part * path.stat().st_size))
    found = verify(copy)
    assert {"catalog_unreadable", "catalog_count", "catalog_hash"} <= codes(found)
    assert found.damaged == ()


def test_a_catalog_file_with_other_columns(copy: Path) -> None:
    change_table(catalog_files(copy)[0], lambda table: table.drop_columns(["sharpness"]))
    assert "catalog_unreadable" in codes(verify(copy))


@given(byte=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_in_the_catalog_changes_a_row_unseen(sound: Path, byte: float, bit: int) -> None:
    """Bits that carry no value (statistics, the writer's name) may go unseen; it must not crash either."""
    path = catalog_files(sound)[0]
    before = read_catalog(sound)
    place = int(byte * path.stat().st_size)
    flip(path, place, bit)
    try:
        found = verify(sound, deep=True)
        try:
            same = read_catalog(sound).equals(before)
        except Exception:
            same = False
    finally:
        flip(path, place, bit)
    assert same or not found.sound


# ---- rejects and lock


def test_a_removed_reject(copy: Path) -> None:
    change_table(copy / "rejects" / "part-00000.parquet", lambda table: table.slice(1))
    (finding,) = verify(copy).findings
    assert finding.code == "account"
    assert "localizer 1 instead of 2" in finding.what


def test_rejects_that_nobody_planned(copy: Path) -> None:
    path = copy / "rejects" / "part-00000.parquet"
    change_cell(path, "collection", lambda _: "elsewhere")
    assert codes(verify(copy)) == {"lock_provenance"}
    change_cell(path, "collection", lambda _: "lung_trial")
    change_cell(path, "series", lambda _: "f" * 16)
    assert codes(verify(copy)) == {"lock_series"}
    path.unlink()
    assert codes(verify(copy)) == {"rejects_unreadable"}


def test_a_changed_lock(copy: Path) -> None:
    path = Layout(copy).lock
    change_cell(path, "digest", lambda value: value[::-1], row=1)
    assert codes(verify(copy)) == {"lock_hash"}
    change_manifest(copy, lock_hash=lock_hash(load_lock(path)))
    assert verify(copy).sound
    change_table(path, lambda table: table.filter(pc.not_equal(table["modality"], "MR")))
    change_manifest(copy, lock_hash=lock_hash(load_lock(path)))
    (finding,) = verify(copy).findings
    assert finding.code == "lock_provenance"
    assert "prostate_trial / folder / CC BY-NC 4.0 / 10.7937/K9/TCIA.2017.BBBB" in finding.what


@pytest.mark.parametrize("how", ["missing", "cut off", "another table"])
def test_no_lock(copy: Path, how: str) -> None:
    path = Layout(copy).lock
    if how == "missing":
        path.unlink()
    elif how == "cut off":
        os.truncate(path, 100)
    else:
        shutil.copy(copy / "rejects" / "part-00000.parquet", path)
    assert codes(verify(copy)) == {"lock_unreadable"}


def test_the_lock_is_the_one_that_builds_are_made_from(sound: Path) -> None:
    from lumid.pipeline import lock as pipeline_lock

    assert pipeline_lock.LOCK.equals(LOCK)
    assert pipeline_lock.lock_hash(load_lock(Layout(sound).lock)) == read_manifest(sound).lock_hash


# ---- dataset.json


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"catalog_hash": "0" * 64}, "catalog_hash"),
        ({"lock_hash": "0" * 64}, "lock_hash"),
        ({"recipe_hash": "0" * 64}, "recipe_hash"),
        ({"recipe": {"name": "other"}}, "recipe_hash"),
        ({"modalities": {"CT": 5, "MR": 3, "US": 4}}, "catalog_count"),
        ({"modalities": {"CT": 4, "MR": 4, "US": 3, "PT": 1}}, "catalog_count"),
        ({"rejects": {"blank": 2, "localizer": 1, "not_an_image": 3}}, "account"),
        ({"counts": {"objects": 16, "planned": 18, "kept": 13, "rejected": 6}}, "account"),
        ({"counts": {"objects": 16, "planned": "18", "kept": 12, "rejected": 6}}, "manifest_damaged"),
        ({"shards": []}, "stray_file"),
        ({"recipe": None}, "manifest_damaged"),
        ({"surprise": 1}, "manifest_damaged"),
    ],
)
def test_another_manifest(copy: Path, values: dict[str, Any], expected: str) -> None:
    change_manifest(copy, **values)
    found = verify(copy)
    assert expected in codes(found)
    assert not found.sound
    assert found.damaged == ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"samples": 7}, "account"),
        ({"first_key": "0" * 24}, "catalog_order"),
        ({"last_key": "f" * 24}, "manifest_damaged"),
        ({"name": "../shards/lumid-000000.tar"}, "manifest_damaged"),
        ({"bytes": 5.5}, "manifest_damaged"),
        ({"sha256": "0" * 64}, "manifest_damaged"),
    ],
)
def test_another_shard_in_the_manifest(copy: Path, values: dict[str, Any], expected: str) -> None:
    change_shard(copy, 0, **values)
    found = verify(copy)
    assert expected in codes(found)
    assert found.damaged_keys == {}


def test_an_unreadable_manifest(copy: Path) -> None:
    text = Layout(copy).manifest.read_text()
    Layout(copy).manifest.write_text(text[: len(text) // 2])
    found = verify(copy)
    assert codes(found) == {"manifest_damaged"}
    assert not found.sound


def test_what_cannot_be_verified(copy: Path) -> None:
    change_manifest(copy, format_version=99)
    with pytest.raises(DatasetError, match="update lumid"):
        verify(copy)
    Layout(copy).manifest.unlink()
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        verify(copy)


# ---- deep: a shard whose hash is right, and whose samples are not what their rows say


def replace_sample(
    root: Path, key: str, image: bytes | None = None, text: Callable[[bytes], bytes] = lambda t: t
) -> None:
    """Write a shard again with another image or JSON in one sample, of the same size; its hash made right."""
    path = shard_path(root)
    data = io.BytesIO()
    with tarfile.open(path) as archive:
        for info in archive:
            stream = archive.extractfile(info)
            assert stream is not None
            content = stream.read()
            if info.name.startswith(key):
                content = text(content) if info.name.endswith(".json") else image or content
            data.write(member(info.name, content))
    data.write(END_OF_TAR)
    assert len(data.getvalue()) == path.stat().st_size
    path.write_bytes(data.getvalue())
    change_shard(root, 0, sha256=hashlib.sha256(data.getvalue()).hexdigest())


def assert_only_deep_finds(root: Path, kind: str) -> None:
    assert verify(root).findings == ()
    found = verify(root, deep=True)
    (finding,) = found.findings
    assert finding.code == "row_mismatch"
    assert f"1 × {kind}" in finding.what


def test_deep_wants_the_json_as_it_is_written(copy: Path) -> None:
    row = rows_of(copy)[1]
    replace_sample(copy, row["key"], text=lambda content: content.replace(b'"sex":', b'"sex": '))
    assert_only_deep_finds(copy, "JSON")


def test_deep_compares_json_and_row(copy: Path) -> None:
    row = next(row for row in rows_of(copy) if row["sex"] == "F")
    replace_sample(copy, row["key"], text=lambda content: content.replace(b'"sex":"F"', b'"sex":"M"'))
    assert_only_deep_finds(copy, "JSON")


def test_deep_compares_image_and_row(copy: Path) -> None:
    row = rows_of(copy)[1]
    with tarfile.open(shard_path(copy)) as archive:
        stream = archive.extractfile(f"{row['key']}.png")
        assert stream is not None
        image = bytearray(stream.read())
    image[len(image) // 2] ^= 1
    replace_sample(copy, row["key"], image=bytes(image))
    assert_only_deep_finds(copy, "image")


@pytest.mark.parametrize(
    ("column", "change"),
    [
        ("pixel_hash", lambda value: value[::-1]),
        ("width", lambda value: value + 1),
        ("height", lambda value: value - 1),
        ("bits", lambda value: 24 - value),
        ("channels", lambda value: 4 - value),
    ],
)
def test_deep_decodes_every_image(copy: Path, column: str, change: Callable[[Any], Any]) -> None:
    """The row's fault, made before its hash: what a build that wrote wrong rows would look like."""
    path = catalog_files(copy)[0]
    change_cell(path, column, change)
    key, shard = (pq.read_table(path, partitioning=None)[name][0].as_py() for name in ("key", "shard"))
    change_manifest(copy, catalog_hash=hash_of_catalog(copy))
    assert verify(copy).findings == ()
    (finding,) = verify(copy, deep=True).findings
    assert (finding.code, finding.where) == ("row_mismatch", f"shards/{shard}")
    assert key in finding.what


def test_deep_refuses_what_is_no_image(copy: Path) -> None:
    row = rows_of(copy)[0]
    blob = np.random.default_rng(0).bytes(row["length"])
    replace_sample(copy, row["key"], image=blob)
    for path in catalog_files(copy):
        table = pq.read_table(path, partitioning=None)
        if row["key"] in table["key"].to_pylist():
            place = table["key"].to_pylist().index(row["key"])
            change_cell(path, "sha256", lambda _: hashlib.sha256(blob).hexdigest(), row=place)
    change_manifest(copy, catalog_hash=hash_of_catalog(copy))
    assert_only_deep_finds(copy, "pixels")


@pytest.mark.parametrize("codec", ["png", "jhc"])
def test_both_codecs_are_decoded(tmp_path: Path, codec: Codec) -> None:
    root = make_sound(tmp_path / "ds", n=6, codec=codec)
    assert set(read_catalog(root)["codec"].to_pylist()) == {codec}
    assert verify(root, deep=True).findings == ()
