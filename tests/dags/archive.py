"""An archive on this machine of which series come and go, for tests of builds that fetch only some of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.layout import Layout, Manifest, read_manifest
from lumid.catalog.paths import AnyPath
from lumid.catalog.verify import verify
from lumid.dags.build import build
from lumid.dags.cluster import ClusterSettings
from lumid.dags.progress import BuildProgress
from lumid.pipeline.lock import LOCK
from lumid.pipeline.recipe import FetchSettings, IdcSettings, Recipe, SelectSettings, ShardSettings
from tests.dags.command import content
from tests.dicom import as_bytes, gradient, image
from tests.fake_idc import s3_client

NUMBERS = itertools.count()
Make = Callable[[Mapping[str, Mapping[str, bytes]]], "Archive"]


@dataclass(frozen=True)
class Archive:
    """A bucket of an S3 server on this machine, and the lock of what should be in it."""

    client: Any
    endpoint: str
    bucket: str
    series: Mapping[str, Mapping[str, bytes]]
    cluster: ClusterSettings
    select: SelectSettings = field(default_factory=SelectSettings)

    def give(self, *locations: str) -> None:
        """These series are there from now on."""
        for location in locations:
            for name, data in self.series[location].items():
                self.client.put_object(Bucket=self.bucket, Key=f"{location}/{name}", Body=data, ACL="public-read")

    def take_away(self, *locations: str) -> None:
        """These are not any more."""
        for location in locations:
            for name in self.series[location]:
                self.client.delete_object(Bucket=self.bucket, Key=f"{location}/{name}")

    def lock(self) -> pa.Table:
        keyer = Keyer(PUBLIC_SECRET)
        rows = [
            dict.fromkeys(LOCK.names)
            | {"recipe_source": 0, "source": "idc", "collection": "lidc_idri", "license": "CC BY 3.0", "bytes": 1,
               "source_version": "IDC v25", "digest": location, "location": location, "objects": len(files),
               "series": keyer.pseudonym("series", location), "urls": [f"s3://{self.bucket}/{location}/"]}
            for location, files in self.series.items()
        ]  # fmt: skip
        return pa.Table.from_pylist(rows, schema=LOCK)

    def build(self, out: AnyPath, workers: int | None = None, **more: Any) -> Manifest:
        fetch = FetchSettings(s3_endpoint=self.endpoint, attempts=1, timeout_s=5, **more)
        recipe = Recipe(
            name="part", sources=(IdcSettings(),), fetch=fetch, select=self.select,
            shards=ShardSettings(size_mb=0.02, batch_slices=4),
        )  # fmt: skip
        cluster = ClusterSettings(None, workers) if workers else self.cluster
        return build(recipe, out, cluster, BuildProgress(Console(quiet=True)), self.lock()).manifest


def ct(series: str, number: int, instance: str | None = None, **elements: Any) -> bytes:
    pixels = gradient(high=400 + 7 * number)
    uids = {"SeriesInstanceUID": series, "SOPInstanceUID": instance or f"{series}.{number}"}
    return as_bytes(image(pixels, PatientID=f"patient of {series}", StudyInstanceUID=f"{series}.0", **uids, **elements))


def plain(series: str, objects: int) -> dict[str, bytes]:
    return {f"{number:08x}.dcm": ct(series, number) for number in range(objects)}


def make_archive(endpoint: str, cluster: ClusterSettings, series: Mapping[str, Mapping[str, bytes]]) -> Archive:
    client = s3_client(endpoint)
    bucket = f"idc-{next(NUMBERS)}"
    client.create_bucket(Bucket=bucket, ACL="public-read")
    return Archive(client, endpoint, bucket, series, cluster)


def assert_same(one: Path, other: Path) -> None:
    """Both hold the same data set, byte for byte, and say the same of it but for the facts about its build."""
    assert content(one) == content(other)
    assert replace(read_manifest(one), build={}) == replace(read_manifest(other), build={})
    assert verify(one, deep=True).sound
    assert not Layout(one).work.exists()
