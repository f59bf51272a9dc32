"""From stored values to the encoder's input: ranges, crops, and what others' resizing gives."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from lumid.model.augment import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    centre_crop,
    evaluation_input,
    linear,
    paper_input,
    random_crop,
    training_input,
    transform,
    whole_pixels,
)
from lumid.model.stream import Batch, ImageStream, StreamSettings, select

CPU = torch.device("cpu")


def take(data: Path, batches: int, **settings: int) -> list[Batch]:
    stream = ImageStream(select(data), StreamSettings(**({"batch_size": 8} | settings)))
    return list(itertools.islice(iter(stream), batches))


def test_what_a_sample_looks_like_does_not_depend_on_its_batch(data: Path) -> None:
    whole = take(data, 1, batch_size=12)[0]
    parts = [take(data, 1, batch_size=4, rank=rank, world=3)[0] for rank in range(3)]
    together = training_input(whole, 64, CPU)
    for rank, part in enumerate(parts):
        torch.testing.assert_close(together[rank::3], training_input(part, 64, CPU), rtol=0, atol=1e-5)


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


def ramp(batch: Batch) -> Batch:
    """One grey image of 64 × 64 whose columns are 0, 1000, 2000 …, shown from 0 to 63000."""
    pixels = torch.arange(64, dtype=torch.int32).mul(1000).to(torch.int16).expand(1, 1, 64, 64).contiguous()
    return dataclasses.replace(
        batch, pixels=pixels, size=torch.tensor([[64, 64]]), hounsfield=torch.tensor([False]), suv=torch.tensor([False]),
        white=torch.tensor([65535.0]), low=torch.tensor([0.0]), high=torch.tensor([63000.0]),
    )  # fmt: skip


def test_a_linear_ramp_stays_one(data: Path) -> None:
    """Resampling to half size must give the mean of each 2 × 2 block: known by hand for a ramp, but at its ends."""
    out = (evaluation_input(ramp(take(data, 1, batch_size=1, canvas=64)[0]), 32, CPU) + 1) / 2 * 63000
    torch.testing.assert_close(out[0, 0, 5, 1:-1], (torch.arange(32) * 2000.0 + 500)[1:-1], rtol=0, atol=1)


@pytest.mark.parametrize("size", [16, 48, 64, 100])
def test_resampling_is_torchs_own_where_that_can_do_it(size: int) -> None:
    images = torch.rand(3, 2, 64, 64, generator=torch.Generator().manual_seed(1))
    ours = transform(images, torch.zeros(3), torch.ones(3), centre_crop(torch.tensor([[64, 64]] * 3)), size, linear)
    theirs = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_flip_is_a_flip_and_the_canvas_never_shines_in() -> None:
    images = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(2))
    images[1] = images[0]
    size = torch.tensor([[40, 50]] * 2)
    crop = dataclasses.replace(centre_crop(size), flip=torch.tensor([False, True]))
    plain, flipped = transform(images, torch.zeros(2), torch.ones(2), crop, 32, linear)
    torch.testing.assert_close(flipped, plain.flip(-1), rtol=0, atol=1e-6)
    images[:, :, 40:] = 99
    images[:, :, :, 50:] = -99
    torch.testing.assert_close(
        transform(images, torch.zeros(2), torch.ones(2), crop, 32, linear)[0], plain, rtol=0, atol=0
    )


def test_ct_is_windowed_in_hu_at_random_in_training_only(data: Path) -> None:
    batch = ramp(take(data, 1, batch_size=1, canvas=64)[0])
    water_and_air = torch.zeros(4, 1, 64, 64, dtype=torch.int16)
    water_and_air[..., 32:] = 1024
    many = {
        name: getattr(batch, name).expand(4, *getattr(batch, name).shape[1:])
        for name in ("size", "low", "high", "white", "draws", "valid", "suv")
    }
    ct = dataclasses.replace(
        batch, **many | {"draws": torch.rand(4, 8)}, pixels=water_and_air, hounsfield=torch.ones(4, dtype=torch.bool),
        slope=torch.ones(4), intercept=torch.full((4,), -1024.0),
    )  # fmt: skip
    seen = evaluation_input(ct, 64, CPU)
    assert torch.equal(seen[:, 0, 32, 0], torch.full((4,), -1.0)), "-1024 HU is black"
    torch.testing.assert_close(seen[:, 0, 32, -1], torch.zeros(4), rtol=0, atol=1e-6)  # 0 HU: the middle of ±1000
    drawn = training_input(ct, 64, CPU, scale=(1.0, 1.0)).amax((1, 2, 3))
    low, high = -1024 + ct.draws[:, 5] * 824, 300 + ct.draws[:, 6] * 1200
    torch.testing.assert_close(drawn, -low / (high - low) * 2 - 1, rtol=0, atol=1e-5)
    assert len(set(drawn.tolist())) == 4


@pytest.mark.parametrize("training", [True, False])
def test_the_papers_input_is_what_pillow_makes_of_eight_bits(data: Path, training: bool) -> None:
    """Against torchvision's RandomResizedCrop on Pillow images, with the same crop, to one grey level."""
    for batch in take(data, 6, channels=3, canvas=128):
        found = paper_input(batch, 56, CPU, training=training)
        crop = whole_pixels(random_crop(batch.size, batch.draws, (0.2, 1.0)) if training else centre_crop(batch.size))
        for place in range(len(batch)):
            rows, columns = batch.size[place].tolist()
            stored = batch.pixels[place].numpy().view(np.uint16)[:, :rows, :columns].astype(np.float64)
            if batch.hounsfield[place]:
                hounsfield = stored * float(batch.slope[place]) + float(batch.intercept[place])
                grey = np.clip((hounsfield + 1024) / 4096 * 255, 0, 255)
            else:
                grey = stored / float(batch.white[place]) * 255
            image = Image.fromarray(np.rint(grey).astype(np.uint8).transpose(1, 2, 0))
            box = [
                round(float(edge))
                for edge in (crop.top[place] * rows, crop.left[place] * columns, crop.height[place] * rows,
                             crop.width[place] * columns)
            ]  # fmt: skip
            expected = TF.resized_crop(image, *box, [56, 56], interpolation=InterpolationMode.BICUBIC)
            expected = TF.hflip(expected) if crop.flip[place] else expected
            expected = TF.normalize(TF.to_tensor(expected), IMAGENET_MEAN, IMAGENET_STD)
            levels = (found[place] - expected).abs() * torch.tensor(IMAGENET_STD).view(3, 1, 1) * 255
            assert levels.max() < 2.01, "a half that is rounded the other way in the first of two passes"
            assert (levels > 1.01).float().mean() < 1e-3
            assert levels.mean() < 0.15


def test_the_papers_input_of_one_channel_is_three_equal_ones(data: Path) -> None:
    found = paper_input(take(data, 1)[0], 48, CPU)
    mean, deviation = (torch.tensor(of).view(3, 1, 1) for of in (IMAGENET_MEAN, IMAGENET_STD))
    grey = found * deviation + mean
    torch.testing.assert_close(grey[:, 0], grey[:, 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(grey * 255, (grey * 255).round(), rtol=0, atol=1e-3)


def test_inside_autocast_images_keep_their_precision(data: Path) -> None:
    batch = take(data, 1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        inside = training_input(batch, 48, CPU)
    assert inside.dtype == torch.float32
    torch.testing.assert_close(inside, training_input(batch, 48, CPU), rtol=0, atol=0)
