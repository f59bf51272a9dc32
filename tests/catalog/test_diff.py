from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tests.factory as factory
from lumid.catalog.diff import STATUSES, Change, Sharing, diff
from lumid.catalog.errors import DatasetError
from lumid.catalog.keys import Keyer
from lumid.catalog.layout import Layout, read_manifest, write_table
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import CATALOG
from tests.catalog.sound import catalog_files, change_cell, change_manifest, change_table, make_sound


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sound(tmp_path_factory.mktemp("sound") / "ds")


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "ds"))


def counts(sharing: Sharing) -> dict[str, int]:
    return {status: getattr(sharing, status) for status in STATUSES if getattr(sharing, status)}


def test_a_data_set_equals_itself_and_its_copy(sound: Path, copy: Path) -> None:
    found = diff(sound, copy)
    assert found.equal
    assert counts(found.total) == {"same": 12}
    assert [(one.name, one.same) for one in found.by_modality] == [("CT", 4), ("MR", 4), ("US", 4)]
    assert [(one.name, one.in_a, one.in_b) for one in found.by_collection] == [
        ("clinic", 4, 4), ("lung_trial", 4, 4), ("prostate_trial", 4, 4),
    ]  # fmt: skip
    assert found.recipe == found.versions == found.rejects == found.hashes == ()
    assert found.locks is not None
    assert (found.locks.shared, found.locks.changed, found.locks.only_a, found.locks.only_b) == (4, (), (), ())


def test_a_larger_one_and_a_smaller_one(sound: Path, tmp_path: Path) -> None:
    """Other shards and another order, and the samples that both have are the same."""
    larger = make_sound(tmp_path / "larger", n=30, shards=3)
    found, reverse = diff(sound, larger), diff(larger, sound)
    # the pictures come from one stream of random numbers, so the first twelve are the same
    assert counts(found.total) == {"same": 12, "only_b": 18}
    assert counts(reverse.total) == {"same": 12, "only_a": 18}
    assert found.total.in_a == 12
    assert found.total.in_b == 30
    assert not found.equal
    assert found.locks is not None
    assert (found.locks.shared, len(found.locks.only_a), len(found.locks.only_b)) == (4, 0, 6)
    assert {collection for collection, _ in found.locks.only_b} == {"lung_trial", "prostate_trial", "clinic"}


def test_other_pixels_under_the_same_keys(sound: Path, tmp_path: Path) -> None:
    found = diff(sound, make_sound(tmp_path / "other", seed=1))
    assert counts(found.total) == {"other_pixels": 12}
    assert found.secrets == "same"
    assert found.locks is not None
    assert found.locks.shared == 4


