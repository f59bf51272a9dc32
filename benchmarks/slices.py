"""Slices a second and core, from a DICOM file to a shard: against other ways, by stage, and against what cannot be saved.

Real images are written again and again under fresh UIDs, each turned a little round so that no two are equal, as
uncompressed files of a series: CT and MR at 512 × 512 (others are resampled), CR as large as it is. Where there is no
real one that is large enough, a synthetic one takes its place, and the table says so.

Processor seconds are counted, of all threads and of children, so that other work on the machine counts less; every way
takes its turn on every series.

    python benchmarks/slices.py                         # images inside pydicom
    python benchmarks/slices.py --source ~/dicom        # any folder of DICOM
    python benchmarks/slices.py --memory                # peaks of workers on series of 2,000 slices
"""

from __future__ import annotations

import argparse
import io
import itertools
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import SimpleITK
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRLittleEndian

from lumid.catalog.codecs import encode
from lumid.catalog.keys import Keyer
from lumid.pipeline import (
    decode,
    deidentify,
    geometry,
    ingest,
    normalize,
    parse,
    parts,
    quality,
    scan,
    select,
    series_select,
)
from lumid.pipeline import (
    encode as encoding,
)
from lumid.pipeline import (
    recipe as recipes,
)
from lumid.pipeline.batches import Batch, make_batches
from lumid.pipeline.decode import Limits, decode_frames, image_size, quiet_libraries
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize import intensity, uses_series_range
from lumid.pipeline.normalize import normalize as normalized
from lumid.pipeline.recipe import Recipe
from lumid.pipeline.recipe_files import make_recipe
from lumid.pipeline.sources import Blob, Member, ObjectRef, Provenance, Series
from lumid.pipeline.sources.folder import FolderSource, pydicom_files

KINDS = ("CT", "MR", "CR")
SIDE = {"CT": 512, "MR": 512, "CR": None}
SMALLEST = {"CT": 512, "MR": 250, "CR": 1000}
CHOSEN = 8
"""So many different images of a kind at most."""
ROOT = "1.2.826.0.1.3680043.8.498."

STAGES: dict[str, tuple[tuple[Any, str], ...]] = {
    "read": ((FolderSource, "read"),),
    "parse": ((parse, "parse"),),
    "header": (
        (select, "is_image"), (decode, "image_size"), (select, "select_object"), (select, "select_size"), (deidentify, "acquisition"),
        (deidentify, "text_risk"), (deidentify, "identify"), (normalize, "uses_series_range"),
    ),
    "decode": ((decode, "decode_frames"),),
    "range of the series": ((intensity, "frame_histogram"), (intensity, "robust_range")),
    "normalise": ((normalize, "normalize"),),
    "resize": ((encoding, "resize"),),
    "quality": (
        (quality, "measure"), (quality, "clipped_fraction"), (quality, "perceptual_hash"), (series_select, "near_duplicates"),
    ),
    "encode, hashes": ((encoding, "encode_image"),),
    "geometry": ((geometry, "geometry"), (geometry, "arrange")),
    "write": ((parts, "write_part"),),
}  # fmt: skip
"""What counts to which stage, by the module that defines it; what is left of the whole is rows and accounts."""


def seconds() -> float:
    """Of the processor, of this process and of the children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


@dataclass(frozen=True, slots=True)
class Template:
    """An image that replicas are made of, and whether it is a real one."""

    dataset: pydicom.Dataset = field(repr=False)
    pixels: np.ndarray[Any, Any] = field(repr=False)
    real: bool

    def replica(self, series: int, place: int) -> bytes:
        """A file of its own: slice ``place`` of a series, its pixels turned round by some rows and columns."""
        data = self.dataset
        data.SOPInstanceUID = data.file_meta.MediaStorageSOPInstanceUID = f"{ROOT}1.{series}.{place}"
        data.SeriesInstanceUID = f"{ROOT}2.{series}"
        data.InstanceNumber = place + 1
        if data.Modality in ("CT", "MR"):
            data.ImagePositionPatient = [-250.0, -250.0, float(place)]
        data.PixelData = np.roll(self.pixels, (3 * place + 1, 5 * place + 2 * series), (0, 1)).tobytes()
        buffer = io.BytesIO()
        data.save_as(buffer, enforce_file_format=True)
        return buffer.getvalue()


def template(dataset: pydicom.Dataset, side: int | None, real: bool) -> Template:
    """The image uncompressed, resampled to ``side`` × ``side``, with its own header otherwise."""
    pixels = dataset.pixel_array
    if side is not None and pixels.shape != (side, side):
        way = cv2.INTER_AREA if min(pixels.shape) > side else cv2.INTER_LINEAR
        pixels = cv2.resize(np.ascontiguousarray(pixels), (side, side), interpolation=way)
        dataset.Rows = dataset.Columns = side
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset["PixelData"].is_undefined_length = False
    dataset["PixelData"].VR = "OW"
    return Template(dataset, pixels, real)


def synthetic(kind: str) -> pydicom.Dataset:
    """A smooth body with noise in the header of pydicom's CT_small."""
    side = SIDE[kind] or 2048
    rng, (row, column) = np.random.default_rng(0), np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    body = np.where(row**2 + column**2 < 0.7, 1000 + 150 * np.cos(6 * row) * np.sin(5 * column), 0)
    data = pydicom.dcmread(pydicom_files() / "CT_small.dcm")
    data.Modality, data.Rows, data.Columns = kind, side, side
    if kind == "CR":
        data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
        data.WindowCenter, data.WindowWidth = 1000, 1500
        data.RescaleIntercept = 0
    data.PixelData = np.clip(body + rng.normal(0, 20, body.shape), 0, 4095).astype(np.int16).tobytes()
    return data


