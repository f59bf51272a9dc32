from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import lumid
from lumid.catalog.codecs import decode
from lumid.catalog.errors import DatasetError, UsageError
from lumid.catalog.query import read_catalog
from lumid.catalog.schema import CATALOG
from lumid.catalog.shards import read_range
from tests.factory import make_dataset


def test_read_gives_the_image_in_its_unit_and_its_whole_row(built: Path) -> None:
    with lumid.open(built) as ds:
        for expected in read_catalog(built).to_pylist():
            values, row = ds.read(expected["key"])
            with (built / "shards" / expected["shard"]).open("rb") as file:
                stored = decode(read_range(file, expected["offset"], expected["length"]), expected["codec"])
            wanted = expected["store_slope"] * stored.astype(np.float64) + expected["store_intercept"]
            assert values.dtype == np.float32
            np.testing.assert_allclose(values, wanted, rtol=1e-5, atol=1e-4)
            assert dict(row) == expected
            assert ds.row(expected["key"]) == expected


def test_a_row_needs_the_catalog_only_for_what_is_not_beside_the_image(dataset: Path) -> None:
    ds = lumid.open(dataset)
    key = ds.sample(1, columns=["key"])["key"][0].as_py()
    for path in (dataset / "catalog").glob("*/*.parquet"):
        path.write_bytes(b"")
    _, row = ds.read(key)
    assert row["key"] == key
    assert row["split"] in ("train", "val")
    with pytest.raises(DatasetError):
        row["manufacturer"]
    with pytest.raises(KeyError, match="did you mean modality"):
        row["modalty"]


@pytest.mark.parametrize("key", ["", "zz", "0" * 24, "f" * 24, "7" * 24, "Z" * 24, "../../etc", "7" * 23])
def test_no_such_key(built: Path, key: str) -> None:
    with pytest.raises(UsageError, match="no sample"):
        lumid.open(built).read(key)
    with pytest.raises(UsageError, match="no sample"):
        lumid.open(built).row(key)


def test_selections_narrow_everything(built: Path) -> None:
    ds = lumid.open(str(built))
    ct = ds.where("modality = 'CT'")
    assert len(ct) == 14
    assert ct.query("SELECT DISTINCT modality FROM catalog").to_pylist() == [{"modality": "CT"}]
    assert ct.query("WITH x AS (FROM catalog) SELECT count(*) AS n FROM x").to_pylist() == [{"n": 14}]
    both = ct.where("sex = 'F' OR true -- all\n")
    assert len(both) == 14
    assert both.to_arrow().schema.equals(CATALOG, check_metadata=True)
    assert ct.to_arrow(["key"])["key"].to_pylist() == read_catalog(built, "modality = 'CT'", ["key"])["key"].to_pylist()
    assert "14 samples with modality = 'CT'" in repr(ct)
    with pytest.raises(UsageError, match="did you mean modality"):
        ds.where("modalty = 'CT'")
    with pytest.raises(UsageError):
        ds.where("true); COPY catalog TO 'x.csv'; SELECT (1")
    with pytest.raises(UsageError, match="did you mean key"):
        ds.to_arrow(["keys"])


def test_samples_are_fair_and_repeat(built: Path) -> None:
    ds = lumid.open(built)
    keys = ds.to_arrow(["key"])["key"].to_pylist()
    seen = [tuple(ds.sample(5, seed, ["key"])["key"].to_pylist()) for seed in range(40)]
    assert len(set(seen)) > 10
    assert {key for one in seen for key in one} == set(keys)
    assert all(len(set(one)) == 5 for one in seen)
    assert sorted(ds.sample(1000, columns=["key"])["key"].to_pylist()) == keys
    assert ds.sample(0).num_rows == 0


def test_frames(built: Path) -> None:
    ds = lumid.open(built)
    frame = ds.to_pandas(["key", "modality"], limit=7)
    assert frame.shape == (7, 2)
    assert list(frame["key"]) == ds.to_arrow(["key"], limit=7)["key"].to_pylist()


def test_polars(built: Path) -> None:
    pl = pytest.importorskip("polars")
    frame = lumid.open(built).to_polars()
    assert frame.shape == (40, len(CATALOG))
    assert frame.filter(pl.col("modality") == "CT").height == 14


def test_what_is_not_installed_is_named(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(UsageError, match="pip install polars"):
        lumid.open(built).to_polars()


def test_images_stream_in_the_order_of_keys(built: Path) -> None:
    ds = lumid.open(built)
    read: list[str] = []
    for values, row in ds.where("modality <> 'US'").images(["modality"]):
        expected, _ = ds.read(row["key"])
        assert np.array_equal(values, expected)
        assert set(row) == {"key", "modality"}
        read.append(row["key"])
    assert read == ds.where("modality <> 'US'").to_arrow(["key"])["key"].to_pylist()


def test_threads_share_a_data_set(built: Path) -> None:
    ds = lumid.open(built)
    keys = ds.to_arrow(["key"])["key"].to_pylist()
    wrong: list[object] = []

    def work(some: Sequence[str]) -> None:
        for key in some:
            if ds.read(key)[1]["key"] != key or len(ds.where("modality = 'MR'")) != 13:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(keys[part::4],)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_damaged_image(dataset: Path) -> None:
    ds = lumid.open(dataset)
    row = ds.sample(1).to_pylist()[0]
    path = dataset / "shards" / row["shard"]
    data = bytearray(path.read_bytes())
    data[row["offset"] : row["offset"] + row["length"]] = bytes(row["length"])
    path.write_bytes(data)
    with pytest.raises(DatasetError, match="cannot be decoded"):
        ds.read(row["key"])
    path.unlink()
    with pytest.raises(DatasetError, match="missing"):
        lumid.open(dataset).read(row["key"])


def test_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not a data set"):
        lumid.open(tmp_path)
    with pytest.raises(DatasetError, match="not a data set"):
        lumid.open(tmp_path / "nothing")
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(UsageError, match="neither a data set nor a subset"):
        lumid.open(tmp_path / "x.txt")
    make_dataset(tmp_path / "none", n=0)
    assert len(lumid.open(tmp_path / "none")) == 0
