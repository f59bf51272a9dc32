"""Archives made by hand with every fault that a stranger's archive can have."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator

import pytest

from lumid.catalog.schema import REASONS
from lumid.pipeline.archives import ArchiveLimits, ArchiveMember, base_name, tar_members, zip_members
from lumid.pipeline.reject import Reject

NOISE = os.urandom(5000)


def make_zip(*members: tuple[str | zipfile.ZipInfo, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def make_tar(*members: tuple[str | tarfile.TarInfo, bytes], format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def of_type(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def zipped(data: bytes, limits: ArchiveLimits | None = None) -> list[tuple[str, bytes | str]]:
    file = io.BytesIO(data)
    return told(zip_members(file, limits) if limits else zip_members(file))


def tarred(data: bytes, limits: ArchiveLimits | None = None) -> list[tuple[str, bytes | str]]:
    stream = OneWay(data)
    return told(tar_members(stream, limits) if limits else tar_members(stream))


def told(members: Iterator[ArchiveMember]) -> list[tuple[str, bytes | str]]:
    """Names with bytes, or with code and detail of the reason."""
    found: list[tuple[str, bytes | str]] = []
    for member in members:
        data = member.read()
        found.append((member.name, f"{data.code}: {data.detail}" if isinstance(data, Reject) else data))
    return found


class OneWay(io.RawIOBase):
    """A stream that cannot be gone back in, and gives what it likes."""

    def __init__(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        return self._rest.read(min(size, 1000) if size > 0 else size)


PLAIN = (("a/1.dcm", NOISE), ("a/2.dcm", b""), ("b.png", b"x" * 3000))


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_members_come_whole_and_in_order(compression: int) -> None:
    assert zipped(make_zip(*PLAIN, compression=compression)) == list(PLAIN)


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_tar_members_come_whole_and_in_order(pack: Callable[[bytes], bytes], format: int) -> None:
    assert tarred(pack(make_tar(*PLAIN, format=format))) == list(PLAIN)


def test_long_and_foreign_names_survive() -> None:
    name = "ordner/" + "ü" * 200 + "/" + "x" * 200 + ".dcm"
    for kind in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        assert tarred(make_tar((name, NOISE), format=kind)) == [(name, NOISE)]
    assert zipped(make_zip((name, NOISE))) == [(name, NOISE)]


def test_folders_are_not_members() -> None:
    assert zipped(make_zip(("a/", b""), ("a/b", b"1"))) == [("a/b", b"1")]
    assert tarred(make_tar((of_type("a", tarfile.DIRTYPE), b""), ("a/b", b"1"))) == [("a/b", b"1")]


def test_a_head_can_be_read_before_the_rest() -> None:
    for members in (zip_members(io.BytesIO(make_zip(("a", NOISE)))), tar_members(OneWay(make_tar(("a", NOISE))))):
        member = next(members)
        assert member.read(100) == NOISE[:100]
        assert member.read(50) == NOISE[:50]
        assert member.read() == NOISE
        assert member.read(9999) == NOISE
        assert list(members) == []


def test_members_need_not_be_read() -> None:
    assert [member.name for member in tar_members(OneWay(gzip.compress(make_tar(*PLAIN))))] == [n for n, _ in PLAIN]


NAMES = [
    ("/etc/passwd", "absolute path"),
    ("\\\\server\\x", "absolute path"),
    ("C:\\x", "absolute path"),
    ("../x", "path with '..'"),
    ("a/../../x", "path with '..'"),
    ("a\\..\\x", "path with '..'"),
    ("..", "path with '..'"),
]


@pytest.mark.parametrize(("name", "why"), NAMES)
def test_paths_that_lead_out_are_rejected(name: str, why: str) -> None:
    expected = [("ok", b"1"), (name, f"unsafe_member: {why}"), ("after", b"2")]
    assert tarred(make_tar(("ok", b"1"), (name, b"evil"), ("after", b"2"))) == expected
    assert zipped(make_zip(("ok", b"1"), (name, b"evil"), ("after", b"2"))) == expected


def test_a_name_with_nul_is_rejected_not_cut() -> None:
    data = make_zip(("fine.dcmXexe", b"1")).replace(b"fine.dcmXexe", b"fine.dcm\0exe")
    assert [why for _, why in zipped(data)] == ["unsafe_member: no proper name"]


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"],
)
def test_links_and_devices_in_tars_are_rejected(kind: bytes) -> None:
    link = of_type("link", kind, "ok")
    assert tarred(make_tar(("ok", b"1"), (link, b""), ("after", b"2"))) == [
        ("ok", b"1"),
        ("link", "unsafe_member: a link or device"),
        ("after", b"2"),
    ]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_links_and_devices_in_zips_are_rejected(kind: int) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (kind | 0o777) << 16
    assert zipped(make_zip((info, b"/etc/passwd"), ("after", b"2"))) == [
        ("link", "unsafe_member: a link or device"),
        ("after", b"2"),
    ]


def test_sparse_members_are_rejected() -> None:
    sparse = of_type("hole", tarfile.GNUTYPE_SPARSE)
    assert tarred(make_tar((sparse, b""), ("after", b"2"), format=tarfile.GNU_FORMAT))[0] == (
        "hole",
        "unsafe_member: a sparse file",
    )
    holes = tarfile.TarInfo("hole")
    holes.pax_headers = {"GNU.sparse.map": "0,0,1099511627776,0", "GNU.sparse.size": "1099511627776"}
    assert tarred(make_tar((holes, b"")))[0][1] == "unsafe_member: a sparse file"


def test_encrypted_members_are_rejected() -> None:
    data = bytearray(make_zip(("secret", NOISE)))
    directory = data.index(b"PK\1\2")
    for flags in (6, directory + 8):  # local header and directory: APPNOTE 4.3.7, 4.3.12
        data[flags] |= 1
    assert zipped(bytes(data)) == [("secret", "unsafe_member: encrypted")]


def test_an_unknown_compression_is_rejected() -> None:
    data = bytearray(make_zip(("odd", NOISE), ("fine", b"1")))
    directory = data.index(b"PK\1\2")
    data[8], data[directory + 10] = 97, 97
    assert [why for _, why in zipped(bytes(data))] == [
        "unsafe_member: a compression or encryption that is not read",
        b"1",
    ]


def test_a_name_counts_once() -> None:
    with pytest.warns(UserWarning, match="Duplicate"):
        data = make_zip(("a", b"1"), ("a", b"2"))
    expected = [("a", b"1"), ("a", "unsafe_member: two members of one name")]
    assert zipped(data) == expected
    assert tarred(make_tar(("a", b"1"), ("a", b"2"))) == expected


LIMITS = ArchiveLimits(max_member_bytes=8 << 20, max_ratio=100, free_bytes=1 << 20, max_members=5)


def test_bombs_are_not_unpacked() -> None:
    zeros = b"\0" * (4 << 20)
    bomb = [("ok", b"1"), ("bomb", zeros), ("after", b"2")]
    assert zipped(make_zip(*bomb), LIMITS) == [
        ("ok", b"1"),
        ("bomb", "unsafe_member: unpacks to many times its size"),
        ("after", b"2"),
    ]
    for pack in (gzip.compress, bz2.compress, lzma.compress):
        assert tarred(pack(make_tar(*bomb)), LIMITS)[-1] == ("", "unsafe_member: unpacks to many times its size")
    assert len(tarred(make_tar(*bomb), LIMITS)) == 3, "not packed: nothing absurd about it"


def test_many_small_bombs_are_one_large_one() -> None:
    whys = [why for _, why in zipped(make_zip(*((str(i), b"\0" * (600 << 10)) for i in range(4))), LIMITS)]
    assert [isinstance(why, bytes) for why in whys] == [True, False, False, False]


def test_images_of_air_are_no_bomb() -> None:
    air = b"\0" * (512 * 512 * 2)
    assert zipped(make_zip(*((f"{i}.dcm", air) for i in range(20))))[-1] == ("19.dcm", air)


def test_quoted_overlap_is_rejected() -> None:
    """Two entries of the directory on one body."""
    data = make_zip(("a", NOISE))
    directory = data.index(b"PK\1\2")
    end = data.index(b"PK\5\6")
    entry = data[directory:end]
    assert entry.endswith(b"a"), "the name stands last; an earlier byte of time or checksum may be an a too"
    second = entry[:-1] + b"b"
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 2, 2, len(entry) * 2, directory, 0)
    found = zipped(data[:directory] + entry + second + tail)
    assert all(isinstance(why, str) and "another member's" in why for _, why in found), found


def test_declared_sizes_have_a_limit() -> None:
    huge = bytearray(make_tar(("huge", b"1")))
    info = tarfile.TarInfo("huge")
    info.size = 9 << 20
    huge[:512] = info.tobuf()
    assert tarred(bytes(huge), LIMITS) == [
        ("huge", "unsafe_member: larger than the limit"),
        ("", "broken_archive: ends early"),
    ]
    assert zipped(make_zip(("huge", bytes(9 << 20)), compression=zipfile.ZIP_STORED), LIMITS) == [
        ("huge", "unsafe_member: larger than the limit")
    ]


def test_members_have_a_limit() -> None:
    many = [(str(number), b"1") for number in range(9)]
    for found in (zipped(make_zip(*many), LIMITS), tarred(make_tar(*many), LIMITS)):
        assert found == [*many[:5], ("", "unsafe_member: more members than are read")]


def test_a_header_of_absurd_size_is_not_read_into_memory() -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        info = of_type("long", kind)
        info.size = 1 << 40
        assert tarred(info.tobuf() + b"x" * 4096) == [("", "broken_archive: damaged")]


def test_a_zip_that_unpacks_to_another_size_is_broken() -> None:
    data = bytearray(make_zip(("a", NOISE + bytes(3000))))
    directory = data.index(b"PK\1\2")
    for size in (4000, 9000):
        changed = bytearray(data)
        struct.pack_into("<L", changed, directory + 24, size)
        struct.pack_into("<L", changed, 22, size)
        assert zipped(bytes(changed))[0][1] in (
            "broken_archive: a checksum does not match",
            "broken_archive: ends early",
        )


def test_flipped_bits_are_found() -> None:
    data = bytearray(make_zip(("a", NOISE), ("b", NOISE[::-1]), compression=zipfile.ZIP_STORED))
    data[2000] ^= 1
    assert zipped(bytes(data)) == [("a", "broken_archive: a checksum does not match"), ("b", NOISE[::-1])]
    packed = bytearray(gzip.compress(make_tar(("a", NOISE)), compresslevel=0))
    packed[2000] ^= 1
    assert tarred(bytes(packed))[-1] == ("", "broken_archive: a checksum does not match")


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_a_tar_cut_anywhere_never_passes_for_whole(pack: Callable[[bytes], bytes]) -> None:
    members = [(f"{number}.bin", bytes([number]) * 700 + NOISE[:200]) for number in range(6)]
    data = pack(make_tar(*members, format=tarfile.USTAR_FORMAT))
    whole = 6 * (512 + 1024) + 512 if pack is bytes else len(data)
    for cut in [*range(0, whole, 97), *range(512, whole, 512), whole - 1]:
        found = tarred(data[:cut])
        assert found[-1][1] in ("broken_archive: ends early", "broken_archive: damaged"), cut
        read = [(name, data) for name, data in found if isinstance(data, bytes)]
        assert read == members[: len(read)]


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"not an archive at all" * 100, b"\x1f\x8b\x08rubbish", b"PK\5\6" + b"\xff" * 18]
)
def test_what_is_no_archive_is_broken(data: bytes) -> None:
    assert [name for name, _ in zipped(data)] == [""]
    assert zipped(data)[0][1].startswith("broken_archive")  # type: ignore[union-attr]
    assert tarred(data)[-1][1].startswith("broken_archive")  # type: ignore[union-attr]


def test_damage_in_the_middle_of_a_tar_is_not_its_end() -> None:
    data = bytearray(make_tar(("a", b"1"), ("b", b"2"), ("c", b"3"), format=tarfile.USTAR_FORMAT))
    data[1024:1536] = os.urandom(512)
    assert tarred(bytes(data)) == [("a", b"1"), ("", "broken_archive: damaged")]


def test_reasons_hold_no_names() -> None:
    """Members' names can be patients'."""
    evil = make_tar(("../DOE^JANE", b"1"), (of_type("DOE^JANE", tarfile.SYMTYPE, "/DOE^JANE"), b""))
    for member in tar_members(io.BytesIO(evil)):
        assert "DOE" not in repr(member)
        assert isinstance(member.reject, Reject)
        assert "DOE" not in member.reject.message


def test_random_bytes_never_raise() -> None:
    base = make_zip(*PLAIN)
    tar = gzip.compress(make_tar(*PLAIN))
    rng = random.Random(4)
    for _ in range(300):
        for data, read in ((bytearray(base), zipped), (bytearray(tar), tarred), (bytearray(make_tar(*PLAIN)), tarred)):
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            for _, outcome in read(bytes(data)):
                # content, or a reason that is known
                assert isinstance(outcome, bytes) or outcome.partition(":")[0] in REASONS


def test_base_name() -> None:
    assert [base_name(name) for name in ("a/b.dcm", "a\\b.dcm", "b.dcm", "a/")] == ["b.dcm", "b.dcm", "b.dcm", ""]


def test_a_crc_of_zero_is_still_a_crc() -> None:
    assert zlib.crc32(b"") == 0
    assert zipped(make_zip(("empty", b""))) == [("empty", b"")]


def test_a_member_without_a_name_is_one_that_is_not_taken() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a", b"")
    data = bytearray(buffer.getvalue())
    place = data.index(b"PK\1\2")
    data[place + 28 : place + 30] = b"\0\0"
    del data[place + 46]
    end = data.index(b"PK\5\6")
    data[end + 12 : end + 16] = (int.from_bytes(data[end + 12 : end + 16], "little") - 1).to_bytes(4, "little")
    (member,) = zip_members(io.BytesIO(bytes(data)))
    assert isinstance(member.read(), Reject)


def test_what_wants_more_memory_than_there_is_to_be_unpacked_is_rejected() -> None:
    """As LZMA does whose dictionary is said to be of four gigabytes."""

    def opener() -> io.BytesIO:
        raise MemoryError

    found = ArchiveMember("a", 3, None, opener).read()
    assert isinstance(found, Reject)
    assert found.code == "unsafe_member"
