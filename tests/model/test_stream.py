"""The stream: a fixed order for any number of threads and ranks, exact resume, nothing dropped silently."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lumid.catalog.codecs import decode
from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.query import read_catalog
from lumid.catalog.shards import read_samples
from lumid.model.stream import (
    Batch,
    ImageStream,
    Mixture,
    StreamSettings,
    StreamState,
    epoch_order,
    on_device,
    sample_draws,
    select,
)
from tests.factory import make_dataset

BLOCKS: dict[str, Any] = {"lanes": 6, "block_mb": 0.02, "window_mb": 0.24}
"""Blocks of about four of the tests' images, windows of two of them: an epoch of 50 has many of both."""


def take(data: Path | str, batches: int, state: StreamState | None = None, **settings: Any) -> list[Batch]:
    stream = ImageStream(select(data), StreamSettings(**({"batch_size": 8} | settings)), state)
    found = list(itertools.islice(iter(stream), batches))
    stream.close()
    return found


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


@given(st.integers(0, 2**32), st.integers(0, 1000), st.integers(1, 300))
def test_an_epoch_is_a_permutation_and_a_function_of_seed_and_epoch(seed: int, epoch: int, samples: int) -> None:
    order = epoch_order(seed, epoch, samples)
    assert sorted(order.tolist()) == list(range(samples))
    assert order.tolist() == epoch_order(seed, epoch, samples).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [tuple(epoch_order(seed, epoch, 100).tolist()) for seed in range(3) for epoch in range(3)]
    assert len(set(orders)) == 9


def test_every_sample_once_an_epoch(data: Path) -> None:
    found = keys(take(data, 25, batch_size=4))  # 100 samples: two epochs of 50
    everything = sorted(read_catalog(data)["key"].to_pylist())
    assert sorted(found[:50]) == everything
    assert sorted(found[50:]) == everything
    assert found[:50] != found[50:]


def test_the_order_does_not_depend_on_threads_or_prefetch(data: Path) -> None:
    one = take(data, 9, threads=1, prefetch=1)
    many = take(data, 9, threads=5, prefetch=7)
    assert keys(one) == keys(many)
    for a, b in zip(one, many, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.draws, b.draws)


@pytest.mark.parametrize("access", ["random", "sequential"])
def test_ranks_share_the_global_order(data: Path, access: str) -> None:
    whole = take(data, 9, batch_size=12, **BLOCKS, access=access)
    parts = [take(data, 9, batch_size=4, rank=rank, world=3, **BLOCKS, access=access) for rank in range(3)]
    for number, batch in enumerate(whole):
        for rank, part in enumerate(parts):
            assert part[number].keys == batch.keys[rank::3]
            assert torch.equal(part[number].pixels, batch.pixels[rank::3])
            assert torch.equal(part[number].draws, batch.draws[rank::3])
            assert torch.equal(part[number].place, batch.place[rank::3])
            assert part[number].state == batch.state


@pytest.mark.parametrize("before", [1, 4, 6, 7, 11])
def test_resuming_repeats_and_skips_nothing(data: Path, before: int) -> None:
    through = take(data, 14)
    first = take(data, before)
    rest = take(data, 14 - before, state=first[-1].state, threads=3)
    assert keys(first + rest) == keys(through)
    assert torch.equal(rest[-1].draws, through[-1].draws)


def test_resuming_with_another_number_of_ranks(data: Path) -> None:
    through = take(data, 8, batch_size=12)
    halves = [take(data, 4, state=through[3].state, batch_size=6, rank=rank, world=2) for rank in range(2)]
    for number, batch in enumerate(through[4:]):
        assert batch.keys[0::2] == halves[0][number].keys
        assert batch.keys[1::2] == halves[1][number].keys


def test_state_dict_round_trip(data: Path) -> None:
    stream = ImageStream(select(data), StreamSettings(batch_size=8))
    list(itertools.islice(iter(stream), 3))
    other = ImageStream(select(data), StreamSettings(batch_size=8))
    other.load_state_dict(stream.state_dict())
    assert next(iter(other)).keys == take(data, 4)[3].keys


