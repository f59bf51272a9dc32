from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lumid.catalog.errors import UsageError
from lumid.model.evaluate.encoders import Encoder, load_encoder
from lumid.model.evaluate.metrics import mask_curves, measure, measure_masks
from lumid.model.evaluate.rows import Rows
from lumid.model.evaluate.settings import FineTuning, Probing, set_fields
from lumid.model.evaluate.tasks.base import Kind
from lumid.model.evaluate.training import Material, SegmentationHead, Split, fine_tune, segmentation_probe

QUICK = FineTuning(epochs=6, batch=16, rate=8e-3, warmup=1, drop_path=0.0, scale=0.8)


def tiny() -> Encoder:
    encoder = load_encoder("random:vit_tiny_patch16_224", options={"img_size": 32, "patch_size": 8, "depth": 2})
    return replace(encoder, preprocessing=replace(encoder.preprocessing, size=32))


def convolutional() -> Encoder:
    encoder = load_encoder("random:resnet10t")
    return replace(encoder, preprocessing=replace(encoder.preprocessing, size=32))


def spots(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Grey noise with a bright square: images, the half it is in (upper or lower), and its mask."""
    random = np.random.default_rng(seed)
    images = random.random((count, 1, 36, 36)).astype(np.float16) * 0.3
    masks = np.zeros((count, 36, 36), np.uint8)
    lower = random.integers(0, 2, count)
    for number in range(count):
        row, column = 20 * lower[number] + int(random.integers(0, 4)), int(random.integers(0, 24))
        masks[number, row : row + 10, column : column + 10] = 1
    images[:, 0][masks.astype(bool)] += 0.6
    return images, lower.astype(np.int64), masks


def material(kind: Kind, scratch: Path | None = None, count: int = 48) -> tuple[Material, np.ndarray]:  # type: ignore[type-arg]
    made = {name: spots(count, seed) for seed, name in enumerate(("train", "val", "test"))}
    splits = {}
    for name, (images, lower, masks) in made.items():
        labels = {"multiclass": lower, "multilabel": np.stack([lower, 1 - lower], 1).astype(bool)}.get(kind)
        splits[name] = Split(Rows.of(images), Rows.of(masks) if labels is None else labels)
    classes = 1 if kind == "masks" else 2
    truth = made["test"][2].astype(bool) if kind == "masks" else splits["test"].labels
    assert isinstance(truth, np.ndarray)
    return Material(kind, classes, splits["train"], splits["val"], splits["test"], torch.device("cpu"), scratch), truth


@pytest.mark.parametrize(("kind", "mixup"), [("multiclass", 0.0), ("multilabel", 0.0), ("multiclass", 0.4)])
def test_fine_tuning_learns_what_can_be_seen(kind: Kind, mixup: float) -> None:
    given, truth = material(kind)
    found = fine_tune(convolutional(), given, replace(QUICK, mixup=mixup, rate=3e-2, layer_decay=1.0), 0)
    assert measure(kind, truth, found.test, np.zeros(2))["auroc"][0] > 0.95
    assert found.val.shape == (48, 2)
    assert found.chosen["epoch"] <= found.chosen["epochs"] <= 6


def test_fine_tuning_finds_outlines_and_flips_image_and_mask_together() -> None:
    images, _, masks = spots(16, 5)
    split = Split(Rows.of(images), Rows.of(masks))
    given = Material("masks", 1, split, split, split, torch.device("cpu"))
    found = fine_tune(tiny(), given, replace(QUICK, epochs=8, rate=6e-2, layer_decay=1.0), 0)
    assert found.test.dtype == np.uint8
    everything = measure_masks(*mask_curves(masks.astype(bool), np.full_like(masks, 255)))["dice"][0]
    assert measure_masks(*mask_curves(masks.astype(bool), found.test))["dice"][0] > 3 * everything


def test_the_segmentation_head_learns_from_feature_maps() -> None:
    images, _, masks = spots(16, 5)
    pooled = (images.reshape(16, 1, 3, 12, 3, 12).mean((3, 5)) - 0.15) * 10  # says where the square is
    maps = np.concatenate([pooled, 1 - pooled], 1).astype(np.float16)
    split = Split(Rows.of(maps), Rows.of(masks))
    given = Material("masks", 1, split, split, split, torch.device("cpu"))
    found = segmentation_probe(given, Probing(epochs=20, batch=4, rate=3e-3), 0)
    assert measure_masks(*mask_curves(masks.astype(bool), found.test))["dice"][0] > 0.7


def test_the_head_doubles_four_times() -> None:
    head = SegmentationHead(768)
    assert head(torch.zeros(1, 768, 14, 14)).shape == (1, 224, 224)
    doublings = sum(parameter.numel() for parameter in head.parameters())
    by_hand = sum(
        before * after * 4 + after + after * after * 9 + after
        for before, after in ((768, 256), (256, 128), (128, 64), (64, 32))
    )
    assert doublings == by_hand + 32 + 1


class KilledError(Exception):
    pass


@pytest.mark.parametrize("kind", ["multiclass", "masks"])
def test_a_killed_job_goes_on_and_says_the_same(kind: Kind, tmp_path: Path) -> None:
    def kill(done: int, total: int) -> None:
        if done == 2:
            raise KilledError

    settings = replace(QUICK, epochs=3, drop_path=0.2)
    options = {"drop_path_rate": 0.2, "img_size": 32, "patch_size": 8, "depth": 2}

    def encoder() -> Encoder:
        found = load_encoder("random:vit_tiny_patch16_224", options=options)
        return replace(found, preprocessing=replace(found.preprocessing, size=32))

    given, _ = material(kind, tmp_path / "fit.pt", count=12)
    with pytest.raises(KilledError):
        fine_tune(encoder(), replace(given, report=kill), settings, 3)
    assert (tmp_path / "fit.pt").is_file()
    resumed = fine_tune(encoder(), given, settings, 3)
    assert not list(tmp_path.iterdir()), "the checkpoint goes when it is done"
    whole = fine_tune(encoder(), replace(given, scratch=None), settings, 3)
    assert np.array_equal(resumed.test, whole.test)
    assert resumed.chosen == whole.chosen


def test_a_damaged_checkpoint_is_a_beginning(tmp_path: Path) -> None:
    (tmp_path / "fit.pt").write_bytes(b"half a checkpoint")
    given, _ = material("multiclass", tmp_path / "fit.pt", count=24)
    settings = replace(QUICK, epochs=1)
    found = fine_tune(tiny(), given, settings, 0)
    assert np.array_equal(found.test, fine_tune(tiny(), replace(given, scratch=None), settings, 0).test)


def test_settings_by_name() -> None:
    found = set_fields(FineTuning(), ["epochs=3", "flip=false", "mixup=0.8"])
    assert (found.epochs, found.flip, found.mixup) == (3, False, 0.8)
    for text, why in (
        ("epoch=3", "did you mean epochs"), ("epochs=many", "takes a number"), ("epochs=0", "1 or more"),
        ("flip=perhaps", "true or false"), ("layer_decay=1.5", "not above 1"), ("zzz=1", "there are"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=why):
            set_fields(FineTuning(), [text])
