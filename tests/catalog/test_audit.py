"""The audit: every form of a term, in every kind of file, told by its place and line; and nothing where there is nothing."""

from __future__ import annotations

import base64
import bz2
import gzip
import html
import io
import json
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from datetime import date
from pathlib import Path
from urllib.parse import quote, quote_plus

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumid.catalog.audit import Audit, audit
from lumid.catalog.codecs import encode
from lumid.catalog.contents import WINDOW
from lumid.catalog.dates import date_forms, parse_dates
from lumid.catalog.errors import UsageError
from lumid.catalog.matching import Matcher, Passed
from lumid.catalog.terms import Term, patterns_of, read_terms
from tests.dicom import gradient

NAME = "Quimbleworth^Zebediah^Ulysses"


def found_in(text: str | bytes, *terms: str, name_parts: bool = False) -> set[int]:
    """The lines of the terms that are found in a text."""
    data = text if isinstance(text, bytes) else text.encode()
    patterns = [
        one for line, term in enumerate(terms, 1) for one in patterns_of(Term(line, term), name_parts=name_parts)
    ]
    return {match.pattern.line for match in Matcher(patterns).in_text(data, Passed())}


def run(root: Path, *terms: str, **options: object) -> Audit:
    return audit(root, [Term(line, term) for line, term in enumerate(terms, 1)], **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "written",
    ["QUIMBLEWORTH^ZEBEDIAH", "Zebediah Quimbleworth", "Quimbleworth, Zebediah", "quimbleworth,zebediah", "quimbleworth_zebediah.dcm",
     "ZebediahQuimbleworth", "zebediah.quimbleworth", "Z. Quimbleworth", "CHEST Z.QUIMBLEWORTH 1", "Quimbleworth Z", "QUIMBLEWORTH Zebediah Ulysses",
     "Zebediah U. Quimbleworth"],
)  # fmt: skip
def test_a_name_is_found_in_every_order(written: str) -> None:
    assert found_in(f"x {written} y", NAME) == {1}
    assert found_in(f"x {written} y", "Zebediah Quimbleworth") == {1} or "Ulysses" in written or "U." in written
    assert found_in(f"x {written} y", "Ebenezer Scrooge") == set()


@pytest.mark.parametrize(
    "term",
    ["Böhmelfürst^Jörgfried", "Люксембург^Роза", "山桜^太郎兵", "洪^吉洞東", "Wáng^XiǎoDōng", "O'Flannigan^Mairéad"],
)
@pytest.mark.parametrize(
    "write",
    [
        lambda text: text.encode(), lambda text: text.upper().encode(), lambda text: text.encode("utf-16-le"),
        lambda text: text.encode("utf-16-be"), lambda text: json.dumps(text).encode(), lambda text: quote(text).encode(),
        lambda text: quote_plus(text).encode(), lambda text: html.escape(text).encode("ascii", "xmlcharrefreplace"),
        lambda text: repr(text.encode()).encode(), lambda text: text.encode("unicode_escape"),
        lambda text: b"key=" + base64.b64encode(b"xy" + text.encode() + b"zz"), lambda text: base64.urlsafe_b64encode(text.encode("utf-16-le")),
        lambda text: b"0x" + text.encode().hex().encode(), lambda text: b"f" + text.encode().hex().upper().encode() + b"0",
        lambda text: text.encode().hex(" ").encode(), lambda text: text.encode("utf-16-le").hex(":").encode(),
        lambda text: b"<td class='a'>" + text[:2].encode() + b"</b><i>" + text[2:].encode() + b"</td>",
    ],
)  # fmt: skip
def test_a_name_of_any_script_is_found_in_any_writing(term: str, write: object) -> None:
    assert callable(write)
    assert found_in(b"before " + write(term) + b" after", term) == {1}


