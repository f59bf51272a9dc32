"""ChestX-ray14 of the NIH Clinical Center: twelve archives of PNG files, read as if they were DICOM objects."""

from __future__ import annotations

import hashlib
import io
import struct
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from lumid.catalog.collections import collections
from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.catalog.lock import LOCK
from lumid.pipeline.archives import ArchiveMember, base_name, tar_members
from lumid.pipeline.download import Downloader, Patience, Wanted
from lumid.pipeline.nih_index import HOME, NAME, ChestXray, missing_tables, patient_of, read_tables, tables_hash
from lumid.pipeline.partial import is_verified
from lumid.pipeline.recipe import FetchSettings, NihSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Blob, ObjectRef, Series

VERSION = "ChestX-ray14"
MAX_SIDE = 8192
UID_SPACE = uuid.uuid5(uuid.NAMESPACE_URL, HOME)


@dataclass(frozen=True, slots=True)
class NihArchive:
    """One of the archives: its name, its file at the server, its MD5, and about how large it is."""

    name: str
    file: str
    md5: str
    about_bytes: int


_FILES = (
    ("vfk49d74nhbxq3nqjg0900w5nvkorp5c.gz", "fe8ed0a6961412fddcbb3603c11b3698", 2),
    ("i28rlmbvmfjbl8p2n3ril0pptcmcu9d1.gz", "ab07a2d7cbe6f65ddd97b4ed7bde10bf", 4),
    ("f1t00wrtdk94satdfb9olcolqx20z2jp.gz", "2301d03bde4c246388bad3876965d574", 4),
    ("0aowwzs5lhjrceb3qp67ahp0rd1l1etg.gz", "9f1b7f5aae01b13f4bc8e2c44a4b8ef6", 4),
    ("v5e3goj22zr6h8tzualxfsqlqaygfbsn.gz", "1861f3cd0ef7734df8104f2b0309023b", 4),
    ("asi7ikud9jwnkrnkj99jnpfkjdes7l6l.gz", "456b53a8b351afd92a35bc41444c58c8", 4),
    ("jn1b4mw4n6lnh74ovmcjb8y48h8xj07n.gz", "1075121ea20a137b87f290d6a4a5965e", 4),
    ("tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j.gz", "b61f34cec3aa69f295fbb593cbd9d443", 4),
    ("upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj.gz", "442a3caa61ae9b64e61c561294d1e183", 4),
    ("l6nilvfa9cg3s28tqv1qc1olm3gnz54p.gz", "09ec81c4c31e32858ad8cf965c494b74", 4),
    ("hhq8fkdgvcari67vfhs7ppg2w6ni4jze.gz", "499aefc67207a5a97692424cf5dbeed5", 4),
    ("ioqwiy20ihqwyr8pf4c24eazhh281pbu.gz", "dc9fda1757c2de0032b63347a7d2895c", 3),
)  # fmt: skip
"""File, MD5 and size in 10^9 bytes. Files and MD5s are the data set's own; sizes are rounded, their sum is the stated 45."""

ARCHIVES = tuple(
    NihArchive(f"images_{number:03d}.tar.gz", file, md5, gb * 10**9)
    for number, (file, md5, gb) in enumerate(_FILES, start=1)
)
"""The twelve archives of the data set, in their order."""


# ---- the plan


@dataclass(frozen=True, slots=True)
class Pin:
    """What the lock's ``location`` pins of an archive: its name and MD5, and the tables, where they were there."""

    name: str
    md5: str
    tables: str | None

    def __str__(self) -> str:
        return f"{self.name} md5:{self.md5}" + (f" tables:{self.tables}" if self.tables else "")

    @classmethod
    def parse(cls, location: str) -> Pin:
        """The pin that a location was made from."""
        name, _, rest = location.partition(" md5:")
        md5, _, tables = rest.partition(" tables:")
        return cls(base_name(name), md5, tables or None)


