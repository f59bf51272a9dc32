"""Training: it learns, it resumes bit for bit, it refuses what it must, and it says what it does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from lumid.catalog.errors import LumidError, RecipeError
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import MODALITIES
from lumid.catalog.subset import write_subset
from lumid.model import parallel as parallel_module
from lumid.model import pretrain as pretrain_module
from lumid.model.augment import evaluation_input
from lumid.model.checkpoint import checkpoints, read_state
from lumid.model.feed import Piece, mask_noise, model_input, own_places
from lumid.model.guard import Guard
from lumid.model.journal import Journal, Progress, digest
from lumid.model.optimizer import build_optimizer, learning_rate
from lumid.model.parallel import Parallel, compile_in_place
from lumid.model.pretrain import Listener, Sums, pretrain
from lumid.model.recipe import ComputeSettings, parse_recipe
from lumid.model.reconstruct import reconstruct
from lumid.model.runs import build_model
from lumid.model.stream import ImageStream, StreamSettings, StreamState, select
from tests.factory import make_dataset
from tests.model.runs import RECIPE, command, here, lumid, metrics, weights

pytestmark = pytest.mark.whole

SAME = ("samples", "loss", "loss_by_modality", "grad_norm", "lr", "epoch", "verdict")
"""Of a step, what does not depend on the clock."""


def train(data: Path, run: Path, text: str, steps: list[Progress] | None = None, notes: list[str] | None = None) -> int:
    """In this process, to the end; the step it ended at."""
    told = Listener((steps if steps is not None else []).append, (notes if notes is not None else []).append)
    return pretrain(data, run, parse_recipe(text, "test"), Parallel(), told, lambda: False).step


def test_the_loss_goes_down(trained: Path) -> None:
    lines = metrics(trained)
    assert [line["step"] for line in lines] == list(range(1, 41))
    losses = [line["loss"] for line in lines]
    assert sum(losses[-8:]) / 8 < 0.95 * sum(losses[:4]) / 4
    assert all(set(line["loss_by_modality"]) <= {"CT", "MR", "US"} for line in lines)
    assert all(line["images_per_s"] > 0 and 0 <= line["stall_fraction"] <= 1 for line in lines)
    assert all(line["mfu"] is None for line in lines), "nobody knows this processor's peak"


def test_the_loss_is_the_mean_over_modalities_by_their_images(trained: Path) -> None:
    """A batch of eight has one to eight images of each; the mean lies between theirs."""
    for line in metrics(trained):
        by_modality = line["loss_by_modality"].values()
        assert min(by_modality) - 1e-6 <= line["loss"] <= max(by_modality) + 1e-6


def wait_for_checkpoint(run: Path, wanted: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if any(int(path.name.split("-")[1]) >= wanted for path in checkpoints(run / "checkpoints")):
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("no checkpoint appeared")


def check_same_run(run: Path, uninterrupted: Path) -> None:
    ours, theirs = weights(run), weights(uninterrupted)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for name in SAME:
        assert [line[name] for line in metrics(run)] == [line[name] for line in metrics(uninterrupted)], name


def start(*arguments: str | Path, processes: int = 1) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments, processes=processes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_is_the_run_that_was_not(
    trained: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    """kill -9 at random moments, with another number of decoding threads each time."""
    moments = random.Random(4)
    run, killed = tmp_path / "run", 0
    for attempt in range(3):
        threads = 1 + attempt
        recipe.write_text(RECIPE.replace("[data]", f"[data]\nthreads = {threads}"))
        process = start("pretrain", "--data", data, "--recipe", recipe, "--out", run, "--resume", "auto")
        done = max((int(path.name.split("-")[1]) for path in checkpoints(run / "checkpoints")), default=0)
        wait_for_checkpoint(run, done + 5, process)
        time.sleep(moments.uniform(0, 0.3))
        os.kill(process.pid, signal.SIGKILL)
        process.communicate(timeout=60)
        killed += process.returncode == -signal.SIGKILL
    assert killed == 3
    step = int(checkpoints(run / "checkpoints")[-1].name.split("-")[1])
    assert step < 40, "it was stopped in the middle"
    done_json = lumid("pretrain", "--data", data, "--recipe", recipe, "--out", run, "--json")
    assert done_json.returncode == 0, done_json.stderr
    assert json.loads(done_json.stdout)["steps"] == 40
    check_same_run(run, trained)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_run_that_is_asked_to_stop_saves_and_exits_0(
    number: signal.Signals, trained: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    arguments = ("pretrain", "--data", data, "--recipe", recipe, "--out", tmp_path / "run")
    process = start(*arguments)
    wait_for_checkpoint(tmp_path / "run", 10, process)
    os.kill(process.pid, number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    last = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    step = int(last.name.split("-")[1])
    assert 10 <= step < 40, "it was stopped in the middle"
    assert f"stopped and saved at step {step}" in out
    assert metrics(tmp_path / "run")[-1]["step"] == step
    assert here(*arguments).returncode == 0
    check_same_run(tmp_path / "run", trained)


def test_resume_never_refuses_what_is_there(trained: Path, data: Path) -> None:
    recipe = trained.parent / "test.toml"
    done = here("pretrain", "--data", data, "--recipe", recipe, "--out", trained, "--resume", "never")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "holds a run already" in done.stderr


def test_a_finished_run_says_so(trained: Path, data: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    done = here("pretrain", "--data", data, "--recipe", trained.parent / "test.toml", "--out", trained)
    assert done.returncode == 0
    assert "finished already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_another_recipe_or_data_set_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    done = here("pretrain", "--data", data, "--recipe", trained.parent / "test.toml", "--out", trained, "--steps", "80")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another recipe or data set" in done.stderr
    assert "optimizer.steps was 40, is 80" in done.stderr
    make_dataset(tmp_path / "other", n=20, seed=9)
    done = here("pretrain", "--data", tmp_path / "other", "--recipe", trained.parent / "test.toml", "--out", trained)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_how_the_work_is_done_makes_no_other_run(data: Path, tmp_path: Path) -> None:
    """Threads, pieces of a batch and checkpoints may change; the losses are those of one that never stopped."""
    short = RECIPE.replace("steps = 40", "steps = 12").replace("warmup_steps = 4", "warmup_steps = 2")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(data, whole, short)
    asked = iter([False] * 5 + [True] * 50)
    first = pretrain(data, parts, parse_recipe(short, "test"), Parallel(), Listener(print, print), lambda: next(asked))
    assert 0 < first.step < 12
    assert first.stopped
    changed = short.replace("checkpoint_every = 5", "checkpoint_every = 3\nkeep = 4") + "[compute]\nmicro_batch = 2\n"
    assert train(data, parts, changed) == 12
    ours, theirs = metrics(parts), metrics(whole)
    assert [line["samples"] for line in ours] == [line["samples"] for line in theirs]
    assert [line["loss"] for line in ours] == pytest.approx([line["loss"] for line in theirs], rel=1e-4)
    # bit for bit while nothing had changed
    assert [line["loss"] for line in ours[: first.step]] == [line["loss"] for line in theirs[: first.step]]


def test_only_the_newest_checkpoints_are_kept(trained: Path) -> None:
    assert [path.name for path in checkpoints(trained / "checkpoints")] == ["step-00000035", "step-00000040"]


def test_nothing_in_a_run_is_a_pickle(trained: Path) -> None:
    files = [path for path in trained.rglob("*") if path.is_file() and path.parent.name != "tensorboard"]
    assert {path.suffix for path in files} == {".safetensors", ".json", ".jsonl"}
    for path in files:
        content = path.read_bytes()
        if path.suffix == ".safetensors":  # eight bytes of length, then as much JSON
            content = content[8 : 8 + int.from_bytes(content[:8], "little")]
        for line in content.splitlines() if path.suffix == ".jsonl" else [content]:
            json.loads(line)


def test_tensorboard_shows_what_the_lines_say(trained: Path) -> None:
    board = EventAccumulator(str(trained / "tensorboard"))
    board.Reload()  # type: ignore[no-untyped-call]
    lines = metrics(trained)
    for tag, name in (("loss/all", "loss"), ("optimizer/lr", "lr"), ("optimizer/grad_norm", "grad_norm")):
        events = board.Scalars(tag)  # type: ignore[no-untyped-call]
        assert [event.step for event in events] == list(range(1, 41))
        assert [event.value for event in events] == pytest.approx([line[name] for line in lines], rel=1e-5)
    assert {"loss/CT", "loss/MR", "loss/US", "speed/images_per_s", "speed/stall_fraction"} <= set(
        board.Tags()["scalars"]
    )  # type: ignore[no-untyped-call]


def test_a_summary_tells_of_held_out_patients(trained: Path, data: Path) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    by_modality = summary["validation_loss_by_modality"]
    rows = read_catalog(data, "split = 'val'", ["modality"])["modality"].to_pylist()
    assert set(by_modality) == set(rows)
    assert min(by_modality.values()) - 1e-6 <= summary["validation_loss"] <= max(by_modality.values()) + 1e-6


def progress(step: int, loss: float = 0.5) -> Progress:
    return Progress(step, 10, 0, loss, {"CT": loss}, 1e-3, 1.0, 100.0, 0.0, None, "0" * 14, 0, "good")


def test_lines_of_steps_that_are_done_again_are_gone(tmp_path: Path) -> None:
    with Journal(tmp_path, 0, tensorboard=False) as journal:
        for step in range(1, 6):
            journal.write(progress(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # a killed process
    with Journal(tmp_path, 3, tensorboard=False) as journal:
        journal.write(progress(4, loss=float("nan")))
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] is None, "JSON has no NaN"


def test_a_batchs_digest_is_the_sum_of_its_parts_and_knows_the_order() -> None:
    keys = [f"{number:024x}" for number in range(10**15, 10**15 + 9 * 10**13, 10**13)]
    whole = digest(keys, range(9))
    assert (digest(keys[::2], range(0, 9, 2)) + digest(keys[1::2], range(1, 9, 2))) % (1 << 56) == whole
    assert digest([keys[1], keys[0], *keys[2:]], range(9)) != whole
    assert digest([*keys[:-1], keys[0]], range(9)) != whole


def test_images_that_could_not_be_read_change_nothing() -> None:
    """The gradient is that of the others; they are counted, and in no mean."""
    sums = Sums.zeros(torch.device("cpu"), asked_to_stop=False)
    modality = torch.tensor([MODALITIES.index("CT"), MODALITIES.index("MR"), MODALITIES.index("CT")])
    valid = torch.tensor([True, True, False])
    piece = Piece(torch.zeros(3), torch.zeros(3), valid, modality, ("0" * 24,) * 3, range(3), StreamState())
    sums.add(piece, torch.tensor([2.0, 3.0, 0.0]))
    recipe = parse_recipe(RECIPE, "test")
    totals = pretrain_module.Meter(recipe.resolved(50), Parallel(), build_model(recipe)).read(sums, torch.tensor(1.0))
    assert totals.loss == 2.5
    assert totals.loss_by_modality == {"CT": 2.0, "MR": 3.0}
    assert totals.bad == 1


def spoil(monkeypatch: pytest.MonkeyPatch, at: set[int], factor: float) -> None:
    """Multiply the loss of those steps, counted from 1."""
    real, seen = pretrain_module.accumulate, [0]

    def spoiled(*args: object, **options: bool) -> tuple[Sums, StreamState]:
        seen[0] += 1
        sums, state = real(*args, **options)  # type: ignore[arg-type]
        if seen[0] in at:
            sums = replace(sums, losses=torch.stack([sums.losses[:, 0] * factor, sums.losses[:, 1]], dim=1))
        return sums, state

    monkeypatch.setattr(pretrain_module, "accumulate", spoiled)


def parameters(run: Path, step: int) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_a_step_whose_loss_is_no_number_leaves_the_weights_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, {3}, float("nan"))
    text = RECIPE.replace("steps = 40", "steps = 4").replace("checkpoint_every = 5", "checkpoint_every = 1\nkeep = 9")
    steps: list[Progress] = []
    assert train(data, tmp_path / "run", text, steps) == 4
    second, third, fourth = (parameters(tmp_path / "run", step) for step in (2, 3, 4))
    assert all(torch.equal(second[name], third[name]) for name in second)
    assert not all(torch.equal(third[name], fourth[name]) for name in second)
    assert [line["verdict"] for line in metrics(tmp_path / "run")] == ["good", "good", "not finite", "good"]
    assert [step.step for step in steps if step.verdict != "good"] == [3], "it is told at once"
    assert read_state(tmp_path / "run" / "checkpoints" / "step-00000004").guard.skipped == 1


def test_too_many_bad_steps_end_the_run_with_what_to_do(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, set(range(7, 40)), float("inf"))
    text = RECIPE.replace("clip_grad_norm", "max_skipped = 3\nclip_grad_norm")
    with pytest.raises(LumidError, match=r"3 steps in a row, up to step 9; lower base_lr") as caught:
        train(data, tmp_path / "run", text)
    assert "\n" not in str(caught.value)
    assert [path.name for path in checkpoints(tmp_path / "run" / "checkpoints")] == ["step-00000005"]


def test_the_guard_remembers_after_a_restart(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {4}, float("nan"))
    text = RECIPE.replace("steps = 40", "steps = 6")
    train(data, tmp_path / "run", text)
    state = read_state(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    losses = [line["loss"] for line in metrics(tmp_path / "run")]
    assert state.guard.good == 5
    mean = losses[0]
    for loss in [*losses[1:3], *losses[4:]]:
        mean = 0.98 * mean + 0.02 * loss
    assert state.guard == Guard(pytest.approx(mean), 5, 0, 1)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_compiler_that_is_missing_is_named_and_training_goes_on(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no C++ compiler: the real compiler's own error."""
    monkeypatch.setenv("CXX", "/nowhere/g++")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    import torch._inductor.config as inductor

    notes: list[str] = []
    text = RECIPE.replace("steps = 40", "steps = 2") + '[compute]\ncompile = "on"\n'
    with inductor.patch({"cpp.cxx": ("/nowhere/g++",)}):  # monkeypatch would leave the setting deleted
        assert train(data, tmp_path / "run", text, notes=notes) == 2
    assert len(notes) == 1
    assert notes[0].startswith("torch.compile does not work here, the model runs uncompiled: ")
    assert "\n" not in notes[0]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for the CPU with g++")