def templates(kind: str, folder: Path) -> list[Template]:
    """Images of a kind in a folder that are large enough and that lumid takes; a synthetic one when there is none."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            data = pydicom.dcmread(path)
            one = data.get("NumberOfFrames", 1) in (None, 1) and data.get("SamplesPerPixel") == 1
            large = min(data.Rows, data.Columns) >= SMALLEST[kind]
            if data.Modality == kind and one and large and data.BitsAllocated == 16:
                candidate = template(data, SIDE[kind], True)
                result, _ = run_lumid(Given([candidate.replica(0, place) for place in (0, 1)]).batch(kind))
                if len(result.samples) == 2:
                    found.append(candidate)
        except Exception:  # whatever is in a folder that is not an image which pydicom reads
            continue
    if not found:
        return [template(synthetic(kind), None, False)]
    return found if len(found) <= CHOSEN else [found[n * len(found) // CHOSEN] for n in range(CHOSEN)]


@dataclass(frozen=True, slots=True)
class Given:
    """A source of objects that are in memory, or that are made when they are asked for."""

    objects: Sequence[bytes | Callable[[], bytes]] = field(repr=False)

    def batch(self, kind: str) -> tuple[Batch, Given]:
        members = tuple(Member(ObjectRef(f"{number:05}", 0)) for number in range(len(self.objects)))
        series = Series(kind, Provenance("bench", "folder", None, None, None), len(members), 0, members)
        return Batch("0" * 24, 0, (series,)), self

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        for member, made in zip(series.members, self.objects, strict=True):
            if only is None or member.ref.source_id in only:
                yield Blob(member.ref, made if isinstance(made, bytes) else made())

    def prefetch(self, series: Sequence[Series]) -> None:
        pass

    def close(self) -> None:
        pass


def run_lumid(work: tuple[Batch, Any], recipe: Recipe | None = None) -> tuple[ingest.BatchResult, Path]:
    """A batch as a worker does it: ingested, and its part written."""
    batch, source = work
    recipe = recipe or make_recipe(".", collection="bench")
    keyer = recipes.make_keyer(recipe.deid)
    with tempfile.TemporaryDirectory() as folder:
        result = ingest.ingest(batch, source, recipe, keyer)
        parts.write_part(parts.PartFiles(Path(folder), batch.id), result, 0.0)
    return result, Path(folder)


def lumid(work: tuple[Batch, Any]) -> None:
    """What :func:`run_lumid` does, and nothing is left out."""
    result, _ = run_lumid(work)
    assert len(result.samples) == result.planned, {reject.code for reject in result.rejects}


def shrunk(shown: np.ndarray[Any, Any]) -> Image.Image:
    """8 bits between the smallest and the largest value, long side 256."""
    values = shown.astype(np.float64)
    low, high = values.min(), values.max()
    image = Image.fromarray(((values - low) / max(high - low, 1e-9) * 255).astype(np.uint8))
    scale = 256 / max(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)))


def naive(folder: Path, out: Path) -> None:
    """The loop that everybody writes first."""
    before = pydicom.config.settings.reading_validation_mode
    pydicom.config.settings.reading_validation_mode = pydicom.config.WARN  # as pydicom has it
    for path in sorted(folder.iterdir()):
        data = pydicom.dcmread(path)
        shrunk(apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)).save(out / f"{path.name}.png")
    pydicom.config.settings.reading_validation_mode = before


def simple_itk(folder: Path, out: Path) -> None:
    """The same, read by SimpleITK, which rescales but does not window."""
    for path in sorted(folder.iterdir()):
        pixels = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
        shrunk(pixels[0] if pixels.ndim == 3 else pixels).save(out / f"{path.name}.png")


def dcm2niix(folder: Path, out: Path) -> None:
    """Folder → NIfTI, uncompressed, at full size: no image is resized or encoded."""
    subprocess.run(["dcm2niix", "-z", "n", "-o", str(out), str(folder)], check=False, stdout=subprocess.DEVNULL)
    assert any(out.glob("*.nii")), "dcm2niix has written nothing"


def unavoidable(folder: Path) -> dict[str, float]:
    """Processor seconds of each part alone on a series, one after another: nothing else is done between."""
    spent: dict[str, float] = {}

    def timed(name: str, function: Callable[[Any], Any], inputs: Sequence[Any]) -> list[Any]:
        begin = seconds()
        outputs = [function(value) for value in inputs]
        spent[name] = seconds() - begin
        return outputs

    blobs = timed("read", lambda path: path.read_bytes(), sorted(folder.iterdir()))
    datasets = timed("parse", parse.parse, blobs)
    stored = timed("decode", lambda data: next(decode_frames(data, image_size(data, Limits()))), datasets)
    headers = [FrameHeader(data, 0) for data in datasets]
    modality = headers[0].term("Modality")
    span = None
    if uses_series_range(headers[0], modality):
        span = intensity.robust_range([intensity.frame_histogram(*pair) for pair in zip(stored, headers, strict=True)])
    images = [
        normalized(pixels, header, modality, span, "lumid") for pixels, header in zip(stored, headers, strict=True)
    ]
    small = timed("resize", lambda image: encoding.resize(image.pixels, 256), images)
    timed("encode", lambda pixels: encode(pixels, "jhc"), small)
    return spent


@dataclass(slots=True)
class Clock:
    """Seconds by stage; what a stage calls of another stage counts to that one alone."""

    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    stack: list[str] = field(default_factory=list)
    since: float = 0.0

    def turn(self) -> None:
        now = time.process_time()
        if self.stack:
            self.spent[self.stack[-1]] += now - self.since
        self.since = now

    def call(self, stage: str, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        self.turn()
        self.stack.append(stage)
        try:
            return function(*given, **named)
        finally:
            self.turn()
            self.stack.pop()

    def wrapped(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if function.__name__ != "decode_frames":
            return wraps(function)(partial(self.call, stage, function))

        def frames(*given: Any) -> Iterator[Any]:
            found = function(*given)
            while (frame := self.call(stage, next, found, None)) is not None:
                yield frame

        return frames


def by_stage(work: tuple[Batch, Any]) -> dict[str, float]:
    """Processor seconds of each stage of one batch. Stages are replaced wherever lumid's modules have imported them."""
    clock, undo = Clock(), []
    for stage, functions in STAGES.items():
        for home, name in functions:
            original = getattr(home, name)
            timed = clock.wrapped(stage, original)
            if isinstance(home, type):
                timed = (lambda call: lambda *given, **named: call(*given, **named))(timed)  # binds as a method does
            places = [home] if isinstance(home, type) else [m for n, m in sys.modules.items() if n.startswith("lumid.")]
            for place in places:
                for alias, value in list(vars(place).items()):
                    if value is original:
                        undo.append((place, alias, original))
                        setattr(place, alias, timed)
    try:
        clock.call("rows, accounts", run_with_parts, work)
    finally:
        for place, alias, original in undo:
            setattr(place, alias, original)
    return dict(clock.spent)


