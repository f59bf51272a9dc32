"""What comes out of a run or of another's file loads into timm as it is, computes the same, and says where it is from."""

from __future__ import annotations

import argparse
import json
import pickle
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from lumid.catalog.errors import UsageError
from lumid.catalog.subset import write_subset
from lumid.dags.cli import train  # noqa: F401  registers the commands
from lumid.dags.cli.app import app
from lumid.model.convert import convert, read_weights
from lumid.model.mae import MaskedAutoencoder
from lumid.model.runs import read_run
from lumid.model.weights import load_mae
from tests.factory import make_dataset
from tests.model.released import mae_names
from tests.model.runs import RECIPE, here, metrics


def into_timm(folder: Path) -> tuple[torch.nn.Module, dict[str, object]]:
    """The encoder of a folder, as its card says to load it."""
    config = json.loads((folder / "config.json").read_text())
    encoder = timm.create_model(**config["timm"])
    encoder.load_state_dict(load_file(folder / "encoder.safetensors"), strict=True)
    return encoder.eval(), config


def test_the_encoder_loads_into_timm_and_computes_the_same(trained: Path, data: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["export", str(trained), "--data", str(data), "--out", str(tmp_path / "encoder")])
    assert done.exit_code == 0, done.output
    encoder, config = into_timm(tmp_path / "encoder")
    model, _, _ = read_run(trained)
    images = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder.forward_features(images), model.eval().encode(images))  # type: ignore[operator]
    assert (config["mean"], config["std"], config["step"]) == (0.5, 0.5, 40)


def test_the_cards_code_runs(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(app, ["export", str(trained), "--out", str(tmp_path / "encoder")]).exit_code == 0
    card = (tmp_path / "encoder" / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path / "encoder")
    exec(code, {})


def test_the_card_says_what_it_was_trained_on_and_how_well(trained: Path, data: Path, tmp_path: Path) -> None:
    drawn = CliRunner().invoke(
        app, ["reconstruct", str(trained), "--data", str(data), "--out", str(tmp_path / "f.png")]
    )
    assert drawn.exit_code == 0, drawn.output
    assert CliRunner().invoke(app, ["export", str(trained), "--out", str(tmp_path / "encoder")]).exit_code == 0
    card = (tmp_path / "encoder" / "README.md").read_text()
    kept = json.loads((trained / "data.json").read_text())
    prostate = next(use for use in kept["collections"] if use["collection"] == "prostate_trial")
    samples = sum(kept["modalities"].values())
    assert f"{prostate['samples']} of {samples} samples" in card
    assert "excludes commercial use" in card
    assert "| prostate_trial | CC BY-NC 4.0 | https://doi.org/10.7937/K9/TCIA.2017.BBBB |" in card
    summary = json.loads((trained / "summary.json").read_text())
    assert f"Loss on held-out patients {summary['validation_loss']:.4f}" in card
    assert "step 40 of 40, 320 images" in card
    assert "| CT | held out |" in card or "| MR | held out |" in card
    scores = json.loads((trained / "reconstruction.json").read_text())["modalities"]
    assert f"{scores[0]['psnr_db']:.2f} ± {scores[0]['psnr_db_sd']:.2f}" in card


def test_a_card_for_another_data_set_is_refused(trained: Path, data: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "other", n=20, seed=9)
    done = here("export", trained, "--data", tmp_path / "other", "--out", tmp_path / "encoder")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    write_subset(data, tmp_path / "ct.parquet", "modality = 'CT'")
    arguments = ["export", str(trained), "--subset", str(tmp_path / "ct.parquet"), "--out", str(tmp_path / "encoder")]
    assert CliRunner().invoke(app, [*arguments, "--data", str(data)]).exit_code == 1  # the run was of all of it
    assert isinstance(CliRunner().invoke(app, arguments).exception, UsageError)
    assert not (tmp_path / "encoder").exists()


@pytest.fixture(scope="module")
def small() -> MaskedAutoencoder:
    torch.manual_seed(0)
    return MaskedAutoencoder(
        "small", image_size=64, patch_size=16, in_chans=3, decoder_width=64, decoder_depth=2, decoder_heads=16
    ).eval()


def test_a_mae_checkpoint_becomes_a_timm_encoder(small: MaskedAutoencoder, tmp_path: Path) -> None:
    options = argparse.Namespace(lr=1e-3, epochs=800)
    torch.save({"model": mae_names(small), "epoch": 799, "args": options}, tmp_path / "mae.pth")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "mae.pth"), "--out", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["size"], facts["has_decoder"], facts["left_out"]) == ("small", True, [])
    encoder, config = into_timm(tmp_path / "out")
    images, noise = torch.rand(2, 3, 64, 64), torch.rand(2, 16)
    again = MaskedAutoencoder(**config["model"])  # type: ignore[arg-type]
    load_mae(tmp_path / "out", again)
    with torch.no_grad():
        torch.testing.assert_close(encoder.forward_features(images), small.encode(images))  # type: ignore[operator]
        torch.testing.assert_close(again.eval()(images, noise).loss, small(images, noise).loss)
    assert config["mean"] == [0.485, 0.456, 0.406]
    assert "CC BY-NC" in (tmp_path / "out" / "README.md").read_text()


