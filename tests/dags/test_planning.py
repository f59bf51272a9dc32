"""How the work of a build is divided, and that one that goes on divides it as it began."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.layout import Layout
from lumid.dags.claim import claimed
from lumid.dags.planning import Pinned, Plan, plan_build
from lumid.dags.state import read_state, write_state
from lumid.pipeline import batches
from lumid.pipeline.lock import lock_table
from lumid.pipeline.recipe import FolderSettings, Recipe, ShardSettings, make_keyer
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.sources import open_listed
from tests.dicom import as_bytes, gradient, image


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of 40, 20, 10 or 5 frames."""
    for name, value in {"MOST_FRAMES": 40, "LEAST_FRAMES": 5, "FEW_BATCHES": 4}.items():
        monkeypatch.setattr(batches, name, value)


def recipe_of(folder: Path, batch_slices: int | None = None) -> Recipe:
    source = FolderSettings(path=str(folder), collection="x", names="plain")
    return Recipe(name="x", sources=(source,), shards=ShardSettings(batch_slices=batch_slices))


def write(folder: Path, first: int, last: int) -> None:
    folder.mkdir(exist_ok=True)
    for number in range(first, last):
        data = image(gradient(), SeriesInstanceUID=f"1.2.{number:03}", SOPInstanceUID=f"1.3.{number}")
        (folder / f"{number:03}.dcm").write_bytes(as_bytes(data))


def planned(recipe: Recipe, layout: Layout) -> Plan:
    keyer = make_keyer(recipe.deid)
    source = open_listed(recipe.sources[0], recipe, keyer)
    series = group_series(scan(source, source.objects(), keyer, "public"), source.provenance)
    layout.parts.mkdir(parents=True, exist_ok=True)
    if not layout.state.is_file():
        write_state(layout, recipe_name=recipe.name, recipe_hash=recipe.hash(), phase="scan", batches=0)
    return plan_build(recipe, Pinned(lock_table(series, 0), {0: series}), layout)


@pytest.mark.parametrize(("objects", "expected"), [(3, [3]), (12, [5, 5, 2]), (50, [10] * 5), (100, [20] * 5)])
@pytest.mark.usefixtures("small")
def test_a_small_folder_is_several_batches(objects: int, expected: list[int], tmp_path: Path) -> None:
    write(tmp_path / "source", 0, objects)
    plan = planned(recipe_of(tmp_path / "source"), Layout(tmp_path / "out"))
    assert [batch.objects for batch in plan.batches] == expected
    plan = planned(recipe_of(tmp_path / "source", 50), Layout(tmp_path / "other"))
    assert [batch.objects for batch in plan.batches] == [min(50, objects - done) for done in range(0, objects, 50)]


@pytest.mark.usefixtures("small")
def test_a_build_that_goes_on_divides_a_folder_that_has_grown_as_before(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    write(folder, 0, 80)
    recipe, layout = recipe_of(folder), Layout(tmp_path / "out")
    last = planned(recipe, Layout(tmp_path / "all")).batches[-1].series[-1]  # in the order of pseudonyms
    (new,) = [path for path in folder.iterdir() if path.name == last.members[0].ref.source_id]
    data = new.read_bytes()
    new.unlink()
    before = planned(recipe, layout)
    assert (before.frames, len(before.batches)) == ({0: 10}, 8)
    (layout.parts / f"{before.batches[0].id}.parquet").touch()
    new.write_bytes(data)
    after = planned(recipe, layout)
    assert after.frames == {0: 10}
    assert after.batches[0].id == before.batches[0].id
    assert planned(recipe, Layout(tmp_path / "new")).frames == {0: 20}


@pytest.mark.usefixtures("small")
def test_a_build_that_began_before_that_was_written_down_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "source", 0, 50)
    recipe, layout = recipe_of(tmp_path / "source"), Layout(tmp_path / "out")
    old = planned(recipe_of(tmp_path / "source", 1000), layout)
    state = {name: value for name, value in read_state(layout).items() if name not in ("batch_frames", "batch_objects")}
    layout.state.write_text(json.dumps(state))
    (layout.parts / f"{old.batches[0].id}.parquet").touch()
    assert [batch.id for batch in planned(recipe, layout).batches] == [batch.id for batch in old.batches]


@pytest.mark.parametrize("frames", [{"0": 0}, {"0": "x"}, {"x": 5}, [5]])
def test_a_state_that_is_damaged_is_refused(frames: object, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.state.parent.mkdir(parents=True)
    facts = {"recipe_name": "x", "recipe_hash": "0", "phase": "ingest", "batches": 1, "batch_frames": frames}
    layout.state.write_text(json.dumps(facts))
    with pytest.raises(DatasetError, match="is damaged"):
        read_state(layout)


def test_a_series_longer_than_a_batch_is_one(tmp_path: Path) -> None:
    write(tmp_path / "source", 0, 3)
    recipe = recipe_of(tmp_path / "source")
    source = open_listed(recipe.sources[0], recipe, make_keyer(recipe.deid))
    series = group_series(scan(source, source.objects(), make_keyer(recipe.deid), "public"), source.provenance)
    long = replace(series[0], members=tuple(replace(one, frames=5000) for one in series[0].members))
    made = batches.make_batches([long, *series[1:]], 0, "", 1000)
    assert [len(batch.series) for batch in made] == [1, 2]


def test_what_another_recipe_began_and_had_not_planned_is_taken_over(tmp_path: Path) -> None:
    """As by a command that failed for a wrong option."""
    layout = Layout(tmp_path / "out")
    one, other = recipe_of(tmp_path), recipe_of(tmp_path / "else").model_copy(update={"name": "y"})
    with claimed(layout, one):
        (layout.work / "scan-0.parquet").touch()
        (layout.parts / "x.parquet").touch()
    with claimed(layout, other):
        assert read_state(layout)["recipe_name"] == "y"
        assert sorted(path.name for path in layout.work.iterdir()) == ["build.json", "parts", "running"]
        assert not list(layout.parts.iterdir())
        write_state(layout, batch_ids=["a"])
        (layout.parts / "a.parquet").touch()
    with pytest.raises(UsageError, match="unfinished build of another recipe"), claimed(layout, one):
        pass
    assert (layout.parts / "a.parquet").is_file()
