"""What is left of several hundred planted identifiers, and of what is useful: lumid against tools that clean DICOM files.

pip install dicognito deid dicom-anonymizer     # those that are not there are left out
python benchmarks/deid.py

Every tool gets the same DICOM files of the tests' corpus, under names that say nothing, with its own defaults. lumid's
audit looks for what was planted in whatever each has written. Others keep DICOM, lumid writes shards and a catalog, so
only what is found there can be compared, and which of five useful values is left.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow.dataset as ds
import pydicom
from rich.console import Console

sys.path.pop(0)  # this folder: a tool has the name of this file
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lumid.catalog.audit import audit
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import Layout
from lumid.catalog.terms import Term, read_terms
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.deidentify import acquisition, modality_of
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import geometry
from lumid.pipeline.recipe_files import make_recipe
from tests.phi import make_corpus

USEFUL = ("modality", "body_part", "pixel_spacing_row", "kernel", "field_strength")
warnings.filterwarnings("ignore")
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE


def with_dicognito(source: Path, target: Path) -> None:
    from dicognito.anonymizer import Anonymizer

    dataset = pydicom.dcmread(source, force=True)
    Anonymizer().anonymize(dataset)
    dataset.save_as(target)


def with_dicom_anonymizer(source: Path, target: Path) -> None:
    from dicomanonymizer import anonymize_dataset

    dataset = pydicom.dcmread(source, force=True)
    anonymize_dataset(dataset, delete_private_tags=True)
    dataset.save_as(target)


def with_deid(source: Path, target: Path) -> None:
    from deid.dicom import replace_identifiers

    (cleaned,) = replace_identifiers([str(source)], save=False, remove_private=True)
    cleaned.save_as(target)


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "copied": lambda source, target: pydicom.dcmread(source, force=True).save_as(target),
    "dicognito": with_dicognito,
    "dicom-anonymizer": with_dicom_anonymizer,
    "deid": with_deid,
}


def useful_of(path: Path) -> dict[str, object]:
    """The five values as a reader of DICOM finds them, with lumid's own rules for all."""
    dataset = pydicom.dcmread(path, force=True)
    header = FrameHeader(dataset, 0)
    modality = modality_of(header)
    if modality is None:
        return {}
    acquired, placed = acquisition(header, modality), geometry(header, modality)
    values = {name: getattr(acquired, name, None) for name in USEFUL} | {"pixel_spacing_row": placed.spacing_row}
    return {name: value for name, value in values.items() if value is not None}


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        corpus = make_corpus(root / "planted")
        terms = read_terms(corpus.write_terms(root / "terms.txt"))
        inputs = root / "inputs"
        inputs.mkdir()
        for number, path in enumerate(sorted(corpus.folder.rglob("*.dcm"))):
            if path.stat().st_size:
                (inputs / f"{number:03}.dcm").write_bytes(path.read_bytes())
        there = audit(inputs, terms)
        planted = {one.line for one in there.findings}
        print(f"{len(list(inputs.iterdir()))} files, {len(planted)} identifiers planted in them\n")
        print("| tool | files written | refused | identifiers left | files with any | useful values kept |")
        print("|---|--:|--:|--:|--:|--:|")
        for name, clean in TOOLS.items():
            row(name, clean, inputs, root / name, terms)
        row_of_lumid(inputs, root / "lumid", terms)


def row(name: str, clean: Callable[[Path, Path], None], inputs: Path, out: Path, terms: list[Term]) -> None:
    out.mkdir()
    refused = kept = stated = 0
    version = ""
    try:
        version = "" if name == "copied" else " " + importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        print(f"| {name} | not installed | | | | |")
        return
    for path in sorted(inputs.iterdir()):
        try:
            clean(path, out / path.name)
            before, after = useful_of(path), useful_of(out / path.name)
        except Exception:
            refused += 1
            (out / path.name).unlink(missing_ok=True)
            continue
        stated += len(before)
        kept += sum(after.get(column) == value for column, value in before.items())
    found = audit(out, terms)
    left, files = {one.line for one in found.findings}, {one.file for one in found.findings}
    written = len(list(out.iterdir()))
    print(f"| {name}{version} | {written} | {refused} | {len(left)} | {len(files)} | {kept} of {stated} |")


def row_of_lumid(inputs: Path, out: Path, terms: list[Term]) -> None:
    """lumid's data set of the same files: an image is written, or rejected with a reason."""
    recipe = make_recipe(inputs, collection="corpus")
    recipe = recipe.model_copy(update={"select": recipe.select.model_copy(update={"min_side": 8})})
    manifest = build(recipe, out, ClusterSettings(None, 2), BuildProgress(Console(quiet=True))).manifest
    found = audit(out, terms)
    rows = ds.dataset(Layout(out).catalog, partitioning="hive").to_table().to_pylist()
    kept = stated = 0
    by_size = {}
    for path in sorted(inputs.iterdir()):
        try:
            by_size[path] = useful_of(path)
        except Exception:
            continue
    keyer = Keyer(PUBLIC_SECRET)
    of_instance = {row["source_id"]: row for row in rows}
    for path, before in by_size.items():
        made = of_instance.get(keyer.pseudonym("object", "corpus", path.name))
        if made is not None:
            before.pop("pixel_spacing_row", None) if made["pixel_spacing_row"] is not None else None
            stated += len(before) + (made["pixel_spacing_row"] is not None)
            kept += sum(made[column] == value for column, value in before.items()) + (
                made["pixel_spacing_row"] is not None
            )
    files = {one.file for one in found.findings}
    left = {one.line for one in found.findings}
    print(
        f"| lumid | {len(of_instance)} | {sum(manifest.rejects.values())} | {len(left)} | {len(files)} | {kept} of {stated} |"
    )


if __name__ == "__main__":
    main()