def test_a_fine_tuned_checkpoint_loses_its_head_and_says_so(small: MaskedAutoencoder, tmp_path: Path) -> None:
    state = {
        name: tensor for name, tensor in mae_names(small).items() if "decoder" not in name and name != "mask_token"
    }
    state |= {"head.weight": torch.zeros(14, 384), "head.bias": torch.zeros(14)}
    torch.save({f"module.{name}": tensor.half() for name, tensor in state.items()}, tmp_path / "tuned.pth")
    done = convert(tmp_path / "tuned.pth", tmp_path / "out")
    assert (done.has_decoder, done.left_out) == (False, ("head.weight", "head.bias"))
    assert not (tmp_path / "out" / "mae.safetensors").exists()
    encoder, _ = into_timm(tmp_path / "out")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("code of a file has run",))


def test_code_in_a_file_does_not_run(
    small: MaskedAutoencoder, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.save({"model": mae_names(small), "args": Evil()}, tmp_path / "evil.pth")
    with (tmp_path / "plain.pth").open("wb") as file:
        pickle.dump({"model": Evil()}, file)
    for name in ("evil.pth", "plain.pth"):
        done = here("convert", tmp_path / name, "--out", tmp_path / "out")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "code of a file has run" not in done.stdout + done.stderr
    assert "holds more than weights" in here("convert", tmp_path / "evil.pth", "--out", tmp_path / "out").stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop("cls_token"), "not of the MAE family"),
        (lambda state: state.pop("blocks.3.attn.qkv.bias"), "blocks.3.attn.qkv.bias"),
        (lambda state: state.update(relative_bias=torch.zeros(3)), "relative_bias"),
        (
            lambda state: [state.pop(name) for name in list(state) if name.startswith("blocks.11.")],
            "11 blocks of width",
        ),
        (lambda state: state.pop("decoder_pred.bias"), "decoder_head.bias"),
    ],
)
def test_what_is_no_mae_is_refused_by_name(
    small: MaskedAutoencoder, tmp_path: Path, change: object, words: str
) -> None:
    state = mae_names(small)
    change(state)  # type: ignore[operator]
    torch.save({"model": state}, tmp_path / "x.pth")
    with pytest.raises(UsageError) as caught:
        convert(tmp_path / "x.pth", tmp_path / "out")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"not a checkpoint at all")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"model": mae_names(MaskedAutoencoder("tiny", image_size=32, patch_size=8))}, tmp_path / "half.pth")
    content = (tmp_path / "half.pth").read_bytes()
    (tmp_path / "half.pth").write_bytes(content[: len(content) // 2])
    for name in ("x.pth", "list.pth", "half.pth", "missing.pth"):
        with pytest.raises(UsageError) as caught:
            read_weights(tmp_path / name)
        assert "\n" not in str(caught.value)


def test_a_run_can_begin_from_weights(trained: Path, data: Path, recipe: Path, tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["export", str(trained), "--out", str(tmp_path / "encoder")]).exit_code == 0
    arguments = ("pretrain", "--data", data, "--recipe", recipe, "--out", tmp_path / "run", "--steps", "3")
    done = here(*arguments, "--weights", tmp_path / "encoder")
    assert done.returncode == 0, done.stderr
    assert metrics(tmp_path / "run")[0]["loss"] != metrics(trained)[0]["loss"], "another beginning"
    assert here(*arguments).returncode == 2, "without them it is another run"
    recipe.write_text(RECIPE.replace("patch_size = 8", "patch_size = 16"))
    shutil.rmtree(tmp_path / "run")
    done = here(*arguments, "--weights", tmp_path / "encoder")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "of another shape than the recipe's [model]" in done.stderr
