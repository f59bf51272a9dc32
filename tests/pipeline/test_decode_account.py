"""Objects of which some frames are lost: the others are samples, and every one is accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom import uid

from lumid.catalog.codecs import decode
from lumid.pipeline import decode as decoding
from lumid.pipeline.decode import Limits, decode_frames, image_size, parse, quiet_libraries
from lumid.pipeline.recipe import SelectSettings
from lumid.pipeline.reject import Reject
from tests.dicom import as_bytes, encapsulated, gradient, image
from tests.pipeline.test_decode_encoded import rle
from tests.pipeline.test_ingest import HU, run

quiet_libraries()
FRAMES = np.stack([np.roll(gradient(64, 48, np.uint16, 3000), number, 0) for number in range(5)])


def damaged(frames: Iterable[int], modality: str, **elements: Any) -> bytes:
    """The object with these of its frames cut short."""
    streams = [rle(frame) for frame in FRAMES]
    for number in frames:
        streams[number] = streams[number][: len(streams[number]) // 2 * 2 - 40]
    scale = HU if modality == "CT" else {}
    return as_bytes(encapsulated(streams, uid.RLELossless, FRAMES, Modality=modality, **scale, **elements))


@pytest.mark.parametrize("modality", ["CT", "MR", "NM"])
@pytest.mark.parametrize("lost", [[2], [0], [0, 1, 4], [1, 2, 3, 4]])
def test_damaged_frames_cost_themselves_alone(modality: str, lost: list[int], tmp_path: Path) -> None:
    """MR and NM go over the object twice: for the range of its series, and for its frames."""
    (tmp_path / "one").write_bytes(damaged(lost, modality))
    result = run(tmp_path)
    assert result.planned == 5
    kept = sorted(sample.row.frame for sample in result.samples)
    assert kept == [frame for frame in range(5) if frame not in lost]
    assert [(row.frame, row.frames, row.code) for row in result.rejects] == [(at, 1, "decode_failed") for at in lost]
    for sample in result.samples:
        row, pixels = sample.row, decode(sample.image, sample.row.codec)
        stored = FRAMES[row.frame] - (1024.0 if modality == "CT" else 0.0)
        away = np.abs(pixels * row.store_slope + row.store_intercept - stored)
        assert np.median(away) <= row.store_slope, "the pixels of this frame, and of no other"


@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.parametrize(
    ("lost", "winner", "rejects"),
    [
        (range(5), "b", [("a", None, 5, "decode_failed")]),
        (
            [0, 3],
            "a",
            [("a", 0, 1, "decode_failed"), ("a", 3, 1, "decode_failed"), ("b", None, 1, "duplicate_instance")],
        ),
    ],
)
def test_a_copy_takes_the_place_of_an_object_without_any_frame(
    modality: str, lost: Iterable[int], winner: str, rejects: list[tuple[str, int | None, int, str]], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(damaged(lost, modality))
    (tmp_path / "b").write_bytes(damaged([], modality))
    result = run(tmp_path)
    assert {sample.row.source_id for sample in result.samples} == {winner}
    found = [(row.source_id, row.frame, row.frames, row.code) for row in result.rejects]
    assert sorted(found) == rejects
    assert result.planned == len(result.samples) + sum(frames for _, _, frames, _ in rejects)


@pytest.mark.parametrize("lost", [[0, 2, 4], [1, 3], []])
def test_frames_that_a_stride_leaves_out_are_not_decoded(
    lost: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of five every second: 0, 2 and 4 are taken. What is not decoded cannot fail either."""
    decoded = []
    rle_decoder = decoding.decode_rle

    def counted(data: bytes, *shape: int) -> Any:
        decoded.append(data)
        return rle_decoder(data, *shape)

    monkeypatch.setattr(decoding, "decode_rle", counted)
    (tmp_path / "one").write_bytes(damaged(lost, "CT"))
    result = run(tmp_path, select=SelectSettings(stride=2))
    assert len(decoded) == 3
    assert result.planned == 5
    if lost == [0, 2, 4]:
        assert [(row.frame, row.frames, row.code) for row in result.rejects] == [(None, 5, "decode_failed")]
    else:
        assert sorted(sample.row.frame for sample in result.samples) == [0, 2, 4]
        assert [(row.frame, row.frames, row.code) for row in result.rejects] == [(None, 2, "stride")]


@pytest.mark.parametrize("wanted", [[], [3], [4, 0], [1, 1, 2], range(5)])
def test_wanted_frames_are_those_of_all(wanted: Sequence[int]) -> None:
    """Native and encapsulated; of an object that was cut, the frames that are not there too."""
    native = as_bytes(image(FRAMES))
    for data in (native, damaged([3], "CT"), native[: -FRAMES[0].nbytes - 30]):
        dataset = parse(data)
        assert not isinstance(dataset, Reject)
        size = image_size(dataset, Limits())
        assert not isinstance(size, Reject)
        every = list(decode_frames(dataset, size))
        assert len(every) == 5
        for found, frame in zip(decode_frames(dataset, size, wanted), wanted, strict=True):
            expected = every[frame]
            if isinstance(expected, Reject):
                assert found == expected
            else:
                np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_frames_before_a_cut_are_kept(modality: str, tmp_path: Path) -> None:
    elements = HU if modality == "CT" else {}
    (tmp_path / "one").write_bytes(as_bytes(image(FRAMES, Modality=modality, **elements))[: -FRAMES[0].nbytes - 30])
    result = run(tmp_path)
    assert sorted(sample.row.frame for sample in result.samples) == [0, 1, 2]
    assert [(row.frame, row.code) for row in result.rejects] == [(3, "truncated"), (4, "truncated")]
