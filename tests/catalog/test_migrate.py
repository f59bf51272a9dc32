"""Data sets of earlier formats: refused by readers, and brought into today's with what was recorded then."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from lumid.catalog import migrate as migrating
from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.layout import Layout, parse_manifest, read_manifest
from lumid.catalog.migrate import Migrated, migrate
from lumid.catalog.query import connect
from lumid.catalog.schema import CATALOG, SAMPLE_FIELDS
from lumid.catalog.shards import read_samples
from lumid.catalog.verify import verify

FORMATS = Path(__file__).parents[1] / "data" / "formats"
SINCE_1 = ("labels",)
SINCE_EARLY_2 = (
    "clipped_fraction", "duplicate_of", "noise", "slice_gap", "slice_index", "slice_repeats", "slice_spacing",
    "spacing_kind",
)  # fmt: skip
SINCE_2 = ("frame_of_reference", "unknown")
NOT_RECORDED = {
    "format-1": {*SINCE_1, *SINCE_EARLY_2, *SINCE_2},
    "format-2": {*SINCE_EARLY_2, *SINCE_2},
    "format-2-late": {*SINCE_2},
}
FORMAT_1 = FORMATS / "format-1"


def rows_of(root: Path) -> dict[str, dict[str, Any]]:
    table = pq.read_table(root / "catalog")
    return {row["key"]: row for row in table.to_pylist()}


def tree(root: Path) -> dict[str, str]:
    paths = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, Migrated]]:
    """Every old data set, migrated into a folder of its own."""
    folder = tmp_path_factory.mktemp("migrated")
    return {name: (folder / name, migrate(FORMATS / name, folder / name)) for name in NOT_RECORDED}


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_what_was_recorded_is_kept_and_what_was_not_is_null(
    name: str, migrated: Mapping[str, tuple[Path, Migrated]]
) -> None:
    root, done = migrated[name]
    assert verify(root, deep=True).sound
    assert set(done.not_recorded) == NOT_RECORDED[name]
    old, new = read_manifest(FORMATS / name, oldest=1), read_manifest(root)
    assert (old.format_version, new.format_version) == (done.from_format, 3)
    for same in (
        "name",
        "lumid_version",
        "libraries",
        "recipe",
        "recipe_hash",
        "lock_hash",
        "counts",
        "rejects",
        "modalities",
    ):
        assert getattr(new, same) == getattr(old, same)
    before, after = rows_of(FORMATS / name), rows_of(root)
    assert before.keys() == after.keys()
    assert len(after) == 24
    where = {"shard", "offset", *({"codec", "length", "sha256"} if name == "format-1" else ())}
    for key, row in after.items():
        absent = CATALOG.names - before[key].keys()
        assert absent == NOT_RECORDED[name] - {"unknown"}
        assert {column: row[column] for column in absent} == dict.fromkeys(absent)
        kept = before[key].keys() - where
        assert {column: row[column] for column in kept} == {column: before[key][column] for column in kept}


def test_jpeg_xl_becomes_a_codec_that_there_is_with_the_same_pixels(
    migrated: Mapping[str, tuple[Path, Migrated]],
) -> None:
    """That the pixels are the same is the test's that verifies: ``pixel_hash`` is that of then."""
    root, done = migrated["format-1"]
    assert done.reencoded == 24
    assert {row["codec"] for row in rows_of(FORMAT_1).values()} == {"jxl"}
    assert {row["codec"] for row in rows_of(root).values()} == {"jhc"}
    assert [migrated[name][1].reencoded for name in ("format-2", "format-2-late")] == [0, 0]


def test_the_json_beside_an_image_has_todays_fields(migrated: Mapping[str, tuple[Path, Migrated]]) -> None:
    for root, _ in migrated.values():
        for path in sorted((root / "shards").iterdir()):
            for _, _, values in read_samples(path):
                assert tuple(values) == SAMPLE_FIELDS


