"""The Cancer Imaging Archive: a series is fetched as a zip, and each object compared with the MD5 that comes with it."""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tempfile
import threading
import zipfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from lumid.catalog.collections import did_you_mean, plain_name
from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.catalog.lock import LOCK
from lumid.catalog.schema import MODALITIES
from lumid.pipeline.archives import UNREADABLE, ArchiveMember, base_name, list_zip
from lumid.pipeline.download import Downloader, Patience, Wanted
from lumid.pipeline.nbia import NLST, UNKNOWN_COLLECTION, ListedSeries, Nbia, read_manifest
from lumid.pipeline.recipe import FetchSettings, TciaSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, ObjectRef, Series

SAFE_NAME = re.compile(r"[0-9][0-9.-]{0,63}(\.dcm)?|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}(\.dcm)?")
"""Names that the archive itself makes: numbers, UIDs and uuids. Whatever else a file is called is hashed."""
MD5_LIST = re.compile(r"md5.*\.csv", re.IGNORECASE)
NO_OBJECT = re.compile(r"license.*|.*\.(csv|txt|html|pdf)", re.IGNORECASE)
"""What the archive puts beside the objects: the licence's text, and lists."""


# ---- the plan


def plan_tcia(
    settings: TciaSettings,
    fetch: FetchSettings,
    keyer: Keyer,
    policy: str = "public",
    patience: Patience = Patience(),
) -> pa.Table:
    """The lock's rows of the settings' collections and manifest, by series, under :data:`LOCK`. Needs the network.

    Of collections the image modalities without third-party analyses; of a manifest all that it lists, and what the
    archive does not serve (any more) too, so that it becomes a reject and not a silence. Pseudonyms are those that
    :func:`lumid.pipeline.deidentify.identify` will make from the headers; under ``private`` the patient's issuer counts,
    which nobody lists: it is taken as empty. Raises :class:`RecipeError` for a collection
    or manifest that there is not, :class:`FetchError` when the archive cannot be asked.
    """
    nbia = Nbia(Downloader(fetch, patience))
    chosen: dict[str, tuple[ListedSeries, bool]] = {}
    modalities = settings.modalities or MODALITIES
    for name in _names(settings.collections, nbia):
        nlst = plain_name(name) == NLST
        listed = nbia.series_in(name, nlst)
        chosen |= {one.uid: (one, nlst) for one in listed if one.modality in modalities and not one.third_party}
    if settings.manifest is not None:
        manifest = read_manifest(Path(settings.manifest))
        known = nbia.series(manifest.uids, manifest.nlst)
        for uid in manifest.uids:
            one = known.get(uid) or _unknown(uid)
            if uid not in known or one.modality in modalities:
                chosen[uid] = (one, manifest.nlst)
    rows = [_row(one, nbia.image_url(uid, nlst), keyer, policy) for uid, (one, nlst) in chosen.items()]
    return pa.Table.from_pylist(rows, schema=LOCK).sort_by([("series", "ascending"), ("location", "ascending")])


def _names(wanted: Sequence[str], nbia: Nbia) -> list[str]:
    """The archive's own names of the wanted collections, however they are written."""
    if not wanted:
        return []
    # NLST has a host of its own, whose list nobody else is in
    known = {plain_name(name): name for name in nbia.collections()} | {NLST: "NLST"}
    for name in wanted:
        if plain_name(name) not in known:
            raise RecipeError(
                f"collection '{name}': TCIA has no public one of that name{did_you_mean(name, known.values())}"
            )
    return list(dict.fromkeys(known[plain_name(name)] for name in wanted))


def _unknown(uid: str) -> ListedSeries:
    return ListedSeries(uid, "", "", UNKNOWN_COLLECTION, "", None, 0, None, None, None, False)