@pytest.mark.parametrize(
    ("term", "codec"),
    [("Böhmelfürst^Jörgfried", "latin-1"), ("Люксембург^Роза", "iso8859-5"), ("Люксембург^Роза", "cp1251"), ("小早川^真二", "shift_jis"),
     ("小早川^真二", "iso2022_jp"), ("小早川^真二", "euc_jp"), ("洪^吉洞", "euc_kr"), ("홍^길동수", "euc_kr"), ("庄子^小虎儿", "gb18030"), ("Διονυσίου^Ιάκωβος", "iso8859-7")],
)  # fmt: skip
def test_a_name_is_found_in_the_encodings_of_dicom(term: str, codec: str) -> None:
    family = term.split("^")[0]
    assert found_in(b"LO " + term.encode(codec) + b" \0", term) == {1}
    assert found_in(b"LO " + family.encode(codec) + b" \0", term, name_parts=True) == {1} or len(family) == 1


def test_accents_may_be_missing_and_umlauts_written_out() -> None:
    assert found_in("JORGFRIED BOHMELFURST", "Böhmelfürst^Jörgfried") == {1}
    assert found_in("joergfried boehmelfuerst", "Böhmelfürst^Jörgfried") == {1}


@pytest.mark.parametrize(
    "written",
    ["19610312", "1961-03-12", "1961/03/12", "1961.03.12", "12.03.1961", "12.3.1961", "12/03/1961", "03/12/1961", "3/12/1961", "12-03-1961",
     "12.03.61", "03/12/61", "12 Mar 1961", "12-MAR-1961", "March 12, 1961", "12. March 1961", "12MAR1961", "1961年3月12日", "1961-03-12T10:15",
     "19610312101530.123", "12031961"],
)  # fmt: skip
def test_a_date_is_found_in_every_form(written: str) -> None:
    for term in ("19610312", "1961-03-12", "12.03.1961", "12 Mar 1961", "March 12, 1961", "03/12/1961"):
        assert found_in(f"on {written}.", term) == {1}, term
    assert found_in(f"on {written}.", "19610313") == set()


@given(st.dates(date(1801, 1, 1), date(2199, 12, 31)))
def test_every_form_of_a_date_that_has_four_digits_for_the_year_means_it(day: date) -> None:
    for text, form in date_forms(day):
        if (
            str(day.year) in text
            and form != "date, YYYYMMDD"
            and len(text) > 8
            and "_" not in text
            and "年" not in text
        ):
            assert day in parse_dates(text), text


def test_markup_inside_a_term_is_passed_over_and_what_it_parts_is_told_by_its_place() -> None:
    text = b'<p>1 < 2</p><b>Zebediah</b> <i title="x">Quimbleworth</i>, born 1961<sub>-</sub>03-12'
    matcher = Matcher([*patterns_of(Term(1, NAME)), *patterns_of(Term(2, "1961-03-12"))])
    found = {
        match.pattern.line: text[match.start : match.end]
        for match in matcher.in_text(text, Passed())
        if "across markup" in match.pattern.form
    }
    assert found[1] == b'Zebediah</b> <i title="x">Quimbleworth'
    assert found[2] == b"1961<sub>-</sub>03-12"
    assert found_in("<a>Zebediah</a> and <b>Quimbleworth</b>", NAME) == set()
    whole = list(matcher.in_text(b"<b>Zebediah Quimbleworth</b>", Passed()))
    assert [match.pattern.form for match in whole if "markup" in match.pattern.form] == []


def test_numbers_stand_alone_and_chance_is_told_from_a_finding() -> None:
    assert found_in("MRN 4711007, id=4711007 [4711007]", "4711007") == {1}
    assert found_in("MRN4711007", "4711007") == {1}
    assert found_in("94711007", "4711007") == set()
    passed = Passed()
    matcher = Matcher(patterns_of(Term(1, "4711007")))
    text = b'"p50": 0.1234711007, "p50": 0.12347110071, "patient": "ab4711007cdef012", "x": 4711007.25'
    assert [match.start for match in matcher.in_text(text, passed)] == [text.rindex(b"4711007")]
    assert passed.counts == {"inside a hash": 1, "inside a fraction": 0} or sum(passed.counts.values()) == 1
    assert found_in("+49-30-5512345 or 49305512345", "+49 (30) 5512345") == {1}
    assert found_in("lithium, Li, flip", "Lip") == set()


