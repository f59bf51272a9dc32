"""One batch: fetch → decode → select → de-identify → normalise → encode, and an account of every frame.

Each stage is a pure function from a value to a value or a :class:`~lumid.pipeline.reject.Reject`; this module calls
them in order and reads as the diagram in the design does.
"""

from __future__ import annotations

import traceback
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from pydicom import FileDataset

from lumid.catalog.errors import AccountingError
from lumid.catalog.keys import Keyer
from lumid.catalog.schema import LABELS, MODALITIES, CatalogRow, RejectRow
from lumid.pipeline.batches import Batch
from lumid.pipeline.convert import Kind, sniff, to_dataset
from lumid.pipeline.decode import (
    FrameHeader,
    ImageSize,
    Limits,
    Stored,
    decode_frames,
    image_size,
    parse,
    pixel_element,
    transfer_syntax,
)
from lumid.pipeline.deidentify import Acquisition, Identity, acquisition, identify, policy_name, text_risk
from lumid.pipeline.encode import Encoded, encode_image, resize
from lumid.pipeline.geometry import Geometry, Placed, arrange, geometry
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.ct import MAX_HU
from lumid.pipeline.normalize.intensity import Histogram, Intensities, Range, frame_histogram, robust_range
from lumid.pipeline.quality import Quality, clipped_fraction, measure, perceptual_hash
from lumid.pipeline.recipe import Recipe, SelectSettings, SplitSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.select import background, is_image, select_frame, select_object, select_size, select_values
from lumid.pipeline.series_select import Place, left_out, near_duplicates, place
from lumid.pipeline.sources import Blob, ObjectRef, Provenance, Series, Source

SNIFF_BYTES = 16 * 1024
CACHE_BYTES = 256 << 20
"""How much of a series is kept between the pass that looks at all of it and the pass that makes its samples."""
NOTHING: Mapping[tuple[str, int], str] = {}


@dataclass(frozen=True, slots=True)
class Opened:
    """A DICOM object that holds an image the recipe takes."""

    ref: ObjectRef
    dataset: FileDataset = field(repr=False)
    size: ImageSize
    identity: Identity = field(repr=False)
    acquired: Acquisition
    burned_in_text: str
    labels: tuple[str, ...] | None
    split: str | None

    @property
    def stored_bytes(self) -> int:
        """Size of the pixel data as it is held in memory."""
        element = pixel_element(self.dataset)
        return len(self.dataset[element].value) if element else 0


@dataclass(frozen=True, slots=True)
class Sample:
    """A finished sample: its catalog row, its encoded image, where it lies in space, if that is known, its place in the
    series, and its perceptual hash.
    """

    row: CatalogRow
    image: bytes = field(repr=False)
    placed: Placed | None
    place: Place
    look: int


@dataclass(slots=True)
class SeriesResult:
    """What has become of a series' frames so far; ``lock_row``: where the lock names it."""

    lock_row: int
    samples: list[Sample] = field(default_factory=list, repr=False)
    rejects: list[RejectRow] = field(default_factory=list, repr=False)
    planned: int = 0
    objects: int = 0
    source_bytes: int = 0

    @property
    def rejected(self) -> int:
        """Frames that did not become samples."""
        return sum(row.frames for row in self.rejects)


@dataclass(frozen=True, slots=True)
class BatchResult:
    """Everything a batch gives, by series."""

    series: tuple[SeriesResult, ...]

    @property
    def samples(self) -> list[Sample]:
        """All samples."""
        return [sample for one in self.series for sample in one.samples]

    @property
    def rejects(self) -> list[RejectRow]:
        """All rejects."""
        return [row for one in self.series for row in one.rejects]

    @property
    def objects(self) -> int:
        """Objects that are accounted for."""
        return sum(one.objects for one in self.series)

    @property
    def planned(self) -> int:
        """Frames that are accounted for."""
        return sum(one.planned for one in self.series)

    @property
    def source_bytes(self) -> int:
        """Size of what was read."""
        return sum(one.source_bytes for one in self.series)


