"""A batch in pieces gives what the batch gives, or says that it cannot be taken apart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.dags.ingest_tasks import Ingested, join_task, piece_file
from lumid.pipeline.batches import Batch
from lumid.pipeline.ingest import BatchResult, ingest
from lumid.pipeline.parts import PartFiles, write_part
from lumid.pipeline.pieces import (
    PieceResult,
    assemble,
    divide,
    ingest_piece,
    long_series,
    part_of,
    parts_of,
    read_piece,
    state_of,
    write_piece,
)
from lumid.pipeline.recipe import DeidSettings, FolderSettings, Recipe, SelectSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, ObjectRef, Provenance, Series
from tests.dicom import TEST_FILES, as_bytes, gradient, image

KEYER = Keyer(PUBLIC_SECRET)
PROVENANCE = Provenance("tcga_us", "idc", "CC BY 3.0", None, "IDC v25")
Held = dict[str, bytes | Reject]


@dataclass(frozen=True)
class Shelf:
    """Objects in memory, by the location of their series."""

    held: dict[str, Held]

    def prefetch(self, series: Sequence[Series]) -> None:
        pass

    def close(self) -> None:
        pass

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        for name, data in self.held[series.location].items():
            if only is None or name in only:
                yield Blob(ObjectRef(name, _size(data)), data)

    def known_objects(self, series: Series) -> list[ObjectRef] | None:
        return [ObjectRef(name, _size(data)) for name, data in self.held[series.location].items()] or None


def _size(data: bytes | Reject) -> int:
    return 1000 if isinstance(data, Reject) else len(data)


def loop(number: int, frames: int = 2, **more: Any) -> bytes:
    """A loop of ultrasound, of which no two look alike."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 255, (frames, 8, 8)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    elements = {"Modality": "US", "SOPInstanceUID": f"1.2.{number}", "InstanceNumber": 90 - number} | more
    return as_bytes(image(pixels, **elements))


def recipe(**select: Any) -> Recipe:
    return Recipe(
        name="r", sources=(FolderSettings(kind="folder", path="x"),), select=SelectSettings(**select)
    )  # any source: none is opened


def batch_of(shelf: Shelf, modality: str | None = "US") -> Batch:
    series = tuple(
        Series(
            f"{number:016x}", PROVENANCE, len(held), sum(map(_size, held.values())), location=location,
            lock_row=number, modality=modality,
        )
        for number, (location, held) in enumerate(shelf.held.items())
    )  # fmt: skip
    return Batch("b" * 24, 0, series)


def in_pieces(shelf: Shelf, recipe: Recipe, folder: Path, parts: dict[int, int]) -> BatchResult | None:
    """Each piece is read, written, and read again, in any order."""
    batch = batch_of(shelf)
    pieces = divide(batch, parts)
    for piece in reversed(pieces):
        write_piece(folder / f"{piece.id}.parquet", piece, ingest_piece(piece, shelf, recipe, KEYER))
    return assemble(batch, [read_piece(folder / f"{piece.id}.parquet") for piece in pieces], recipe)


def files(folder: Path, result: BatchResult) -> dict[str, bytes]:
    """What a part of it would hold, to the byte."""
    write_part(PartFiles(folder, "part"), result, 1.0)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def series() -> Held:
    held: Held = {f"{number:02}": loop(number) for number in range(9)}
    held["03"] = Reject("fetch", "fetch_failed", "HTTP 503")
    held["05"] = held["05"][:-9000] if isinstance(held["05"], bytes) else held["05"]  # some of its frames are lost
    held["06"] = b"no DICOM at all"
    held["07"] = loop(7, PatientID="P2", AcquisitionDeviceProcessingCode="x")
    return held


@pytest.mark.parametrize(("near_duplicates", "parts"), [("keep", {0: 2}), ("flag", {0: 9}), ("drop", {0: 3, 2: 2})])
def test_pieces_give_what_the_batch_gives(tmp_path: Path, near_duplicates: str, parts: dict[int, int]) -> None:
    real = {path.name: path.read_bytes() for path in sorted(TEST_FILES.glob("*.dcm")) if path.stat().st_size < 400_000}
    few: Held = {f"{number}": loop(20 + number, 1) for number in range(4)}
    similar = loop(0, SOPInstanceUID="1.9.9", InstanceNumber=100)
    shelf = Shelf({"loops": series() | {"08 again": similar}, "real": dict(list(real.items())[:6]), "more": few})
    settings = recipe(near_duplicates=near_duplicates)
    found = in_pieces(shelf, settings, tmp_path / "pieces", parts)
    wanted = ingest(batch_of(shelf), shelf, settings, KEYER)
    assert found == wanted
    assert files(tmp_path / "a", found) == files(tmp_path / "b", wanted)
    assert len(wanted.samples) > 12
    assert {row.code for row in wanted.rejects} >= {"fetch_failed", "not_an_image"}
    assert ("near_duplicate" in {row.code for row in wanted.rejects}) == (near_duplicates == "drop")


def test_a_copy_of_an_instance_in_another_piece(tmp_path: Path) -> None:
    """Whether the first or the second counts is for whoever reads both."""
    shelf = Shelf({"loops": {f"{number}": loop(number % 4) for number in range(5)}})
    assert in_pieces(shelf, recipe(), tmp_path, {0: 2}) is None
    wanted = ingest(batch_of(shelf), shelf, recipe(), KEYER)
    assert [row.code for row in wanted.rejects] == ["duplicate_instance"]


