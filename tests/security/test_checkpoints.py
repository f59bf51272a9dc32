"""Checkpoints and weights of strangers: read as numbers, or refused in a line; no code in them runs."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from torch import nn  # noqa: E402

from lumid.catalog.errors import LumidError  # noqa: E402
from lumid.model.checkpoint import load_weights, read_state  # noqa: E402
from lumid.model.convert import read_weights  # noqa: E402
from tests.security.test_strangers_files import DEEP, Payload, refused  # noqa: E402


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000001"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "weights.pth"])
def test_a_pickle_does_not_run(checkpoint: Path, tmp_path: Path, name: str) -> None:
    ran = tmp_path / "ran"
    (checkpoint / name).write_bytes(pickle.dumps(Payload(ran)))
    if name == "weights.pth":
        torch.save({"model": Payload(ran)}, checkpoint / "zipped.pth")
        assert refused(lambda: read_weights(checkpoint / "zipped.pth"))
        assert refused(lambda: read_weights(checkpoint / name))
    elif name == "state.json":
        assert refused(lambda: read_state(checkpoint))
    else:
        assert refused(lambda: load_weights(checkpoint, nn.Linear(2, 2)))
    assert not ran.exists()


@pytest.mark.parametrize("data", [DEEP, b"[]", b"null", b"\xff", b'{"stream": 3, "guard": {}}'])
def test_a_state_that_is_none(checkpoint: Path, data: bytes) -> None:
    (checkpoint / "state.json").write_bytes(data)
    assert refused(lambda: read_state(checkpoint))


@pytest.mark.parametrize(
    "rows",
    [
        "[" * 50_000,
        "3",
        '"x"',
        json.dumps({"weight": 7}),
        json.dumps({"weight": ["a", "b"]}),
        json.dumps({"weight": [0]}),
    ],
)
def test_rows_that_are_none(checkpoint: Path, rows: str) -> None:
    tensors = {"weight": torch.zeros(2, 2), "bias": torch.zeros(2)}
    save_file(tensors, checkpoint / "model.safetensors", metadata={"rows": rows})
    assert refused(lambda: load_weights(checkpoint, nn.Linear(2, 2)))


@pytest.mark.parametrize("length", [0, 1 << 40, (1 << 64) - 1])
def test_a_header_that_lies_about_its_length(checkpoint: Path, length: int) -> None:
    (checkpoint / "model.safetensors").write_bytes(length.to_bytes(8, "little") + b"{}")
    assert refused(lambda: load_weights(checkpoint, nn.Linear(2, 2)))


def test_cut_or_flipped_weights_load_or_are_refused(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    save_file({"weight": torch.ones(2, 2), "bias": torch.ones(2)}, path)
    whole = path.read_bytes()
    said = []
    for at in range(0, len(whole), 3):
        for data in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x55]) + whole[at + 1 :]):
            path.write_bytes(data)
            try:
                load_weights(checkpoint, nn.Linear(2, 2))
            except LumidError as error:
                said.append(str(error))
    assert len(said) > len(whole) // 6, "what is cut is refused, most of all"
    assert not any("\n" in one for one in said)


@pytest.mark.parametrize(
    "data", [b"\x80\x02.", b"\x80\x02]s.", b"\x80\x02(t\x93.", b"\x80\x02j\x07\0\0\0.", b"PK\x03\x04", b""]
)
def test_weights_that_are_none(tmp_path: Path, data: bytes) -> None:
    """Pickles whose stack is empty, or that are of another kind than their commands need."""
    (tmp_path / "weights.pth").write_bytes(data)
    assert refused(lambda: read_weights(tmp_path / "weights.pth"))
