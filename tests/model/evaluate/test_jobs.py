from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from sklearn import metrics as reference

from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.subset import write_subset
from lumid.model.evaluate import jobs
from lumid.model.evaluate.encoders import Encoder, TrainedOn, load_encoder
from lumid.model.evaluate.features import features
from lumid.model.evaluate.jobs import Job, leaked, run_job
from lumid.model.evaluate.metrics import measure, probabilities
from lumid.model.evaluate.page import page
from lumid.model.evaluate.predictions import Predictions, read_prediction, read_predictions
from lumid.model.evaluate.settings import FineTuning, Probing
from lumid.model.evaluate.tables import as_csv, as_json, classes_csv, latex, lines, markdown
from lumid.model.evaluate.tasks import load_task
from lumid.model.evaluate.worst import margins, read_worst
from tests.factory import make_dataset
from tests.model.evaluate.test_public_tasks import polyps

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("jobs") / "data"
    make_dataset(root, n=200, seed=3)
    return root


@pytest.fixture(scope="module")
def small() -> str:
    return "random:test_vit"


@pytest.fixture(scope="module")
def evaluated(larger: Path, small: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluated")
    for model in (small, "random:test_resnet"):
        run_job(Job(model, "modality", str(larger), ("linear", "knn"), (0, 1)), out)
    return out


def test_features_are_computed_once_and_appear_whole(larger: Path, small: str, tmp_path: Path) -> None:
    task, encoder = load_task("modality", larger), load_encoder(small)
    seen: list[tuple[int, int]] = []
    found = features(encoder, task, tmp_path, device=CPU, report=lambda *done: seen.append(done))
    assert seen[-1] == (len(task), len(task))
    for indices, images in task.images.subset(np.array([5, 17])).batches(
        encoder.preprocessing.size, encoder.preprocessing.cubic, 8
    ):
        assert np.allclose(found[[5, 17]][indices], encoder.embed(images).numpy(), atol=1e-4)
    seen.clear()
    assert np.array_equal(found, features(encoder, task, tmp_path, device=CPU, report=lambda *done: seen.append(done)))
    assert not seen
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    again = features(encoder, task, tmp_path, device=CPU)
    assert path.read_bytes() == whole, "what is damaged is made again"
    assert again.shape == (len(task), encoder.features)
    features(encoder, replace(task, version="another catalog"), tmp_path, device=CPU)
    assert len(list(tmp_path.iterdir())) == 2, "the same keys of another catalog are other images"

    def fail(done: int, total: int) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        features(encoder, replace(task, version="a third"), tmp_path, device=CPU, report=fail)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_tables_numbers_are_those_of_the_saved_predictions(evaluated: Path) -> None:
    """Recomputed from the Parquet files alone, by scikit-learn."""
    made = {(line.model, line.protocol): line for line in lines(read_predictions(evaluated), count=50)}
    assert len(made) == 4
    for (model, protocol), line in made.items():
        folder = evaluated / "predictions" / "modality" / model.replace(" (random)", "-random")
        accuracy, auroc = [], []
        for path in sorted(folder.glob(f"{protocol}-seed?.parquet")):
            table = pq.read_table(path)
            labels, scores = np.array(table["label"].to_pylist()), np.array(table["scores"].to_pylist())
            accuracy.append(reference.accuracy_score(labels, scores.argmax(1)))
            auroc.append(np.mean([reference.roc_auc_score(labels == one, scores[:, one]) for one in range(3)]))
        assert len(auroc) == 2
        assert line.metrics["accuracy"].value == pytest.approx(np.mean(accuracy))
        assert line.metrics["auroc"].value == pytest.approx(np.mean(auroc))
        assert line.metrics["auroc"].low <= line.metrics["auroc"].value <= line.metrics["auroc"].high


def test_what_is_there_is_not_made_again_and_what_is_damaged_is(
    evaluated: Path, larger: Path, small: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(small, "modality", str(larger), ("linear", "knn"), (0, 1))
    made: list[str] = []
    real = jobs._make
    monkeypatch.setattr(jobs, "_make", lambda *of: (made.append(of[4].path.name), real(*of)))
    paths = run_job(job, evaluated)
    assert not made
    before = paths[1].read_bytes()
    paths[1].write_bytes(before[: len(before) // 2])
    with pytest.raises(DatasetError, match="damaged"):
        read_prediction(paths[1])
    run_job(job, evaluated)
    assert made == [paths[1].name]
    assert read_prediction(paths[1]).about == read_prediction(paths[1]).about
    assert paths[1].read_bytes() == before


def test_texts_and_the_page_hold_every_line(evaluated: Path) -> None:
    found = read_predictions(evaluated)
    baseline = "test_vit (random)"
    made = lines(found, baseline, count=50)
    paths = sorted((evaluated / "predictions").rglob("*-seed?.parquet"))
    html = page(made, list(zip(paths, found, strict=True)), baseline)
    for text in (markdown(made, baseline), as_csv(made), classes_csv(made), as_json(made), latex(made), html):
        assert "test_vit" in text.replace(r"\_", "_")
        assert "knn" in text
    assert json.loads(as_json(made))[0]["classes"]["CT"]["auroc"]["value"] <= 1
    assert html.count("<img") == sum(len(read_worst(path)) for path in paths)
    assert html.count("<img") > 0
    assert "http" not in html.replace("http-equiv", ""), "nothing is fetched"
    with pytest.raises(UsageError, match="no predictions of it"):
        lines(found, "another", count=10)
    with pytest.raises(UsageError, match="no predictions here"):
        lines([])


def test_the_worst_are_the_worst(evaluated: Path) -> None:
    path = next(path for path in sorted((evaluated / "predictions").rglob("*-seed0.parquet")))
    made = read_prediction(path)
    worst = read_worst(path)
    assert [one.margin for one in worst] == sorted(margins(made))[: len(worst)]
    assert all((one.margin < 0) == (one.truth != one.said) for one in worst)
    assert not read_worst(path.with_name(path.name.replace("seed0", "seed1")))


def test_files_hold_probabilities_and_one_class_is_ranked_by_them(evaluated: Path) -> None:
    for path in (evaluated / "predictions").rglob("*-seed0.parquet"):
        assert np.allclose(read_prediction(path).scores.sum(1), 1)
    logits = np.array([[5.0, 9.0], [1.0, 0.0]])  # the second image is likelier the first class, with the smaller logit
    assert probabilities("multiclass", logits)[:, 0].argmax() == 1
    assert measure("multiclass", np.array([1, 0]), logits, np.full(2, np.nan))["auroc/0"][0] == 1
    assert probabilities("multilabel", logits)[1].tolist() == pytest.approx([1 / (1 + np.exp(-1)), 0.5])
    assert probabilities("multilabel", np.array([[0.2, 0.9]])).tolist() == [[0.2, 0.9]]


def test_masks_from_frames_to_the_table(tmp_path: Path, small: str) -> None:
    spec = f"cvc-clinicdb:{polyps(tmp_path / 'cvc')}"
    quick = Job(
        small, spec, None, ("segmentation", "finetune"), (0,),
        fine_tuning=FineTuning(epochs=1, batch=8), probing=Probing(epochs=2, batch=8),
    )  # fmt: skip
    run_job(quick, tmp_path / "out")
    found = read_predictions(tmp_path / "out")
    assert [one.about.protocol for one in found] == ["finetune", "segmentation"]
    made = lines(found, count=20)
    for one, line in zip(found, made, strict=True):
        assert one.scores.shape[1:] == one.labels.shape[1:] == (256, 256)
        dice = [
            reference.f1_score(truth.ravel(), said.ravel() > 127, zero_division=0)
            for truth, said in zip(one.labels, one.scores, strict=True)
        ]
        assert line.metrics["dice"].value == pytest.approx(np.mean(dice))
        assert line.tested == "dice"
    assert "Dice" in markdown(made)
    assert "max-F" in page(made, [(path, one) for path, one in _pairs(tmp_path / "out")], None)
    with pytest.raises(UsageError, match="cannot be judged by linear, but by segmentation, finetune"):
        run_job(replace(quick, protocols=("linear",)), tmp_path / "out")
    with pytest.raises(UsageError, match="masks have none"):
        run_job(replace(quick, shots=(5,)), tmp_path / "out")


def _pairs(out: Path) -> list[tuple[Path, Predictions]]:
    return [(path, read_prediction(path)) for path in sorted((out / "predictions").rglob("*-seed0.parquet"))]


def test_few_shots_and_fine_tuning_of_labels(larger: Path, small: str, tmp_path: Path) -> None:
    job = Job(
        small, "modality", str(larger), ("knn", "finetune"), (0,), shots=(2,), fine_tuning=FineTuning(epochs=1, batch=4)
    )
    paths = run_job(job, tmp_path)
    assert [path.name for path in paths] == ["knn-2-shot-seed0.parquet", "finetune-2-shot-seed0.parquet"]
    assert [read_prediction(path).about.train for path in paths] == [6, 6]
    assert not list((tmp_path / "scratch").iterdir())


# ---- who has seen the test


def trained_on(catalog_hash: str, where: str = "") -> Encoder:
    return replace(
        load_encoder("random:test_vit"), name="mine", at_random=False, trained_on=TrainedOn(catalog_hash, where)
    )


def test_an_encoder_that_has_seen_the_tests_patients_is_refused(larger: Path, tmp_path: Path) -> None:
    from lumid.catalog.layout import read_manifest

    whole = read_manifest(larger).catalog_hash
    task = load_task("modality", larger)
    patients = len({task.patients[row] for row in task.of("test")})
    assert leaked(trained_on(whole), task) == f"{patients} of {patients}"
    assert leaked(trained_on(whole, "modality = 'CT'"), task) not in ("no", "unknown", f"{patients} of {patients}")
    assert leaked(trained_on(whole, "patient IN ('0')"), task) == "no"
    assert leaked(trained_on("another"), task) == "unknown"
    assert leaked(load_encoder("random:test_vit"), task) == "no"
    assert leaked(replace(trained_on(whole), trained_on=None), task) == "unknown"


def test_patients_are_found_in_another_data_set_and_in_a_subset(larger: Path, tmp_path: Path) -> None:
    from lumid.catalog.layout import read_manifest
    from lumid.catalog.places import identity

    make_dataset(tmp_path / "other", n=60, seed=9, modalities=("CT",))  # the same patients, other images
    task = load_task("modality", larger)
    other = trained_on(read_manifest(tmp_path / "other").catalog_hash)
    assert leaked(other, task) == "unknown"
    seen = leaked(other, task, [str(tmp_path / "other")])
    assert seen.endswith(f"of {len({task.patients[row] for row in task.of('test')})}")
    write_subset(larger, tmp_path / "us.parquet", "modality = 'US'")
    part = trained_on(identity(tmp_path / "us.parquet"))
    assert leaked(part, task) == "unknown", "a part of the data set, of which nothing more is known"
    assert leaked(part, task, [str(tmp_path / "us.parquet")]) not in ("no", "unknown")
    files = replace(task, data=None)
    assert leaked(part, files, [str(tmp_path / "us.parquet")]) == "unknown", "patients of files have other names"
    assert leaked(part, replace(files, pseudonyms=True), [str(tmp_path / "us.parquet")]) not in ("no", "unknown")


def test_a_leak_costs_the_job_unless_it_is_allowed_and_then_the_table_says_so(
    trained: Path, data: Path, tmp_path: Path
) -> None:
    job = Job(str(trained), "modality", str(data), ("knn",), (0,))
    with pytest.raises(LumidError, match=r"was pre-trained on \d+ of \d+ of modality's test patients"):
        run_job(job, tmp_path)
    run_job(replace(job, allow_leak=True), tmp_path)
    (line,) = lines(read_predictions(tmp_path), count=10)
    assert line.leak[0].isdigit()
    assert line.leak in markdown([line])


def test_protocols_by_name(larger: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such protocol; there are knn"):
        run_job(Job("random:test_vit", "modality", str(larger), ("svm",), (0,)), tmp_path)
    with pytest.raises(UsageError, match="cannot be judged by segmentation"):
        run_job(Job("random:test_vit", "modality", str(larger), ("segmentation",), (0,)), tmp_path)
