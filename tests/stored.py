"""Data sets in a bucket of a local S3 server."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pytest

from tests.fake_idc import s3_client, s3_server


def store(root: Path, monkeypatch: pytest.MonkeyPatch, prefix: str = "deep/lumid") -> str:
    """A public copy of a data set in a new bucket, and an environment that leads there; its URL."""
    server = s3_server()
    client, bucket = s3_client(server), f"b{uuid4().hex}"
    client.create_bucket(Bucket=bucket, ACL="public-read")
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        client.put_object(
            Bucket=bucket,
            Key=f"{prefix}/{path.relative_to(root).as_posix()}",
            Body=path.read_bytes(),
            ACL="public-read",
        )
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    return f"s3://{bucket}/{prefix}"


def remove(url: str, name: str) -> None:
    """One object of a data set, gone."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    s3_client(s3_server()).delete_object(Bucket=bucket, Key=f"{prefix}/{name}")


def replace(url: str, name: str, data: bytes) -> None:
    """One object of a data set, with other bytes."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    s3_client(s3_server()).put_object(Bucket=bucket, Key=f"{prefix}/{name}", Body=data, ACL="public-read")
