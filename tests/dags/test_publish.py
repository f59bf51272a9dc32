from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lumid.catalog.places import place_manifest
from tests.dags.command import lumid


def test_publish_then_query(built: Path, tmp_path: Path, bucket: tuple[str, Any]) -> None:
    url = f"s3://{bucket[0]}/data"
    done = lumid("publish", built, url, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["catalog_hash"] == place_manifest(url).catalog_hash
    assert "is there" in lumid("publish", built, url).stdout
    missing = lumid("publish", tmp_path, url)
    assert missing.returncode == 1
    assert "not a data set" in missing.stderr
