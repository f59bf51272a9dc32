"""Tasks of public data that cannot be passed on: made ones of the same form, with signals that a probe would find."""

from __future__ import annotations

import csv
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.schema import CatalogRow
from lumid.model.evaluate.tasks import load_task
from lumid.model.evaluate.tasks.chest import FINDINGS
from lumid.model.evaluate.tasks.medmnist import from_npz
from lumid.model.evaluate.tasks.scanners import series_of_index
from tests.factory import make_image, make_sample, write_dataset

KEYER = Keyer(PUBLIC_SECRET)


def rows_of(root: Path, rows: list[dict[str, Any]], modality: str = "CT") -> Path:
    random = np.random.default_rng(0)
    samples: list[tuple[CatalogRow, bytes]] = []
    for number, values in enumerate(rows):
        row, image = make_sample(modality, number, make_image(random, modality))
        samples.append((replace(row, **values), image))
    write_dataset(root, samples)
    return root


def chest(root: Path, *, held_out: bool = True, rare: bool = False) -> Path:
    rows = []
    for number in range(120):
        test = number % 4 == 0
        labels = (
            tuple(sorted({FINDINGS[number // 4 % 14], FINDINGS[(number * 5 + 3) % 14]}))
            if number % 6
            else ("No Finding",)
        )
        if rare:
            labels = tuple(one for one in labels if one != "Hernia" or not test) or ("No Finding",)
        rows.append({
            "collection": "nih_chest_xray", "modality": "DX", "labels": None if number == 1 else labels,
            "patient": KEYER.pseudonym("patient", "nih_chest_xray", f"{number // 4 if test else 1000 + number // 2}"),
            "split": "benchmark" if test and held_out else ("train", "val", "test")[number // 2 % 3],
        })  # fmt: skip
    return rows_of(root, rows)


def test_chest_xray14_is_tested_on_the_official_list(tmp_path: Path) -> None:
    task = load_task("chestxray14", chest(tmp_path / "data"))
    assert (task.kind, len(task.classes), len(task)) == ("multilabel", 14, 119)
    assert len(task.of("test")) == 30
    assert task.labels.sum(1).min() == 0, "No Finding is none of the fourteen"
    assert task.note == (
        "30 of the 25,596 images of the official test list; 120 of 112,120 images in all; 1 images without labels left out"
    )
    assert task.reported is not None
    assert not task.reported.comparable
    few = load_task("chestxray14", chest(tmp_path / "few", rare=True))
    assert "Hernia" not in few.classes
    assert len(few.classes) == 13
    assert few.labels.shape == (119, 13)
    assert "too few of Hernia" in few.note
    with pytest.raises(DatasetError, match="hold_out"):
        load_task("chestxray14", chest(tmp_path / "other", held_out=False))


def test_ct_scanners_takes_doses_from_the_public_index(tmp_path: Path) -> None:
    known = series_of_index()
    assert len(known) == 1378
    assert len({scanner for scanner, _ in known.values()}) == 13
    assert sorted({dose for _, dose in known.values()}) == [1, 3, 6, 10, 14]
    series = [one for number, one in enumerate(sorted(known)) if number % 3 == 0]
    rows = [{"collection": "ct4harmonization_multicentric", "series": one} for one in series]
    rows += [{"collection": "ct4harmonization_multicentric", "series": "0" * 16}]
    task = load_task("ct-scanners", rows_of(tmp_path / "data", rows))
    assert task.classes == ("1 mGy", "3 mGy", "6 mGy", "10 mGy", "14 mGy")
    assert len(task) == len(series), "what the index does not know is left out"
    assert set(task.patients) == {scanner for scanner, _ in known.values()}
    with pytest.raises(DatasetError, match="not in IDC's index"):
        load_task("ct-scanners", rows_of(tmp_path / "unknown", rows[-1:]))


def polyps(folder: Path, frames: int = 24) -> Path:
    random = np.random.default_rng(1)
    folder.mkdir()
    with (folder / "metadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["frame_id", "sequence_id", "png_image_path"])
        writer.writerows([frame + 1, frame // 3 + 1, "unused"] for frame in range(frames))
    for part in ("Original", "Ground Truth"):
        (folder / part).mkdir()
    for frame in range(frames):
        mask = np.zeros((29, 38), np.uint8)
        cv2.circle(mask, (int(random.integers(8, 30)), int(random.integers(8, 20))), 6, 255, -1)
        image = np.dstack([mask // 8, mask // 4, mask // 2]) + random.integers(0, 60, (29, 38, 3)).astype(np.uint8)
        cv2.imwrite(str(folder / "Original" / f"{frame + 1}.png"), image)
        cv2.imwrite(str(folder / "Ground Truth" / f"{frame + 1}.tif"), mask)
    return folder


def test_polyps_are_split_by_sequence_and_seen_whole(tmp_path: Path) -> None:
    folder = polyps(tmp_path / "cvc")
    task = load_task(f"cvc-clinicdb:{folder}", None)
    assert task.kind == "masks"
    assert len(set(task.patients)) == 8
    assert task.note == "split by sequence, which stands for the patient; 24 of 612 frames, 8 of 29 sequences"
    assert task.masks is not None
    ((indices, masks),) = list(task.masks.batches(64, False, 30))
    ((_, images),) = list(task.images.batches(64, False, 30))
    assert indices.tolist() == list(range(24)), "frame 10 does not come after frame 1"
    assert masks.shape[1:] == (1, 64, 64)
    assert images.shape[1:] == (3, 64, 64)
    inside = masks[:, 0] > 0.5
    assert images[:, 0][inside].mean() > 2 * images[:, 0][~inside].mean(), "red is the first channel"
    before = task.data_hash
    cv2.imwrite(str(folder / "Original" / "7.png"), np.zeros((29, 38, 3), np.uint8))
    assert load_task(f"cvc-clinicdb:{folder}", None).data_hash != before
    (folder / "Ground Truth" / "3.tif").unlink()
    with pytest.raises(UsageError, match="1 files of the frames"):
        load_task(f"cvc-clinicdb:{folder}", None)
    (folder / "metadata.csv").unlink()
    with pytest.raises(UsageError, match="frame_id and sequence_id"):
        load_task(f"cvc-clinicdb:{folder}", None)


def npz(path: Path, several: bool = False) -> str:
    random = np.random.default_rng(2)
    arrays = {}
    for split, count in (("train", 20), ("val", 8), ("test", 10)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.arange(count) % 2
        arrays[f"{split}_labels"] = np.stack([labels, 1 - labels], 1) if several else labels[:, None]
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    return hashlib.md5(path.read_bytes()).hexdigest()


def test_medmnist_keeps_its_splits_and_checks_its_file(tmp_path: Path) -> None:
    facts = {"task": "binary-class", "label": {"0": "malignant", "1": "normal, benign"}, "license": "CC BY 4.0"}
    md5 = npz(tmp_path / "breastmnist_224.npz")
    task = from_npz(tmp_path / "breastmnist_224.npz", "breastmnist", facts, md5)
    assert [len(task.of(split)) for split in ("train", "val", "test")] == [20, 8, 10]
    assert task.classes == ("malignant", "normal, benign")
    assert task.reported is not None
    assert "ultrasound" in task.reported.why
    with pytest.raises(DatasetError, match="MD5"):
        from_npz(tmp_path / "breastmnist_224.npz", "breastmnist", facts, "0" * 32)
    md5 = npz(tmp_path / "chestmnist_224.npz", several=True)
    several = facts | {"task": "multi-label, binary-class"}
    assert from_npz(tmp_path / "chestmnist_224.npz", "chestmnist", several, md5).kind == "multilabel"


def test_medmnist_says_how_to_get_what_is_missing(tmp_path: Path) -> None:
    pytest.importorskip("medmnist", reason="medmnist is not installed")
    path = tmp_path / "breastmnist_224.npz"
    with pytest.raises(UsageError, match=r"medmnist.BreastMNIST\(split='test', size=224, download=True\)"):
        load_task(f"medmnist:{path}", None)
    npz(path)
    with pytest.raises(DatasetError, match="not the file that the package medmnist names"):
        load_task(f"medmnist:{path}", None)
    for name, why in (("brestmnist", "did you mean breastmnist"), ("organmnist3d", "no such 2-D set")):
        with pytest.raises(LumidError, match=why):
            load_task(f"medmnist:{name}", None)
