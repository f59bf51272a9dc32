"""Training: it learns, it resumes bit for bit, it refuses what it must, and the encoder comes out whole."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lumid.catalog.errors import DatasetError, RecipeError
from lumid.catalog.query import read_catalog
from lumid.catalog.subset import write_subset
from lumid.dags.cli import train  # noqa: F401  registers the commands
from lumid.dags.cli.app import app
from lumid.model.augment import evaluation_input
from lumid.model.checkpoint import checkpoints
from lumid.model.metrics import psnr, ssim
from lumid.model.pretrain import build_model, build_optimizer, learning_rate, mask_noise, model_input, read_run
from lumid.model.recipe import load_recipe, parse_recipe, shipped_recipes
from lumid.model.reconstruct import reconstruct
from lumid.model.stream import ImageStream, StreamSettings, select
from tests.factory import make_dataset

RECIPE = """
name = "test"
[model]
size = "tiny"
image_size = 32
patch_size = 8
[optimizer]
steps = 40
batch_size = 8
base_lr = 2e-2
warmup_steps = 4
clip_grad_norm = 1.0
[data]
canvas = 128
[run]
checkpoint_every = 5
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "test.toml"
    path.write_text(RECIPE)
    return path


def lumid(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lumid", *map(str, arguments)], capture_output=True, text=True, timeout=240
    )