def _png(text: str, packed: bool) -> bytes:
    image = encode(gradient(64, 64, high=60_000).astype("uint16"), "png")
    data = b"Comment\0" + (b"\0" + zlib.compress(text.encode()) if packed else text.encode())
    kind = b"zTXt" if packed else b"tEXt"
    return (
        image[:33]
        + struct.pack(">I", len(data))
        + kind
        + data
        + struct.pack(">I", zlib.crc32(kind + data))
        + image[33:]
    )


def _tar(members: dict[str, bytes], **attributes: str) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def _zip(name: str, data: bytes, comment: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
        archive.comment = comment
    return out.getvalue()


def _parquet(table: pa.Table) -> bytes:
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


WHO = "Zebediah Quimbleworth"
FILES: dict[str, bytes] = {
    "text": f"one\n{WHO}\n".encode(),
    "JSON": json.dumps({"a": [WHO]}).encode(),
    "HTML": f"<td>{WHO}</td>".encode(),
    "UTF-16 text": "\ufeff".encode("utf-16-le") + f"log of {WHO}".encode("utf-16-le"),
    "gzip": gzip.compress(WHO.encode() * 9),
    "bzip2": bz2.compress(WHO.encode() * 9),
    "xz": lzma.compress(WHO.encode() * 9),
    "zip": _zip("a.txt", WHO.encode() * 9),
    "zip's name": _zip(f"{WHO}.txt", b""),
    "zip's comment": _zip("a", b"", WHO.encode()),
    "zip in a gzip": gzip.compress(_zip("a.txt", WHO.encode() * 9)),
    "tar member": _tar({"a.json": json.dumps({"x": WHO}).encode()}),
    "tar's name": _tar({f"{WHO}.json": b"{}"}),
    "tar's owner": _tar({"a": b"b"}, uname="quimbleworth zebediah"),
    "after a tar": _tar({"a": b"b"}) + WHO.encode(),
    "PNG text": _png(WHO, packed=False),
    "PNG packed text": _png(WHO, packed=True),
    "PNG's end": encode(gradient(64, 64).astype("uint16"), "png") + WHO.encode(),
    "PNG in a tar": _tar({"a.png": _png(WHO, packed=True)}),
    "JPEG comment": b"\xff\xd8\xff\xfe" + struct.pack(">H", 2 + len(WHO)) + WHO.encode() + b"\xff\xda\0\0",
    "JPEG 2000 comment": b"\xff\x4f\xff\x51\0\x04ab\xff\x64" + struct.pack(">H", 4 + len(WHO)) + b"\0\1" + WHO.encode() + b"\xff\x90",
    "binary": bytes(range(256)) + WHO.encode() + bytes(1000),
    "Parquet value": _parquet(pa.table({"a": ["x"] * 9 + [WHO]})),
    "Parquet list": _parquet(pa.table({"a": [["x"], [WHO, "y"]]})),
    "Parquet struct": _parquet(pa.table({"a": [{"b": WHO}]})),
    "Parquet bytes": _parquet(pa.table({"a": [WHO.encode()]})),
    "Parquet dictionary": _parquet(pa.table({"a": pa.array(["x", WHO]).dictionary_encode()})),
    "Parquet metadata": _parquet(pa.table({"a": [1]}).replace_schema_metadata({"note": WHO})),
    "Parquet field": _parquet(pa.table([[1]], schema=pa.schema([pa.field("a", pa.int64(), metadata={"unit": WHO})]))),
    "Parquet column": _parquet(pa.table({WHO: [1]})),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_a_name_is_found_in_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(FILES[kind])
    found = run(tmp_path, "Ebenezer Scrooge", NAME)
    assert {one.line for one in found.findings} == {2}
    assert found.unsearched == ()
    assert not found.clean
    assert "uimble" not in json.dumps([(one.file, one.place, one.form) for one in found.findings]).lower()


def test_numbers_and_dates_of_parquet_are_compared_by_value(tmp_path: Path) -> None:
    table = pa.table(
        {"whole": pa.array([1, 4711007]), "real": pa.array([19610312.0, float("nan")]), "day": pa.array([date(1961, 3, 12), None]),
         "offset": pa.array([4711007, 19610312]), "fraction": pa.array([0.4711007, 5.25])}
    )  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    found = run(tmp_path, "4711007", "12/03/1961")
    assert {(one.place, one.line) for one in found.findings} == {
        ("whole, row 1", 1),
        ("real, row 0", 2),
        ("day, row 0", 2),
    }


def test_a_term_across_two_windows_is_found_once(tmp_path: Path) -> None:
    for shift in range(-40, 40, 7):
        data = bytearray(b"." * (2 * WINDOW))
        data[WINDOW + shift : WINDOW + shift + len(WHO)] = WHO.encode()
        (tmp_path / "long.txt").write_bytes(data)
        (finding,) = run(tmp_path, NAME).findings
        assert (finding.count, finding.place) == (1, f"byte {WINDOW + shift:,}")


def test_names_of_files_and_folders_are_searched_and_not_shown(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "Quimbleworth_Zebediah"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text("x")
    (tmp_path / "data" / "link").symlink_to("/archive/zebediah-quimbleworth")
    found = run(tmp_path / "data", NAME)
    assert {one.file for one in found.findings} == {"[entry 1 of 2]", "link"}
    assert found.covered.kinds == {"folder": 1, "link": 1, "text": 1}


def test_what_cannot_be_read_is_told_and_is_not_clean(tmp_path: Path) -> None:
    (tmp_path / "cut.parquet").write_bytes(FILES["Parquet value"][:-20])
    (tmp_path / "cut.zip").write_bytes(FILES["zip"][:-30])
    os.mkfifo(tmp_path / "pipe")
    found = run(tmp_path, "Ebenezer Scrooge")
    assert {one.file for one in found.unsearched} == {"cut.parquet", "cut.zip", "pipe"}
    assert not found.clean


def test_a_data_set_is_clean_and_covered(built: Path) -> None:
    found = run(built, NAME, "4711007", "12/03/1961", "1.2.840.99.1234567")
    assert found.clean
    assert found.finished
    assert found.covered.files == sum(path.is_file() for path in built.rglob("*"))
    assert found.covered.bytes == sum(path.stat().st_size for path in built.rglob("*") if path.is_file())
    assert found.covered.parts["packed png"] == 40
    assert {one.line for one in run(built, "x" * 9, "lung_trial").findings} == {2}


def test_short_terms_are_not_found_by_chance_in_pixels(tmp_path: Path) -> None:
    noise = os.urandom(3_000_000)
    (tmp_path / "a.jhc").write_bytes(b"\xff\x4f\xff\x51" + noise)
    assert run(tmp_path, "Li", "Doe", "4711", "Ann Lee", "12/03/1961", "Müller").clean


@settings(max_examples=25, deadline=None)
@given(
    st.text(st.characters(categories=("L", "N", "P", "Zs")), min_size=6, max_size=40)
    .map(str.strip)
    .filter(lambda text: len(text) >= 6)
)
def test_any_term_is_found_as_it_is_written(text: str) -> None:
    assert found_in(f"\n{text}\n", text) == {1}
    assert found_in(json.dumps(f"<{text}>"), text) == {1}


def test_files_of_terms_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "terms.txt"
    for content, says in ((b"", "no term"), (b"a\n", "line 1"), (b"\xff\xfe\xfa", "UTF-8"), (b"x" * 300, "line 1")):
        path.write_bytes(content)
        with pytest.raises(UsageError, match=says):
            read_terms(path)
    with pytest.raises(UsageError, match="cannot be read"):
        read_terms(tmp_path / "none")
    path.write_text("# a comment\n\n  Doe^Jane  \n#4711\n")
    assert [(term.line, term.text) for term in read_terms(path)] == [(3, "Doe^Jane"), (4, "#4711")]
    assert "Jane" not in repr(read_terms(path))
    with pytest.raises(UsageError, match="no such folder"):
        audit(tmp_path / "none", read_terms(path))
