"""A text detector's network: how likely each pixel is to lie on a line of text.

PP-OCRv4's detector (differentiable binarization, Liao et al., Real-Time Scene Text Detection with Differentiable
Binarization, 2020), run by ONNX Runtime on one thread: workers own the cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

MODEL = "ch_PP-OCRv4_det_infer.onnx"
TILE = 736
"""Side of what the network sees at once, at most, so that memory does not grow with the image."""
OVERLAP = 96
STRIDE = 32
LEAST_STEP = 4
"""Of 255 levels: a tile where no two neighbours differ by more holds no text that anybody could read."""

Levels = npt.NDArray[np.uint8]
Probability = npt.NDArray[np.float32]


@cache
def _session() -> InferenceSession:
    """The network, loaded on first use, once a process."""
    from onnxruntime import ExecutionMode, InferenceSession, SessionOptions

    options = SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    model = (resources.files("lumid.pipeline.text") / MODEL).read_bytes()
    return InferenceSession(model, options, providers=["CPUExecutionProvider"])


def text_probability(shown: Levels) -> Probability:
    """``uint8 [rows, columns, 3]`` as displayed → ``float32 [rows, columns]``, 0 to 1, tile by tile."""
    rows, columns = shown.shape[:2]
    likely = np.zeros((rows, columns), np.float32)
    for top, bottom in _spans(rows):
        for left, right in _spans(columns):
            tile = shown[top:bottom, left:right]
            if _largest_step(tile) > LEAST_STEP:
                part = likely[top:bottom, left:right]
                np.maximum(part, _run(tile), out=part)
    return likely


def _spans(length: int) -> Iterator[tuple[int, int]]:
    """Where tiles begin and end along a side: as few as possible, of one length, sharing :data:`OVERLAP` pixels or more."""
    count = max(1, -(-(length - OVERLAP) // (TILE - OVERLAP)))
    size = -(-(length + (count - 1) * OVERLAP) // count)
    for number in range(count):
        start = number * (length - size) // max(1, count - 1)
        yield start, start + size


def _largest_step(tile: Levels) -> int:
    window = np.ones((3, 3), np.uint8)
    return int(cv2.subtract(cv2.dilate(tile, window), cv2.erode(tile, window)).max())


def _run(tile: Levels) -> Probability:
    rows, columns = tile.shape[:2]
    padded = cv2.copyMakeBorder(tile, 0, -rows % STRIDE, 0, -columns % STRIDE, cv2.BORDER_REPLICATE)
    values = np.multiply(padded.transpose(2, 0, 1)[None], np.float32(2 / 255), dtype=np.float32) - np.float32(1)
    session = _session()
    (likely,) = session.run(None, {session.get_inputs()[0].name: values})
    found: Probability = likely[0, 0, :rows, :columns]
    return found