def test_a_compiled_model_computes_the_same() -> None:
    recipe = parse_recipe(RECIPE, "test")
    plain, compiled = build_model(recipe), build_model(recipe)
    images, noise = torch.rand(4, 1, 32, 32), torch.rand(4, 16)
    assert compile_in_place(compiled, ComputeSettings(), Parallel(), 4) is None
    torch.testing.assert_close(compiled(images, noise).loss, plain(images, noise).loss, rtol=1e-4, atol=1e-5)
    assert list(compiled.state_dict()) == list(plain.state_dict()), "checkpoints do not know of it"


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32(data: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("steps = 40", "steps = 6") + '[compute]\nprecision = "bf16"\n'
    train(data, tmp_path / "half", text)
    train(data, tmp_path / "full", RECIPE.replace("steps = 40", "steps = 6"))
    half, full = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("half", "full"))
    assert half != full
    assert half == pytest.approx(full, rel=0.02)
    assert {tensor.dtype for tensor in weights(tmp_path / "half").values()} == {torch.float32}
    recipe = parse_recipe(text, "test")
    model = build_model(recipe)
    with parallel_module.autocast(recipe.compute, torch.device("cpu")):
        output = model(torch.rand(2, 1, 32, 32), torch.rand(2, 16))
    assert output.predicted.dtype == torch.bfloat16
    assert output.loss_by_image.dtype == torch.float32