def ingest(
    batch: Batch, source: Source, recipe: Recipe, keyer: Keyer, poisoned: frozenset[str] = frozenset()
) -> BatchResult:
    """Turn a batch into samples and rejects. ``source`` may have been told to prefetch it; whoever opened it closes it.

    ``poisoned``: source ids of objects that are known to kill the process that decodes them; they are rejected unread.
    Raises :class:`AccountingError` when ``planned = kept + rejected`` does not hold: a defect here, not in the input.
    """
    done = []
    for series in batch.series:
        found = SeriesResult(series.lock_row)
        _ingest_series(series, source, recipe, keyer, poisoned, found)
        if series.objects is not None and found.objects != series.objects:
            raise AccountingError(
                f"series {series.id}: {series.objects} objects planned, {found.objects} accounted for"
            )
        if found.planned != len(found.samples) + found.rejected:
            raise AccountingError(
                f"series {series.id}: {found.planned} frames planned, {len(found.samples)} kept and "
                f"{found.rejected} rejected"
            )
        done.append(found)
    return BatchResult(tuple(done))


def _ingest_series(
    series: Series, source: Source, recipe: Recipe, keyer: Keyer, poisoned: frozenset[str], account: SeriesResult
) -> None:
    """One series. What has an absolute scale goes through in one pass, unless slices are to be chosen among all.

    The rest waits until the whole series has been seen: for its range, and for which of its slices are taken.
    """
    seen: set[str] = set()
    held = _Held()
    claimed = {member.ref.source_id: member.frames for member in series.members if member.reject}
    choosy = recipe.select.stride > 1 or recipe.select.max_slices is not None
    for blob in source.blobs(series):
        account.objects += blob.objects
        size = 0 if isinstance(blob.data, Reject) else len(blob.data)
        account.source_bytes += size
        opened = (
            Reject("decode", "decoder_crash")
            if blob.ref.source_id in poisoned
            else _guarded_open(blob, series.provenance, recipe, keyer)
        )
        if not isinstance(opened, Reject) and opened.identity.instance_uid in seen:
            opened = Reject("select", "duplicate_instance")
        if isinstance(opened, Reject):
            frames = claimed.get(blob.ref.source_id, blob.objects)
            _reject_object(blob.ref, opened, series, account, frames=frames)
            continue
        relative = uses_series_range(FrameHeader(opened.dataset, 0), opened.acquired.modality)
        if not relative and not choosy:
            if _finish_object(opened, None, NOTHING, series, recipe, keyer, account):
                seen.add(opened.identity.instance_uid)
            continue
        if relative:
            found = _object_histograms(opened)
            if isinstance(found, Reject):
                _reject_object(blob.ref, found, series, account, opened=opened)
                continue
            seen.add(opened.identity.instance_uid)
            held.histograms[opened.acquired.modality] += found
        if choosy:
            held.places[opened.identity.series] |= _places(opened, keyer)
        held.hold(opened, size)

    _finish_held(held, source, series, recipe, keyer, account)
    _tell_duplicates(series, recipe.select, account)
    account.samples[:] = _arranged(account.samples)


@dataclass(slots=True)
class _Held:
    """What of a series waits until all of it has been seen: objects, or the ids of those there is no room for.

    ``histograms`` by modality; ``places`` by series, for an archive of many patients is read as one series.
    """

    objects: deque[Opened] = field(default_factory=deque)
    again: set[str] = field(default_factory=set)
    histograms: defaultdict[str, list[Histogram]] = field(default_factory=lambda: defaultdict(list))
    places: defaultdict[str, dict[tuple[str, int], Place]] = field(default_factory=lambda: defaultdict(dict))
    bytes: int = 0

    def hold(self, opened: Opened, size: int) -> None:
        """Keep an object of ``size`` bytes, or its id."""
        size = max(size, opened.stored_bytes)  # what was compressed as a file is not so any more
        if self.bytes + size <= CACHE_BYTES:
            self.objects.append(opened)
            self.bytes += size
        else:
            self.again.add(opened.ref.source_id)