def test_the_same_pixels_under_another_secret(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(factory, "KEYER", Keyer(b"a secret of the owner, long enough"))
    own = make_sound(tmp_path / "own")
    found = diff(sound, own, keys := tmp_path / "keys.parquet")
    assert counts(found.total) == {"renamed_a": 12, "renamed_b": 12}
    assert found.secrets == "different"
    assert found.locks is None  # every pseudonym is another one
    pairs = pq.read_table(keys)
    assert pairs.num_rows == 24
    pixels = {row["key"]: row["pixel_hash"] for root in (sound, own) for row in read_catalog(root).to_pylist()}
    for row in pairs.to_pylist():
        assert pixels[row["key"]] == pixels[row["other_key"]] == (row["pixel_hash_a"] or row["pixel_hash_b"])
        assert row["key"] != row["other_key"]


@pytest.mark.parametrize(
    ("policies", "expected"),
    [(("public", "private"), "different"), (("public", "public"), "same"), (("private", "private"), "unknown")],
)
def test_secrets_where_nothing_is_shared(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policies: tuple[str, str], expected: str
) -> None:
    monkeypatch.setattr(factory, "KEYER", Keyer(b"a secret of the owner, long enough"))
    roots = (Path(shutil.copytree(sound, tmp_path / "a")), make_sound(tmp_path / "b", seed=5))
    for root, policy in zip(roots, policies, strict=True):
        change_manifest(root, recipe={"name": "x", "deid": {"policy": policy}})
    found = diff(*roots)
    assert counts(found.total) == {"only_a": 12, "only_b": 12}
    assert (found.policies, found.secrets) == (policies, expected)


def test_descriptions_that_differ(sound: Path, copy: Path) -> None:
    change_cell(catalog_files(copy)[0], "body_part", lambda _: "FOOT")
    change_cell(catalog_files(copy)[0], "split", lambda _: "test", row=1)
    change_cell(catalog_files(copy)[1], "split", lambda _: "test")
    found = diff(sound, copy)
    assert counts(found.total) == {"same": 12}
    assert (found.described.samples, found.described.columns) == (3, (("body_part", 1), ("split", 2)))
    assert not found.equal


def test_where_a_sample_lies_is_no_difference(sound: Path, tmp_path: Path) -> None:
    found = diff(sound, make_sound(tmp_path / "other", shards=5))
    assert found.equal
    assert [change.key for change in found.hashes] == ["catalog"]


def test_why(sound: Path, copy: Path) -> None:
    manifest = read_manifest(copy)
    recipe = manifest.recipe | {"pixels": {"profile": "paper", "size": 64}, "limits": {"x": 1}}
    change_manifest(
        copy, recipe=recipe, lumid_version="0.2.0", libraries={"lumid": "0.2.0", "pydicom": "3.0.2", "numpy": "2.4"},
        rejects={"blank": 2, "localizer": 1, "not_an_image": 3}, recipe_hash="1" * 64,
    )  # fmt: skip
    found = diff(sound, copy)
    assert found.recipe == (Change("pixels.profile", "lumid", "paper"), Change("limits.x", None, 1))
    assert found.versions == (Change("lumid", "0.1.0", "0.2.0"), Change("numpy", None, "2.4"))
    assert found.rejects == (Change("blank", 1, 2), Change("localizer", 2, 1))
    assert found.hashes == (Change("recipe", manifest.recipe_hash, "1" * 64),)
    assert found.equal  # the same samples, however they came about


def test_sources_of_a_recipe_one_by_one(sound: Path, copy: Path) -> None:
    for root, sources in ((sound, None), (copy, [{"kind": "idc", "exclude": ["x"]}, {"kind": "nih"}])):
        if sources:
            change_manifest(root, recipe=read_manifest(root).recipe | {"sources": sources})
    assert {change.key: change.b for change in diff(sound, copy).recipe} == {
        "sources[0].kind": "idc", "sources[0].exclude": ["x"], "sources[1].kind": "nih",
    }  # fmt: skip


def test_a_series_in_another_version(sound: Path, copy: Path) -> None:
    change_cell(Layout(copy).lock, "digest", lambda value: value[::-1], row=1)
    change_table(Layout(copy).lock, lambda table: table.slice(0, table.num_rows - 1))
    found = diff(sound, copy).locks
    assert found is not None
    assert (found.shared, len(found.changed), len(found.only_a), len(found.only_b)) == (2, 1, 1, 0)
    Layout(copy).lock.unlink()
    assert diff(sound, copy).locks is None


# ---- any two catalogs, against a count by hand

PIXELS = st.sampled_from("pqrs")
CATALOGS = st.dictionaries(st.sampled_from("123456"), st.tuples(PIXELS, st.sampled_from(["CT", "MR"])), max_size=6)


def write_catalog(root: Path, rows: dict[str, tuple[str, str]], template: dict[str, Any]) -> None:
    shutil.rmtree(Layout(root).catalog, ignore_errors=True)
    for modality in ("CT", "MR"):
        mine = [
            template | {"key": key, "pixel_hash": pixels, "modality": modality}
            for key, (pixels, own) in rows.items()
            if own == modality
        ]
        if mine:
            table = pa.Table.from_pylist(mine, schema=CATALOG).drop_columns(["modality"])
            write_table(Layout(root).catalog / f"modality={modality}" / "part-00000.parquet", table)


def by_hand(a: dict[str, tuple[str, str]], b: dict[str, tuple[str, str]]) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for one, other, side in ((a, b, "a"), (b, a, "b")):
        there = {pixels for pixels, _ in other.values()}
        for key, (pixels, modality) in one.items():
            if key in other:
                if side == "a":
                    found[modality, "same" if other[key][0] == pixels else "other_pixels"] += 1
            else:
                found[modality, f"{'renamed' if pixels in there else 'only'}_{side}"] += 1
    return found


@given(a=CATALOGS, b=CATALOGS)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_sample_is_counted_once(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, a: dict[str, tuple[str, str]], b: dict[str, tuple[str, str]]
) -> None:
    template = read_catalog(sound).to_pylist()[0]
    folder = tmp_path_factory.mktemp("pair")
    roots = []
    for name, rows in (("a", a), ("b", b)):
        roots.append(folder / name)
        roots[-1].mkdir()
        shutil.copy(Layout(sound).manifest, roots[-1])
        write_catalog(roots[-1], rows, template)
    found = diff(roots[0], roots[1], folder / "keys.parquet")
    assert Counter(
        {(one.name, status): n for one in found.by_modality for status, n in counts(one).items()}
    ) == by_hand(a, b)
    assert (found.total.in_a, found.total.in_b) == (len(a), len(b))
    assert sum(one.in_a for one in found.by_collection) == len(a)
    keys = pq.read_table(folder / "keys.parquet")
    assert keys["key"].to_pylist() == sorted({*a, *b})
    assert Counter(keys["status"].to_pylist()) == Counter(counts(found.total))
    shared = {key for key in a if key in b and a[key][0] == b[key][0]}
    assert found.described.samples == sum(a[key][1] != b[key][1] for key in shared)


# ---- what cannot be compared


def test_damaged_or_missing_data_sets(sound: Path, copy: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        diff(sound, tmp_path)
    change_table(catalog_files(copy)[0], lambda table: pa.concat_tables([table, table.slice(0, 1)]))
    with pytest.raises(DatasetError, match="a key more than once; see: lumid verify"):
        diff(sound, copy)
    data = bytearray(catalog_files(copy)[0].read_bytes())
    data[4 : len(data) // 2] = bytes(len(data) // 2 - 4)
    catalog_files(copy)[0].write_bytes(bytes(data))
    with pytest.raises(DatasetError, match="cannot be read"):
        diff(copy, sound)


def test_no_temporary_files_stay(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    diff(sound, sound)
    assert list(tmp_path.iterdir()) == []