def test_the_utilisation_is_that_of_the_peak_that_is_told(data: Path, tmp_path: Path) -> None:
    from lumid.model.flops import training_flops

    text = RECIPE.replace("steps = 40", "steps = 3") + "[compute]\npeak_tflops = 0.5\n"
    train(data, tmp_path / "run", text)
    line = metrics(tmp_path / "run")[-1]
    flops = training_flops(build_model(parse_recipe(text, "test")))
    assert line["mfu"] == pytest.approx(line["images_per_s"] * flops / 0.5e12, rel=1e-2)


def test_the_schedule_by_hand() -> None:
    recipe = parse_recipe(RECIPE, "test")
    peak = 2e-2 * 8 / 256
    assert learning_rate(0, recipe) == pytest.approx(peak / 4)
    assert learning_rate(3, recipe) == pytest.approx(peak)
    assert learning_rate(4 + 18, recipe) == pytest.approx(peak / 2)
    assert learning_rate(40, recipe) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("positions", ["sincos", "learned"])
def test_no_weight_decay_on_biases_norms_tokens_and_positions(positions: str) -> None:
    recipe = parse_recipe(RECIPE.replace("[optimizer]", f'positions = "{positions}"\n[optimizer]'), "test")
    model = build_model(recipe)
    optimizer = build_optimizer(model, recipe)
    decayed = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    assert all(name.endswith("weight") and "norm" not in name for name in names)
    assert len(names) == sum(isinstance(m, torch.nn.Linear | torch.nn.Conv2d) for m in model.modules())
    assert sum(len(group["params"]) for group in optimizer.param_groups) == sum(
        parameter.requires_grad for parameter in model.parameters()
    )