def _finish_held(
    held: _Held, source: Source, series: Series, recipe: Recipe, keyer: Keyer, account: SeriesResult
) -> None:
    """The second pass: with the range of the series known, and which of its slices are taken."""
    ranges = {modality: robust_range(found) for modality, found in held.histograms.items()}
    left: dict[tuple[str, int], str] = {}
    for frames in held.places.values():
        left |= left_out(frames, recipe.select.stride, recipe.select.max_slices)
    finished: set[str] = set()

    def finish(opened: Opened) -> None:
        if opened.identity.instance_uid in finished:  # copies of what has no range have waited too
            _reject_object(opened.ref, Reject("select", "duplicate_instance"), series, account, opened=opened)
            return
        relative = uses_series_range(FrameHeader(opened.dataset, 0), opened.acquired.modality)
        span = ranges.get(opened.acquired.modality) if relative else None
        if _finish_object(opened, span, left, series, recipe, keyer, account):
            finished.add(opened.identity.instance_uid)

    while held.objects:
        finish(held.objects.popleft())
    for blob in source.blobs(series, frozenset(held.again)) if held.again else ():
        opened = _guarded_open(blob, series.provenance, recipe, keyer)
        if isinstance(opened, Reject):  # it changed or vanished between the two passes
            _reject_object(blob.ref, opened, series, account)
        else:
            finish(opened)


def _arranged(samples: list[Sample]) -> list[Sample]:
    """Samples with what can be said of them only once their whole series is known, in the order given."""
    # an archive of many patients is read as one series, and its images name their own
    by_series: dict[str, list[int]] = {}
    for number, sample in enumerate(samples):
        by_series.setdefault(sample.row.series, []).append(number)
    arranged = list(samples)
    for numbers in by_series.values():
        places = arrange([samples[number].placed for number in numbers])
        for number, arranged_at in zip(numbers, places, strict=True):
            row = replace(
                samples[number].row,
                slice_count=len(numbers),
                slice_index=arranged_at.index,
                slice_spacing=arranged_at.spacing,
                slice_gap=arranged_at.gap,
                slice_repeats=arranged_at.repeats,
            )
            arranged[number] = replace(samples[number], row=row)
    return arranged


def _places(opened: Opened, keyer: Keyer) -> dict[tuple[str, int], Place]:
    """Where the frames of an object stand in their series, by instance and frame."""
    uid = opened.identity.instance_uid
    return {(uid, frame): _place(opened, frame, keyer.key(uid, frame)) for frame in range(opened.size.frames)}


def _place(opened: Opened, frame: int, key: str) -> Place:
    header = FrameHeader(opened.dataset, frame)
    position = geometry(header, opened.acquired.modality).slice_position
    return place(position, header.number("InstanceNumber"), frame, key)


def _tell_duplicates(series: Series, settings: SelectSettings, account: SeriesResult) -> None:
    """Mark the samples that nearly repeat another of their series, or make rejects of them."""
    if settings.near_duplicates == "keep":
        return
    samples = sorted(account.samples, key=lambda sample: sample.place)
    looks, groups = [sample.look for sample in samples], [sample.row.series for sample in samples]
    found = near_duplicates(looks, groups, settings.near_duplicate_bits)
    account.samples.clear()
    for number, sample in enumerate(samples):
        if number not in found:
            account.samples.append(sample)
        elif settings.near_duplicates == "flag":
            row = replace(sample.row, near_duplicate_of=samples[found[number]].row.key)
            account.samples.append(replace(sample, row=row))
        else:
            reason = Reject("select", "near_duplicate")
            ref = ObjectRef(sample.row.source_id, 0)
            account.rejects.append(_reject_row(ref, reason, series, sample.row.frame, 1, sample.row.modality))