def collection_id(name: str) -> str:
    """The id of a collection, as the other archives write it: it is part of who a patient is.

    >>> collection_id("COVID-19-NY-SBU"), collection_id("CT COLONOGRAPHY")
    ('covid_19_ny_sbu', 'ct_colonography')
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:64] or UNKNOWN_COLLECTION


def _row(one: ListedSeries, url: str, keyer: Keyer, policy: str) -> dict[str, object]:
    collection = collection_id(one.collection)
    issuer = collection if policy == "public" else ""
    patient = None
    if one.patient_id:
        patient = keyer.pseudonym("patient", issuer, one.patient_id)
    elif one.study_uid:
        patient = keyer.pseudonym("patient", "study", one.study_uid)
    return {
        "recipe_source": 0,
        "source": "tcia",
        "collection": collection,
        "source_version": f"TCIA {one.released}" if one.released else "TCIA",
        "license": one.license,
        "doi": one.doi,
        "series": keyer.pseudonym("series", one.uid),
        "patient": patient,
        "modality": one.modality or None,
        "objects": one.objects,
        "bytes": one.bytes,
        "location": one.uid,
        "urls": [url],
        "digest": hashlib.sha256(one.uid.encode()).hexdigest(),
    }


# ---- the fetch


@dataclass(frozen=True, slots=True)
class Listed:
    """A member of a series' zip that was looked at: its name inside, the one that it is shown by, and what is wrong."""

    name: str = field(repr=False)
    shown: str
    reject: Reject | None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a series' zip was found to hold. ``absent``: names in its list of MD5s that no member has."""

    members: tuple[Listed, ...]
    absent: int
    problem: Reject | None = None

    def whole(self, planned: int | None) -> bool:
        """Whether every object is there and verified, and none too many."""
        sound = self.problem is None and not self.absent and not any(one.reject for one in self.members)
        return sound and len(self.members) == (len(self.members) if planned is None else planned)


def fetch_series(series: Series, downloader: Downloader) -> Iterator[tuple[str, bytes | Reject]]:
    """A series from the archive: each object by the name that it is shown by, in the order of these names, verified.

    An empty name stands for objects that nobody can name: all that the series should have had besides.
    """
    with tempfile.TemporaryFile(prefix="lumid-tcia-") as file:
        yield from read_series(file, download_series(series, downloader, file), series)


def download_series(series: Series, downloader: Downloader, file: BinaryIO) -> Contents:
    """Fetch a series' zip into a file and verify it, anew for as long as it is not whole and attempts are left."""
    wanted = Wanted(series.urls, max_bytes=max(1 << 30, 2 * series.bytes) if series.bytes else 64 << 30)
    attempts = downloader.settings.attempts
    contents = Contents((), 0, _failed("no attempt"))
    for attempt in range(1, attempts + 1):
        file.seek(0)
        file.truncate()
        size = downloader.into(wanted, file)
        if isinstance(size, Reject):
            return Contents((), 0, size)
        contents = inspect(file)
        if contents.whole(series.objects):
            break
        if attempt < attempts:
            downloader.stop.wait(downloader.patience.pause_s(attempt, None))
    planned = series.objects
    if planned is not None and contents.problem is None and len(contents.members) > planned:
        # which of them were planned cannot be told: it is not the series that was pinned
        return Contents((), 0, _failed(f"the archive has {len(contents.members)} objects now, {planned} were planned"))
    return contents


def inspect(file: BinaryIO) -> Contents:
    """Compare every member of a series' zip with the list of MD5s in it."""
    try:
        with zipfile.ZipFile(file) as archive:
            members = list(list_zip(archive))
            listed = _md5s(members)
            if listed is None:
                return Contents((), 0, _failed("no list of MD5s in the zip"))
            found = tuple(_look_at(member, listed) for member in members if _is_object(member))
    except UNREADABLE:
        return Contents((), 0, _failed("not a whole zip"))
    names = {base_name(one.name) for one in found}
    absent = sum(1 for name in listed if name not in names and not NO_OBJECT.fullmatch(name))
    return Contents(tuple(sorted(_told_apart(found), key=lambda one: one.shown)), absent)


def _is_object(member: ArchiveMember) -> bool:
    return not NO_OBJECT.fullmatch(base_name(member.name))


def _md5s(members: Sequence[ArchiveMember]) -> dict[str, str] | None:
    """MD5s by base name, from whichever columns the archive's list has them in."""
    for member in members:
        data = member.read() if MD5_LIST.fullmatch(base_name(member.name)) else None
        if not isinstance(data, bytes):
            continue
        found = {}
        for row in csv.reader(io.StringIO(data.decode("utf-8", "replace")), skipinitialspace=True):
            cells = [cell.strip() for cell in row]
            digests = [cell.lower() for cell in cells if re.fullmatch(r"[0-9a-fA-F]{32}", cell)]
            names = [cell for cell in cells if cell and cell.lower() not in digests]
            if digests and names:
                found[base_name(names[0])] = digests[0]
        return found
    return None


def _look_at(member: ArchiveMember, listed: dict[str, str]) -> Listed:
    name = base_name(member.name)
    shown = name if SAFE_NAME.fullmatch(name) else _hashed(member.name)
    data = member.read()
    if isinstance(data, Reject):
        # damage may be the way's, what is unsafe is the archive's own
        damaged = data.code == "broken_archive"
        return Listed(member.name, shown, _failed("damaged in the zip") if damaged else data)
    if name not in listed:
        return Listed(member.name, shown, _failed("not in the list of MD5s"))
    matches = hashlib.md5(data, usedforsecurity=False).hexdigest() == listed[name]
    return Listed(member.name, shown, None if matches else _failed("MD5 does not match"))