def test_masks_are_a_function_of_seed_step_and_place() -> None:
    whole = mask_noise(0, 5, range(8), 21)
    assert torch.equal(torch.cat([mask_noise(0, 5, range(first, first + 2), 21) for first in (0, 2, 4, 6)]), whole)
    for rank in range(3):
        own = own_places(1, 2, rank, 3)
        assert torch.equal(mask_noise(0, 5, own, 21), mask_noise(0, 5, range(12), 21)[list(own)])
    others = [mask_noise(1, 5, range(8), 21), mask_noise(0, 6, range(8), 21), mask_noise(0, 5, range(8, 16), 21)]
    assert not any(torch.equal(whole, other) for other in others)
    assert len(set(whole.flatten().tolist())) > 160, "no two places share their numbers"
    many = mask_noise(3, 0, range(4096), 16)
    assert 0.49 < float(many.mean()) < 0.51
    assert 0 <= float(many.min()) < float(many.max()) < 1


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


def test_augmentation_can_be_left_out(data: Path) -> None:
    batch = next(iter(ImageStream(select(data, "modality = 'CT'"), StreamSettings(8, canvas=128))))
    device = torch.device("cpu")
    plain = model_input(batch, parse_recipe(RECIPE.replace("[data]", "[data]\naugment = false"), "test"), device)
    assert torch.equal(plain, evaluation_input(batch, 32, device))
    assert not torch.allclose(plain, model_input(batch, parse_recipe(RECIPE, "test"), device), atol=0.1)


