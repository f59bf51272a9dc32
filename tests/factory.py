"""A small, valid data set of synthetic images, for tests that need one and do not care how it was made."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from lumid.catalog.codecs import Codec, Pixels, encode, pixel_hash
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import Counts, Layout, Manifest, Shard, write_table, write_text
from lumid.catalog.schema import CATALOG, FORMAT_VERSION, REASONS, REJECTS, CatalogRow, RejectRow, to_table
from lumid.catalog.shards import END_OF_TAR, image_offset, sample_members

KEYER = Keyer(PUBLIC_SECRET)
SLICES_PER_SERIES = 4
BODY_PARTS = {"CT": ("CHEST", "ABDOMEN"), "MR": ("HEAD", "PROSTATE"), "US": ("BREAST", None)}
COLLECTIONS = {
    "CT": ("lung_trial", "CC BY 4.0", "10.7937/K9/TCIA.2015.AAAA"),
    "MR": ("prostate_trial", "CC BY-NC 4.0", "10.7937/K9/TCIA.2017.BBBB"),
}
REJECT_CODES = ("localizer", "blank", "localizer", "not_an_image")


def make_image(rng: np.random.Generator, modality: str, side: int = 48) -> Pixels:
    """A disc with noise: ``uint16 [side, side]`` for CT (HU + 1024) and others, ``uint8 [side, side, 3]`` for US."""
    y, x = np.mgrid[:side, : side + 16]
    disc = np.hypot(y - side / 2, x - side / 2 - 8) < side * rng.uniform(0.25, 0.45)
    noise = rng.normal(0, 1, disc.shape)
    if modality == "US":
        grey = np.clip(disc * 120 + 40 * noise + 20, 0, 255).astype(np.uint8)
        return np.stack([grey, grey // 2 + 20, grey], axis=2)
    if modality == "CT":
        return np.clip(np.where(disc, 1024 + 40 + 30 * noise, 24 + 20 * noise), 0, 4095).astype(np.uint16)
    return np.clip(disc * 40_000 + 4_000 * noise + 5_000, 0, 65_535).astype(np.uint16)


def make_sample(modality: str, number: int, pixels: Pixels, codec: Codec = "png") -> tuple[CatalogRow, bytes]:
    """The row (shard and offset not yet known) and the encoded image of the ``number``-th slice of a modality."""
    patient, series = number // (2 * SLICES_PER_SERIES), number // SLICES_PER_SERIES
    instance = f"1.2.3.{modality}.{number}"
    collection, terms, doi = COLLECTIONS.get(modality, ("clinic", None, None))
    colour = pixels.ndim == 3
    unit, slope, intercept = {"CT": ("HU", 1.0, -1024.0), "US": ("display", 1 / 255, 0.0)}.get(
        modality, ("a.u.", 0.01, 0.0)
    )
    values = slope * np.asarray(pixels, np.float64) + intercept
    p01, p50, p99 = (float(value) for value in np.percentile(values, (1, 50, 99)))
    image = encode(pixels, codec)
    row = CatalogRow(
        key=KEYER.key(instance, 0), length=len(image), codec=codec,
        sha256=hashlib.sha256(image).hexdigest(), pixel_hash=pixel_hash(pixels),
        width=pixels.shape[1], height=pixels.shape[0], bits=8 * pixels.dtype.itemsize, channels=3 if colour else 1,
        modality=modality, body_part=BODY_PARTS.get(modality, (None, None))[series % 2], laterality=None, view_position=None,
        plane=None if colour else "axial", image_type="ORIGINAL\\PRIMARY", contrast=None if colour else series % 2 == 0,
        collection=collection, source="folder", license=terms, doi=doi, source_version=None,
        source_id=KEYER.pseudonym("source", instance), patient=KEYER.pseudonym("patient", modality, str(patient)),
        study=KEYER.pseudonym("study", modality, str(patient)), series=KEYER.pseudonym("series", modality, str(series)),
        instance=KEYER.pseudonym("instance", instance), frame=0,
        slice_position=None if colour else 2.5 * (number % SLICES_PER_SERIES), slice_count=SLICES_PER_SERIES,
        orig_rows=pixels.shape[0], orig_columns=pixels.shape[1],
        pixel_spacing_row=None if colour else 0.7 + 0.1 * (series % 3),
        pixel_spacing_column=None if colour else 0.7 + 0.1 * (series % 3),
        slice_thickness=None if colour else (1.25, 2.5, 5.0)[series % 3], transfer_syntax="1.2.840.10008.1.2.1",
        photometric="RGB" if colour else "MONOCHROME2", manufacturer="Siemens", model_name=None,
        kvp=120.0 if modality == "CT" else None, exposure=None, kernel=None,
        field_strength=1.5 if modality == "MR" else None, sequence="SE" if modality == "MR" else None,
        sex=("F", "M")[patient % 2], age_years=40 + 7 * (patient % 8), intensity_unit=unit, store_slope=slope,
        store_intercept=intercept, p01=p01, p50=p50, p99=p99, foreground_fraction=0.4, sharpness=0.1 + 0.01 * number,
        noise=5.0, clipped_fraction=0.001,
        burned_in_text="none", split=("train", "train", "val")[patient % 3], deid_policy="public-1",
    )  # fmt: skip
    return row, image


def make_rejects() -> list[RejectRow]:
    """A few rejects, the last of them a whole object of three frames."""
    return [
        RejectRow(
            collection="lung_trial",
            source="folder",
            source_id=KEYER.pseudonym("source", f"reject {number}"),
            series=None,
            frame=None if code == "not_an_image" else 0,
            frames=3 if code == "not_an_image" else 1,
            modality="CT",
            stage="select",
            code=code,
            message=REASONS[code],
        )
        for number, code in enumerate(REJECT_CODES)
    ]


def make_dataset(
    root: Path,
    n: int = 40,
    seed: int = 0,
    modalities: tuple[str, ...] = ("CT", "MR", "US"),
    shards: int = 2,
    codec: Codec = "png",
) -> Manifest:
    """Write a finished data set of ``n`` samples, cycling through ``modalities``, under ``root``; its manifest."""
    rng = np.random.default_rng(seed)
    samples = []
    for number in range(n):
        modality = modalities[number % len(modalities)]
        samples.append(make_sample(modality, number // len(modalities), make_image(rng, modality), codec))
    return write_dataset(root, samples, shards)


def write_dataset(root: Path, samples: list[tuple[CatalogRow, bytes]], shards: int = 2) -> Manifest:
    """Write a finished data set of these samples (rows whose shard and offset are not yet known, encoded images)."""
    samples = sorted(samples, key=lambda sample: sample[0].key)
    n = len(samples)
    layout = Layout(root)
    layout.shards.mkdir(parents=True, exist_ok=True)
    rows: list[CatalogRow] = []
    written: list[Shard] = []
    for number, group in enumerate(np.array_split(np.arange(n), shards)):
        if len(group) == 0:
            continue
        name = f"lumid-{number:06d}.tar"
        tar = io.BytesIO()
        for row, image in (samples[index] for index in group):
            rows.append(replace(row, shard=name, offset=image_offset(tar.tell())))
            tar.write(sample_members(rows[-1], image))
        tar.write(END_OF_TAR)
        (layout.shards / name).write_bytes(tar.getvalue())
        digest = hashlib.sha256(tar.getvalue()).hexdigest()
        keys = [row.key for row in rows[-len(group) :]]
        written.append(Shard(name, len(group), len(tar.getvalue()), digest, keys[0], keys[-1]))

    counts: dict[str, int] = {}
    for modality, group_rows in groupby(
        sorted(rows, key=lambda row: (row.modality, row.key)), lambda row: row.modality
    ):
        table = to_table(list(group_rows), CATALOG)
        counts[modality] = table.num_rows
        write_table(layout.catalog / f"modality={modality}" / "part-00000.parquet", table.drop_columns(["modality"]))
    rejects = make_rejects()
    write_table(layout.rejects / "part-00000.parquet", to_table(rejects, REJECTS))
    rejected = sum(reject.frames for reject in rejects)
    by_code = {code: sum(one.frames for one in rejects if one.code == code) for code in sorted(set(REJECT_CODES))}
    manifest = Manifest(
        name="synthetic",
        format_version=FORMAT_VERSION,
        lumid_version="0.1.0",
        recipe={"name": "synthetic", "description": "discs and noise", "pixels": {"profile": "lumid", "size": 64}},
        recipe_hash=hashlib.sha256(b"recipe").hexdigest(),
        lock_hash=hashlib.sha256(b"lock").hexdigest(),
        catalog_hash=hashlib.sha256(repr(rows).encode()).hexdigest(),
        libraries={"lumid": "0.1.0", "pydicom": "3.0.2"},
        counts=Counts(objects=n + len(rejects), planned=n + rejected, kept=n, rejected=rejected),
        modalities=counts,
        rejects=by_code,
        shards=tuple(written),
        build={"seconds": 2.5, "workers": 2, "slices_per_second": 17.6},
    )
    write_text(layout.manifest, manifest.to_json())
    return manifest