def _told_apart(found: Sequence[Listed]) -> Iterator[Listed]:
    """Members of different folders that would be shown by one name."""
    seen: dict[str, int] = {}
    for one in found:
        seen[one.shown] = seen.get(one.shown, 0) + 1
    for one in found:
        yield one if seen[one.shown] == 1 else Listed(one.name, _hashed(one.name), one.reject)


def _hashed(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:24]


def read_series(file: BinaryIO, contents: Contents, series: Series) -> Iterator[tuple[str, bytes | Reject]]:
    """The objects of a series' zip that :func:`download_series` has looked at, and what is missing under no name."""
    if contents.problem is not None:
        yield "", contents.problem
        return
    with zipfile.ZipFile(file) as archive:
        members = {member.name: member for member in list_zip(archive)}
        for one in contents.members:
            yield one.shown, one.reject or members.pop(one.name).read()
    expected = len(contents.members) + contents.absent if series.objects is None else series.objects
    if missing := expected - len(contents.members):
        yield "", _failed(f"{missing} of {expected} objects are not in the archive's answer")


def _failed(detail: str) -> Reject:
    return Reject("fetch", "fetch_failed", detail)


# ---- the source


@dataclass(slots=True)
class _Arriving:
    """A series under way to a temporary file."""

    series: Series
    file: BinaryIO
    contents: Future[Contents]


@dataclass(slots=True)
class TciaSource:
    """Series of the archive, pinned by their uids. Zips are kept in nameless temporary files, for as long as they are read.

    The next series arrive while one is read, as far as ``ahead_mb`` of them fit.
    """

    fetch: FetchSettings
    patience: Patience = field(default_factory=Patience)
    _next: deque[Series] = field(default_factory=deque, repr=False)
    _arriving: dict[str, _Arriving] = field(default_factory=dict, repr=False)
    _workers: ThreadPoolExecutor | None = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    def prefetch(self, series: Sequence[Series]) -> None:
        """Begin to fetch these, in their order."""
        with self._lock:
            self._next = deque(one for one in series if one.location not in self._arriving)
            self._begin()

    def close(self) -> None:
        """Forget what was fetched ahead, and break off what is under way."""
        with self._lock:
            self._next.clear()
            waiting, self._arriving = list(self._arriving.values()), {}
            workers, self._workers = self._workers, None
            self._stop.set()
            self._stop = threading.Event()
        if workers is not None:
            workers.shutdown(wait=True, cancel_futures=True)
        for one in waiting:
            one.file.close()

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The objects of a series, verified, by source id; then, as one reject, those that did not come."""
        seen = 0
        for name, data in self._objects(series):
            source_id = f"{series.id}/{name}" if name else f"{series.id}/missing"
            count = 1 if name else max(1, self._missing(series, seen, data))
            seen += count
            if only is None or source_id in only:
                size = len(data) if isinstance(data, bytes) else 0
                yield Blob(ObjectRef(source_id, size), data, objects=count)

    def _missing(self, series: Series, seen: int, data: bytes | Reject) -> int:
        if series.objects is not None:
            return series.objects - seen
        match = re.match(r"(\d+) of \d+ objects", data.detail) if isinstance(data, Reject) else None
        return int(match[1]) if match else 1

    def _objects(self, series: Series) -> Iterator[tuple[str, bytes | Reject]]:
        with self._lock:
            arriving = self._arriving.pop(series.location, None)
            self._next = deque(one for one in self._next if one.location != series.location)
            self._begin()
        if arriving is None:
            yield from fetch_series(series, Downloader(self.fetch, self.patience))
            return
        with arriving.file:
            yield from read_series(arriving.file, arriving.contents.result(), series)

    def _begin(self) -> None:
        """Start the transfers that still fit; the lock is held."""
        downloader = Downloader(self.fetch, self.patience, self._stop)
        held = sum(one.series.bytes for one in self._arriving.values())
        while self._next and (held == 0 or held + self._next[0].bytes <= self.fetch.ahead_mb * 1e6):
            series = self._next.popleft()
            self._workers = self._workers or ThreadPoolExecutor(4, thread_name_prefix="lumid-tcia")
            # closed by whoever reads it, or by close()
            file = cast(BinaryIO, tempfile.TemporaryFile(prefix="lumid-tcia-"))  # noqa: SIM115
            future = self._workers.submit(download_series, series, downloader, file)
            self._arriving[series.location] = _Arriving(series, file, future)
            held += max(1, series.bytes)