def test_a_run_on_a_subset_is_another_run(data: Path, recipe: Path, tmp_path: Path) -> None:
    write_subset(data, tmp_path / "ct.parquet", "modality = 'CT'")
    run = ("pretrain", "--recipe", recipe, "--steps", "3", "--out", tmp_path / "run", "--data")
    done = here(*run, data, "--subset", tmp_path / "ct.parquet")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {modality for line in lines for modality in line["loss_by_modality"]} == {"CT"}
    assert "finished already" in here(*run, tmp_path / "ct.parquet").stdout
    assert here(*run, data).returncode == 2
    drawn = here("reconstruct", tmp_path / "run", "--data", tmp_path / "ct.parquet", "--json")
    assert {row["modality"] for row in json.loads(drawn.stdout)["rows"]} == {"CT"}
    # of the whole data set it cannot be told what this run has seen
    refused = here("reconstruct", tmp_path / "run", "--data", data)
    assert refused.returncode == 1
    assert "was trained on a subset" in refused.stderr


def test_a_mixture_and_the_papers_input_by_recipe(data: Path, tmp_path: Path) -> None:
    mixed = RECIPE.replace("steps = 40", "steps = 6") + "[compute]\n"
    mixed = mixed.replace("[data]", '[data]\nmix_by = "modality"\nmix_weights = { US = 0.0, CT = 3.0 }')
    steps: list[Progress] = []
    train(data, tmp_path / "mixed", mixed, steps)
    drawn = {modality for step in steps for modality in step.loss_by_modality}
    assert drawn == {"CT", "MR"}
    paper = RECIPE.replace("steps = 40", "steps = 2").replace("[data]", '[data]\ninput = "paper"')
    with pytest.raises(RecipeError, match="in_chans = 3"):
        parse_recipe(paper, "test")
    paper = paper.replace("patch_size = 8", "patch_size = 8\nin_chans = 3")
    assert train(data, tmp_path / "paper", paper) == 2
    figure = reconstruct(tmp_path / "paper", data, tmp_path / "figure.png", images=2)
    values = torch.cat([row.panels[0].flatten() for row in figure.rows])
    assert -1 - 1e-5 <= float(values.min()) < -0.9
    assert float(values.max()) <= 1 + 1e-5


def test_a_recipe_that_mixes_by_nothing_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"need data\.mix_by"):
        parse_recipe(RECIPE.replace("[data]", "[data]\nmix_temperature = 2.0"), "test")
