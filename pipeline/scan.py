"""Looking through a listed source: just enough of every object to know its series, and objects grouped by it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pydicom import Dataset

from lumid.catalog.keys import Keyer
from lumid.pipeline.convert import claimed_frames, sniff
from lumid.pipeline.deidentify import identify
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.parse import any_header
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import ListedSource, Listing, Member, ObjectRef, Provenance, Series
from lumid.pipeline.sources.archived import archive_kind

HEAD_BYTES = 16 * 1024
NUMBER_OF_FRAMES = 0x00280008
MAX_CLAIMED_FRAMES = 1_000_000
MAX_OBJECT_BYTES = 1 << 32
"""An object is read into memory. A sparse file of terabytes costs nobody anything to make."""
TOO_LARGE = Reject("read", "absurd_size", f"more than {MAX_OBJECT_BYTES >> 30} GiB")


@dataclass(frozen=True, slots=True)
class Scanned:
    """What planning needs to know of one object: which series and instance it says to be, and how many frames."""

    ref: ObjectRef
    series: str
    instance: str
    frames: int
    reject: Reject | None = None


def scan(source: ListedSource, refs: Listing, keyer: Keyer, policy: str, *, requests: int = 1) -> list[Scanned]:
    """Read just enough of each object to know its series.

    What cannot be read is a series of its own, and so is every image in another format than DICOM, which names none.
    ``requests``: how many objects are read at once: one from a disk, many from an object store.
    """

    def one(item: ObjectRef | tuple[ObjectRef, Reject]) -> Scanned:
        if isinstance(item, tuple):
            return _alone(item[0], keyer, source.provenance, item[1])
        if item.size_bytes > MAX_OBJECT_BYTES:
            return _alone(item, keyer, source.provenance, TOO_LARGE)
        return _scan_one(source, item, keyer, policy)

    if requests == 1:
        return [one(item) for item in refs]
    with ThreadPoolExecutor(requests, thread_name_prefix="lumid-scan") as pool:
        return list(pool.map(one, refs))


def _alone(ref: ObjectRef, keyer: Keyer, provenance: Provenance, reject: Reject | None, frames: int = 1) -> Scanned:
    own = keyer.pseudonym("object", provenance.collection, ref.source_id)
    return Scanned(ref, series=own, instance=own, frames=frames, reject=reject)


def _nameless(ref: ObjectRef, keyer: Keyer, provenance: Provenance, policy: str, frames: int) -> Scanned:
    """An image whose format has no place for identifiers: named as :func:`identify` will name it when it is ingested."""
    nothing = FrameHeader(Dataset(), 0)
    identity = identify(nothing, keyer, collection=provenance.collection, policy=policy, source_id=ref.source_id)
    return Scanned(ref, identity.series, identity.instance, frames)


def _scan_one(source: ListedSource, ref: ObjectRef, keyer: Keyer, policy: str) -> Scanned:
    provenance = source.provenance
    for limit in (HEAD_BYTES, None):
        data = source.read(ref, limit)
        if isinstance(data, Reject):
            return _alone(ref, keyer, provenance, data)
        kind = sniff(data)
        if kind is None:
            nested = Reject("read", "nested_archive") if archive_kind(data) else None
            return _alone(ref, keyer, provenance, nested)
        if kind != "dicom":
            return _nameless(ref, keyer, provenance, policy, claimed_frames(data, kind))
        found = _identified(data, ref, keyer, provenance, policy, whole=limit is None or len(data) < limit)
        if found is not None:
            return found
    return _alone(ref, keyer, provenance, None)


def _identified(
    data: bytes, ref: ObjectRef, keyer: Keyer, provenance: Provenance, policy: str, *, whole: bool
) -> Scanned | None:
    """What a DICOM object's first bytes say; None when they do not reach far enough, or are broken."""
    try:
        dataset, at = any_header(data, beyond=NUMBER_OF_FRAMES)
        header = FrameHeader(dataset, 0)
        identity = identify(header, keyer, collection=provenance.collection, policy=policy, source_id=ref.source_id)
        frames = header.number("NumberOfFrames")
    except Exception:
        return None  # cut off, or broken: the whole object tells; what is broken is found out when it is ingested
    if at >= len(data) and not whole:
        return None
    claimed = int(frames) if frames and 1 <= frames <= MAX_CLAIMED_FRAMES else 1
    return Scanned(ref, identity.series, identity.instance, claimed)


def group_series(scanned: Sequence[Scanned], provenance: Provenance) -> list[Series]:
    """Objects by series, by id. Objects that say to be the same instance go to the series of the first of them."""
    series_of_instance: dict[str, str] = {}
    members: dict[str, list[Member]] = {}
    for item in sorted(scanned, key=lambda one: one.ref.source_id):
        series = series_of_instance.setdefault(item.instance, item.series)
        members.setdefault(series, []).append(Member(item.ref, item.frames, item.reject))
    return [
        Series(series, provenance, len(found), sum(member.ref.size_bytes for member in found), tuple(found))
        for series, found in sorted(members.items())
    ]


def listing_hash(objects: Iterable[ObjectRef | tuple[ObjectRef, Reject]]) -> str:
    """SHA-256 over a source's listing, names, sizes and times: tells at once whether a finished build is current.

    Slices of one scanner have equal sizes and often equal names, so that a folder of other patients looks the same but
    for its times.
    """
    digest = hashlib.sha256()
    for item in objects:
        ref, changed_ns = (item[0], 0) if isinstance(item, tuple) else (item, item.changed_ns)
        digest.update(f"{ref.source_id}\t{ref.size_bytes}\t{changed_ns}\n".encode())
    return digest.hexdigest()