@pytest.mark.parametrize("name", NOT_RECORDED)
def test_readers_refuse_an_old_data_set_in_a_line(name: str) -> None:
    def queried(root: Path) -> None:
        with connect(root):
            pass

    readers: list[Callable[[Path], Any]] = [read_manifest, verify, queried]
    for read in readers:
        with pytest.raises(DatasetError, match=f"written in format {name[7]}, .* run: lumid migrate {FORMATS / name}"):
            read(FORMATS / name)
    data = (FORMATS / name / "dataset.json").read_bytes()
    with pytest.raises(DatasetError, match="lumid migrate FOLDER, on a copy of it"):
        parse_manifest(data, "s3://bucket/old")


def test_in_its_place(tmp_path: Path, migrated: Mapping[str, tuple[Path, Migrated]]) -> None:
    shutil.copytree(FORMAT_1, tmp_path / "data")
    (tmp_path / "data" / "notes.txt").write_text("my own")
    done = subprocess.run(
        [sys.executable, "-m", "lumid", "migrate", str(tmp_path / "data"), "--json"],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert (facts["from_format"], facts["reencoded"]) == (1, 24)
    assert tree(tmp_path / "data").keys() - tree(migrated["format-1"][0]).keys() == {"notes.txt"}
    assert comparable(tmp_path / "data") == comparable(migrated["format-1"][0])
    before = tree(tmp_path / "data")
    again = migrate(tmp_path / "data")
    assert (again.from_format, again.already) == (1, True)
    assert tree(tmp_path / "data") == before
    with pytest.raises(UsageError, match="is of format 3 already"):
        migrate(tmp_path / "data", tmp_path / "out")


def test_what_was_never_of_another_format(tmp_path: Path, migrated: Mapping[str, tuple[Path, Migrated]]) -> None:
    shutil.copytree(migrated["format-2"][0], tmp_path / "data")
    manifest = json.loads((tmp_path / "data" / "dataset.json").read_text())
    del manifest["build"]["migrated"]
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(manifest))
    done = subprocess.run(
        [sys.executable, "-m", "lumid", "migrate", str(tmp_path / "data")], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert done.stdout.endswith("is of format 3 already\n")


def comparable(root: Path) -> dict[str, str]:
    """All but the report, which says when it was written."""
    return {name: digest for name, digest in tree(root).items() if name not in ("report.html", "notes.txt")}


# ---- stopped


class Stopped(BaseException):
    """As sudden as a kill, for all that catches exceptions."""


def stop_at(number: int, patch: pytest.MonkeyPatch) -> None:
    """The ``number``-th file or folder that takes its place does not any more."""
    left = [number]
    real = Path.replace

    def replace(path: Path, target: Path) -> Path:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        return real(path, target)

    patch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("in_place", [True, False])
def test_stopped_while_it_takes_its_place_it_goes_on(
    in_place: bool, tmp_path: Path, migrated: Mapping[str, tuple[Path, Migrated]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After every single rename: nobody sees a half of it, and the next run does the rest."""
    written = tmp_path / "written"
    if in_place:
        shutil.copytree(FORMAT_1, written)
    with monkeypatch.context() as patch:
        patch.setattr(migrating, "_put_in_place", stopped)
        with pytest.raises(Stopped):
            migrate(written if in_place else FORMAT_1, None if in_place else written)
    stops = 0
    for number in range(100):
        target = tmp_path / f"{number}"
        shutil.copytree(written, target)
        arguments = (target, None) if in_place else (FORMAT_1, target)
        with monkeypatch.context() as patch:
            stop_at(number, patch)
            try:
                migrate(*arguments)
            except Stopped:
                stops += 1
            else:
                break
        there = (target / "dataset.json").is_file()
        assert there == (number == 0 if in_place and number < 15 else number >= 8)
        if not there:
            with pytest.raises(DatasetError, match="its migration was interrupted; go on with it: lumid migrate"):
                read_manifest(target)
        migrate(*arguments)
        assert comparable(target) == comparable(migrated["format-1"][0])
    assert stops == (16 if in_place else 9)


def stopped(*_: object) -> None:
    raise Stopped


@pytest.mark.parametrize("number", [2, 9])
def test_stopped_while_it_writes_it_goes_on(
    number: int, tmp_path: Path, migrated: Mapping[str, tuple[Path, Migrated]], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = shutil.copytree(FORMATS / "format-2", tmp_path / "data")
    before = tree(target)
    with monkeypatch.context() as patch:
        stop_at(number, patch)
        with pytest.raises(Stopped):
            migrate(target)
    assert before.items() <= tree(target).items()
    (target / ".migrate" / "new" / "shards" / ".lumid-000001.tar.0123abcd.tmp").touch()  # of one that was killed
    migrate(target)
    assert comparable(target) == comparable(migrated["format-2"][0])
    assert not (target / ".migrate").exists()


@pytest.mark.slow
def test_killed_at_any_time_it_goes_on(tmp_path: Path, migrated: Mapping[str, tuple[Path, Migrated]]) -> None:
    target = shutil.copytree(FORMAT_1, tmp_path / "data")
    for tenths in range(1, 600):
        command = [sys.executable, "-m", "lumid", "migrate", str(target)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, said = process.communicate(timeout=tenths / 10)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
    assert process.returncode == 0, said
    assert comparable(target) == comparable(migrated["format-1"][0])


# ---- refused


def test_what_cannot_be_migrated_truthfully_is_left_as_it_was(tmp_path: Path) -> None:
    def refuses(match: str, break_it: Callable[[Path], None]) -> None:
        target = tmp_path / "data"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(FORMATS / "format-2", target)
        break_it(target)
        before = tree(target)
        with pytest.raises(LumidError, match=match):
            migrate(target)
        assert before.items() <= tree(target).items()

    def flipped(pattern: str) -> Callable[[Path], None]:
        def flip(root: Path) -> None:
            path = next(root.glob(pattern))
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0xFF
            path.write_bytes(data)

        return flip

    def manifest(**changes: Any) -> Callable[[Path], None]:
        def change(root: Path) -> None:
            path = Layout(root).manifest
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

        return change

    def column(root: Path) -> None:
        path = next(root.glob("catalog/modality=OT/*.parquet"))
        pq.write_table(pq.read_table(path, partitioning=None).drop_columns(["sharpness"]), path)
        hashes = {
            (0, one.parent.name[9:]): migrating.file_hash(one, one.parent.name[9:]) for one in root.glob("catalog/*/*")
        }
        manifest(catalog_hash=migrating.combine(hashes))(root)

    refuses("is damaged: its hash is not the one in dataset.json", flipped("shards/*1.tar"))
    refuses("its catalog is damaged|cannot be read", flipped("catalog/modality=MR/*"))
    refuses("is missing; nothing was changed", lambda root: next(root.glob("shards/*1.tar")).unlink())
    refuses("lock.parquet: .*left as it was", manifest(lock_hash="0" * 64))
    refuses("has no such columns, or must have them: sharpness", column)
    refuses("update lumid", manifest(format_version=99))
    refuses("not a lumid manifest", manifest(format_version=-1))


def test_an_out_that_is_not_free_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    with pytest.raises(UsageError, match="is not empty"):
        migrate(FORMAT_1, tmp_path / "mine")
    with monkeypatch.context() as patch:
        patch.setattr(migrating, "_shard", stopped)
        with pytest.raises(Stopped):
            migrate(FORMAT_1, tmp_path / "out")
    with pytest.raises(UsageError, match="unfinished migration of another data set"):
        migrate(FORMATS / "format-2", tmp_path / "out")
    with migrating._alone(tmp_path / "out" / ".migrate"), pytest.raises(LumidError, match="another lumid is migrating"):
        migrate(FORMAT_1, tmp_path / "out")
