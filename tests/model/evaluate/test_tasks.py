from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.model.evaluate.images import ArrayImages, CatalogImages, FileImages
from lumid.model.evaluate.tasks import TASKS, load_task
from lumid.model.evaluate.tasks.catalog import deal
from lumid.model.evaluate.tasks.quality import CT_FAULTS, MR_FAULTS
from lumid.model.stream import select
from tests.factory import make_dataset


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tasks") / "data"
    make_dataset(root, n=200, seed=3)
    return root


def test_a_patient_in_two_splits_is_refused(larger: Path) -> None:
    task = load_task("modality", larger)
    test_row, train_row = int(task.of("test")[0]), int(task.of("train")[0])
    patients = list(task.patients)
    patients[test_row] = patients[train_row]
    with pytest.raises(DatasetError, match="1 patients are in more than one split"):
        replace(task, patients=patients)
    with pytest.raises(DatasetError, match="no images for test"):
        replace(task, splits=["train" if split == "test" else split for split in task.splits])
    with pytest.raises(DatasetError, match="one name"):
        replace(task, ids=[task.ids[0], *task.ids[:-1]])


def test_images_of_a_catalog_come_whole_once_and_by_their_index(larger: Path) -> None:
    selection = select(larger)
    seen = np.zeros(len(selection), int)
    alone = CatalogImages(replace(selection, table=selection.table.slice(7, 1)))
    ((_, one),) = list(alone.batches(32, False, 4))
    for indices, images in CatalogImages(selection).batches(32, False, 7):
        seen[indices] += 1
        assert images.shape[2:] == (32, 32)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
        if 7 in indices:
            assert torch.equal(images[int(np.flatnonzero(indices == 7)[0])], one[0])
    assert (seen == 1).all()


@pytest.mark.parametrize("name", ["modality", "mr-quality", "ct-quality"])
def test_tasks_of_a_catalog_are_whole(larger: Path, name: str) -> None:
    task = load_task(name, larger)
    assert set(task.splits) == {"train", "val", "test"}
    assert len(task) == sum(len(indices) for indices, _ in task.images.batches(32, True, 16))
    assert len(task.data_hash) == 64


def test_faults_change_an_image_and_its_key_decides_how(larger: Path) -> None:
    rows, columns = np.mgrid[0:64, 0:64]
    image = (0.8 * (np.hypot(rows - 32, columns - 30) < 20) * (1 + 0.1 * np.sin(columns))).astype(np.float32)
    for name, fault in (MR_FAULTS | CT_FAULTS).items():
        weak, strong = (fault(image, np.random.default_rng(4), strength) for strength in (0.0, 1.0))
        assert weak.shape == image.shape, name
        assert 0 < np.abs(weak - image).mean() < np.abs(strong - image).mean(), name
        assert np.array_equal(strong, fault(image, np.random.default_rng(4), 1.0)), name
    task = load_task("mr-quality", larger)
    for patient in set(task.patients):
        counts = np.bincount(task.labels[np.asarray(task.patients) == patient], minlength=5)
        assert counts.max() - counts.min() <= 1, "a patient's images take the faults in turn"
    twice = [[images for _, images in task.images.batches(64, False, size)] for size in (8, 3)]
    whole = [torch.cat(batches) for batches in twice]
    assert torch.allclose(whole[0].sum(), whole[1].sum(), rtol=1e-5)


def test_dealing_puts_every_class_into_every_split() -> None:
    patients = [f"p{number}" for number in range(40)]
    values = ["rare" if number < 3 else "common" for number in range(40)]
    dealt = deal(patients, values)
    assert {dealt[f"p{number}"] for number in range(3)} == {"train", "val", "test"}
    assert 6 <= sum(split == "test" for split in dealt.values()) <= 10
    assert dealt == deal(patients[::-1], values[::-1])


def test_a_table_of_pictures(tmp_path: Path) -> None:
    lines = ["file,label,patient"]
    for number in range(30):
        image = np.full((40, 50, 3), 8 * number, np.uint8)
        cv2.imwrite(str(tmp_path / f"JOHN_DOE_{number}.png"), image)
        lines.append(f"JOHN_DOE_{number}.png,{'ab'[number % 2]},DOE{number // 2 if number < 4 else number}")
    (tmp_path / "labels.csv").write_text("\n".join(lines))
    task = load_task(f"csv:{tmp_path / 'labels.csv'}", None)
    assert (task.kind, task.classes, len(task)) == ("multiclass", ("a", "b"), 30)
    assert "DOE" not in "".join((*task.ids, *task.patients))
    (tmp_path / "labels.csv").write_text("\n".join([*lines, "absent.png,a,X"]))
    with pytest.raises(UsageError, match="1 of 31 files are not there, the first in row 32"):
        load_task(f"csv:{tmp_path / 'labels.csv'}", None)
    (tmp_path / "labels.csv").write_text("\n".join(line.replace(",DOE7", ", ") for line in lines))
    with pytest.raises(UsageError, match="no patient in row 9"):
        load_task(f"csv:{tmp_path / 'labels.csv'}", None)
    (tmp_path / "labels.csv").write_text("\n".join(line.replace(",b,DOE7", ",,DOE7") for line in lines))
    with pytest.raises(UsageError, match="no label in row 9"):
        load_task(f"csv:{tmp_path / 'labels.csv'}", None)
    (tmp_path / "JOHN_DOE_3.png").write_bytes(b"no picture")
    with pytest.raises(DatasetError, match="image 4 of the table"):
        list(task.images.batches(16, False, 8))
    (tmp_path / "labels.csv").write_text(
        "\n".join(line.replace(",a,", ",a|b,") if number % 4 == 1 else line for number, line in enumerate(lines))
    )
    assert load_task(f"csv:{tmp_path / 'labels.csv'}", None).kind == "multilabel"


def test_files_and_arrays_of_one_picture_are_one(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (2, 30, 44), dtype=np.uint8)
    for number, image in enumerate(values):
        cv2.imwrite(str(tmp_path / f"{number}.png"), image)
    files = FileImages([tmp_path / "0.png", tmp_path / "1.png"])
    (first,), (second,) = (list(one.batches(20, False, 4)) for one in (files, ArrayImages(values)))
    assert torch.equal(first[1], second[1])


def test_a_task_of_ones_own(tmp_path: Path, larger: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from lumid.model.evaluate.tasks.catalog import of_column\n\n"
        "def task(data):\n    return of_column('sex', data, 'sex', \"sex IN ('F', 'M')\")\n"
    )
    assert load_task(str(tmp_path / "mine.py"), larger).classes == ("F", "M")
    (tmp_path / "wrong.py").write_text("1 / 0")
    with pytest.raises(UsageError, match=r"wrong\.py, line 1: ZeroDivisionError"):
        load_task(str(tmp_path / "wrong.py"), larger)
    (tmp_path / "five.py").write_text("def task(data):\n    return 5\n")
    with pytest.raises(UsageError, match="returns int, not a Task"):
        load_task(str(tmp_path / "five.py"), larger)


@pytest.mark.parametrize("spec", ["nothing", "csv:nothing.csv", "nothing.py"])
def test_what_is_no_task_is_one_line(spec: str) -> None:
    with pytest.raises(LumidError) as caught:
        load_task(spec, None)
    assert "\n" not in str(caught.value)


def test_tasks_of_a_data_set_need_one() -> None:
    for make in TASKS.values():
        with pytest.raises(UsageError, match="--data"):
            make(None)