def run_with_parts(work: tuple[Batch, Any]) -> None:
    run_lumid(work)


def listed(folder: Path) -> tuple[Batch, FolderSource]:
    """A folder as a build sees it once it has been planned."""
    recipe = make_recipe(folder, collection="bench")
    keyer: Keyer = recipes.make_keyer(recipe.deid)
    source = FolderSource(folder, Provenance("bench", "folder", None, None, None), keyer)
    series = scan.group_series(scan.scan(source, source.objects(), keyer, "public"), source.provenance)
    (batch,) = make_batches(series, 0, "", 100_000)
    return batch, source


def measure(kind: str, found: Sequence[Template], slices: int, rounds: int) -> None:
    """One table of ways and one of stages, of series of ``slices`` slices."""
    others: dict[str, Callable[[Path, Path], None]] = {
        "pydicom, apply_voi_lut, PIL, PNG": naive,
        "SimpleITK, PIL, PNG": simple_itk,
    } | ({"dcm2niix, no PNG": dcm2niix} if shutil.which("dcm2niix") else {})
    costs: defaultdict[str, list[float]] = defaultdict(list)
    stages: defaultdict[str, list[float]] = defaultdict(list)
    alone: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "series"
            folder.mkdir()
            for place, made in zip(range(slices), itertools.cycle(found)):
                (folder / f"{place:05}.dcm").write_bytes(made.replica(number, place))
            work = listed(folder)
            begin = seconds()
            lumid(work)
            costs["lumid"].append((seconds() - begin) / slices * 1e3)
            for name, way in others.items():
                with tempfile.TemporaryDirectory() as out:
                    begin = seconds()
                    way(folder, Path(out))
                    costs[name].append((seconds() - begin) / slices * 1e3)
            for collected, spent in ((stages, by_stage(work)), (alone, unavoidable(folder))):
                for name, value in spent.items():
                    collected[name].append(value / slices * 1e3)
    show(kind, found, costs, stages, alone)


