from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumid.catalog.codecs import decode, pixel_hash
from lumid.catalog.errors import DatasetError
from lumid.catalog.layout import read_manifest
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import SAMPLE_FIELDS
from lumid.catalog.shards import END_OF_TAR, member, read_range, read_samples


@given(st.text("0123456789abcdef.jhcpng_-", min_size=1, max_size=100), st.binary(max_size=1500))
def test_a_member_is_what_tarfile_writes(name: str, content: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(content), 0o644
        archive.addfile(info, io.BytesIO(content))
        assert member(name, content) == buffer.getvalue()


@given(st.lists(st.binary(max_size=2000), max_size=5))
def test_members_are_a_tar_that_pythons_tarfile_reads(contents: list[bytes]) -> None:
    import io

    data = b"".join(member(f"{number:024x}.png", content) for number, content in enumerate(contents)) + END_OF_TAR
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        infos = archive.getmembers()
        assert [archive.extractfile(info).read() for info in infos] == contents  # type: ignore[union-attr]
        assert all(
            data[info.offset_data : info.offset_data + info.size] == content
            for info, content in zip(infos, contents, strict=True)
        )
        assert all((info.mtime, info.uid, info.uname, info.mode) == (0, 0, "", 0o644) for info in infos)


def test_every_catalog_row_points_at_its_image(built: Path) -> None:
    rows = read_catalog(built).to_pylist()
    assert len(rows) == 40
    for row in rows:
        with (built / "shards" / row["shard"]).open("rb") as file:
            data = read_range(file, row["offset"], row["length"])
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        pixels = decode(data, row["codec"])
        assert pixel_hash(pixels) == row["pixel_hash"]
        assert pixels.shape[:2] == (row["height"], row["width"])


def test_shards_hold_the_keys_in_order(built: Path) -> None:
    keys = [key for shard in sorted((built / "shards").iterdir()) for key, _, _ in read_samples(shard)]
    assert keys == sorted(keys) == read_catalog(built, columns=["key"])["key"].to_pylist()
    for shard in read_manifest(built).shards:
        assert hashlib.sha256((built / "shards" / shard.name).read_bytes()).hexdigest() == shard.sha256


def test_sample_json_holds_the_rows_fields(built: Path) -> None:
    rows = {row["key"]: row for row in read_catalog(built).to_pylist()}
    for key, _, fields in read_samples(built / "shards" / "lumid-000000.tar"):
        assert fields == {name: rows[key][name] for name in SAMPLE_FIELDS}


def test_plain_webdataset_reads_the_shards(built: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    hashes = dict(read_catalog(built, columns=["key", "pixel_hash"]).select(["key", "pixel_hash"]).to_pydict().items())
    wanted = dict(zip(hashes["key"], hashes["pixel_hash"], strict=True))
    urls = [str(path) for path in sorted((built / "shards").iterdir())]
    seen = {}
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        assert json.loads(sample["json"])["key"] == sample["__key__"]
        seen[sample["__key__"]] = pixel_hash(decode(sample["png"], "png"))
    assert seen == wanted


def test_read_range_does_not_move_the_file(built: Path) -> None:
    path = built / "shards" / "lumid-000000.tar"
    with path.open("rb") as file:
        file.seek(100)
        assert read_range(file, 3, 50) == path.read_bytes()[3:53]
        assert file.tell() == 100
        with pytest.raises(DatasetError, match="ends at byte"):
            read_range(file, path.stat().st_size - 5, 10)


def test_json_without_image_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "lumid-000000.tar"
    path.write_bytes(member("a.png", b"x") + member("b.json", b"{}") + END_OF_TAR)
    with pytest.raises(DatasetError, match="has no image before it"):
        list(read_samples(path))


def test_images_are_what_was_drawn(built: Path) -> None:
    for _, image, fields in read_samples(built / "shards" / "lumid-000001.tar"):
        values = fields["store_slope"] * decode(image, "png").astype(np.float64) + fields["store_intercept"]
        assert np.percentile(values, 50) == pytest.approx(fields["p50"])
