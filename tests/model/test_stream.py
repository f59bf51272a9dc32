"""The stream: a fixed order for any number of threads and ranks, exact resume, nothing dropped silently."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumid.catalog.codecs import decode
from lumid.catalog.errors import DatasetError, LumidError
from lumid.catalog.places import as_place
from lumid.catalog.query import read_catalog
from lumid.catalog.shards import read_samples
from lumid.catalog.subset import write_subset
from lumid.model.augment import centre_crop, evaluation_input, random_crop, training_input
from lumid.model.stream import Batch, ImageStream, StreamSettings, StreamState, epoch_order, select

CPU = torch.device("cpu")


def take(data: Path, batches: int, state: StreamState | None = None, **settings: int) -> list[Batch]:
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


def test_ranks_share_the_global_order(data: Path) -> None:
    whole = take(data, 6, batch_size=12)
    parts = [take(data, 6, batch_size=4, rank=rank, world=3) for rank in range(3)]
    for number, batch in enumerate(whole):
        assert batch.keys == sum((part[number].keys for part in parts), ())
        assert torch.equal(batch.pixels, torch.cat([part[number].pixels for part in parts]))
        assert all(part[number].state == batch.state for part in parts)


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
    assert keys(through[4:]) == [key for number in range(4) for rank in range(2) for key in halves[rank][number].keys]


def test_state_dict_round_trip(data: Path) -> None:
    stream = ImageStream(select(data), StreamSettings(batch_size=8))
    list(itertools.islice(iter(stream), 3))
    other = ImageStream(select(data), StreamSettings(batch_size=8))
    other.load_state_dict(stream.state_dict())
    assert next(iter(other)).keys == take(data, 4)[3].keys


def test_pixels_are_those_of_the_shards(data: Path) -> None:
    codec = "png"  # what the tests' factory writes
    images = {
        key: decode(image, codec)
        for path in sorted((data / "shards").iterdir())
        for key, image, _ in read_samples(path)
    }
    for batch in take(data, 4, channels=3):
        for place, key in enumerate(batch.keys):
            rows, columns = batch.size[place].tolist()
            found = (batch.pixels[place].numpy().view(np.uint16))[:, :rows, :columns]
            expected = images[key] if images[key].ndim == 3 else np.repeat(images[key][..., None], 3, 2)
            np.testing.assert_array_equal(found, np.moveaxis(expected, 2, 0))


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
    with pytest.raises(LumidError, match=row["key"]):
        take(damaged, 11, batch_size=10, max_bad=1)  # two epochs: it is met twice


def test_an_empty_selection_is_said(data: Path) -> None:
    with pytest.raises(DatasetError, match="no samples"):
        select(data, "modality = 'XA'")


def test_what_a_sample_looks_like_does_not_depend_on_its_batch(data: Path) -> None:
    whole = take(data, 1, batch_size=12)[0]
    parts = [take(data, 1, batch_size=4, rank=rank, world=3)[0] for rank in range(3)]
    together = training_input(whole, 64, CPU)
    apart = torch.cat([training_input(part, 64, CPU) for part in parts])
    torch.testing.assert_close(together, apart, rtol=0, atol=1e-6)


def test_inputs_are_in_range_and_evaluation_is_not_random(data: Path) -> None:
    batch = take(data, 1, channels=3)[0]
    for images in (training_input(batch, 48, CPU), evaluation_input(batch, 48, CPU)):
        assert images.shape == (8, 3, 48, 48)
        assert images.min() >= -1
        assert images.max() <= 1
        assert images.std() > 0.05
    assert torch.equal(evaluation_input(batch, 48, CPU), evaluation_input(batch, 48, CPU))


def test_crops_lie_inside_the_image_and_have_the_area_asked_for() -> None:
    size = torch.tensor([[200, 100]] * 500)
    crop = random_crop(size, torch.rand(500, 8, generator=torch.Generator().manual_seed(0)), (0.2, 0.6))
    for start, extent in ((crop.top, crop.height), (crop.left, crop.width)):
        assert start.min() >= 0
        assert (start + extent).max() <= 1 + 1e-6
    area = crop.height * crop.width
    assert area.max() <= 0.6 + 1e-5
    assert 0.3 < float(area.mean()) < 0.45
    assert 0.4 < float(crop.flip.float().mean()) < 0.6


def test_evaluation_is_the_centred_square_resized() -> None:
    crop = centre_crop(torch.tensor([[100, 50]]))
    assert [float(value) for value in (crop.top, crop.left, crop.height, crop.width)] == [0.25, 0.0, 0.5, 1.0]


def test_a_linear_ramp_stays_one(data: Path) -> None:
    """Resampling to half size must give the mean of each 2 × 2 block: known by hand for a ramp."""
    batch = take(data, 1, batch_size=1, canvas=64)[0]
    ramp = torch.arange(64, dtype=torch.int16).mul(1000).expand(1, 1, 64, 64).contiguous()
    import dataclasses

    fixed = dataclasses.replace(
        batch, pixels=ramp, size=torch.tensor([[64, 64]]), hounsfield=torch.tensor([False]),
        white=torch.tensor([65535.0]), low=torch.tensor([0.0]), high=torch.tensor([63000.0]),
    )  # fmt: skip
    out = (evaluation_input(fixed, 32, CPU) + 1) / 2 * 63000
    expected = torch.arange(32) * 2000.0 + 500
    torch.testing.assert_close(out[0, 0, 5], expected, rtol=0, atol=20)


def test_a_subset_streams_its_own_samples_only(data: Path, tmp_path: Path) -> None:
    write_subset(data, tmp_path / "ct.parquet", "modality = 'CT'")
    for source in (as_place(tmp_path / "ct.parquet"), as_place(data, tmp_path / "ct.parquet")):
        selection = select(source, "split = 'train'")
        stream = ImageStream(selection, StreamSettings(batch_size=len(selection)))
        (batch,) = itertools.islice(iter(stream), 1)
        stream.close()
        assert sorted(batch.keys) == read_catalog(data, "modality = 'CT' AND split = 'train'")["key"].to_pylist()
        assert bool(batch.valid.all())