def _guarded_open(blob: Blob, provenance: Provenance, recipe: Recipe, keyer: Keyer) -> Opened | Reject:
    try:
        return open_object(blob, provenance, recipe, keyer)
    except Exception as error:
        return internal_error("read", error)


def _parsed(blob: Blob, data: bytes, kind: Kind | None, modality: str | None, limits: Limits) -> FileDataset | Reject:
    """The DICOM object, or the one that stands for an image in another format: from here on there is one path."""
    if kind in (None, "dicom"):
        return parse(data)
    return to_dataset(data, kind, modality=modality, name=blob.ref.location, limits=limits)


def open_object(blob: Blob, provenance: Provenance, recipe: Recipe, keyer: Keyer) -> Opened | Reject:
    """Parse an object, and decide from its header alone whether the recipe takes it."""
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
    text = text_risk(header, acquired, recipe.deid.policy)
    if isinstance(text, Reject):
        return text
    identity = identify(
        header,
        keyer,
        collection=provenance.collection,
        policy=recipe.deid.policy,
        source_id=blob.ref.source_id,
    )
    return Opened(blob.ref, dataset, size, identity, acquired, text, blob.labels, blob.split)


def _object_histograms(opened: Opened) -> list[Histogram] | Reject:
    """What each frame adds to the series' range; the reason when not even the first frame can be decoded."""
    found: list[Histogram] = []
    try:
        for frame, stored in enumerate(decode_frames(opened.dataset, opened.size)):
            if isinstance(stored, Reject):
                if frame == 0:
                    return stored
                continue
            found.append(frame_histogram(stored, FrameHeader(opened.dataset, frame)))
    except Exception as error:
        return internal_error("normalize", error)
    return found


def _finish_object(
    opened: Opened, span: Range | None, left: Mapping[tuple[str, int], str], series: Series, recipe: Recipe,
    keyer: Keyer, account: SeriesResult,
) -> bool:  # fmt: skip
    """Every frame of an object becomes a sample or a reject; an object that cannot be decoded at all, one reject.

    ``left``: frames of the series that are not taken, with the reason; an object of nothing else is not decoded.
    Returns whether anything could be decoded: if not, another copy of the same instance may take its place.
    """
    uid, modality = opened.identity.instance_uid, opened.acquired.modality
    skipped = {frame: left[uid, frame] for frame in range(opened.size.frames) if (uid, frame) in left} if left else {}
    done = 0
    if len(skipped) < opened.size.frames:
        for frame, outcome in enumerate(_frame_outcomes(opened, span, skipped, series, recipe, keyer)):
            if frame == 0 and isinstance(outcome, Reject) and outcome.stage == "decode":
                _reject_object(opened.ref, outcome, series, account, opened=opened)
                return False
            done += 1
            if isinstance(outcome, Sample):
                account.samples.append(outcome)
            elif outcome is not None:
                account.rejects.append(_reject_row(opened.ref, outcome, series, frame, 1, modality))
    else:
        done = opened.size.frames
    account.planned += opened.size.frames
    for code, frames in sorted(Counter(code for frame, code in skipped.items() if frame < done).items()):
        account.rejects.append(_reject_row(opened.ref, Reject("select", code), series, None, frames, modality))
    if missing := opened.size.frames - done:
        last = Reject("decode", "decode_failed", "frames after the one that failed")
        account.rejects.append(_reject_row(opened.ref, last, series, None, missing, modality))
    return True


