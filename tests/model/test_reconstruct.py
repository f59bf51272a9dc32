"""The figure and its scores: honest about what was trained on, and about what is borrowed from the original."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from lumid.catalog.errors import DatasetError
from lumid.catalog.query import read_catalog
from lumid.catalog.subset import write_subset
from lumid.dags.cli import train  # noqa: F401  registers the commands
from lumid.dags.cli.app import app
from lumid.model.metrics import psnr, ssim
from lumid.model.reconstruct import Reconstruction, Seen, _rows, reconstruct, score
from lumid.model.runs import read_run
from tests.factory import make_dataset


def splits(data: Path) -> dict[str, str]:
    return {row["key"]: row["split"] for row in read_catalog(data, None, ["key", "split"]).to_pylist()}


def test_a_subset_says_what_is_drawn(trained: Path, data: Path, tmp_path: Path) -> None:
    write_subset(data, tmp_path / "ct.parquet", "modality = 'CT'")
    arguments = ["reconstruct", str(trained), "--data", str(data), "--subset", str(tmp_path / "ct.parquet"), "--json"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "figure.png")])
    assert done.exit_code == 0, done.output
    assert {row["modality"] for row in json.loads(done.stdout)["rows"]} == {"CT"}


def test_a_reconstruction_is_drawn_and_scored(trained: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["reconstruct", str(trained), "--data", str(data), "--out", str(tmp_path / "figure.png"), "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert {row["modality"] for row in facts["rows"]} == {"CT", "MR", "US"}
    known = splits(data)
    for row in facts["rows"]:
        assert row["seen"] == ("trained on" if known[row["key"]] == "train" else "held out")
    assert {row["seen"] for row in facts["rows"]} == {"trained on", "held out"}
    assert all(math.isfinite(row["psnr_db"]) and -1 <= row["ssim"] <= 1 for row in facts["rows"])
    counted = {(one["modality"], one["seen"]): one["images"] for one in facts["scores"]}
    rows = read_catalog(data, None, ["modality", "split"]).to_pylist()
    for (modality, seen), images in counted.items():
        split = "train" if seen == "trained on" else "val"
        assert images == sum(row["modality"] == modality and row["split"] == split for row in rows)
    image = cv2.imread(str(tmp_path / "figure.png"))
    assert image is not None
    assert image.shape[0] > 3 * 200
    assert image.std() > 10
    kept = json.loads((trained / "reconstruction.json").read_text())
    assert kept["modalities"] == facts["scores"]
    assert kept["patch_statistics_of_the_original"] is True


def test_a_reconstruction_of_another_data_set_claims_nothing(trained: Path, tmp_path: Path) -> None:
    make_dataset(tmp_path / "other", n=20, seed=9)
    figure = reconstruct(trained, tmp_path / "other", tmp_path / "figure.png", "modality = 'CT'", images=3)
    assert {row.modality for row in figure.rows} == {"CT"}
    assert "trained on" not in {row.seen for row in figure.rows}
    with pytest.raises(DatasetError, match="no samples"):
        reconstruct(trained, tmp_path / "other", tmp_path / "figure.png", "modality = 'XA'")


def test_no_more_images_are_scored_than_asked_for(trained: Path, data: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    figure = reconstruct(trained, data, tmp_path / "f.png", images=2, report=lambda *numbers: told.append(numbers))
    assert all(1 <= one.images <= 3 for one in figure.scores), "two by key, and the one that is shown"
    assert told[-1][0] == told[-1][1] == sum(one.images for one in figure.scores)


@pytest.mark.parametrize("normalised", [True, False])
def test_scores_are_of_what_the_panels_show(trained: Path, normalised: bool) -> None:
    model, _, _ = read_run(trained)
    model.eval().normalize_target = normalised
    images = torch.rand(3, 1, 32, 32) * 2 - 1
    keys = [f"{number:024x}" for number in range(2**90, 2**90 + 3)]
    rows = _rows(model, keys, torch.zeros(3, dtype=torch.int64), images, dict.fromkeys(keys, Seen.HELD_OUT))
    for row, image in zip(rows, images, strict=True):
        original, masked, painted, filled = row.panels
        assert torch.equal(original, image)
        hidden = masked != original
        assert hidden.float().mean() == pytest.approx(0.75, abs=0.01)
        assert torch.equal(filled, torch.where(hidden, painted, original))
        assert row.psnr == pytest.approx(psnr(filled, original, 2.0))
        error = float((painted - original)[hidden].square().mean())
        assert row.hidden_psnr == pytest.approx(10 * math.log10(4 / error), rel=1e-4)
    alone = _rows(model, keys[1:2], torch.zeros(1, dtype=torch.int64), images[1:2], {keys[1]: Seen.HELD_OUT})
    torch.testing.assert_close(alone[0].panels[3], rows[1].panels[3])


def test_the_baseline_knows_what_the_decoder_is_given(trained: Path) -> None:
    """With normalised targets each hidden patch's own mean, else the mean of the visible pixels."""
    model, _, _ = read_run(trained)
    model.eval()
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16:] = 1  # patches of one value each: their means are the whole image
    key = "a" * 24
    for normalised in (True, False):
        model.normalize_target = normalised
        (row,) = _rows(model, [key], torch.zeros(1, dtype=torch.int64), image, {key: Seen.HELD_OUT})
        if normalised:
            assert row.baseline_psnr == math.inf
            continue
        original, masked = row.panels[0], row.panels[1]
        hidden = masked != original
        mean = float(original[~hidden].mean())
        error = float((original - mean)[hidden].square().sum() / original.numel())
        assert row.baseline_psnr == pytest.approx(10 * math.log10(4 / error), rel=1e-5)


def test_scores_are_means_of_what_is_finite() -> None:
    panels = (torch.zeros(1, 1, 1),) * 4
    rows = [Reconstruction("CT", "k", Seen.HELD_OUT, panels, value, 0.5, 10.0, 5.0) for value in (20.0, 30.0, math.inf)]
    (one,) = score(rows)
    assert (one.images, one.psnr_db, one.psnr_db_sd) == (3, 25.0, pytest.approx(math.sqrt(50)))
    assert (one.ssim, one.ssim_sd, one.baseline_psnr_db) == (0.5, 0.0, 5.0)


def test_psnr_and_ssim_by_hand() -> None:
    zero, half = torch.zeros(16, 16), torch.full((16, 16), 0.5)
    assert psnr(half, zero, 1.0) == pytest.approx(10 * math.log10(1 / 0.25))
    assert psnr(zero, zero, 1.0) == float("inf")
    noise = torch.rand(32, 32, generator=torch.Generator().manual_seed(0))
    assert ssim(noise, noise, 1.0) == pytest.approx(1.0)
    # two constant images: only the luminance term is left, (2ab + C1) / (a² + b² + C1)
    assert ssim(half, zero, 1.0) == pytest.approx(1e-4 / (0.25 + 1e-4))
    assert ssim(noise, 1 - noise, 1.0) < 0


def test_ssim_is_that_of_the_definition() -> None:
    """Wang et al. 2004, equation 13, window by window."""
    rng = np.random.default_rng(0)
    a, b = rng.random((14, 13)), rng.random((14, 13))
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for row in range(4):
        for column in range(3):
            x, y = (image[row : row + 11, column : column + 11] for image in (a, b))
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            c1, c2 = 0.01**2, 0.03**2
            values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    assert ssim(torch.tensor(a), torch.tensor(b), 1.0) == pytest.approx(np.mean(values), rel=1e-6)
