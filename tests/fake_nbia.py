"""A small NBIA on this machine: series of real DICOM, listed and given as the archive does."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.pipeline.download import Patience
from lumid.pipeline.lock import series_of
from lumid.pipeline.recipe import FetchSettings, TciaSettings
from lumid.pipeline.sources import Series
from lumid.pipeline.sources.tcia import TciaSource, plan_tcia
from tests.dicom import TEST_FILES
from tests.servers import Request, Server

KEYER = Keyer(PUBLIC_SECRET)
QUICK = Patience(first_wait_s=0.01, longest_wait_s=0.02, progress_bytes=1 << 30)
BASE = "/nbia-api/services/v4/"
GET_ZIP = BASE + "getImageWithMD5Hash"
HEADS = [
    "Subject ID", "Study UID", "Series Instance UID", "Collection Name", "Modality", "Image Count", "File Size",
    "License Name", "License URI", "Collection URI", "Date Released",
]  # fmt: skip


@dataclass
class Listed:
    """A series as the archive's database has it."""

    uid: str
    files: dict[str, bytes]
    collection: str = "LIDC-IDRI"
    patient: str = "001"
    modality: str = "CT"
    third_party: str = "NO"
    study: str = "1.2.3.9"
    count: int | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        return {
            "SeriesInstanceUID": self.uid,
            "StudyInstanceUID": self.study,
            "PatientID": self.patient,
            "Collection": self.collection,
            "Modality": self.modality,
            "SeriesDescription": "DOE^JANE",
            "ImageCount": len(self.files) if self.count is None else self.count,
            "FileSize": sum(map(len, self.files.values())),
            "LicenseName": "Creative Commons Attribution 3.0 Unported License",
            "LicenseURI": "http://creativecommons.org/licenses/by/3.0/",
            "CollectionURI": "https://doi.org/10.7937/K9/TCIA.2015.LO9QL9SX",
            "DateReleased": "2014-05-31 00:00:00.0",
            "ThirdPartyAnalysis": self.third_party,
        } | self.extra

    def csv(self) -> list[Any]:
        row = self.json()
        keys = (
            "PatientID",
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "Collection",
            "Modality",
            "ImageCount",
            "FileSize",
        )
        more = ("LicenseName", "LicenseURI", "CollectionURI")
        return [row[key] for key in (*keys, *more)] + ["05-31-2014"]


def zipped(files: dict[str, bytes], md5s: dict[str, str] | None = None, listed: bool = True) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
        archive.writestr("LICENSE", "You may. DOE^JANE")
        if listed:
            digests = {name: hashlib.md5(data).hexdigest() for name, data in files.items()} | (md5s or {})
            lines = [f"{name},{digest}" for name, digest in digests.items()]
            archive.writestr("md5hashes.csv", "\n".join(["fileName,MD5Hash", *lines]) + "\n")
    return buffer.getvalue()


@dataclass
class Archive:
    """The archive's database behind its interface. ``gone``: uids of series that it lists and does not serve."""

    server: Server
    series: list[Listed]
    zips: dict[str, bytes] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()

    def publish(self) -> None:
        self.server.files |= {
            BASE + "getCollectionValues": self._collections,
            BASE + "getSeries": self._series,
            BASE + "getSeriesMetadata": self._metadata,
            GET_ZIP: self._zip,
        }

    def _collections(self, _: Request) -> bytes:
        return json.dumps([{"Collection": name} for name in {one.collection for one in self.series}]).encode()

    def _series(self, request: Request) -> bytes:
        found = [one.json() for one in self.series if one.collection == request.query.get("Collection")]
        return json.dumps(found).encode() if found else b""

    def _metadata(self, request: Request) -> bytes:
        wanted = request.form["list"].split(",")
        rows = [one.csv() for one in self.series if one.uid in wanted]
        if not rows:
            return b""
        text = io.StringIO()
        csv.writer(text).writerows([HEADS, *rows])
        return text.getvalue().encode()

    def _zip(self, request: Request) -> bytes | None:
        uid = request.query["SeriesInstanceUID"]
        if uid in self.gone:
            return None
        known = {one.uid: one.files for one in self.series}
        return self.zips.get(uid) or (zipped(known[uid]) if uid in known else None)

    def fetch(self, **values: object) -> FetchSettings:
        base = {"nbia_url": self.server.url + BASE.rstrip("/"), "attempts": 3, "timeout_s": 0.5}
        return FetchSettings.model_validate(base | values)

    def plan(self, *collections: str, manifest: Path | None = None, **values: Any) -> Any:
        settings = TciaSettings(
            collections=collections,
            manifest=str(manifest) if manifest else None,
            modalities=values.pop("modalities", ()),
        )
        return plan_tcia(settings, self.fetch(), KEYER, patience=QUICK, **values)

    def pinned(self, uid: str) -> Series:
        lock = self.plan(*{one.collection for one in self.series})
        return next(one for one in series_of(lock, 0) if one.location == uid)

    def source(self, **values: object) -> TciaSource:
        return TciaSource(self.fetch(**values), QUICK)


def real(*names: str) -> dict[str, bytes]:
    return {f"1-{number:03d}.dcm": (TEST_FILES / name).read_bytes() for number, name in enumerate(names, start=1)}


CT = real("CT_small.dcm", "JPEG2000.dcm", "693_J2KI.dcm")
MR = real("MR_small.dcm", "MR_small_RLE.dcm")
