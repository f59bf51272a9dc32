from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lumid
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.places import Step, identity, read_note
from lumid.catalog.query import count_samples, read_catalog, run_sql
from lumid.catalog.show import choose_rows
from lumid.catalog.subset import write_steps, write_subset
from tests.catalog.sound import change_manifest
from tests.factory import make_dataset

CONDITIONS = ("modality = 'CT'", "sex = 'F'", "slice_thickness <= 2.5", "split = 'train' OR age_years > 50", None)


def keys(where: Path, condition: str | None = None) -> list[str]:
    return list(read_catalog(where, condition, ["key"])["key"].to_pylist())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_subset_answers_as_the_condition_does(built: Path, tmp_path: Path, condition: str | None) -> None:
    note = write_subset(built, tmp_path / "s.parquet", condition)
    assert keys(tmp_path / "s.parquet") == keys(built, condition)
    assert note.samples == count_samples(tmp_path / "s.parquet") == sum(note.modalities.values())
    assert read_note(tmp_path / "s.parquet") == note
    assert {row.key for row in choose_rows(tmp_path / "s.parquet", n=400)} == set(keys(built, condition))
    assert run_sql(tmp_path / "s.parquet", "FROM rejects").num_rows == 0
    table = pq.read_table(tmp_path / "s.parquet")
    assert table.column_names == ["key", "modality", "shard", "offset", "length", "codec"]
    rows = read_catalog(built, condition, table.column_names)
    assert table.to_pylist() == rows.to_pylist()


def test_the_same_selection_gives_the_same_bytes(built: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for path in (tmp_path / "x.parquet", tmp_path / "a" / "x.parquet"):
        write_subset(str(built), path, "modality = 'CT'", limit=5)
    one, other = tmp_path / "x.parquet", tmp_path / "a" / "x.parquet"
    assert pq.read_table(one).equals(pq.read_table(other))
    before = one.read_bytes()
    write_subset(built, one, "modality = 'CT'", limit=5)
    assert one.read_bytes() == before
    assert str(built).encode() not in before  # where it is from here, not where it is on this machine


def test_subsets_of_subsets(built: Path, tmp_path: Path) -> None:
    write_subset(built, tmp_path / "ct.parquet", "modality = 'CT'", limit=9)
    note = write_subset(tmp_path / "ct.parquet", tmp_path / "f.parquet", "sex = 'F'")
    assert note.steps == (Step("modality = 'CT'", 9), Step("sex = 'F'"))
    smallest = set(keys(built, "modality = 'CT'")[:9])
    assert keys(tmp_path / "f.parquet") == [key for key in keys(built, "sex = 'F'") if key in smallest]
    again = write_steps(built, tmp_path / "again.parquet", note.steps, name="f")
    assert again == note
    assert identity(tmp_path / "again.parquet") == identity(tmp_path / "f.parquet") != identity(built)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(CONDITIONS), st.none() | st.integers(1, 30)), min_size=1, max_size=3))
def test_steps_are_what_they_say(
    built: Path, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str | None, int | None]]
) -> None:
    out = tmp_path_factory.mktemp("steps") / "s.parquet"
    expected = keys(built)
    for condition, limit in steps:
        met = set(keys(built, condition))
        expected = [key for key in expected if key in met][:limit]
    if not expected:
        with pytest.raises(UsageError, match="nothing to select"):
            write_steps(built, out, [Step(*step) for step in steps])
        return
    write_steps(built, out, [Step(*step) for step in steps])
    assert keys(out) == expected


def test_another_catalog_is_refused(dataset: Path, tmp_path: Path) -> None:
    write_subset(dataset, tmp_path / "s.parquet", "modality = 'CT'")
    change_manifest(dataset, catalog_hash="f" * 64)
    for attempt in (lambda: keys(tmp_path / "s.parquet"), lambda: lumid.open(dataset, tmp_path / "s.parquet")):
        with pytest.raises(DatasetError, match="a subset of another catalog"):
            attempt()


def test_moved_and_missing_data_sets(dataset: Path, tmp_path: Path) -> None:
    write_subset(dataset, tmp_path / "s.parquet", "modality = 'CT'")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(dataset, tmp_path / "elsewhere" / "ds")
    with pytest.raises(DatasetError, match=r"its data set is not at .*--subset"):
        keys(tmp_path / "s.parquet")
    assert len(lumid.open(tmp_path / "elsewhere" / "ds", tmp_path / "s.parquet")) == 14
    shutil.move(tmp_path / "s.parquet", tmp_path / "elsewhere" / "s.parquet")
    shutil.move(tmp_path / "elsewhere" / "ds", tmp_path / "ds")
    (tmp_path / "deeper").mkdir()
    shutil.move(tmp_path / "ds", tmp_path / "deeper" / "ds")
    (tmp_path / "deeper" / "sub").mkdir()
    shutil.move(tmp_path / "elsewhere" / "s.parquet", tmp_path / "deeper" / "s.parquet")
    assert len(keys(tmp_path / "deeper" / "s.parquet")) == 14  # both moved, side by side


@pytest.mark.parametrize(
    ("out", "condition", "hint"),
    [
        ("s.csv", None, "NAME.parquet"),
        ("s.parquet", "modality = 'XA'", "no sample has modality = 'XA'"),
        ("s.parquet", "modalty = 'XA'", "did you mean modality"),
    ],
)
def test_wrong_use(built: Path, tmp_path: Path, out: str, condition: str | None, hint: str) -> None:
    with pytest.raises(UsageError, match=hint):
        write_subset(built, tmp_path / out, condition)
    assert not (tmp_path / out).exists()


def test_it_is_not_written_over_what_is_read(built: Path, tmp_path: Path) -> None:
    write_subset(built, tmp_path / "s.parquet")
    with pytest.raises(UsageError, match="another file"):
        write_subset(tmp_path / "s.parquet", tmp_path / "s.parquet", "modality = 'CT'")


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"x" * 300])
def test_other_files_are_not_subsets(built: Path, tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "s.parquet").write_bytes(damage)
    with pytest.raises(UsageError, match="neither a data set nor a subset"):
        keys(tmp_path / "s.parquet")
    part = next((built / "catalog").glob("*/*.parquet"))
    with pytest.raises(UsageError, match="neither a data set nor a subset"):
        keys(part)


def test_hostile_names(tmp_path: Path) -> None:
    folder = tmp_path / "we[ird]* 'ns"
    make_dataset(folder / "d?s", n=9)
    write_subset(folder / "d?s", folder / "s'u[b].parquet", "modality = 'CT'")
    assert len(keys(folder / "s'u[b].parquet")) == 3
    assert json.loads(read_note(folder / "s'u[b].parquet").to_json())["data"] == "d?s"
