"""One batch: every series of it, object by object, and an account of every frame.

What becomes of an object is in :mod:`lumid.pipeline.samples`; here is what takes a whole series to decide: its range,
which of its slices are taken, where they lie among each other, and which repeat another.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from lumid.catalog.errors import AccountingError
from lumid.catalog.keys import Keyer
from lumid.catalog.schema import MODALITIES, RejectRow
from lumid.pipeline.batches import Batch
from lumid.pipeline.geometry import arrange
from lumid.pipeline.normalize import uses_series_range
from lumid.pipeline.normalize.intensity import Histogram, Range, robust_range
from lumid.pipeline.recipe import Recipe, SelectSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.samples import Opened, Sample, frame_outcomes, object_histograms, open_object, places_of
from lumid.pipeline.series_select import Place, in_order, left_out, near_duplicates
from lumid.pipeline.sources import ObjectRef, Series, Source

CACHE_BYTES = 256 << 20
"""How much of a series is kept between the pass that looks at all of it and the pass that makes its samples."""
NOTHING: Mapping[tuple[str, int], str] = {}


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
        read_series(series, source, recipe, keyer, poisoned, found)
        finish_series(series, recipe, found)
        check_account(series, found)
        done.append(found)
    return BatchResult(tuple(done))


def check_account(series: Series, found: SeriesResult) -> None:
    """Raises :class:`AccountingError` unless every object and every frame of a series has become something."""
    if series.objects is not None and found.objects != series.objects:
        raise AccountingError(f"series {series.id}: {series.objects} objects planned, {found.objects} accounted for")
    if found.planned != len(found.samples) + found.rejected:
        raise AccountingError(
            f"series {series.id}: {found.planned} frames planned, {len(found.samples)} kept and "
            f"{found.rejected} rejected"
        )


class WholeSeriesError(Exception):
    """A series of which only some objects were asked for is one whose images have the series' scale."""


def read_series(
    series: Series, source: Source, recipe: Recipe, keyer: Keyer, poisoned: frozenset[str], account: SeriesResult,
    only: frozenset[str] | None = None,
) -> frozenset[str]:  # fmt: skip
    """The objects of a series, or ``only`` those with these source ids, into ``account``; gives the instances' UIDs.

    What has an absolute scale goes through in one pass, unless slices are to be chosen among all. The rest waits until
    the whole series has been seen: for its range, and for which of its slices are taken. Raises
    :class:`WholeSeriesError` when that is so of some of it ``only``.
    """
    met: set[str] = set()
    seen: set[str] = set()
    held = _Held()
    claimed = {member.ref.source_id: member.frames for member in series.members if member.reject}
    choosy = recipe.select.stride > 1 or recipe.select.max_slices is not None
    for blob in source.blobs(series, only):
        account.objects += blob.objects
        size = 0 if isinstance(blob.data, Reject) else len(blob.data)
        account.source_bytes += size
        opened = (
            Reject("decode", "decoder_crash")
            if blob.ref.source_id in poisoned
            else open_object(blob, series.provenance, recipe, keyer)
        )
        if not isinstance(opened, Reject):
            met.add(opened.identity.instance_uid)
            if opened.identity.instance_uid in seen:
                opened = Reject("select", "duplicate_instance")
        if isinstance(opened, Reject):
            frames = claimed.get(blob.ref.source_id, blob.objects)
            _reject_object(blob.ref, opened, series, account, frames=frames)
            continue
        relative = uses_series_range(opened.header, opened.acquired.modality)
        if relative and only is not None:
            raise WholeSeriesError
        if not relative and not choosy:
            if _finish_object(opened, None, NOTHING, series, recipe, keyer, account):
                seen.add(opened.identity.instance_uid)
            continue
        if relative:
            found = object_histograms(opened)
            if isinstance(found, Reject):
                _reject_object(blob.ref, found, series, account, opened=opened)
                continue
            seen.add(opened.identity.instance_uid)
            held.histograms[opened.acquired.modality] += found
        if choosy:
            held.places[opened.identity.series] |= places_of(opened, keyer)
        held.hold(opened, size)

    _finish_held(held, source, series, recipe, keyer, account)
    return frozenset(met)


def finish_series(series: Series, recipe: Recipe, account: SeriesResult) -> None:
    """What can be said of samples only when all of their series are there: what repeats another, and where each lies."""
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
        relative = uses_series_range(opened.header, opened.acquired.modality)
        span = ranges.get(opened.acquired.modality) if relative else None
        if _finish_object(opened, span, left, series, recipe, keyer, account):
            finished.add(opened.identity.instance_uid)

    while held.objects:
        finish(held.objects.popleft())
    for blob in source.blobs(series, frozenset(held.again)) if held.again else ():
        opened = open_object(blob, series.provenance, recipe, keyer)
        if isinstance(opened, Reject):  # it changed or vanished between the two passes
            _reject_object(blob.ref, opened, series, account)
        else:
            finish(opened)


def _arranged(samples: list[Sample]) -> list[Sample]:
    """Samples with what can be said of them only once their whole series is known, in the order given."""
    arranged = list(samples)
    for numbers in _by_series(samples):
        places = arrange([samples[number].place.placed for number in numbers])
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


def _by_series(samples: list[Sample]) -> Iterable[list[int]]:
    """The samples of each series, as indices: an archive of many patients is read as one, and its images name their own."""
    by_series: defaultdict[str, list[int]] = defaultdict(list)
    for number, sample in enumerate(samples):
        by_series[sample.row.series].append(number)
    return by_series.values()


def _tell_duplicates(series: Series, settings: SelectSettings, account: SeriesResult) -> None:
    """Mark the samples that nearly repeat another of their series, or make rejects of them."""
    if settings.near_duplicates == "keep":
        return
    samples = list(account.samples)
    found: dict[int, int] = {}
    for numbers in _by_series(samples):
        order = [numbers[at] for at in in_order([samples[number].place for number in numbers])]
        repeats = near_duplicates([samples[number].look for number in order], settings.near_duplicate_bits)
        found |= {order[one]: order[other] for one, other in repeats.items()}
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


def _finish_object(
    opened: Opened, span: Range | None, left: Mapping[tuple[str, int], str], series: Series, recipe: Recipe,
    keyer: Keyer, account: SeriesResult,
) -> bool:  # fmt: skip
    """Every frame of an object becomes a sample or a reject; an object none of whose frames can be decoded, one reject.

    ``left``: frames of the series that are not taken, with the reason; they are not decoded.
    Returns whether anything could be decoded: if not, another copy of the same instance may take its place.
    """
    uid, modality = opened.identity.instance_uid, opened.acquired.modality
    skipped = {frame: left[uid, frame] for frame in range(opened.size.frames) if (uid, frame) in left} if left else {}
    wanted = [frame for frame in range(opened.size.frames) if frame not in skipped]
    refused: list[tuple[int, Reject]] = []
    undecoded = 0
    for frame, outcome in zip(wanted, frame_outcomes(opened, span, wanted, series, recipe, keyer), strict=True):
        if isinstance(outcome, Sample):
            account.samples.append(outcome)
        else:
            refused.append((frame, outcome))
            undecoded += outcome.stage == "decode"
    if wanted and undecoded == len(wanted):
        _reject_object(opened.ref, refused[0][1], series, account, opened=opened)
        return False
    account.planned += opened.size.frames
    for frame, reason in refused:
        account.rejects.append(_reject_row(opened.ref, reason, series, frame, 1, modality))
    for code, frames in sorted(Counter(skipped.values()).items()):
        account.rejects.append(_reject_row(opened.ref, Reject("select", code), series, None, frames, modality))
    return True


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
