from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest

from lumid.catalog.places import place_manifest
from tests.dags.command import lumid
from tests.fake_idc import s3_client, s3_server


def test_publish_then_query(built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server, bucket = s3_server(), f"b{uuid4().hex}"
    s3_client(server).create_bucket(Bucket=bucket)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "y",
    }.items():
        monkeypatch.setenv(name, value)
    url = f"s3://{bucket}/data"
    done = lumid("publish", built, url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["catalog_hash"] == place_manifest(url).catalog_hash
    assert "is there" in lumid("publish", built, url).stdout
    missing = lumid("publish", tmp_path, url)
    assert missing.returncode == 1
    assert "not a data set" in missing.stderr


def test_a_build_into_an_address_says_what_to_do(tmp_path: Path) -> None:
    refused = lumid("build", "demo", "--out", "s3://bucket/data")
    assert refused.returncode == 2
    assert "lumid publish FOLDER URL" in refused.stderr
    assert not Path("s3:").exists()