def show(kind: str, found: Sequence[Template], *measured: defaultdict[str, list[float]]) -> None:
    costs, stages, alone = ({name: statistics.median(values) for name, values in one.items()} for one in measured)
    shapes = ", ".join(sorted({f"{made.pixels.shape[0]} × {made.pixels.shape[1]}" for made in found}))
    print(f"\n{kind}, {shapes}, {len(found)} different {'real' if found[0].real else 'synthetic'}\n")
    print("| | ms a slice | slices/s and core | × lumid's time |\n|---|---|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost:.2f} | {1000 / cost:.0f} | {cost / costs['lumid']:.2f} |")
    bare, whole = sum(alone.values()), costs["lumid"]
    print(f"| unavoidable parts, each alone | {bare:.2f} | {1000 / bare:.0f} | {bare / whole:.2f} |")
    print(f"\nlumid / unavoidable = {whole / bare:.2f}; pydicom loop / lumid = {list(costs.values())[1] / whole:.2f}")
    names = [*STAGES, "rows, accounts"]
    print("stages:", ", ".join(f"{name} {stages[name]:.3f}" for name in names if name in stages))
    print(f"their sum {sum(stages.values()):.2f} ms, the whole without clocks {whole:.2f} ms")
    print("alone:", ", ".join(f"{name} {cost:.3f}" for name, cost in alone.items()))


def peak_mb() -> float:
    """The most that this process has held. What ``getrusage`` says on Linux begins with what its parent held."""
    if sys.platform == "linux":
        line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def peak(kind: str, slices: int, folder: Path) -> None:
    """Peak of this process, which must be a fresh one, in MB: before, and with one series ingested and written."""
    found = templates(kind, folder)
    before = peak_mb()
    made = [partial(one.replica, 0, place) for place, one in zip(range(slices), itertools.cycle(found))]
    result, _ = run_lumid(Given(made).batch(kind))
    print(f"| {kind}, {slices:,} slices, {len(result.samples):,} kept | {before:.0f} | {peak_mb():.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="a folder of DICOM; the files inside pydicom without it")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--slices", type=int, default=120, help="slices of a series (default 120; of CR a sixth)")
    parser.add_argument("--rounds", type=int, default=5, help="series of each kind; medians are shown (default 5)")
    parser.add_argument("--memory", action="store_true", help="peak memory instead, a process for each kind")
    parser.add_argument("--peak", choices=KINDS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    quiet_libraries()
    cv2.setNumThreads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    folder = chosen.source or pydicom_files()
    if chosen.peak:
        peak(chosen.peak, 2000, folder)
        return
    if chosen.memory:
        print("| peak MB | before | with it |\n|---|---|---|", flush=True)
        for kind in (kind for kind in chosen.kinds if kind != "CR"):
            with tempfile.TemporaryDirectory() as few:  # looking through a large folder would count
                for number, made in enumerate(templates(kind, folder)):
                    (Path(few) / f"{number}.dcm").write_bytes(made.replica(number, 0))
                subprocess.run([sys.executable, __file__, "--peak", kind, "--source", few], check=True)
        return
    for kind in chosen.kinds:
        slices = max(1, chosen.slices // 6) if kind == "CR" else chosen.slices
        measure(kind, templates(kind, folder), slices, chosen.rounds)


if __name__ == "__main__":
    main()
