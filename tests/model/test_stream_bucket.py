"""The stream from an object store: the same samples, few requests, faults tried again, a cache that keeps its limit."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lumid.catalog.errors import DatasetError, RecipeError, StorageError
from lumid.catalog.stores import CREDENTIALS
from lumid.model.stream import Batch, ImageStream, StreamSettings, select
from lumid.model.stream.bucket import Bucket
from lumid.model.stream.cache import BlockCache
from tests.factory import make_dataset
from tests.model.bucket import Asked, FakeBucket, in_bucket

BLOCKS: dict[str, Any] = {"lanes": 4, "block_mb": 0.05, "window_mb": 0.4}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bucket") / "data"
    make_dataset(root, n=120, seed=5, shards=3)
    return root


@pytest.fixture
def remote(local: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[FakeBucket]:
    for name in itertools.chain.from_iterable(CREDENTIALS.values()):
        monkeypatch.delenv(name, raising=False)
    name = "stream-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:12]
    with in_bucket(local, name) as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", bucket.endpoint)
        yield bucket


def take(data: Path | str, batches: int, **settings: Any) -> list[Batch]:
    stream = iter(ImageStream(select(data), StreamSettings(**({"batch_size": 8} | BLOCKS | settings))))
    found = list(itertools.islice(stream, batches))
    stream.close()  # type: ignore[attr-defined]
    return found


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.keys == other.keys
        assert one.valid.all()
        assert torch.equal(one.pixels, other.pixels)
        assert torch.equal(one.low, other.low)


def test_a_bucket_gives_what_the_disk_gives(local: Path, remote: FakeBucket) -> None:
    assert_same(take(remote.url, 40), take(local, 40, access="sequential"))
    assert_same(take(remote.url, 20, access="random"), take(local, 20))


def test_blocks_are_read_in_large_ranges_and_once_an_epoch(local: Path, remote: FakeBucket) -> None:
    take(remote.url, 15, prefetch=1, window_mb=0.2)  # 120 samples: one epoch
    asked = remote.of_shards()
    size = sum(path.stat().st_size for path in (local / "shards").iterdir())
    whole = Counter((one.name, one.first, one.last) for one in asked)
    read = sum(one.last - one.first + 1 for one in asked if one.first is not None and one.last is not None)
    assert len(asked) < 120 / 4, "several images a request"
    # the next epoch is read ahead, and a block on the border of lanes is read for each
    assert read < 2.2 * size
    assert max(whole.values()) <= 3
    assert remote.busiest > 1, "requests go out side by side"


def test_ranks_that_divide_the_lanes_read_the_data_once(remote: FakeBucket, local: Path) -> None:
    size = sum(path.stat().st_size for path in (local / "shards").iterdir())
    read = []
    for rank in range(4):
        before = len(remote.of_shards())
        take(remote.url, 15, batch_size=2, rank=rank, world=4, prefetch=1, window_mb=0.2)
        read.append(
            sum(
                one.last - one.first + 1
                for one in remote.of_shards()[before:]
                if one.first is not None and one.last is not None
            )
        )
    assert sum(read) < 2.6 * size, "four ranks together, each a window of the next epoch included"
    assert max(read) < 0.75 * size


def test_faults_are_tried_again_and_change_nothing(
    local: Path, remote: FakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = Counter[Asked]()
    ailments = {0: "503", 1: "reset", 2: "500", 3: "slow"}

    def twice(asked: Asked) -> str:
        seen[asked] += 1
        pick = int(hashlib.sha256(repr(asked).encode()).hexdigest(), 16) + seen[asked]
        return ailments.get(pick % 4, "") if seen[asked] <= 2 else ""

    remote.fault = twice
    assert_same(take(remote.url, 20), take(local, 20, access="sequential"))
    assert sum(count - 1 for count in seen.values()) > len(seen) / 2, "there were faults"


def test_a_store_that_never_answers_ends_the_stream_in_one_line(
    remote: FakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lumid.catalog.stores.LONGEST_WAIT_S", 0.05)
    selection = select(remote.url)
    for fault, words in (("503", "does not answer"), ("reset", "does not answer"), ("403", "access denied")):
        remote.fault = lambda _, fault=fault: fault  # type: ignore[misc]
        with pytest.raises(StorageError, match=words) as caught:
            next(iter(ImageStream(selection, StreamSettings(8, **BLOCKS))))
        assert "DOE" not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert "127.0.0.1" not in str(caught.value)


def test_a_shard_that_is_gone_is_counted_by_key(remote: FakeBucket) -> None:
    remote.fault = lambda asked: "404" if asked.name.endswith("000001.tar") else ""
    selection = select(remote.url)
    lost = {row["key"] for row in selection.table.to_pylist() if row["shard"].endswith("000001.tar")}
    stream = ImageStream(selection, StreamSettings(8, **BLOCKS))
    batches = list(itertools.islice(iter(stream), 15))
    assert {key for batch in batches for key in batch.keys} - {
        key for batch in batches for key in batch.kept().keys
    } == lost
    assert set(stream.bad) == lost
    with pytest.raises(DatasetError, match="its shard is missing"):
        list(itertools.islice(iter(ImageStream(selection, StreamSettings(8, max_bad=10, **BLOCKS))), 15))


def test_no_data_set_there(remote: FakeBucket) -> None:
    with pytest.raises(DatasetError, match="not a finished data set"):
        select(remote.url + "/nothing")
    with pytest.raises(RecipeError, match="s3://, gs:// or az://"):
        Bucket("ftp://somewhere/data")


def test_the_second_epoch_comes_from_the_cache(local: Path, remote: FakeBucket, tmp_path: Path) -> None:
    expected = take(local, 30, access="sequential")
    assert_same(take(remote.url, 30, cache=tmp_path / "cache"), expected)
    before = len(remote.of_shards())
    assert_same(take(remote.url, 30, cache=tmp_path / "cache"), expected)
    assert len(remote.of_shards()) == before, "a second run asks for nothing"


def test_a_cache_keeps_its_limit_and_what_it_has(local: Path, remote: FakeBucket, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    for _ in range(2):
        take(remote.url, 30, cache=folder, cache_mb=0.3)
        kept = {path.name: path.stat().st_size for path in folder.glob("*.block")}
        assert 0.15 * 2**20 < sum(kept.values()) <= 0.3 * 2**20
        assert int((folder / "bytes").read_text()) == sum(kept.values())
    before = len(remote.of_shards())
    take(remote.url, 30, cache=folder, cache_mb=0.3)
    assert kept.keys() == {path.name for path in folder.glob("*.block")}
    assert len(remote.of_shards()) > before


def test_a_damaged_block_in_the_cache_is_read_again(local: Path, remote: FakeBucket, tmp_path: Path) -> None:
    expected = take(local, 15, access="sequential")
    take(remote.url, 15, cache=tmp_path)
    blocks = list(tmp_path.glob("*.block"))
    for path in blocks:
        path.write_bytes(bytes(path.stat().st_size))
    assert_same(take(remote.url, 15, cache=tmp_path), expected)
    assert all(any(path.read_bytes()) for path in tmp_path.glob("*.block"))


def test_what_killed_processes_left_in_a_cache_is_removed(tmp_path: Path) -> None:
    cache = BlockCache(tmp_path, 1000)
    cache.open()
    cache.put("a", bytes(600))
    cache.put("b", bytes(600))
    assert cache.get("a", 600) == bytes(600)
    assert cache.get("b", 600) is None, "no room"
    (tmp_path / "x.99999999-abcd.tmp").write_bytes(b"left")
    (tmp_path / f"y.{os.getpid()}-abcd.tmp").write_bytes(b"being written")
    (tmp_path / "bytes").write_text("999999")
    cache.open()
    assert not (tmp_path / "x.99999999-abcd.tmp").exists()
    assert (tmp_path / f"y.{os.getpid()}-abcd.tmp").exists()
    assert (tmp_path / "bytes").read_text() == "600"
    assert cache.get("a", 599) is None, "not what it should be"
    cache.put("b", bytes(600))
    assert cache.get("b", 600) == bytes(600)
