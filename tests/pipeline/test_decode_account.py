"""Objects of which some frames are lost: the others are samples, and every one is accounted for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom import uid

from lumid.pipeline.decode import quiet_libraries
from tests.dicom import as_bytes, encapsulated, gradient, image
from tests.pipeline.test_decode_encoded import rle
from tests.pipeline.test_ingest import HU, run

quiet_libraries()
FRAMES = np.stack([np.roll(gradient(64, 48, np.uint16, 3000), number, 0) for number in range(5)])


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_damaged_frame_costs_itself_alone(modality: str, tmp_path: Path) -> None:
    """MR goes over the object twice: for the range of its series, and for its frames."""
    streams = [rle(frame) for frame in FRAMES]
    streams[2] = streams[2][: len(streams[2]) // 2 * 2 - 40]
    elements = HU if modality == "CT" else {}
    data = as_bytes(encapsulated(streams, uid.RLELossless, FRAMES, Modality=modality, **elements))
    (tmp_path / "one").write_bytes(data)
    result = run(tmp_path)
    assert result.planned == 5
    assert sorted(sample.row.frame for sample in result.samples) == [0, 1, 3, 4]
    assert [(row.frame, row.frames, row.code) for row in result.rejects] == [(2, 1, "decode_failed")]


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_frames_before_a_cut_are_kept(modality: str, tmp_path: Path) -> None:
    elements = HU if modality == "CT" else {}
    (tmp_path / "one").write_bytes(as_bytes(image(FRAMES, Modality=modality, **elements))[: -FRAMES[0].nbytes - 30])
    result = run(tmp_path)
    assert sorted(sample.row.frame for sample in result.samples) == [0, 1, 2]
    assert [(row.frame, row.code) for row in result.rejects] == [(3, "truncated"), (4, "truncated")]
