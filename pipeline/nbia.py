"""What The Cancer Imaging Archive says of its series: its NBIA interface asked through tcia-utils, each answer checked.

tcia-utils knows the interface's endpoints and fields. It has two fixed hosts, no time-outs and no second attempts, and
gives None for an error as for an empty answer. So while it is asked, the two names that it reaches the network by (its
``setApiUrl`` and its ``requests``) stand for the recipe's address and lumid's own client, which remembers every error.
"""

from __future__ import annotations

import contextlib
import csv
import importlib
import io
import logging
import re
import threading
import urllib.parse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lumid.catalog.errors import RecipeError
from lumid.pipeline.download import Downloader, FetchError, Wanted
from lumid.pipeline.reject import Reject

MAX_ANSWER_BYTES = 1 << 30
UID = re.compile(r"[0-9.]{1,64}")
NLST = "nlst"
"""The one collection that has a host of its own (tcia-utils 3.3, ``setApiUrl``)."""

UNKNOWN_COLLECTION = "tcia"
"""The collection of series that a manifest names and the archive does not list."""

FIELDS = {
    "uid": ("seriesinstanceuid", "seriesuid", "seriesid"),
    "study_uid": ("studyinstanceuid", "studyuid"),
    "patient_id": ("patientid", "subjectid"),
    "collection": ("collection", "collectionname"),
    "modality": ("modality",),
    "objects": ("imagecount", "numberofimages"),
    "bytes": ("filesize", "filesizebytes"),
    "license": ("licensename",),
    "license_url": ("licenseuri", "licenseurl"),
    "doi": ("datadescriptionuri", "collectionuri"),
    "released": ("datereleased",),
    "third_party": ("thirdpartyanalysis", "3rdpartyanalysis"),
}
"""Fields by the names that the interface's endpoints give them, without case, spaces and marks."""

_ASKING = threading.Lock()


@dataclass(frozen=True, slots=True)
class ListedSeries:
    """A series as the archive lists it, with its own identifiers: it stays in the pipeline."""

    uid: str = field(repr=False)
    study_uid: str = field(repr=False)
    patient_id: str = field(repr=False)
    collection: str
    modality: str
    objects: int | None
    bytes: int
    license: str | None
    doi: str | None
    released: str | None
    third_party: bool


@dataclass(frozen=True, slots=True)
class Manifest:
    """A ``.tcia`` file: the series it lists, and whether they are at the host of NLST."""

    uids: tuple[str, ...]
    nlst: bool


@dataclass(frozen=True, slots=True)
class Nbia:
    """The interface at the recipe's address. Each method raises :class:`FetchError` for an answer that is not one."""

    downloader: Downloader

    def base(self, nlst: bool) -> str:
        """The interface's address, with a slash at its end."""
        url = self.downloader.settings.nbia_url.rstrip("/")
        return (url.replace("//nbia.", "//nlst.", 1) if nlst else url) + "/"

    def image_url(self, uid: str, nlst: bool) -> str:
        """Where the series is given as a zip with a list of MD5s inside."""
        return f"{self.base(nlst)}getImageWithMD5Hash?SeriesInstanceUID={uid}"

    def collections(self) -> list[str]:
        """The names of the archive's public collections."""
        rows, _ = self._ask("getCollections")
        return sorted(str(row["Collection"]) for row in _records(rows) if row.get("Collection"))

    def series_in(self, collection: str, nlst: bool) -> list[ListedSeries]:
        """Every public series of a collection, by the name that the archive has for it."""
        rows, _ = self._ask("getSeries", collection=collection, api_url=NLST if nlst else "")
        return [_listed(row) for row in _records(rows)]

    def series(self, uids: Sequence[str], nlst: bool) -> dict[str, ListedSeries]:
        """Those of these series that are public, by uid.

        The answers are tables of text that tcia-utils has pandas read, which takes a patient "001" for the number 1;
        so they are read here.
        """
        _, answers = self._ask("getSeriesList", list(uids), api_url=NLST if nlst else "")
        found = {}
        for answer in answers:
            table = csv.DictReader(io.StringIO(answer.decode("utf-8", "replace")))
            if table.fieldnames and not any(_plain(name) in FIELDS["uid"] for name in table.fieldnames):
                raise _not_understood()
            for row in table:
                one = _listed(row)
                found[one.uid] = one
        return found

    def _ask(self, function: str, *values: Any, **named: Any) -> tuple[Any, list[bytes]]:
        """What a function of tcia-utils gives, and the answers that it made it of."""
        nbia = _tcia_utils()
        web = _Web(self.downloader)
        with _ASKING:
            kept = nbia.setApiUrl, nbia.requests
            nbia.setApiUrl = lambda _endpoint, api_url="": self.base(api_url == NLST)
            nbia.requests = web
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # its pandas is its own affair
                    data = getattr(nbia, function)(*values, **named)
            finally:
                nbia.setApiUrl, nbia.requests = kept
        if web.refused is not None:
            raise FetchError(
                f"TCIA cannot be asked ({function}): {web.refused.detail}; check fetch.nbia_url, or try again later"
            )
        if data is None and any(answer.strip() for answer in web.answers):
            raise _not_understood()
        return data, web.answers