def metrics(run: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints(run / "checkpoints")[-1] / "model.safetensors")


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    (folder / "test.toml").write_text(RECIPE)
    done = lumid("pretrain", "--data", data, "--recipe", folder / "test.toml", "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_loss_goes_down(trained: Path) -> None:
    lines = metrics(trained)
    assert [line["step"] for line in lines] == list(range(1, 41))
    losses = [float(str(line["loss"])) for line in lines]
    assert sum(losses[-8:]) / 8 < 0.95 * sum(losses[:4]) / 4
    assert {"loss_by_modality", "lr", "grad_norm", "images_per_s", "stall_fraction", "keys_sha256"} <= set(lines[0])


def wait_for_checkpoint(run: Path, wanted: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(int(path.name.split("-")[1]) >= wanted for path in checkpoints(run / "checkpoints")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no checkpoint appeared")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_goes_on_bit_for_bit(
    number: signal.Signals, trained: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    arguments = ["pretrain", "--data", str(data), "--recipe", str(recipe), "--out", str(tmp_path / "run")]
    process = subprocess.Popen(
        [sys.executable, "-m", "lumid", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    wait_for_checkpoint(tmp_path / "run", 10, process)
    os.kill(process.pid, number)
    process.communicate(timeout=60)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    step = int(checkpoints(tmp_path / "run" / "checkpoints")[-1].name.split("-")[1])
    assert 10 <= step < 40, "it was stopped in the middle"
    done = lumid(*arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["steps"] == 40
    ours, theirs = weights(tmp_path / "run"), weights(trained)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in ("keys_sha256", "loss", "lr"):
        assert [line[name] for line in metrics(tmp_path / "run")] == [line[name] for line in metrics(trained)]


def test_a_finished_run_says_so(trained: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    done = lumid("pretrain", "--data", data, "--recipe", trained.parent / "test.toml", "--out", trained)
    assert done.returncode == 0
    assert "finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_another_recipe_or_data_set_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    done = lumid(
        "pretrain", "--data", data, "--recipe", trained.parent / "test.toml", "--out", trained, "--steps", "80"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another recipe or data set" in done.stderr
    make_dataset(tmp_path / "other", n=20, seed=9)
    done = lumid("pretrain", "--data", tmp_path / "other", "--recipe", trained.parent / "test.toml", "--out", trained)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_only_the_newest_checkpoints_are_kept(trained: Path) -> None:
    assert [path.name for path in checkpoints(trained / "checkpoints")] == ["step-00000035", "step-00000040"]


def test_nothing_in_a_run_is_a_pickle(trained: Path) -> None:
    assert {path.suffix for path in trained.rglob("*") if path.is_file()} <= {".safetensors", ".json", ".jsonl"}


def test_two_processes_share_the_work_of_one(trained: Path, data: Path, recipe: Path, tmp_path: Path) -> None:
    """The same samples and, up to the order of sums, the same loss, with two ranks on the CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0", "-m", "lumid"]  # fmt: skip
    arguments = [
        "pretrain",
        "--data",
        str(data),
        "--recipe",
        str(recipe),
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "6",
    ]
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, timeout=240, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert len(metrics(tmp_path / "run")) == 6
    ranks = [
        metrics(tmp_path / "run"),
        [json.loads(line) for line in (tmp_path / "run" / "metrics-rank1.jsonl").read_text().splitlines()],
    ]
    assert ranks[0][0]["keys_sha256"] != ranks[1][0]["keys_sha256"]
    assert [line["step"] for line in ranks[1]] == list(range(1, 7))


def test_a_run_on_a_subset_is_another_run(data: Path, recipe: Path, tmp_path: Path) -> None:
    write_subset(data, tmp_path / "ct.parquet", "modality = 'CT'")
    run = ("pretrain", "--recipe", recipe, "--steps", "3", "--out", tmp_path / "run", "--data")
    done = lumid(*run, data, "--subset", tmp_path / "ct.parquet")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {modality for line in lines for modality in line["loss_by_modality"]} == {"CT"}
    assert "finished already" in lumid(*run, tmp_path / "ct.parquet").stdout
    assert lumid(*run, data).returncode == 2
    drawn = lumid("reconstruct", tmp_path / "run", "--data", tmp_path / "ct.parquet", "--json")
    assert {row["modality"] for row in json.loads(drawn.stdout)["rows"]} == {"CT"}
    # of the whole data set it cannot be told what this run has seen
    refused = lumid("reconstruct", tmp_path / "run", "--data", data)
    assert refused.returncode == 1
    assert "was trained on a subset" in refused.stderr


def test_the_encoder_loads_into_timm(trained: Path, data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(trained), "--data", str(data), "--out", str(tmp_path / "encoder")])
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "encoder" / "config.json").read_text())["timm"]
    encoder = timm.create_model(config.pop("model_name"), **config)
    encoder.load_state_dict(load_file(tmp_path / "encoder" / "encoder.safetensors"), strict=True)
    model, _, _ = read_run(trained)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.eval().forward_features(images), model.eval().encode(images))
    card = (tmp_path / "encoder" / "README.md").read_text()
    assert "create_model" in card
    assert "non-commercial" in card


def test_a_card_for_another_data_set_is_refused(trained: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "other", n=20, seed=9)
    done = lumid("export", trained, "--data", tmp_path / "other", "--out", tmp_path / "encoder")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_a_reconstruction_is_drawn_and_scored(trained: Path, data: Path, tmp_path: Path) -> None:
    import cv2

    done = CliRunner().invoke(
        app, ["reconstruct", str(trained), "--data", str(data), "--out", str(tmp_path / "figure.png"), "--json"]
    )
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert {row["modality"] for row in facts["rows"]} == {"CT", "MR", "US"}
    splits = {row["key"]: row["split"] for row in read_catalog(data, None, ["key", "split"]).to_pylist()}
    for row in facts["rows"]:
        assert row["seen"] == ("trained on" if splits[row["key"]] == "train" else "held out")
    assert {row["seen"] for row in facts["rows"]} == {"trained on", "held out"}
    assert all(math.isfinite(row["psnr_db"]) and -1 <= row["ssim"] <= 1 for row in facts["rows"])
    image = cv2.imread(str(tmp_path / "figure.png"))
    assert image is not None
    assert image.shape[0] > 3 * 200
    assert image.std() > 10


def test_a_reconstruction_of_another_data_set_claims_nothing(trained: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "other", n=20, seed=9)
    figure = reconstruct(trained, tmp_path / "other", tmp_path / "figure.png", "modality = 'CT'")
    assert {row.modality for row in figure.rows} == {"CT"}
    assert "trained on" not in {row.seen for row in figure.rows}
    with pytest.raises(DatasetError, match="no samples"):
        reconstruct(trained, tmp_path / "other", tmp_path / "figure.png", "modality = 'XA'")


def test_augmentation_can_be_left_out(data: Path) -> None:
    batch = next(iter(ImageStream(select(data, "modality = 'CT'"), StreamSettings(8, canvas=128))))
    device = torch.device("cpu")
    plain = model_input(batch, parse_recipe(RECIPE.replace("[data]", "[data]\naugment = false"), "test"), device)
    assert torch.equal(plain, evaluation_input(batch, 32, device))
    assert not torch.allclose(plain, model_input(batch, parse_recipe(RECIPE, "test"), device), atol=0.1)


def test_the_schedule_by_hand() -> None:
    recipe = parse_recipe(RECIPE, "test")
    peak = 2e-2 * 8 / 256
    assert learning_rate(0, recipe) == pytest.approx(peak / 4)
    assert learning_rate(3, recipe) == pytest.approx(peak)
    assert learning_rate(4 + 18, recipe) == pytest.approx(peak / 2)
    assert learning_rate(40, recipe) == pytest.approx(0, abs=1e-12)


def test_no_weight_decay_on_biases_norms_and_tokens() -> None:
    recipe = parse_recipe(RECIPE, "test")
    model = build_model(recipe)
    optimizer = build_optimizer(model, recipe)
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert all(name.endswith("weight") and "norm" not in name for name in names)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        parameter.requires_grad for parameter in model.parameters()
    )


def test_masks_are_a_function_of_seed_step_and_rank() -> None:
    assert torch.equal(mask_noise(0, 5, 0, 4, 16), mask_noise(0, 5, 0, 4, 16))
    others = [mask_noise(1, 5, 0, 4, 16), mask_noise(0, 6, 0, 4, 16), mask_noise(0, 5, 1, 4, 16)]
    assert not any(torch.equal(mask_noise(0, 5, 0, 4, 16), other) for other in others)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (RECIPE.replace('"tiny"', '"gigantic"'), ["model.size", "'gigantic'", "'tiny'"]),
        (RECIPE.replace("patch_size = 8", "patch_size = 7"), ["model", "multiple"]),
        (RECIPE + "chekpoint = 3", ["run.chekpoint", "checkpoint_every"]),
        (RECIPE.replace("steps = 40\n", ""), ["optimizer.steps", "missing"]),
        ("name =", ["TOML"]),
    ],
)
def test_recipe_errors_name_file_key_and_what_is_allowed(text: str, words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, "f.toml")
    for word in ["f.toml", *words]:
        assert word in str(caught.value)


def test_shipped_recipes_load() -> None:
    for name in shipped_recipes():
        assert load_recipe(name).name == name


def test_psnr_and_ssim_by_hand() -> None:
    zero, half = torch.zeros(16, 16), torch.full((16, 16), 0.5)
    assert psnr(half, zero, 1.0) == pytest.approx(10 * math.log10(1 / 0.25))
    assert psnr(zero, zero, 1.0) == float("inf")
    noise = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(noise, noise, 1.0) == pytest.approx(1.0)
    # two constant images: only the luminance term is left, (2ab + C1) / (a² + b² + C1)
    assert ssim(half, zero, 1.0) == pytest.approx(1e-4 / (0.25 + 1e-4))
    assert ssim(noise, 1 - noise, 1.0) < 0


def test_without_torch_the_command_says_what_to_install() -> None:
    code = """
import importlib.util as u, sys
real = u.find_spec
u.find_spec = lambda name, *a: None if name == "torch" else real(name, *a)
sys.argv = ["lumid", "pretrain", "--data", "x"]
from lumid.dags.cli import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "pip install 'lumid[train]'" in done.stderr