@pytest.fixture(scope="module", params=["png", "jhc"])
def coded(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set in each codec of the shards."""
    if request.param == "png":
        return data
    root = tmp_path_factory.mktemp("coded") / "data"
    make_dataset(root, n=50, seed=3, codec="jhc")
    return root


def expected_pixels(image: bytes, codec: str, channels: int, canvas: int) -> np.ndarray[Any, Any]:
    """What lies in a batch: ``uint16 [channels, canvas, canvas]``, zeros beyond the image."""
    pixels = decode(image, codec)
    if pixels.ndim == 3 and channels == 1:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    rows, columns = pixels.shape[:2]
    if columns > canvas:
        rows, columns = round(rows * canvas / columns), canvas
        pixels = cv2.resize(pixels, (columns, rows), interpolation=cv2.INTER_AREA)
    whole = np.zeros((channels, canvas, canvas), np.uint16)
    whole[:, :rows, :columns] = pixels if pixels.ndim == 2 else np.moveaxis(pixels, 2, 0)
    return whole


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("canvas", [40, 64, 100])  # the images are 64 wide
def test_pixels_are_those_of_the_shards(coded: Path, channels: int, canvas: int) -> None:
    codec = read_catalog(coded).to_pylist()[0]["codec"]
    images = {key: image for path in (coded / "shards").iterdir() for key, image, _ in read_samples(path)}
    for access in ("random", "sequential"):
        # batches that are not held: their memory, with what was in it, is used again
        stream = iter(ImageStream(select(coded), StreamSettings(8, channels, canvas, access=access, **BLOCKS)))
        for batch in itertools.islice(stream, 14):
            for place, key in enumerate(batch.keys):
                found = batch.pixels[place].numpy().view(np.uint16)
                np.testing.assert_array_equal(found, expected_pixels(images[key], codec, channels, canvas))
            del batch
        stream.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("damage", ["zeros", "a byte", "the end"])
def test_a_damaged_image_is_found_in_either_codec(coded: Path, tmp_path: Path, damage: str) -> None:
    """In the middle of it, or from there to its end; PNG is checked by parts, HTJ2K as a whole."""
    root = tmp_path / "data"
    shutil.copytree(coded, root)
    row = next(row for row in read_catalog(root).to_pylist() if row["modality"] == "CT")
    middle = row["offset"] + row["length"] // 2
    with (root / "shards" / row["shard"]).open("r+b") as file:
        file.seek(middle)
        byte = file.read(1)[0]
        file.seek(row["offset"] if damage == "zeros" else middle)
        lengths = {"zeros": row["length"], "a byte": 0, "the end": row["length"] - row["length"] // 2}
        file.write(bytes([byte ^ 0x40]) if damage == "a byte" else bytes(lengths[damage]))
    whole, found = take(coded, 7), take(root, 7)
    assert keys(found) == keys(whole)
    for batch, sound in zip(found, whole, strict=True):
        for place, key in enumerate(batch.keys):
            if key == row["key"] and not batch.valid[place]:
                assert not batch.pixels[place].any(), "black"
            else:
                assert torch.equal(batch.pixels[place], sound.pixels[place])
    bad = {batch.keys[place] for batch in found for place in range(8) if not batch.valid[place]}
    assert bad == {row["key"]}


def test_an_image_that_cannot_be_read_is_marked_counted_and_then_too_many(data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "data"
    shutil.copytree(data, damaged)
    row = read_catalog(damaged).to_pylist()[0]
    with (damaged / "shards" / row["shard"]).open("r+b") as file:
        file.seek(row["offset"])
        file.write(bytes(row["length"]))
    batches = take(damaged, 7, batch_size=10, max_bad=5)
    wrong = {batch.keys[place] for batch in batches for place in range(10) if not batch.valid[place]}
    assert wrong == {row["key"]}
    assert [len(batch.kept()) for batch in batches].count(9) == 1, "met once in seven batches of ten of fifty"
    stream = ImageStream(select(damaged), StreamSettings(batch_size=10, max_bad=1))
    list(itertools.islice(iter(stream), 15))  # three epochs: met thrice, and still one image
    assert stream.bad == [row["key"]]
    with pytest.raises(LumidError, match=rf"max_bad = 0; the last is {row['key']} \({row['shard']}: not a readable"):
        take(damaged, 11, batch_size=10, max_bad=0)


def test_an_empty_selection_is_said(data: Path) -> None:
    with pytest.raises(DatasetError, match="no samples"):
        select(data, "modality = 'XA'")


def test_a_missing_shard_is_counted_by_key_too(data: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "data"
    shutil.copytree(data, damaged)
    gone = read_catalog(damaged).to_pylist()[0]["shard"]
    (damaged / "shards" / gone).unlink()
    lost = {row["key"] for row in read_catalog(damaged).to_pylist() if row["shard"] == gone}
    for access in ("random", "sequential"):
        batches = take(damaged, 5, batch_size=10, access=access, **BLOCKS)
        assert {
            key for batch in batches for key, valid in zip(batch.keys, batch.valid, strict=True) if not valid
        } == lost
        assert {key for batch in batches for key in batch.kept().keys} == set(keys(batches)) - lost
        with pytest.raises(DatasetError, match="its shard is missing"):
            take(damaged, 5, batch_size=10, access=access, max_bad=len(lost) - 1, **BLOCKS)


@pytest.mark.parametrize("before", [1, 5, 6, 13])
@pytest.mark.parametrize("access", ["random", "sequential"])
def test_resuming_in_the_middle_with_everything_else_changed(data: Path, access: str, before: int) -> None:
    through = take(data, 20, batch_size=12, access=access, **BLOCKS)
    place = through[before - 1].state
    parts = [
        take(data, 20 - before, place, batch_size=3, rank=rank, world=4, threads=rank, prefetch=rank + 1, **BLOCKS)
        for rank in range(4)
    ]  # without saying how it is read: it goes on as it was
    for number, batch in enumerate(through[before:]):
        assert [batch.keys[rank::4] for rank in range(4)] == [part[number].keys for part in parts]


def test_another_order_cannot_be_gone_on_with(data: Path) -> None:
    place = take(data, 1, access="sequential", **BLOCKS)[0].state
    for settings in ({**BLOCKS, "seed": 1}, {**BLOCKS, "lanes": 3}, {"mixture": Mixture("modality")}):
        with pytest.raises(LumidError, match="another selection, seed, mixture or way of shuffling"):
            take(data, 1, place, **settings)
    with pytest.raises(LumidError, match="another selection"):
        ImageStream(select(data, "modality = 'CT'"), StreamSettings(8, **BLOCKS), place).__iter__().__next__()
    assert take(data, 1, StreamState(0, 8), **BLOCKS), "a state that says no order fits any"


def test_memory_is_used_again_but_never_under_a_batch_that_is_held(data: Path) -> None:
    held = take(data, 30)
    copies = [batch.pixels.clone() for batch in held]
    stream = iter(ImageStream(select(data), StreamSettings(8, prefetch=2)))
    seen = set()
    for expected in copies:
        batch = next(stream)
        assert torch.equal(batch.pixels, expected)
        seen.add(batch.pixels.data_ptr())
        part = batch.pixels[3:5]
        del batch
        assert part.shape[0] == 2
    assert len(seen) < 8, "thirty batches in a few pieces of memory"
    assert len({batch.pixels.data_ptr() for batch in held}) == 30
    assert all(torch.equal(batch.pixels, copy) for batch, copy in zip(held, copies, strict=True))


def test_a_part_of_a_batch_keeps_its_memory(data: Path) -> None:
    stream = iter(ImageStream(select(data), StreamSettings(8, prefetch=1)))
    part = next(stream).pixels[2]
    copy = part.clone()
    for _ in range(20):
        next(stream)
    assert torch.equal(part, copy)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_of_a_data_loader_give_the_same_sequence(data: Path, workers: int) -> None:
    through = take(data, 16)
    stream = ImageStream(select(data), StreamSettings(8, threads=1, prefetch=2))
    loader = iter(DataLoader(stream, batch_size=None, num_workers=workers))
    found = [next(loader) for _ in range(9)]
    assert keys(found) == keys(through[:9])
    assert all(torch.equal(one.pixels, other.pixels) for one, other in zip(found, through, strict=False))
    assert keys(take(data, 7, found[-1].state)) == keys(through[9:])


def test_blocks_are_not_for_workers(data: Path) -> None:
    stream = ImageStream(select(data), StreamSettings(8, access="sequential"))
    with pytest.raises(LumidError, match="num_workers=0"):
        next(iter(DataLoader(stream, batch_size=None, num_workers=1)))


def test_batches_on_a_device_are_those_of_the_stream(data: Path) -> None:
    stream = iter(ImageStream(select(data), StreamSettings(8)))
    found = list(itertools.islice(on_device(stream, torch.device("cpu")), 5))
    assert keys(found) == keys(take(data, 5))


@given(st.integers(0, 2**32), st.integers(0, 99), st.integers(0, 10_000), st.integers(1, 50))
def test_the_numbers_of_a_sample_are_its_own(seed: int, epoch: int, index: int, count: int) -> None:
    draws = sample_draws(seed, epoch, index, count)
    assert draws.shape == (count, 8)
    assert draws.min() >= 0
    assert draws.max() < 1
    np.testing.assert_array_equal(draws[-1], sample_draws(seed, epoch, index + count - 1)[0])


def test_the_numbers_of_samples_are_uniform_and_unrelated() -> None:
    draws = np.concatenate([sample_draws(0, epoch, 0, 5000) for epoch in range(2)], axis=1).astype(np.float64)
    assert abs(draws.mean(0) - 0.5).max() < 0.02
    assert abs(draws.var(0) - 1 / 12).max() < 0.005
    assert abs(np.corrcoef(draws.T) - np.eye(16)).max() < 0.06
    assert abs(np.corrcoef(draws[:-1].T, draws[1:].T)[:16, 16:]).max() < 0.06


def test_settings_that_cannot_work_are_said(data: Path) -> None:
    for settings, words in (
        ({"rank": 2, "world": 2}, "rank < world"),
        ({"access": "fast"}, "auto, random and sequential"),
    ):
        with pytest.raises(LumidError, match=words):
            take(data, 1, **settings)