class _Web:
    """What tcia-utils takes for the module ``requests``."""

    def __init__(self, downloader: Downloader) -> None:
        import requests

        self.exceptions = requests.exceptions
        self.answers: list[bytes] = []
        self.refused: Reject | None = None
        self._downloader = downloader
        self._response = requests.Response

    def get(self, url: str, params: Mapping[str, str] | None = None, proxies: object = None) -> Any:
        """An address with its parameters."""
        return self._ask(f"{url}?{urllib.parse.urlencode(params)}" if params else url, None)

    def post(self, url: str, data: Mapping[str, str] | None = None, proxies: object = None) -> Any:
        """A form."""
        return self._ask(url, data or {})

    def _ask(self, url: str, form: Mapping[str, str] | None) -> Any:
        answer = self._downloader.bytes(Wanted((url,), form=form, max_bytes=MAX_ANSWER_BYTES))
        if isinstance(answer, Reject):
            self.refused = self.refused or answer
            raise self.exceptions.ConnectionError
        self.answers.append(answer)
        response = self._response()
        response.status_code, response.encoding, response.raw = 200, "utf-8", io.BytesIO(answer)
        return response


def _tcia_utils() -> Any:
    """The module ``tcia_utils.nbia``, without what its import does to everybody's logging."""
    with _untouched_logging():
        module = importlib.import_module("tcia_utils.nbia")
    logging.getLogger("tcia_utils").setLevel(logging.CRITICAL + 1)  # it logs what servers say; errors are told by lumid
    return module


@contextmanager
def _untouched_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
        root.setLevel(level)


def _not_understood() -> FetchError:
    return FetchError("TCIA gave an answer that is not understood; check fetch.nbia_url, or try again later")


def _records(data: Any) -> list[dict[str, Any]]:
    if data is None:
        return []
    if not isinstance(data, list) or not all(isinstance(row, dict) for row in data):
        raise _not_understood()
    return data


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _listed(row: Mapping[str, Any]) -> ListedSeries:
    """A series from a row of either endpoint."""
    plain = {
        _plain(name): value for name, value in row.items() if name
    }  # a line with too many cells has some under None

    def text(name: str) -> str:
        values = (plain.get(alias) for alias in FIELDS[name])
        return next((str(value).strip() for value in values if value is not None), "")

    uid = text("uid")
    if not UID.fullmatch(uid):
        raise _not_understood()
    return ListedSeries(
        uid=uid,
        study_uid=text("study_uid"),
        patient_id=text("patient_id"),
        collection=text("collection"),
        modality=text("modality").upper(),
        objects=_whole(text("objects")) or None,
        bytes=_whole(text("bytes")),
        license=license_name(text("license"), text("license_url")),
        doi=_doi(text("doi")),
        released=_date(text("released")),
        third_party=text("third_party").upper() in ("YES", "TRUE", "Y"),
    )


def _whole(text: str) -> int:
    with contextlib.suppress(ValueError, OverflowError):
        return max(0, int(float(text)))
    return 0


def license_name(name: str, url: str) -> str | None:
    """A licence in the short form that other archives have for it, where its address is Creative Commons'.

    >>> license_name("Creative Commons Attribution 3.0 Unported License", "http://creativecommons.org/licenses/by/3.0/")
    'CC BY 3.0'
    """
    match = re.search(r"creativecommons\.org/licenses/([a-z-]+)/(\d\.\d)", url.lower())
    if match:
        return f"CC {match[1].upper()} {match[2]}"
    return name[:100] or None


def _doi(text: str) -> str | None:
    match = re.search(r"10\.\d{4,9}/[^\s\"<>]+", text)
    return match[0].lower() if match else None


def _date(text: str) -> str | None:
    """The day as ``2014-05-31``, from that or the American order."""
    if match := re.match(r"(\d{4})-(\d\d)-(\d\d)", text):
        return f"{match[1]}-{match[2]}-{match[3]}"
    if match := re.match(r"(\d\d)[-/](\d\d)[-/](\d{4})", text):
        return f"{match[3]}-{match[1]}-{match[2]}"
    return None


def read_manifest(path: Path) -> Manifest:
    """A ``.tcia`` manifest, or a plain list of series uids, one a line; raises :class:`RecipeError`.

    tcia-utils' own reader drops the first six lines, whatever is in them, and takes every other for a uid.
    """
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError):
        raise RecipeError(f"{path}: cannot be read as a manifest of TCIA") from None
    head, listed = [], lines
    for number, line in enumerate(lines):
        if line.startswith("ListOfSeriesToDownload="):
            head, listed = lines[:number], [line.partition("=")[2].strip(), *lines[number + 1 :]]
            break
    uids = [line for line in listed if line]
    if not uids or not all(UID.fullmatch(uid) for uid in uids):
        raise RecipeError(
            f"{path}: not a manifest of TCIA; get one as a .tcia file from the archive's cart, or write one series uid a line"
        )
    server = next((line for line in head if line.startswith("downloadServerUrl=")), "")
    return Manifest(tuple(dict.fromkeys(uids)), "//nlst." in server)
