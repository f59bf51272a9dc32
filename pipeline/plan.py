"""What a build will read: objects grouped into series, series grouped into batches, all of it pinned in a lock."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from lumid.catalog.keys import Keyer
from lumid.catalog.schema import FORMAT_VERSION
from lumid.pipeline.decode import FrameHeader, looks_like_dicom
from lumid.pipeline.deidentify import identify
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import ObjectRef, Provenance, Source

HEAD_BYTES = 16 * 1024
NUMBER_OF_FRAMES = 0x00280008

LOCK = pa.schema(
    [
        pa.field("source", pa.string(), metadata={"meaning": "kind of source"}),
        pa.field("collection", pa.string(), metadata={"meaning": "collection the series belongs to"}),
        pa.field("source_version", pa.string(), metadata={"meaning": "version of the source"}),
        pa.field("license", pa.string(), metadata={"meaning": "licence, as the source names it"}),
        pa.field("doi", pa.string(), metadata={"meaning": "DOI of the collection"}),
        pa.field("series", pa.string(), metadata={"meaning": "pseudonym of the series"}),
        pa.field("objects", pa.int64(), metadata={"meaning": "objects planned"}),
        pa.field("bytes", pa.int64(), metadata={"meaning": "their size", "unit": "bytes"}),
        pa.field("digest", pa.string(), metadata={"meaning": "SHA-256 over the objects' source ids and sizes"}),
    ]
)


@dataclass(frozen=True, slots=True)
class Scanned:
    """What planning needs to know of one object: which series and instance it says to be, and how many frames."""

    ref: ObjectRef
    series: str
    instance: str
    frames: int
    reject: Reject | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A series to be read whole: its statistics are the series' own. Objects are in the order of their source ids."""

    id: str
    objects: tuple[Scanned, ...]

    @property
    def frames(self) -> int:
        """Frames that the headers claim."""
        return sum(item.frames for item in self.objects)

    @property
    def bytes(self) -> int:
        """Size of all objects."""
        return sum(item.ref.size_bytes for item in self.objects)

    def digest(self) -> str:
        """SHA-256 over what identifies the objects' content as far as a listing can."""
        lines = "\n".join(f"{item.ref.source_id}\t{item.ref.size_bytes}" for item in self.objects)
        return hashlib.sha256(lines.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Batch:
    """The unit of work and of resuming: some whole series of one source."""

    id: str
    source: int
    series: tuple[Series, ...]

    @property
    def objects(self) -> int:
        """How many objects the batch holds."""
        return sum(len(series.objects) for series in self.series)

    @property
    def bytes(self) -> int:
        """Size of all its objects."""
        return sum(series.bytes for series in self.series)


def scan(
    source: Source, refs: Iterable[ObjectRef | tuple[ObjectRef, Reject]], keyer: Keyer, policy: str
) -> list[Scanned]:
    """Read just enough of each object to know its series. What cannot be read is a series of its own."""
    scanned = []
    for item in refs:
        if isinstance(item, tuple):
            scanned.append(_alone(item[0], keyer, source.provenance, item[1]))
        else:
            scanned.append(_scan_one(source, item, keyer, policy))
    return scanned


def _alone(ref: ObjectRef, keyer: Keyer, provenance: Provenance, reject: Reject | None) -> Scanned:
    own = keyer.pseudonym("object", provenance.collection, ref.source_id)
    return Scanned(ref, series=own, instance=own, frames=1, reject=reject)


def _scan_one(source: Source, ref: ObjectRef, keyer: Keyer, policy: str) -> Scanned:
    provenance = source.provenance
    for limit in (HEAD_BYTES, None):
        data = source.read(ref, limit)
        if isinstance(data, Reject):
            return _alone(ref, keyer, provenance, data)
        if not looks_like_dicom(data[:132]):
            return _alone(ref, keyer, provenance, None)
        reached = False

        def beyond(tag: BaseTag, _vr: str | None, _length: int) -> bool:
            nonlocal reached
            reached = reached or tag > NUMBER_OF_FRAMES
            return reached

        try:
            header = FrameHeader(read_partial(io.BytesIO(data), stop_when=beyond, force=True), 0)
            identity = identify(header, keyer, collection=provenance.collection, policy=policy, source_id=ref.source_id)
            frames = header.number("NumberOfFrames")
        except Exception:
            continue  # cut off, or broken: the whole object tells; what is broken is found out when it is ingested
        if reached or limit is None or len(data) < limit:
            claimed = int(frames) if frames and 1 <= frames <= 1_000_000 else 1
            return Scanned(ref, identity.series, identity.instance, claimed)
    return _alone(ref, keyer, provenance, None)


def group_series(scanned: Sequence[Scanned]) -> list[Series]:
    """Objects by series, by id. Objects that say to be the same instance go to the series of the first of them."""
    series_of_instance: dict[str, str] = {}
    members: dict[str, list[Scanned]] = {}
    for item in sorted(scanned, key=lambda one: one.ref.source_id):
        series = series_of_instance.setdefault(item.instance, item.series)
        members.setdefault(series, []).append(item)
    return [Series(series, tuple(objects)) for series, objects in sorted(members.items())]


def make_batches(series: Sequence[Series], source: int, recipe_hash: str, batch_slices: int) -> list[Batch]:
    """Series in order, as many to a batch as hold ``batch_slices`` frames or few more."""
    return [Batch(_batch_id(group, source, recipe_hash), source, tuple(group)) for group in _fill(series, batch_slices)]


def _fill(series: Sequence[Series], batch_slices: int) -> Iterator[list[Series]]:
    group: list[Series] = []
    frames = 0
    for one in series:
        if group and frames + one.frames > batch_slices:
            yield group
            group, frames = [], 0
        group.append(one)
        frames += one.frames
    if group:
        yield group


def _batch_id(group: Sequence[Series], source: int, recipe_hash: str) -> str:
    """A hash of everything the part depends on: inputs as far as a listing tells, recipe, format."""
    digest = hashlib.sha256(f"{FORMAT_VERSION} {recipe_hash} {source}\n".encode())
    for series in group:
        changed = max(item.ref.changed_ns for item in series.objects)
        digest.update(f"{series.id} {series.digest()} {changed}\n".encode())
    return digest.hexdigest()[:24]


def lock_table(series: Sequence[Series], provenance: Provenance) -> pa.Table:
    """The lock's rows of one source, under :data:`LOCK`."""
    return pa.table(
        {
            "source": [provenance.source] * len(series),
            "collection": [provenance.collection] * len(series),
            "source_version": [provenance.source_version] * len(series),
            "license": [provenance.license] * len(series),
            "doi": [provenance.doi] * len(series),
            "series": [one.id for one in series],
            "objects": [len(one.objects) for one in series],
            "bytes": [one.bytes for one in series],
            "digest": [one.digest() for one in series],
        },
        schema=LOCK,
    )


def lock_hash(table: pa.Table) -> str:
    """SHA-256 over a lock's content, whatever file it is in."""
    digest = hashlib.sha256()
    for batch in table.to_pylist():
        digest.update("\t".join("" if value is None else str(value) for value in batch.values()).encode() + b"\n")
    return digest.hexdigest()


def listing_hash(objects: Iterable[ObjectRef | tuple[ObjectRef, Reject]]) -> str:
    """SHA-256 over a source's listing, names and sizes: tells at once whether a finished build is still current."""
    digest = hashlib.sha256()
    for item in objects:
        ref = item[0] if isinstance(item, tuple) else item
        digest.update(f"{ref.source_id}\t{ref.size_bytes}\n".encode())
    return digest.hexdigest()