def plan_nih(
    settings: NihSettings, fetch: FetchSettings, keyer: Keyer, archives: Sequence[NihArchive] | None = None
) -> pa.Table:
    """The lock's rows, one an archive, under :data:`LOCK`. Needs neither network nor files: the archives are known.

    How many images each has is not. Tables that are in the settings' folder are pinned, by the hash of their content:
    labels, ages and the official split come from them. ``archives``: :data:`ARCHIVES` but for tests.
    """
    known = collections()["nih_chest_xray"]
    base = fetch.nih_url.rstrip("/")
    tables = tables_hash(Path(settings.path).expanduser())
    every = ARCHIVES if archives is None else archives
    rows = []
    for one in (every[number - 1] for number in sorted(set(settings.archives)) if number <= len(every)):
        location = str(Pin(one.name, one.md5, tables))
        rows.append(
            {
                "recipe_source": 0,
                "source": "nih",
                "collection": settings.collection,
                "source_version": VERSION,
                "license": known.license,
                "doi": known.doi,
                "series": keyer.pseudonym("object", settings.collection, one.name),
                "patient": None,
                "modality": "DX",
                "objects": None,
                "bytes": one.about_bytes,
                "location": location,
                "urls": [f"{base}/{one.file}"],
                "digest": hashlib.sha256(location.encode()).hexdigest(),
            }
        )
    return pa.Table.from_pylist(rows, schema=LOCK).sort_by([("series", "ascending"), ("location", "ascending")])


# ---- an image as an object


def read_png(data: bytes) -> npt.NDArray[np.uint8] | Reject:
    """A PNG's grey values: uint8 [rows, columns]. Some of the archive's files are RGBA, with equal colours."""
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 33:
        return Reject("decode", "decode_failed", "not a PNG")
    columns, rows = struct.unpack(">II", data[16:24])  # IHDR: PNG, 11.2.2
    if not (0 < columns <= MAX_SIDE and 0 < rows <= MAX_SIDE):
        return Reject("decode", "absurd_size", f"{rows} × {columns}")
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        pixels = None
    if pixels is None:
        return Reject("decode", "decode_failed", "the PNG is damaged")
    if pixels.dtype != np.uint8:
        return Reject("decode", "decode_failed", "not 8 bits")
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_BGRA2GRAY if pixels.shape[2] == 4 else cv2.COLOR_BGR2GRAY)
    return np.ascontiguousarray(pixels, np.uint8)


def uid_of(*parts: str) -> UID:
    """A UID that is the same on every machine (PS3.5 B.2: 2.25 and a UUID as a number)."""
    return UID(f"2.25.{uuid.uuid5(UID_SPACE, '/'.join(parts)).int}")


def as_dicom(pixels: npt.NDArray[np.uint8], image: ChestXray) -> bytes:
    """An image (uint8 [rows, columns]) and its row of the table as a DX object: a DICOM file.

    So that nothing behind the source needs to know that this archive has no DICOM: every stage reads a header, and the
    table's values reach the catalog through the same allow-list as those of any other archive.
    """
    instance = uid_of("instance", image.name)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.ImageType = ["DERIVED", "PRIMARY"]
    dataset.SOPClassUID = DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = instance
    dataset.Modality = "DX"
    dataset.PatientID = image.patient
    dataset.PatientSex = image.sex
    if image.age is not None:
        dataset.PatientAge = image.age
    dataset.BodyPartExamined = "CHEST"
    dataset.ViewPosition = image.view
    dataset.StudyInstanceUID = uid_of("study", image.patient, image.follow_up)
    dataset.SeriesInstanceUID = uid_of("series", image.patient, image.follow_up)
    rows, columns = pixels.shape
    if image.original_size and image.original_spacing:
        by_column = image.original_spacing[0] * image.original_size[0] / columns
        by_row = image.original_spacing[1] * image.original_size[1] / rows
        dataset.ImagerPixelSpacing = [f"{by_row:.6g}", f"{by_column:.6g}"]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = rows, columns
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


# ---- the source


def check_tables(settings: NihSettings, series: Sequence[Series]) -> None:
    """Whether the tables are in the settings' folder, and those that the lock's series pin; for before a build begins.

    Raises :class:`RecipeError` when they are not.
    """
    folder = Path(settings.path).expanduser()
    if (missing := missing_tables(folder)) is not None:
        raise RecipeError(f"source nih: {missing}")
    tables = tables_hash(folder)
    for one in series:
        _compare(one.location, tables, folder)


def _compare(location: str, tables: str | None, folder: Path) -> None:
    if Pin.parse(location).tables not in (None, tables):
        raise RecipeError(
            f"source nih: the tables in {folder} are not those that the lock pins; put those back, or plan again with: "
            "lumid plan RECIPE --out LOCK"
        )


