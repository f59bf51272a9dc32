"""Builds into an object store: the same bytes as into a folder, whoever is killed, refused or in the way."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from lumid.catalog.errors import LumidError, UsageError
from lumid.catalog.layout import Layout, Manifest, read_manifest
from lumid.catalog.paths import data_path, sizes
from lumid.catalog.verify import verify
from lumid.dags import build as building
from lumid.dags import claim, log_copy
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.log_copy import LogCopy, earlier_log
from lumid.dags.prices import cost_of
from lumid.dags.progress import BuildProgress
from lumid.dags.status import status
from lumid.pipeline import traffic
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.recipe_files import load_recipe
from lumid.pipeline.traffic import Traffic
from tests.dags.command import TIMEOUT_S, content, lumid, start, stored
from tests.fake_idc import s3_server
from tests.servers import before, now_and_then

pytestmark = pytest.mark.whole

Bucket = tuple[str, Any]
OF_ANOTHER = b'{"recipe_name": "other", "recipe_hash": "0", "phase": "ingest", "batches": 1, "batch_ids": ["0"]}'


def run(recipe: Path | Recipe, url: str) -> Manifest:
    chosen = recipe if isinstance(recipe, Recipe) else load_recipe(str(recipe))
    return build(chosen, data_path(url), ClusterSettings(None, 2), BuildProgress(Console(quiet=True))).manifest


def parts(url: str) -> list[str]:
    names = sizes(data_path(url) / ".build" / "parts")
    return [name for name in names if name.endswith(".parquet") and "rejects" not in name]


def wait_for(wanted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def quick_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "BEAT_S", 0.2)
    monkeypatch.setattr(claim, "SILENT_S", 1.5)


def test_the_same_bytes_as_into_a_folder(built_study: Path, recipe: Path, bucket: Bucket) -> None:
    url = f"s3://{bucket[0]}/deep/data"
    done = lumid("build", recipe, "--out", url, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert f"{url}/report.html" in done.stdout
    assert stored(url) == content(built_study)
    ours = {path.relative_to(built_study).as_posix() for path in built_study.rglob("*") if path.is_file()}
    assert set(sizes(data_path(url))) == ours, "nothing of the build is left"
    sound = lumid("verify", url, "--deep")
    assert sound.returncode == 0, sound.stdout
    assert "240 decoded" in sound.stdout
    again = lumid("build", recipe, "--out", url)
    assert (again.returncode, "is finished already" in again.stdout) == (0, True)


def test_what_is_damaged_in_a_store_is_found(recipe: Path, built_study: Path, bucket: Bucket) -> None:
    name, client = bucket
    assert lumid("publish", built_study, f"s3://{name}/data").returncode == 0
    shard = read_manifest(built_study).shards[1].name
    data = bytearray((built_study / "shards" / shard).read_bytes())
    data[5000] ^= 1
    client.put_object(Bucket=name, Key=f"data/shards/{shard}", Body=bytes(data))
    client.put_object(Bucket=name, Key="data/shards/stray.tar", Body=b"")
    client.delete_object(Bucket=name, Key="data/shards/lumid-000000.tar")
    found = verify(data_path(f"s3://{name}/data"))
    assert [one.name for one in found.damaged] == ["lumid-000000.tar", shard]
    assert {"shard_missing", "sample_damaged", "stray_file"} <= {finding.code for finding in found.findings}


def test_killed_and_gone_on_with_elsewhere(
    built_study: Path, recipe: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head and all its workers are killed; another machine takes over, and makes no finished batch again."""
    url = f"s3://{bucket[0]}/data"
    process = start("build", recipe, "--out", url, "--workers", "2")
    wait_for(lambda: len(parts(url)) >= 5)
    found = status(data_path(url))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert (found.state, found.phase) == ("running", "ingest")
    assert 5 <= found.batches_done < found.batches == 25
    monkeypatch.setattr(claim, "BEAT_S", 0.2)
    monkeypatch.setattr(claim, "SILENT_S", 4.0)
    time.sleep(claim.SILENT_S)
    assert (status(data_path(url)).state, status(data_path(url)).objects) == ("stopped", 241)
    had = {name: (data_path(url) / ".build" / "parts" / name).read_bytes() for name in parts(url)}
    said: list[str] = []
    progress = BuildProgress(Console(quiet=True))
    progress.note = said.append  # type: ignore[method-assign]
    build(load_recipe(str(recipe)), data_path(url), ClusterSettings(None, 2), progress)
    assert "alive" in said[0]
    assert len(had) >= 5
    assert stored(url) == content(built_study)


