from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from obstore.exceptions import GenericError
from obstore.store import ObjectStore

import lumid
from lumid.catalog import places
from lumid.catalog.errors import DatasetError, LumidError, UsageError
from lumid.catalog.places import Place, Shards, as_place, identity, local_root, place_manifest
from lumid.catalog.query import count_samples, read_catalog, run_sql, why_empty
from lumid.catalog.show import show
from lumid.catalog.stores import StoredFile, StoreFiles, open_store
from lumid.catalog.subset import write_subset
from tests.factory import make_dataset
from tests.stored import remove, replace, store


def listed(url: str) -> tuple[ObjectStore, dict[str, StoredFile]]:
    """A store, and ``dataset.json`` in it as a listing gives it."""
    bucket = open_store(url)
    head = places.obstore.head(bucket, "dataset.json")
    return bucket, {"dataset.json": StoredFile(head["size"], head["last_modified"])}


def test_names_of_places(tmp_path: Path, built: Path) -> None:
    assert as_place(str(tmp_path)) == Place(tmp_path)
    assert as_place(f"file://{tmp_path}/a%20b") == Place(tmp_path / "a b")
    assert as_place("gs://bucket/x//") == Place("gs://bucket/x")
    assert as_place(Place(tmp_path)) == Place(tmp_path)
    write_subset(built, tmp_path / "s.parquet")
    of_subset = as_place(tmp_path / "s.parquet")
    assert of_subset == Place(built, tmp_path / "s.parquet")
    assert as_place(built, tmp_path / "s.parquet") == of_subset
    assert as_place(Place(built), tmp_path / "s.parquet") == of_subset
    with pytest.raises(UsageError, match="name the data set beside --subset"):
        as_place(tmp_path / "s.parquet", tmp_path / "s.parquet")
    with pytest.raises(UsageError, match="is a subset already"):
        as_place(of_subset, tmp_path / "s.parquet")
    assert local_root(of_subset) == built
    with pytest.raises(UsageError, match="local disk"):
        local_root("s3://bucket/x")


