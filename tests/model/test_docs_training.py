"""The code in docs/training.md, run as it stands there but for the name of the data set and the device."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lumid.model.stream import StreamState
from tests.factory import make_dataset

PAGE = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the default codec, in five shards."""
    root = tmp_path_factory.mktemp("docs") / "data"
    make_dataset(root, n=40, seed=1, shards=5, codec="jhc")
    return root


def code(word: str, data: Path) -> str:
    """The one block of Python on the page in which a word is."""
    (block,) = (one for one in re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL) if word in one)
    return str(block).replace("my-data", str(data)).replace('"cuda"', '"cpu"')


def test_a_loop_of_ones_own(coded: Path) -> None:
    block = code("ImageStream", coded)
    assert "    ...\n" in block
    shapes: list[Any] = []
    names: dict[str, Any] = {"shapes": shapes}
    once = block.replace("    ...\n", "    shapes.append(images.shape)\n")
    exec(compile(once + "    if len(shapes) == 2:\n        break\n", "training.md", "exec"), names)
    assert shapes == [torch.Size([64, 1, 224, 224])] * 2
    assert StreamState(**names["state"]).epoch > 0, "128 of some thirty samples"


def test_three_lines_of_plain_webdataset_read_every_shard(coded: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(code("webdataset", coded), "training.md", "exec"), names)
    found = list(names["samples"])
    assert len({about["key"] for _, about in found}) == len(found) == 40
    assert {pixels.dtype for pixels, _ in found} == {np.dtype(np.uint16), np.dtype(np.uint8)}