def test_the_log_is_copied_to_the_store(tmp_path: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_copy, "COPY_EVERY_S", 0.05)
    layout = Layout(data_path(f"s3://{bucket[0]}/data"), tmp_path)
    layout.own_log.write_text("one\n")
    with LogCopy(layout):
        wait_for(layout.log.is_file)
        layout.own_log.write_text("one\ntwo\n")
        wait_for(lambda: layout.log.read_text() == "one\ntwo\n")
        layout.own_log.write_text("one\ntwo\nthree\n")
    assert layout.log.read_text() == "one\ntwo\nthree\n"
    with LogCopy(layout) as copy:
        copy.end()
        layout.own_log.write_text("gone")
    assert layout.log.read_text() != "gone", "the build has removed it"
    layout.own_log.unlink()
    earlier_log(layout)
    assert layout.own_log.read_text() == "one\ntwo\nthree\n"


@pytest.mark.slow
def test_a_killed_worker(built_study: Path, recipe: Path, bucket: Bucket) -> None:
    url = f"s3://{bucket[0]}/data"
    process = start("build", recipe, "--out", url, "--workers", "2")
    wait_for(lambda: len(parts(url)) >= 2)
    workers = [
        one for one in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(one.cmdline())
    ]
    random.Random(3).choice(workers).kill()
    _, errors = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0, errors
    assert stored(url) == content(built_study)


def test_two_at_once(built_study: Path, recipe: Path, bucket: Bucket, quick_lease: None) -> None:
    """While one builds, another is refused; one that lost its place learns so before it commits."""
    url = f"s3://{bucket[0]}/data"
    place = data_path(url) / ".build" / claim.CLAIM
    with claim.Lease(place, url, lambda _: None) as first:
        with pytest.raises(LumidError, match="another lumid is building here"):
            run(recipe, url)
        first.check()
        place.write_bytes(b"another's")  # as if this one had been cut off for long
        wait_for(first._lost.is_set)
        with pytest.raises(LumidError, match="taken this build over"):
            first.check()
    assert place.read_bytes() == b"another's", "what is not ours is left"


def test_a_store_that_refuses_now_and_then(
    built_study: Path, recipe: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse, refused = now_and_then(0.1)
    seen: Counter[str] = Counter()

    def counted(command: str) -> int | None:
        seen[command] += 1
        return refuse(command)

    asked: Counter[str] = Counter()
    whole = building._commit

    def with_count(*given: Any) -> None:
        asked.update(seen)  # what the end takes, its report foremost, the manifest cannot know
        whole(*given)

    monkeypatch.setattr(building, "_commit", with_count)
    traffic.count("data-s3", "put", "ok", requests=10_000)  # of something else, in this process
    with before(s3_server(), counted) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        manifest = run(recipe, f"s3://{bucket[0]}/data")
        assert stored(f"s3://{bucket[0]}/data") == content(built_study)
    assert {"PUT", "GET"} <= set(refused)
    told = [one for one in manifest.build["requests"] if one["archive"] == "data-s3"]
    puts = sum(one["requests"] for one in told if one["operation"] == "put")
    others = sum(one["requests"] for one in told if one["operation"] != "put")
    assert 0.9 * asked["PUT"] <= puts <= asked["PUT"], (puts, asked)
    assert 0.9 * (asked["GET"] + asked["HEAD"]) <= others <= asked["GET"] + asked["HEAD"], (others, asked)
    assert {one["outcome"] for one in told} >= {"ok", "busy"}
    assert cost_of(Traffic(**one) for one in told).requests > 0


def test_what_is_in_the_way_is_left_alone(recipe: Path, bucket: Bucket, quick_lease: None) -> None:
    name, client = bucket
    client.put_object(Bucket=name, Key="data/mine.txt", Body=b"mine")
    with pytest.raises(UsageError, match="is not empty"):
        run(recipe, f"s3://{name}/data")
    client.put_object(Bucket=name, Key="other/.build/build.json", Body=OF_ANOTHER)
    with pytest.raises(UsageError, match="unfinished build of another recipe"):
        run(recipe, f"s3://{name}/other")
    assert sizes(data_path(f"s3://{name}/data")) == {"mine.txt": 4}


@pytest.mark.parametrize(("code", "says"), [(403, "not allowed to write"), (507, "the bucket is full")])
def test_a_store_that_takes_nothing_is_one_line(
    recipe: Path, bucket: Bucket, monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    monkeypatch.setattr("lumid.catalog.stores.LONGEST_WAIT_S", 0.01)
    with before(s3_server(), lambda command: code if command == "PUT" else None) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        with pytest.raises(LumidError, match=says) as error:
            run(recipe, f"s3://{bucket[0]}/data")
    assert "\n" not in str(error.value)
