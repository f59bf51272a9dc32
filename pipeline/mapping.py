"""Pseudonyms and what they stand for, for the owner of the secret: the one place where identifiers are written down."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pydicom import Dataset

from lumid.catalog.keys import Keyer
from lumid.pipeline.convert import sniff
from lumid.pipeline.deidentify import identify
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.parse import any_header
from lumid.pipeline.reject import Reject
from lumid.pipeline.scan import MAX_OBJECT_BYTES
from lumid.pipeline.sources import ListedSource, ObjectRef

KINDS = ("patient", "study", "series", "instance", "frame_of_reference", "object")
KEYWORDS = {"study": "StudyInstanceUID", "series": "SeriesInstanceUID", "instance": "SOPInstanceUID",
            "frame_of_reference": "FrameOfReferenceUID"}  # fmt: skip
ISSUED_BY = " issued by "


@dataclass(frozen=True, slots=True, order=True)
class Mapped:
    """A pseudonym of the catalog and what it stands for; ``kind`` is the column, ``object`` that of ``source_id``."""

    kind: str
    pseudonym: str
    original: str


def map_ids(keyer: Keyer, kind: str, originals: list[str], *, issuer: str = "") -> list[Mapped]:
    """The pseudonyms of identifiers that are known. ``issuer``: of patients, or under ``public`` their collection."""
    return [
        Mapped(kind, keyer.pseudonym(kind, *((issuer, one) if kind == "patient" else (one,))), _told(kind, one, issuer))
        for one in originals
    ]


def map_source(
    source: ListedSource, names: dict[str, str], keyer: Keyer, policy: str, advance: Callable[[], None]
) -> Iterator[Mapped]:
    """Every pseudonym that a build from a folder gives, some of them many times.

    ``names``: files by their ``source_id``; ``advance`` is called after each object. What cannot be read has the
    pseudonym of its name alone.
    """
    for item in source.objects():
        ref = item[0] if isinstance(item, tuple) else item
        yield Mapped("object", ref.source_id, names.get(ref.source_id, ""))
        if not isinstance(item, tuple) and ref.size_bytes <= MAX_OBJECT_BYTES:
            yield from _of_object(source, ref, names.get(ref.source_id, ""), keyer, policy)
        advance()


def _of_object(source: ListedSource, ref: ObjectRef, name: str, keyer: Keyer, policy: str) -> Iterator[Mapped]:
    data = source.read(ref)
    kind = None if isinstance(data, Reject) else sniff(data)
    if isinstance(data, Reject) or kind is None:
        return
    collection = source.provenance.collection
    try:
        dataset = any_header(data)[0] if kind == "dicom" else Dataset()
        header = FrameHeader(dataset, 0)
        found = identify(header, keyer, collection=collection, policy=policy, source_id=ref.source_id)
    except Exception:  # a header that does not parse is rejected by a build, too
        return
    patient, issuer = (
        _text(header, "PatientID"),
        _text(header, "IssuerOfPatientID") if policy == "private" else collection,
    )
    unstated = f"not stated; study of {name}"
    yield Mapped("patient", found.patient, _told("patient", patient, issuer) if patient else unstated)
    for column, keyword in KEYWORDS.items():
        if (pseudonym := getattr(found, column)) is not None:
            yield Mapped(column, pseudonym, _text(header, keyword) or f"not stated; {name}")


def _text(header: FrameHeader, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else str(value).strip().strip("\0")


def _told(kind: str, original: str, issuer: str) -> str:
    return f"{original}{ISSUED_BY}{issuer}" if kind == "patient" and issuer else original