def test_a_data_set_in_a_bucket_answers_as_the_folder_does(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = store(built, monkeypatch)
    assert place_manifest(url) == place_manifest(built)
    assert read_catalog(url).equals(read_catalog(built))
    assert run_sql(url, "FROM rejects ORDER BY ALL").equals(run_sql(built, "FROM rejects ORDER BY ALL"))
    assert why_empty(url, "modality = 'XA'") == why_empty(built, "modality = 'XA'")
    with lumid.open(url) as there, lumid.open(built) as here:
        assert len(there) == 40
        for key in here.sample(5, columns=["key"])["key"].to_pylist():
            values, row = there.read(key)
            assert np.array_equal(values, here.read(key)[0])
            assert dict(row) == here.row(key)
        images = {row["key"]: values for values, row in there.where("modality = 'CT'").images()}
        assert len(images) == 14
        for values, row in here.where("modality = 'CT'").images():
            assert np.array_equal(values, images[row["key"]])
    first = show(url, tmp_path / "a.png", "modality = 'CT'").path.read_bytes()
    assert first == show(built, tmp_path / "b.png", "modality = 'CT'").path.read_bytes()


def test_a_subset_of_a_data_set_in_a_bucket(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store(built, monkeypatch)
    write_subset(url, tmp_path / "ct.parquet", "modality = 'CT'")
    write_subset(built, tmp_path / "same.parquet", "modality = 'CT'", name="ct")
    assert count_samples(tmp_path / "ct.parquet", "sex = 'F'") == count_samples(built, "modality = 'CT' AND sex = 'F'")
    # the same selection, wherever the data set is
    assert identity(tmp_path / "ct.parquet") == identity(tmp_path / "same.parquet") != identity(url) == identity(built)


@pytest.mark.parametrize(
    "sql",
    [
        "FROM read_parquet('lumid://lock.parquet')",
        "FROM read_text('lumid://dataset.json')",
        "FROM read_text('/etc/hostname')",
        "FROM glob('lumid://*')",
        "COPY (SELECT 1) TO 'lumid://catalog/x.parquet'",
    ],
)
def test_nothing_else_in_the_bucket_can_be_read(built: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    url = store(built, monkeypatch)
    with pytest.raises(UsageError) as caught:
        run_sql(url, sql)
    assert "\n" not in str(caught.value)


def test_only_what_a_query_needs_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "ds", n=1200)
    url = store(tmp_path / "ds", monkeypatch)
    asked: list[tuple[str, int]] = []
    get_range = places.obstore.get_range

    def counted(source: object, path: str, *, start: int, end: int) -> object:
        asked.append((path, end - start))
        return get_range(source, path, start=start, end=end)

    monkeypatch.setattr(places.obstore, "get_range", counted)
    size = sum(path.stat().st_size for path in (tmp_path / "ds" / "catalog").rglob("*.parquet"))
    counts = run_sql(url, "SELECT modality, avg(age_years) AS a FROM catalog WHERE modality = 'MR' GROUP BY ALL")
    assert counts.num_rows == 1
    assert asked
    # the footers, and one column of one modality
    assert sum(length for path, length in asked if "modality=MR" in path) < size / 6
    assert sum(length for _, length in asked) < size / 2


def test_a_server_that_sends_all_of_an_object_as_such_is_read(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store(built, monkeypatch)
    get_range = places.obstore.get_range

    def without_206(source: ObjectStore, path: str, *, start: int, end: int) -> object:
        if (start, end) == (0, places.obstore.head(source, path)["size"]):
            raise GenericError("Received non-partial response when range requested")
        return get_range(source, path, start=start, end=end)

    monkeypatch.setattr(places.obstore, "get_range", without_206)
    monkeypatch.setattr("lumid.catalog.stores.tried", lambda attempt: attempt())
    file = StoreFiles(*listed(url)).open("lumid://dataset.json")
    assert file.read() == (built / "dataset.json").read_bytes()
    assert file.read() == b""
    file.seek(2)
    assert file.read(3) == (built / "dataset.json").read_bytes()[2:5]


def test_faults_of_a_store_are_one_line(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = store(built, monkeypatch)
    ds = lumid.open(url)
    row = ds.sample(1).to_pylist()[0]
    replace(url, f"shards/{row['shard']}", b"short")
    part = "catalog/modality=CT/part-00000.parquet"
    replace(url, part, b"PAR1" + bytes(5000) + b"PAR1")
    remove(url, "catalog/modality=MR/part-00000.parquet")
    for attempt in (
        lambda: lumid.open(url + "/nothing"),
        lambda: lumid.open("s3://no-such-bucket-" + "x" * 12),
        lambda: lumid.open("http://127.0.0.1/x"),
        lambda: lumid.open("s3://"),
        lambda: ds.read(row["key"]),
        lambda: next(ds.images()),
        lambda: run_sql(url, "SELECT sum(p99) FROM catalog"),
    ):
        with pytest.raises(LumidError) as caught:
            attempt()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(DatasetError, match="does not answer"):
        lumid.open(url)


def test_more_shards_than_are_kept_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_dataset(tmp_path / "ds", n=40, shards=8)
    monkeypatch.setattr(places, "OPEN_SHARDS", 3)
    rows = read_catalog(tmp_path / "ds").to_pylist()
    wrong: list[str] = []
    with Shards(tmp_path / "ds") as shards:
        before = len(list(Path("/proc/self/fd").iterdir()))

        def work() -> None:
            for row in rows:
                if shards.read(row["shard"], row["offset"], 4) != b"\x89PNG":
                    wrong.append(row["key"])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 3
    assert wrong == []
    assert len(list(Path("/proc/self/fd").iterdir())) <= before
