"""One object: opened, and each of its frames through decode, select, de-identify, normalise, measure and encode.

Each stage is a pure function from a value to a value or a :class:`~lumid.pipeline.reject.Reject`; this module calls
them in order and reads as the diagram in the design does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom import Dataset, FileDataset

from lumid.catalog.keys import Keyer
from lumid.catalog.schema import LABELS, CatalogRow
from lumid.pipeline.allowlist import checked
from lumid.pipeline.burned_in import Risk, clear_text
from lumid.pipeline.convert import Kind, sniff, to_dataset
from lumid.pipeline.decode import ImageSize, Limits, Stored, decode_frames, image_size, parse, pixel_element
from lumid.pipeline.deidentify import Acquisition, Identity, acquisition, identify, policy_name, text_risk, with_a_face
from lumid.pipeline.encode import Encoded, encode_image, resize
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import Geometry, geometry
from lumid.pipeline.normalize import normalize
from lumid.pipeline.normalize.ct import MAX_HU
from lumid.pipeline.normalize.intensity import Histogram, Intensities, Range, frame_histogram
from lumid.pipeline.quality import Quality, clipped_fraction, measure, perceptual_hash
from lumid.pipeline.recipe import Recipe, SplitSettings
from lumid.pipeline.reject import Reject, internal_error
from lumid.pipeline.select import background, is_image, select_frame, select_object, select_size, select_values
from lumid.pipeline.series_select import Place
from lumid.pipeline.sources import Blob, ObjectRef, Provenance, Series

SNIFF_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Opened:
    """A DICOM object that holds an image the recipe takes."""

    ref: ObjectRef
    header: FrameHeader = field(repr=False)
    size: ImageSize
    identity: Identity = field(repr=False)
    acquired: Acquisition
    text_risk: Risk
    labels: tuple[str, ...] | None
    split: str | None

    @property
    def dataset(self) -> Dataset:
        """The object's data set."""
        return self.header.dataset

    @property
    def stored_bytes(self) -> int:
        """Size of the pixel data as it is held in memory."""
        element = pixel_element(self.dataset)
        return len(self.dataset[element].value) if element else 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A finished sample: its catalog row, its encoded image, its place in the series, its perceptual hash, and the columns
    for which its header states what no vocabulary knows.
    """

    row: CatalogRow
    image: bytes = field(repr=False)
    place: Place
    look: int
    unknown: tuple[str, ...] = ()


def places_of(opened: Opened, keyer: Keyer) -> dict[tuple[str, int], Place]:
    """Where the frames of an object stand in their series, by instance and frame."""
    uid = opened.identity.instance_uid
    return {(uid, frame): _place(opened, frame, keyer.key(uid, frame)) for frame in range(opened.size.frames)}


def _place(opened: Opened, frame: int, key: str) -> Place:
    header = opened.header.at(frame)
    placed = geometry(header, opened.acquired.modality, opened.size.sheet).placed
    return Place(placed, header.number("InstanceNumber"), frame, key)


def _parsed(blob: Blob, data: bytes, kind: Kind | None, modality: str | None, limits: Limits) -> FileDataset | Reject:
    """The DICOM object, or the one that stands for an image in another format: from here on there is one path."""
    if kind in (None, "dicom"):
        return parse(data)
    return to_dataset(data, kind, modality=modality, name=blob.ref.location, limits=limits)


def open_object(blob: Blob, provenance: Provenance, recipe: Recipe, keyer: Keyer) -> Opened | Reject:
    """Parse an object, and decide from its header alone whether the recipe takes it. Never raises."""
    try:
        return _open(blob, provenance, recipe, keyer)
    except Exception as error:
        return internal_error("read", error)


def _open(blob: Blob, provenance: Provenance, recipe: Recipe, keyer: Keyer) -> Opened | Reject:
    if isinstance(blob.data, Reject):
        return blob.data
    limits = Limits(recipe.select.max_pixels, recipe.select.max_frames)
    kind = sniff(blob.data[:SNIFF_BYTES])
    dataset = _parsed(blob, blob.data, kind, provenance.modality, limits)
    if isinstance(dataset, Reject):
        return dataset
    header = FrameHeader(dataset, 0)
    if refused := is_image(header):
        return refused
    size = image_size(dataset, limits)
    if isinstance(size, Reject):
        return size
    modality = select_object(header, recipe.select, stated=kind in (None, "dicom"))
    if isinstance(modality, Reject):
        return modality
    if refused := select_size(size, recipe.select):
        return refused
    acquired = acquisition(header, modality)
    if refused := with_a_face(acquired, recipe.deid.exclude_head_slices):
        return refused
    marked = provenance.collection in recipe.deid.search
    risk = text_risk(header, acquired, recipe.deid.policy, marked=marked)
    identity = identify(
        header,
        keyer,
        collection=provenance.collection,
        policy=recipe.deid.policy,
        source_id=blob.ref.source_id,
    )
    return Opened(blob.ref, header, size, identity, acquired, risk, blob.labels, blob.split)


def object_histograms(opened: Opened) -> list[Histogram] | Reject:
    """What each frame adds to the series' range; the first frame's reason when none can be decoded."""
    found: list[Histogram] = []
    refused: list[Reject] = []
    try:
        for frame, stored in enumerate(decode_frames(opened.dataset, opened.size)):
            if isinstance(stored, Reject):
                refused.append(stored)
            else:
                found.append(frame_histogram(stored, opened.header.at(frame)))
    except Exception as error:
        return internal_error("normalize", error)
    return found or refused[0]


def frame_outcomes(
    opened: Opened, span: Range | None, wanted: Sequence[int], series: Series, recipe: Recipe, keyer: Keyer
) -> Iterator[Sample | Reject]:
    """What becomes of each of the frames that are wanted, in that order; no other is decoded."""
    for frame, stored in zip(wanted, decode_frames(opened.dataset, opened.size, wanted), strict=True):
        if isinstance(stored, Reject):
            yield stored
            continue
        try:
            yield _frame_sample(opened, frame, stored, span, series, recipe, keyer)
        except Exception as error:
            yield internal_error("normalize", error)


def _frame_sample(
    opened: Opened, frame: int, stored: Stored, span: Range | None, series: Series, recipe: Recipe, keyer: Keyer
) -> Sample | Reject:
    """One decoded frame through the rest of the stages."""
    header = opened.header.at(frame)
    intensities = normalize(stored, header, opened.acquired.modality, span, recipe.pixels.profile)
    if isinstance(intensities, Reject):
        return intensities
    cleared = clear_text(intensities, header, opened.text_risk, recipe.deid.text)
    if isinstance(cleared, Reject):
        return cleared
    intensities, burned_in_text = cleared
    resized = resize(intensities.pixels, recipe.pixels.size)
    quality = measure(resized, _stored(background(intensities.unit, span), intensities) or 0.0)
    slope, intercept = intensities.slope, intensities.intercept
    refused = select_values(
        intensities.unit, quality.p01 * slope + intercept, quality.p50 * slope + intercept, recipe.select
    ) or select_frame(quality, recipe.select)
    if refused:
        return refused
    encoded = encode_image(resized, recipe.pixels.codec)
    placed = geometry(header, opened.acquired.modality, opened.size.sheet)
    kept = replace(intensities, pixels=resized)
    clipped = clipped_fraction(intensities.pixels, _top(intensities, span))
    row = _row(opened, frame, kept, burned_in_text, quality, clipped, encoded, placed, series.provenance, recipe, keyer)
    at = Place(placed.placed, header.number("InstanceNumber"), frame, row.key)
    return Sample(row, encoded.data, at, perceptual_hash(resized), opened.acquired.unknown)


def _stored(value: float | None, intensities: Intensities) -> float | None:
    """The stored value of one in the image's unit."""
    return None if value is None else (value - intensities.intercept) / intensities.slope


