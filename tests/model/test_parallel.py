"""Several processes, started by torchrun over gloo: the run of one, sharded or not, also when their number changes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
import torch

from lumid.catalog.errors import UsageError
from lumid.dags.pretrain import place_of_process
from lumid.model.checkpoint import checkpoints
from lumid.model.parallel import micro_batches
from lumid.model.runs import read_run
from tests.model.runs import RECIPE, command, here, lumid, metrics, weights

pytestmark = pytest.mark.whole

SHARDED = RECIPE + '[compute]\nparallel = "fsdp"\n'
ACCUMULATED = '[compute]\nparallel = "{}"\nmicro_batch = 2\ncheckpoint_activations = true\n'


def check_losses(run: Path, uninterrupted: Path) -> None:
    ours, theirs = metrics(run), metrics(uninterrupted)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    assert [line["samples"] for line in ours] == [line["samples"] for line in theirs]
    for name in ("loss", "grad_norm"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], rel=2e-3), name


def whole_weights(run: Path) -> dict[str, torch.Tensor]:
    """Of a run with any number of files."""
    return dict(read_run(run)[0].state_dict())


@pytest.mark.parametrize("kind", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_two_processes_do_the_work_of_one(kind: str, trained: Path, data: Path, recipe: Path, tmp_path: Path) -> None:
    """Gradients of pieces and processes add up to those of the whole batch."""
    recipe.write_text(RECIPE + ACCUMULATED.format(kind))
    done = lumid("pretrain", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("is finished") == 1, "one process speaks for both"
    check_losses(tmp_path / "run", trained)
    last = checkpoints(tmp_path / "run" / "checkpoints")[-1]
    assert len(list(last.glob("model*.safetensors"))) == (2 if kind == "fsdp" else 1)
    for name, tensor in weights(trained).items():
        torch.testing.assert_close(whole_weights(tmp_path / "run")[name], tensor, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_a_run_goes_on_with_other_numbers_of_processes(trained: Path, data: Path, recipe: Path, tmp_path: Path) -> None:
    """Two sharded processes are killed with -9, one goes on alone and is asked to stop, two in step finish."""
    run = tmp_path / "run"
    arguments = ("pretrain", "--data", data, "--recipe", recipe, "--out", run)
    recipe.write_text(SHARDED)
    interrupt(command(*arguments, processes=2), run, 5, signal.SIGKILL)
    interrupt(command(*arguments), run, 20, signal.SIGTERM)
    recipe.write_text(RECIPE)
    done = lumid(*arguments, processes=2)
    assert done.returncode == 0, done.stderr
    check_losses(run, trained)


@pytest.mark.slow
def test_all_processes_stop_at_the_same_step_when_one_is_asked(
    trained: Path, data: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    recipe.write_text(SHARDED)
    arguments = ("pretrain", "--data", data, "--recipe", recipe, "--out", run)
    out = interrupt(command(*arguments, processes=2), run, 5, signal.SIGTERM, only_one=True)
    assert out.count("stopped and saved at step") == 1
    last = checkpoints(run / "checkpoints")[-1]
    assert metrics(run)[-1]["step"] == int(last.name.split("-")[1]) < 40
    assert here(*arguments).returncode == 0
    check_losses(run, trained)


def interrupt(arguments: list[str], run: Path, wanted: int, number: signal.Signals, *, only_one: bool = False) -> str:
    """Start, wait for a checkpoint at or after that step, send the signal to the processes that train."""
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not any(int(path.name.split("-")[1]) >= wanted for path in checkpoints(run / "checkpoints")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    trainers = [int(child) for child in children if is_trainer(int(child))] or [process.pid]
    for pid in trainers[:1] if only_one else trainers:
        os.kill(pid, number)
    out, error = process.communicate(timeout=90)
    if number == signal.SIGTERM:
        assert process.returncode == 0, error
    assert int(checkpoints(run / "checkpoints")[-1].name.split("-")[1]) < 40, "it was stopped in the middle"
    return out


def is_trainer(pid: int) -> bool:
    return b"pretrain" in Path(f"/proc/{pid}/cmdline").read_bytes()


@pytest.mark.slow
def test_a_failure_of_one_is_one_line_and_ends_all(data: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("not a run")
    done = lumid("pretrain", "--data", data, "--recipe", recipe, "--out", tmp_path / "other", processes=2)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 2
    assert any("is not empty and holds no run" in line for line in lines)


def test_a_batch_is_shared_or_refused() -> None:
    assert micro_batches(4096, 8, 256) == (256, 2)
    assert micro_batches(8, 2, None) == (4, 1)
    assert micro_batches(8, 2, 64) == (4, 1), "no more than there is"
    with pytest.raises(UsageError, match="multiple of 3"):
        micro_batches(8, 3, None)
    with pytest.raises(UsageError, match="divisor of 4"):
        micro_batches(8, 2, 3)


def test_slurm_alone_tells_a_process_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    assert place_of_process() == (0, 1, 0)
    for name, value in (("SLURM_PROCID", "9"), ("SLURM_NTASKS", "16"), ("SLURM_LOCALID", "1")):
        monkeypatch.setenv(name, value)
    assert place_of_process() == (0, 1, 0), "an interactive job is not a run of many"
    monkeypatch.setenv("MASTER_ADDR", "node1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):  # what it sets for PyTorch is undone after the test
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert place_of_process() == (9, 16, 1)
    assert os.environ["RANK"] == "9"


@pytest.mark.slow
def test_two_tasks_of_slurm_are_one_run(trained: Path, data: Path, recipe: Path, tmp_path: Path) -> None:
    """As ``srun`` starts them, with the address that docs/training.md sets; nothing of torchrun's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    slurm = {"SLURM_NTASKS": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    tasks = [
        subprocess.Popen(
            command("pretrain", "--data", data, "--recipe", recipe, "--out", tmp_path / "run"),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | slurm | {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)},
        )
        for number in (0, 1)
    ]  # fmt: skip
    told = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], told
    assert "is finished" in told[0][0]
    assert told[1][0] == ""
    check_losses(tmp_path / "run", trained)