def _frame_outcomes(
    opened: Opened, span: Range | None, skipped: Mapping[int, str], series: Series, recipe: Recipe, keyer: Keyer
) -> Iterator[Sample | Reject | None]:
    """What becomes of each frame in order; None for one that is skipped."""
    for frame, stored in enumerate(decode_frames(opened.dataset, opened.size)):
        if frame in skipped:
            yield None
            continue
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
    header = FrameHeader(opened.dataset, frame)
    intensities = normalize(stored, header, opened.acquired.modality, span, recipe.pixels.profile)
    if isinstance(intensities, Reject):
        return intensities
    resized = resize(intensities.pixels, recipe.pixels.size)
    quality = measure(resized, _stored(background(intensities.unit, span), intensities) or 0.0)
    slope, intercept = intensities.slope, intensities.intercept
    refused = select_values(
        intensities.unit, quality.p01 * slope + intercept, quality.p50 * slope + intercept, recipe.select
    ) or select_frame(quality, recipe.select)
    if refused:
        return refused
    encoded = encode_image(resized, recipe.pixels.codec)
    placed = geometry(header, opened.acquired.modality)
    kept = replace(intensities, pixels=resized)
    clipped = clipped_fraction(intensities.pixels, _top(intensities, span))
    row = _row(opened, frame, kept, quality, clipped, encoded, placed, series.provenance, recipe, keyer)
    at = place(placed.slice_position, header.number("InstanceNumber"), frame, row.key)
    return Sample(row, encoded.data, placed.placed, at, perceptual_hash(resized))


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
    opened: Opened, frame: int, kept: Intensities, quality: Quality, clipped: float, encoded: Encoded, placed: Geometry,
    provenance: Provenance, recipe: Recipe, keyer: Keyer,
) -> CatalogRow:  # fmt: skip
    identity, acquired = opened.identity, opened.acquired
    height, width = kept.pixels.shape[:2]
    scale_row, scale_column = opened.size.rows / height, opened.size.columns / width
    syntax = transfer_syntax(opened.dataset)
    return CatalogRow(
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
        frame=frame,
        slice_position=placed.slice_position,
        slice_count=0,
        orig_rows=opened.size.rows,
        orig_columns=opened.size.columns,
        pixel_spacing_row=_scaled(placed.spacing_row, scale_row),
        pixel_spacing_column=_scaled(placed.spacing_column, scale_column),
        spacing_kind=placed.spacing_kind,
        slice_thickness=placed.slice_thickness,
        transfer_syntax=str(syntax) if syntax is not None else None,
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
        burned_in_text=opened.burned_in_text,
        labels=None if opened.labels is None else tuple(one for one in LABELS if one in opened.labels) or None,
        split=opened.split or assign_split(identity.patient, recipe.splits, keyer),
        deid_policy=policy_name(recipe.deid.policy),
    )


def _scaled(spacing: float | None, scale: float) -> float | None:
    return None if spacing is None else round(spacing * scale, 6)


def assign_split(patient: str, splits: SplitSettings, keyer: Keyer) -> str:
    """The split of a patient, drawn by a keyed hash: the same on every machine, whoever else is in the data set."""
    draw = keyer.fraction("split", patient)
    if draw < splits.test:
        return "test"
    return "val" if draw < splits.test + splits.val else "train"


def _reject_object(
    ref: ObjectRef,
    reason: Reject,
    series: Series,
    account: SeriesResult,
    *,
    opened: Opened | None = None,
    frames: int = 1,
) -> None:
    """An object as a whole: all its frames where it was opened, ``frames`` where it is not known how many it holds."""
    modality = opened.acquired.modality if opened else None
    frames = opened.size.frames if opened else frames
    account.planned += frames
    account.rejects.append(_reject_row(ref, reason, series, None, frames, modality))


def _reject_row(
    ref: ObjectRef, reason: Reject, series: Series, frame: int | None, frames: int, modality: str | None
) -> RejectRow:
    return RejectRow(
        collection=series.provenance.collection,
        source=series.provenance.source,
        source_id=ref.source_id,
        series=series.id,
        frame=frame,
        frames=frames,
        modality=modality if modality in MODALITIES else None,
        stage=reason.stage,
        code=reason.code,
        message=reason.message,
    )


def internal_error(stage: str, error: Exception) -> Reject:
    """The reason for what should not happen: kind and place of the exception, never its text, which may quote a header."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].name}:{frames[-1].lineno}" if frames else "unknown"
    return Reject(stage, "internal_error", f"{type(error).__name__} in {place}")
