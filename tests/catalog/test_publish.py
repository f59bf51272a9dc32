from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from lumid.catalog.errors import StorageError, UsageError
from lumid.catalog.places import place_manifest
from lumid.catalog.publish import CLAIM, COMMIT, publish
from lumid.catalog.query import count_samples
from tests.factory import make_image, make_sample, write_dataset
from tests.fake_idc import s3_server
from tests.servers import before, now_and_then


def contents(bucket: tuple[str, Any], prefix: str = "p/") -> dict[str, bytes]:
    name, client = bucket
    keys = [one["Key"] for one in client.list_objects_v2(Bucket=name, Prefix=prefix).get("Contents", [])]
    return {key.removeprefix(prefix): client.get_object(Bucket=name, Key=key)["Body"].read() for key in keys}


def on_disk(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_same_bytes_and_readable(built: Path, bucket: tuple[str, Any]) -> None:
    url = f"s3://{bucket[0]}/p"
    told: list[tuple[int, int]] = []
    assert publish(built, url, lambda done, total: told.append((done, total))) == place_manifest(url)
    assert contents(bucket) == on_disk(built)
    assert told[-1][0] == told[-1][1] == sum(len(data) for name, data in on_disk(built).items() if name != COMMIT)
    assert count_samples(url) == count_samples(built)
    publish(built, url)
    assert contents(bucket) == on_disk(built)


def test_what_is_there_is_not_overwritten(built: Path, bucket: tuple[str, Any], tmp_path: Path) -> None:
    name, client = bucket
    client.put_object(Bucket=name, Key="p/mine.txt", Body=b"mine")
    with pytest.raises(UsageError, match="is not empty"):
        publish(built, f"s3://{name}/p")
    assert contents(bucket) == {"mine.txt": b"mine"}
    publish(built, f"s3://{name}/q")
    write_dataset(tmp_path / "other", [make_sample("CT", 7, make_image(np.random.default_rng(3), "CT"))], 1)
    with pytest.raises(UsageError, match="another build"):
        publish(tmp_path / "other", f"s3://{name}/q")
    assert contents(bucket, "q/") == on_disk(built)


def test_two_at_once_are_never_mixed(built: Path, bucket: tuple[str, Any], tmp_path: Path) -> None:
    write_dataset(tmp_path / "other", [make_sample("CT", 7, make_image(np.random.default_rng(3), "CT"))], 1)
    roots = [built, tmp_path / "other", built, tmp_path / "other"]

    def attempt(root: Path) -> bool:
        try:
            publish(root, f"s3://{bucket[0]}/p")
        except UsageError:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        ended = list(pool.map(attempt, roots))
    whole = [on_disk(root) for root in roots[:2]]
    assert contents(bucket) in whole
    assert all((contents(bucket) == on_disk(root)) for root, done in zip(roots, ended, strict=True) if done)
    assert any(ended)


def test_goes_on_after_kill(built: Path, bucket: tuple[str, Any]) -> None:
    url = f"s3://{bucket[0]}/p"
    slow = "import time, sys, lumid.catalog.publish as p; from pathlib import Path\n"
    slow += "put = p.obstore.put\np.PUTS = 1\n"
    slow += "def late(*a, **k):\n    time.sleep(0.3)\n    return put(*a, **k)\np.obstore.put = late\n"
    slow += "p.publish(Path(sys.argv[1]), sys.argv[2])\n"
    process = subprocess.Popen([sys.executable, "-c", slow, str(built), url], env=dict(os.environ))
    deadline = time.monotonic() + 20
    while len(contents(bucket)) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert CLAIM in contents(bucket)
    assert COMMIT not in contents(bucket)
    publish(built, url)
    assert contents(bucket) == on_disk(built)


def test_no_bucket_is_one_line(built: Path, bucket: tuple[str, Any]) -> None:
    with pytest.raises(StorageError, match="no such bucket; make it first") as error:
        publish(built, f"s3://none-{uuid4().hex}/p")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("answered", [False, True])
def test_flapping_store(built: Path, bucket: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, answered: bool) -> None:
    refuse, refused = now_and_then(0.25)
    with before(s3_server(), refuse, answered=answered) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        publish(built, f"s3://{bucket[0]}/p")
    assert "PUT" in refused
    assert contents(bucket) == on_disk(built)


@pytest.mark.parametrize(("code", "says"), [(403, "not allowed to write"), (507, "the bucket is full")])
def test_refused_writes_are_one_line(
    built: Path, bucket: tuple[str, Any], monkeypatch: pytest.MonkeyPatch, code: int, says: str
) -> None:
    monkeypatch.setattr("lumid.catalog.stores.LONGEST_WAIT_S", 0.01)
    with before(s3_server(), lambda command: code if command == "PUT" else None) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        with pytest.raises(StorageError, match=says) as error:
            publish(built, f"s3://{bucket[0]}/p")
    assert "\n" not in str(error.value)
    assert contents(bucket) == {}
