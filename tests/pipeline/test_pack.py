"""A shard is its samples' bytes in the order of keys, however its parts are read."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lumid.catalog.errors import DatasetError
from lumid.catalog.shards import END_OF_TAR
from lumid.pipeline import pack
from lumid.pipeline.pack import Index, pack_shard, plan_shards
from lumid.pipeline.parts import PartFiles


@pytest.fixture
def laid(tmp_path: Path) -> tuple[Index, list[PartFiles], bytes]:
    """An index over three parts, one of which holds a sample that is left out, and what a shard of it must be."""
    draw = random.Random(0)
    keys = sorted(f"{draw.getrandbits(96):024x}" for _ in range(200))
    parts = [PartFiles(tmp_path, name) for name in "abc"]
    held: list[list[bytes]] = [[], [], []]
    rows, wanted = [], []
    for number, key in enumerate(keys):
        part, data = draw.randrange(3), draw.randbytes(draw.randrange(1, 5000))
        if number % 9:
            rows.append((key.encode(), part, len(held[part]), sum(map(len, held[part])), len(data)))
            wanted.append(data)
        held[part].append(data)
    for files, pieces in zip(parts, held, strict=True):
        files.samples.write_bytes(b"".join(pieces))
    key, part, row, start, size = (np.array(column) for column in zip(*rows, strict=True))
    index = Index(
        key.astype("S24"), part.astype(np.int32), row.astype(np.int32), start, size, row, np.full(len(key), b"", "S24")
    )
    return index, parts, b"".join(wanted) + END_OF_TAR


def some_of(limit: int) -> Callable[[int, list[memoryview], int], int]:
    """A read that gives at most ``limit`` bytes, as a network's file system may."""
    whole = os.preadv

    def read(descriptor: int, views: list[memoryview], offset: int) -> int:
        return whole(descriptor, [views[0][:limit]], offset)

    return read


@pytest.mark.parametrize("window", [1, 3000, 1 << 30])
@pytest.mark.parametrize("at_once", [1, 7, 1024])
def test_every_way_of_reading_gives_the_same_bytes(
    laid: tuple[Index, list[PartFiles], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window: int, at_once: int
) -> None:  # fmt: skip
    index, parts, wanted = laid
    monkeypatch.setattr(pack, "WINDOW_BYTES", window)
    monkeypatch.setattr(pack, "WINDOW_BYTES_OF_A_PART", 1)
    monkeypatch.setattr(pack, "VIEWS_AT_ONCE", at_once)
    (plan,) = plan_shards(index, 1000.0)
    shard = pack_shard(plan, [files.samples for files in parts], tmp_path / "out", tmp_path / "receipts")
    assert (tmp_path / "out" / shard.name).read_bytes() == wanted
    assert (shard.bytes, shard.samples, shard.sha256) == (len(wanted), len(index), hashlib.sha256(wanted).hexdigest())


def test_reads_that_give_less_than_they_could_are_gone_on_with(
    laid: tuple[Index, list[PartFiles], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, parts, wanted = laid
    monkeypatch.setattr(os, "preadv", some_of(700))
    (plan,) = plan_shards(index, 1000.0)
    shard = pack_shard(plan, [files.samples for files in parts], tmp_path / "out", tmp_path / "receipts")
    assert (tmp_path / "out" / shard.name).read_bytes() == wanted


def test_a_part_that_was_cut_is_told_and_leaves_no_shard(
    laid: tuple[Index, list[PartFiles], bytes], tmp_path: Path
) -> None:
    index, parts, _ = laid
    with parts[1].samples.open("r+b") as file:
        file.truncate(parts[1].samples.stat().st_size - 3)
    (plan,) = plan_shards(index, 1000.0)
    with pytest.raises(DatasetError, match="shorter than its rows say"):
        pack_shard(plan, [files.samples for files in parts], tmp_path / "out", tmp_path / "receipts")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("failing", [1, 2])
def test_what_the_disk_refuses_while_a_shard_is_written_is_told(
    laid: tuple[Index, list[PartFiles], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    index, parts, _ = laid
    monkeypatch.setattr(pack, "WINDOW_BYTES", 3000)
    monkeypatch.setattr(pack, "WINDOW_BYTES_OF_A_PART", 1)
    calls, whole = itertools.count(1), os.fsync

    def refused_once(descriptor: int) -> None:
        if next(calls) == failing:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(descriptor)

    monkeypatch.setattr(os, "fsync", refused_once)
    (plan,) = plan_shards(index, 1000.0)
    with pytest.raises(OSError, match="No space left"):
        pack_shard(plan, [files.samples for files in parts], tmp_path / "out", tmp_path / "receipts")
    assert not list((tmp_path / "out").iterdir())