def test_a_series_of_one_scale(tmp_path: Path) -> None:
    held: Held = {
        f"{number}": as_bytes(image(gradient(), Modality="MR", SOPInstanceUID=f"1.{number}")) for number in range(4)
    }
    assert in_pieces(Shelf({"slices": held}), recipe(), tmp_path, {0: 2}) is None


def test_what_the_archive_says_to_one_and_not_to_another(tmp_path: Path) -> None:
    shelf = Shelf({"loops": {f"{number}": loop(number) for number in range(4)}})
    first, second = divide(batch_of(shelf), {0: 2})
    less = Shelf({"loops": {name: data for name, data in shelf.held["loops"].items() if name != "3"}})
    found = [ingest_piece(first, shelf, recipe(), KEYER), ingest_piece(second, less, recipe(), KEYER)]
    assert assemble(first.batch, found, recipe()) is None
    assert ingest_piece(second, Shelf({"loops": {}}), recipe(), KEYER) == PieceResult(unlisted=True)


def test_what_kills_is_left_out(tmp_path: Path) -> None:
    shelf = Shelf({"loops": {f"{number}": loop(number) for number in range(4)}})
    batch = batch_of(shelf)
    found = [ingest_piece(piece, shelf, recipe(), KEYER, frozenset({"2"})) for piece in divide(batch, {0: 2})]
    assert assemble(batch, found, recipe()) == ingest(batch, shelf, recipe(), KEYER, frozenset({"2"}))


def test_pieces_are_joined_again_when_the_worker_that_did_it_is_lost(tmp_path: Path) -> None:
    shelf = Shelf({"loops": {f"{number}": loop(number) for number in range(4)}})
    pieces = divide(batch_of(shelf), {0: 2})
    for piece in pieces:
        write_piece(piece_file(tmp_path, piece), piece, ingest_piece(piece, shelf, recipe(), KEYER))
    first, second = (join_task(recipe(), pieces, tmp_path, tmp_path / "parts") for _ in range(2))
    assert isinstance(first, Ingested)
    assert isinstance(second, Ingested)
    assert first.account.series == second.account.series
    assert len(list((tmp_path / "parts").iterdir())) == 3


def test_what_a_file_of_a_piece_says(tmp_path: Path) -> None:
    shelf = Shelf({"loops": series(), "slices": {"1": loop(1), "2": as_bytes(image(gradient(), Modality="MR"))}})
    first, second, _ = divide(batch_of(shelf), {0: 2})
    _, _, mixed, *_ = divide(batch_of(shelf), {0: 2, 1: 2})
    lost, whole = (ingest_piece(piece, shelf, recipe(), KEYER) for piece in (first, second))
    apart = ingest_piece(divide(batch_of(shelf), {1: 2})[1], shelf, recipe(), KEYER)
    unlisted = ingest_piece(first, Shelf({"loops": {}}), recipe(), KEYER)
    assert (lost.lacking, whole.lacking, apart.lacking, unlisted.lacking) == (True, False, False, True)
    assert (lost.unreached, whole.unreached, apart.unreached, unlisted.unreached) == (False, False, False, True)
    for piece, result, state in (
        (first, lost, "lacking"), (second, whole, "done"), (first, apart, "indivisible"), (first, unlisted, "lacking"),
    ):  # fmt: skip
        write_piece(tmp_path / "piece", piece, result)
        assert state_of(tmp_path / "piece", piece) == state
        assert state_of(tmp_path / "piece", mixed) == "lacking", "of other spans"


def test_which_series_are_worth_it() -> None:
    shelf = Shelf(
        {"small": {"1": loop(1), "2": loop(2)}, "one": {"1": loop(1, 9)}, "large": {f"{n}": loop(n) for n in range(9)}}
    )
    batch, size = batch_of(shelf), len(loop(0))
    assert long_series(batch, recipe(), 2 * size) == [2]
    assert long_series(batch, recipe(), 64 << 20) == []
    assert long_series(batch, recipe(stride=2), 2 * size) == []
    assert long_series(batch, recipe(max_slices=2), 2 * size) == []
    for modality, policy, expected in (
        ("CT", "public", []), ("CT", "private", [2]), ("MR", "private", []), (None, "private", []), ("XA", "public", [2]),
    ):  # fmt: skip
        deid = DeidSettings(policy=policy)  # type: ignore[arg-type]
        assert long_series(batch_of(shelf, modality), recipe().model_copy(update={"deid": deid}), 2 * size) == expected
    unknown = replace(batch.series[2], objects=None)
    assert long_series(replace(batch, series=(unknown,)), recipe(), 2 * size) == []


@given(st.lists(st.integers(0, 10**10), min_size=1, max_size=40), st.integers(1, 12))
def test_every_object_is_in_one_part(sizes: list[int], parts: int) -> None:
    refs = [ObjectRef(f"{number}", size) for number, size in enumerate(sizes)]
    assert [ref for part in range(parts) for ref in part_of(refs, part, parts)] == refs
    assert 1 <= parts_of(refs, 64 << 20) <= len(refs)
    largest = max(sum(ref.size_bytes for ref in part_of(refs, part, parts)) for part in range(parts))
    assert largest <= sum(sizes) / parts + max(sizes)