@dataclass(slots=True)
class NihSource:
    """The archives in the settings' folder, fetched into it when they are not there, and read as streams.

    ``keep_patient`` takes a patient's pseudonym and says whether its images are planned; the others are passed over as
    if the archive did not hold them. Raises :class:`RecipeError` when the tables are not in the folder, and when they
    are not those that the lock pins.
    """

    settings: NihSettings
    fetch: FetchSettings
    keyer: Keyer
    keep_patient: Callable[[str], bool] | None = None
    patience: Patience = field(default_factory=Patience)
    _images: Mapping[str, ChestXray] = field(init=False, repr=False)
    _tables: str | None = field(init=False, repr=False)
    _arriving: dict[str, Future[Path | Reject]] = field(default_factory=dict, init=False, repr=False)
    _workers: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False, repr=False)

    def __post_init__(self) -> None:
        self._images = read_tables(self._folder)
        self._tables = tables_hash(self._folder)

    @property
    def _folder(self) -> Path:
        return Path(self.settings.path).expanduser()

    def prefetch(self, series: Sequence[Series]) -> None:
        """Begin to fetch these archives, one after the other."""
        downloader = Downloader(self.fetch, self.patience, self._stop)
        self._workers = self._workers or ThreadPoolExecutor(1, thread_name_prefix="lumid-nih")
        for one in series:
            _compare(one.location, self._tables, self._folder)
            if one.location not in self._arriving:
                self._arriving[one.location] = self._workers.submit(self._archive, one, downloader)

    def close(self) -> None:
        """Break off what is under way; what has arrived of an archive stays, and a later run goes on with it."""
        self._stop.set()
        self._stop = threading.Event()
        self._arriving.clear()
        workers, self._workers = self._workers, None
        if workers is not None:
            workers.shutdown(wait=True, cancel_futures=True)

    def blobs(self, series: Series, only: frozenset[str] | None = None) -> Iterator[Blob]:
        """The images of an archive in the archive's own order, which is that of their names; the same at every call."""
        _compare(series.location, self._tables, self._folder)
        arriving = self._arriving.get(series.location)
        path = arriving.result() if arriving else self._archive(series, Downloader(self.fetch, self.patience))
        if isinstance(path, Reject):
            yield Blob(ObjectRef(series.id, 0), path, objects=series.objects or 1)
            return
        left = None if only is None else set(only)
        seen: set[str] = set()
        with path.open("rb") as stream:
            for member in tar_members(stream):
                source_id, image = self._identify(member, series)
                if (left is not None and source_id not in left) or not self._kept(source_id, image):
                    continue
                yield self._blob(member, source_id, image, twice=source_id in seen)
                seen.add(source_id)
                if left is not None:
                    left.discard(source_id)
                    if not left:
                        return

    def _archive(self, series: Series, downloader: Downloader) -> Path | Reject:
        """The series' archive, whole and verified."""
        pin = Pin.parse(series.location)
        path = self._folder / pin.name
        if self.fetch.offline:
            there = is_verified(path, None, pin.md5)
            return path if there else Reject("fetch", "fetch_failed", "not in the cache, and --offline was given")
        return downloader.file(Wanted(series.urls, md5=pin.md5), path)

    def _identify(self, member: ArchiveMember, series: Series) -> tuple[str, ChestXray | None]:
        """A member's source id, and what the tables say of it."""
        name = base_name(member.name)
        if NAME.fullmatch(name):
            return name, self._images.get(name)
        hashed = self.keyer.pseudonym("object", series.provenance.collection, member.name) if member.name else "rest"
        return f"{series.id}/{hashed}", None

    def _kept(self, source_id: str, image: ChestXray | None) -> bool:
        """Whether a member is planned: all that is not told to be of some patient is."""
        if self.keep_patient is None or (image is None and not NAME.fullmatch(source_id)):
            return True
        patient = image.patient if image else patient_of(source_id)
        return self.keep_patient(self.keyer.pseudonym("patient", self.settings.collection, patient))

    def _blob(self, member: ArchiveMember, source_id: str, image: ChestXray | None, *, twice: bool) -> Blob:
        ref = ObjectRef(source_id, member.size_bytes)
        if member.reject is not None:
            return Blob(ref, member.reject)
        if twice:
            return Blob(ref, Reject("read", "duplicate_instance", "two images of one name"))
        if image is None:
            return Blob(ref, Reject("read", "not_listed"))
        data = member.read()
        pixels = data if isinstance(data, Reject) else read_png(data)
        held_out = image.test and self.settings.benchmark == "hold_out"
        return Blob(
            ref,
            pixels if isinstance(pixels, Reject) else as_dicom(pixels, image),
            labels=image.labels,
            split="benchmark" if held_out else None,
        )
