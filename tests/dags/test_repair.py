"""Mending a damaged data set: only what is damaged is made again, and the bytes are those of then or nothing changes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

import lumid.dags.cli.check
import lumid.dags.cli.look  # noqa: F401  a second command: an app of one has no names for them
from lumid.catalog.errors import DatasetError, LumidError, RecipeError, UsageError
from lumid.catalog.layout import Layout, Manifest, read_manifest
from lumid.catalog.verify import verify
from lumid.dags import repair as repairing
from lumid.dags.build import build
from lumid.dags.cli.app import app
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.dags.repair import Repaired, recipe_of, repair
from lumid.pipeline.recipe import Recipe, SelectSettings, ShardSettings
from lumid.pipeline.recipe_files import make_recipe
from tests.dicom import as_bytes, gradient, image

pytestmark = pytest.mark.whole

Mend = Callable[[Path, Recipe], Repaired]
SERIES = ("1.2.1", "1.2.2", "1.2.3", "1.2.4")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for number, uid in enumerate(SERIES):
        for slice_ in range(4):
            pixels = gradient(high=300 + 50 * number + 9 * slice_)
            uids = {"SeriesInstanceUID": uid, "SOPInstanceUID": f"{uid}.{slice_}", "StudyInstanceUID": f"{uid}.9"}
            (folder / f"{number}-{slice_}.dcm").write_bytes(as_bytes(image(pixels, PatientID=f"p{number}", **uids)))
    return folder


def recipe_for(source: Path) -> Recipe:
    return make_recipe(source, collection="mine").model_copy(
        update={"shards": ShardSettings(size_mb=0.02, batch_slices=4)}
    )


def run_build(source: Path, out: Path, cluster: ClusterSettings) -> Manifest:
    return build(recipe_for(source), out, cluster, BuildProgress(Console(quiet=True))).manifest


@pytest.fixture(scope="module")
def pristine(source: Path, tmp_path_factory: pytest.TempPathFactory, shared_cluster: ClusterSettings) -> Path:
    out = tmp_path_factory.mktemp("pristine") / "ds"
    run_build(source, out, shared_cluster)
    assert len(read_manifest(out).shards) > 1
    return out


@pytest.fixture
def dataset(pristine: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(pristine, tmp_path / "ds"))


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture
def mend(shared_cluster: ClusterSettings) -> Mend:
    return lambda root, recipe: repair(root, verify(root), recipe, shared_cluster, BuildProgress(Console(quiet=True)))


def flip(*places: int) -> Callable[[Path], None]:
    def damage(shard: Path) -> None:
        data = bytearray(shard.read_bytes())
        for place in places:
            data[place] ^= 0x10
        shard.write_bytes(data)

    return damage


def cut(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])


def grow(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + b"more")


@pytest.mark.parametrize(
    "damage", [flip(700), flip(10), flip(600, 5000), cut, grow, Path.unlink, lambda p: p.write_bytes(b"")]
)
def test_any_damage_of_shards_is_mended_to_the_same_bytes(
    mend: Mend, damage: Callable[[Path], None], dataset: Path, pristine: Path, source: Path
) -> None:
    shards = sorted((dataset / "shards").iterdir())
    damage(shards[0])
    found = verify(dataset)
    assert not found.sound
    done = mend(dataset, recipe_for(source))
    assert done.shards == (shards[0].name,)
    assert done.samples == sum(len(shard.keys) for shard in found.damaged)
    assert files_of(dataset) == files_of(pristine)


def test_only_series_of_damaged_samples_are_read(
    mend: Mend, dataset: Path, pristine: Path, source: Path, tmp_path: Path
) -> None:
    """The batches that are ingested again are of one series: so many parts lie under .repair when it stops."""
    flip(700)(sorted((dataset / "shards").iterdir())[0])
    assert mend(dataset, recipe_for(source)).series == 1
    assert files_of(dataset) == files_of(pristine)


def test_what_a_killed_repair_has_made_is_not_made_again(
    mend: Mend, dataset: Path, pristine: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for shard in (dataset / "shards").iterdir():
        shard.unlink()

    def killed(*_: object) -> None:
        raise LumidError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "_put_together", killed)
        with pytest.raises(LumidError, match="killed"):
            mend(dataset, recipe_for(source))
    parts = {path: path.stat().st_mtime_ns for path in Layout(dataset / ".repair").parts.glob("*.tar")}
    assert len(parts) == len(SERIES)
    seen = {}
    with monkeypatch.context() as patch:
        made = repairing._made_again
        patch.setattr(repairing, "_made_again", lambda generations: seen.update(
            {files.samples: files.samples.stat().st_mtime_ns for one in generations for files in one}
        ) or made(generations))  # fmt: skip
        mend(dataset, recipe_for(source))
    assert seen == parts
    assert files_of(dataset) == files_of(pristine)


def test_what_is_whole_needs_no_source(mend: Mend, dataset: Path, pristine: Path, tmp_path: Path) -> None:
    """Only bytes after the last sample are wrong: nothing has to be made again."""
    for shard in (dataset / "shards").iterdir():
        grow(shard)
    assert mend(dataset, recipe_for(tmp_path / "gone")).series == 0
    assert files_of(dataset) == files_of(pristine)


def test_what_can_be_mended_is_although_some_cannot(mend: Mend, dataset: Path, pristine: Path, tmp_path: Path) -> None:
    first, second, *_ = sorted((dataset / "shards").iterdir())
    grow(first)
    flip(700)(second)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.dcm").write_bytes(b"")
    with pytest.raises(LumidError):
        mend(dataset, recipe_for(tmp_path / "other"))
    assert not Layout(dataset).work.exists()


def test_a_source_that_has_changed_is_refused_and_nothing_is_touched(
    mend: Mend, dataset: Path, source: Path, tmp_path: Path
) -> None:
    import shutil

    other = Path(shutil.copytree(source, tmp_path / "other"))
    file = other / "0-0.dcm"
    data = bytearray(file.read_bytes())
    data[-4000] ^= 64  # one pixel, so that neither names nor sizes tell
    file.write_bytes(data)
    first, *others = sorted((dataset / "shards").iterdir())
    for shard in (first, *others):
        shard.unlink()
    with pytest.raises(DatasetError, match=r"of \d+ shards were mended; .* left as it is"):
        mend(dataset, recipe_for(other))
    damaged = {shard.name for shard in verify(dataset).damaged}
    there = {path.name for path in (dataset / "shards").iterdir()}
    assert damaged
    assert damaged.isdisjoint(there), "what has other bytes takes nobody's place"
    assert damaged | there == {first.name, *(shard.name for shard in others)}
    (other / "0-0.dcm").unlink()
    with pytest.raises(LumidError, match="does not hold what the lock pins"):
        mend(dataset, recipe_for(other))


def test_another_recipe_and_other_damage_are_refused(mend: Mend, dataset: Path, source: Path) -> None:
    flip(700)(sorted((dataset / "shards").iterdir())[0])
    other = recipe_for(source).model_copy(update={"select": SelectSettings(min_side=33)})
    with pytest.raises(RecipeError, match="from another recipe"):
        mend(dataset, other)
    (dataset / "lock.parquet").write_bytes(b"not parquet")
    with pytest.raises(DatasetError, match=r"only shards can be mended, and damaged is also lock\.parquet"):
        mend(dataset, recipe_for(source))


def test_the_recipe_comes_out_of_the_data_set(dataset: Path, source: Path) -> None:
    manifest = read_manifest(dataset)
    assert recipe_of(manifest, str(source)).hash() == manifest.recipe_hash
    with pytest.raises(UsageError, match="give it with --source FOLDER"):
        recipe_of(manifest)
    archive = {**manifest.recipe, "sources": [{"kind": "pydicom"}]}
    assert recipe_of(replace(manifest, recipe=archive)).sources[0].kind == "pydicom"
    with pytest.raises(UsageError, match="was not built from a folder"):
        recipe_of(replace(manifest, recipe=archive), str(source))
    two = {**manifest.recipe, "sources": [*manifest.recipe["sources"], *manifest.recipe["sources"]]}
    with pytest.raises(UsageError, match="give its recipe with --recipe RECIPE"):
        recipe_of(replace(manifest, recipe=two), str(source))


def test_the_command(dataset: Path, pristine: Path, source: Path) -> None:
    run = CliRunner().invoke
    assert isinstance(run(app, ["verify", str(dataset), "--source", str(source)]).exception, UsageError)
    flip(700)(sorted((dataset / "shards").iterdir())[0])
    assert run(app, ["verify", str(dataset)]).exit_code == 1
    done = run(app, ["verify", str(dataset), "--repair", "--source", str(source), "--workers", "1", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["sound"]
    assert "mended 1 shard" in done.stderr
    assert files_of(dataset) == files_of(pristine)
