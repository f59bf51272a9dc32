"""Shards: plain ustar files of ``<key>.<codec>`` and ``<key>.json`` pairs, sorted by key, with every offset known.

The bytes of a shard are a function of its samples alone: member headers hold no time, owner or mode that differs.
"""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lumid.catalog.errors import DatasetError
from lumid.catalog.schema import SAMPLE_FIELDS, CatalogRow

BLOCK = 512
LARGE_BYTES = 64 << 20
"""From here on a range is held against the file's size before memory is taken for it."""
END_OF_TAR = bytes(2 * BLOCK)
TO_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode


def _template() -> bytes:
    info = tarfile.TarInfo()
    info.mode = 0o644
    return info.tobuf(tarfile.USTAR_FORMAT)


BEFORE_SIZE, BEFORE_SUM, AFTER_SUM = _template()[100:124], _template()[136:148], _template()[156:]
"""What a member's header has in common with all others, around its name, size and checksum (POSIX.1-1988 ustar)."""
REST_OF_SUM = sum(BEFORE_SIZE + BEFORE_SUM + AFTER_SUM) + 8 * ord(" ")


def member(name: str, data: bytes) -> bytes:
    """One tar member: a ustar header, the data, and padding to 512 bytes.

    The header is the one that ``tarfile`` writes, which takes it twenty times as long. Raises ``ValueError`` for a name
    of more than 100 bytes.
    """
    called, size = name.encode(), b"%011o\0" % len(data)
    if len(called) > 100:
        raise ValueError("a member's name is too long")
    total = b"%06o\0 " % (REST_OF_SUM + sum(called) + sum(size))
    header = (called.ljust(100, b"\0"), BEFORE_SIZE, size, BEFORE_SUM, total, AFTER_SUM)
    return b"".join((*header, data, bytes(-len(data) % BLOCK)))


def sample_json(row: CatalogRow) -> bytes:
    """The JSON that lies beside the image: the fields of :data:`~lumid.catalog.schema.SAMPLE_FIELDS`."""
    values = {name: getattr(row, name) for name in SAMPLE_FIELDS}
    return TO_JSON(values).encode()


def sample_members(row: CatalogRow, image: bytes) -> bytes:
    """Both members of a sample, as they stand in a part and in a shard."""
    return member(f"{row.key}.{row.codec}", image) + member(f"{row.key}.json", sample_json(row))


def image_offset(sample_start: int) -> int:
    """Where the image's bytes begin in a sample that begins at ``sample_start``."""
    return sample_start + BLOCK


def read_range(file: BinaryIO | int, offset: int, length: int) -> bytes:
    """``length`` bytes at ``offset`` of an open local file, without moving its position.

    Raises :class:`DatasetError` when the file is shorter than that.
    """
    descriptor = file if isinstance(file, int) else file.fileno()
    if not (offset >= 0 and 0 <= length < LARGE_BYTES):
        # memory is taken before anything is read, and a catalog may come from a stranger
        size = os.fstat(descriptor).st_size
        if offset < 0 or length < 0 or offset + length > size:
            raise DatasetError(
                f"a shard ends at byte {size}, and the catalog lists an image elsewhere: run `lumid verify`"
            )
    data = os.pread(descriptor, length, offset)
    if len(data) != length:
        raise DatasetError(
            f"a shard ends at byte {offset + len(data)}, before an image that the catalog lists: run `lumid build` again"
        )
    return data


def read_samples(path: Path) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """The samples of a shard in their order: key, encoded image, and its JSON's fields.

    Raises :class:`DatasetError` when the file is no shard, or a damaged one.
    """
    image: tuple[str, bytes] | None = None
    try:
        with tarfile.open(path, "r|") as archive:
            for info in archive:
                # a sparse member says how large it is, and is not that large: its reader would ask for all the memory
                stream = archive.extractfile(info) if info.isreg() and not info.issparse() else None
                if stream is None:
                    raise DatasetError(f"{path.name}: holds something else than plain files; it is no shard of lumid's")
                key, _, suffix = info.name.partition(".")
                data = stream.read()
                if suffix != "json":
                    image = (key, data)
                    continue
                if image is None or image[0] != key:
                    raise DatasetError(f"{path.name}: a member has no image before it; the shard is damaged")
                yield key, image[1], json.loads(data)
                image = None
    except (tarfile.TarError, ValueError, RecursionError) as error:
        raise DatasetError(f"{path.name}: not a shard, or a damaged one; run `lumid verify`") from error