def _top(intensities: Intensities, span: Range | None) -> float:
    """The stored value of the brightest intensity that an image's scale has a place for."""
    white = float(np.iinfo(intensities.pixels.dtype).max)
    brightest = MAX_HU if intensities.unit == "HU" else span.high if span is not None else None
    stored = _stored(brightest, intensities)
    return white if stored is None else min(white, float(round(stored)))


def _row(
    opened: Opened, frame: int, kept: Intensities, burned_in_text: str, quality: Quality, clipped: float,
    encoded: Encoded, placed: Geometry, provenance: Provenance, recipe: Recipe, keyer: Keyer,
) -> CatalogRow:  # fmt: skip
    identity, acquired = opened.identity, opened.acquired
    height, width = kept.pixels.shape[:2]
    scale_row, scale_column = opened.size.rows / height, opened.size.columns / width
    row = CatalogRow(
        key=keyer.key(identity.instance_uid, frame),
        length=len(encoded.data),
        codec=encoded.codec,
        sha256=encoded.sha256,
        pixel_hash=encoded.pixel_hash,
        width=width,
        height=height,
        bits=kept.pixels.dtype.itemsize * 8,
        channels=1 if kept.pixels.ndim == 2 else 3,
        modality=acquired.modality,
        body_part=acquired.body_part,
        laterality=acquired.laterality,
        view_position=acquired.view_position,
        plane=placed.plane,
        image_type=acquired.image_type,
        contrast=acquired.contrast,
        collection=provenance.collection,
        source=provenance.source,
        license=provenance.license,
        doi=provenance.doi,
        source_version=provenance.source_version,
        source_id=opened.ref.source_id,
        patient=identity.patient,
        study=identity.study,
        series=identity.series,
        instance=identity.instance,
        frame_of_reference=identity.frame_of_reference,
        frame=frame,
        slice_position=placed.slice_position,
        slice_count=0,
        orig_rows=opened.size.rows,
        orig_columns=opened.size.columns,
        pixel_spacing_row=_scaled(placed.spacing_row, scale_row),
        pixel_spacing_column=_scaled(placed.spacing_column, scale_column),
        spacing_kind=placed.spacing_kind,
        slice_thickness=placed.slice_thickness,
        transfer_syntax=str(opened.size.syntax),
        photometric=acquired.photometric,
        manufacturer=acquired.manufacturer,
        model_name=acquired.model_name,
        kvp=acquired.kvp,
        exposure=acquired.exposure,
        kernel=acquired.kernel,
        field_strength=acquired.field_strength,
        sequence=acquired.sequence,
        sex=acquired.sex,
        age_years=acquired.age_years,
        intensity_unit=kept.unit,
        store_slope=kept.slope,
        store_intercept=kept.intercept,
        p01=quality.p01 * kept.slope + kept.intercept,
        p50=quality.p50 * kept.slope + kept.intercept,
        p99=quality.p99 * kept.slope + kept.intercept,
        foreground_fraction=quality.foreground_fraction,
        sharpness=quality.sharpness,
        noise=quality.noise * abs(kept.slope),
        clipped_fraction=clipped,
        burned_in_text=burned_in_text,
        labels=None if opened.labels is None else tuple(one for one in LABELS if one in opened.labels) or None,
        split=opened.split or assign_split(identity.patient, recipe.splits, keyer),
        deid_policy=policy_name(recipe.deid.policy),
    )
    return checked(row)


def _scaled(spacing: float | None, scale: float) -> float | None:
    return None if spacing is None else round(spacing * scale, 6)


def assign_split(patient: str, splits: SplitSettings, keyer: Keyer) -> str:
    """The split of a patient, drawn by a keyed hash: the same on every machine, whoever else is in the data set."""
    draw = keyer.fraction("split", patient)
    if draw < splits.test:
        return "test"
    return "val" if draw < splits.test + splits.val else "train"
