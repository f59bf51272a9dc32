"""The command line as a user runs it, and what a build leaves: for tests of builds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lumid.catalog.layout import Layout, read_manifest
from lumid.catalog.paths import data_path, sizes

TIMEOUT_S = 300
Command = Callable[..., subprocess.CompletedProcess[str]]


def lumid(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "lumid", *map(str, arguments)],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ | environment,
    )  # fmt: skip


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lumid", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | environment, start_new_session=True,
    )  # fmt: skip


def content(root: Path) -> dict[str, str]:
    """Hashes of everything that must not depend on the way a data set was built."""
    files = [
        *sorted((root / "shards").iterdir()),
        *sorted((root / "catalog").rglob("*.parquet")),
        *sorted((root / "rejects").iterdir()),
        root / "lock.parquet",
    ]
    found = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    return found | {"catalog_hash": read_manifest(root).catalog_hash}


def stored(url: str) -> dict[str, str]:
    """What :func:`content` gives of a folder, of a data set in a store."""
    root = data_path(url)
    names = [
        name for name in sizes(root) if name.startswith(("shards/", "catalog/", "rejects/")) or name == "lock.parquet"
    ]
    found = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in names}
    return found | {"catalog_hash": read_manifest(root).catalog_hash}


def wait_for_parts(out: Path, wanted: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        if len([path for path in Layout(out).parts.glob("*.parquet") if "rejects" not in path.name]) >= wanted:
            return
        assert process.poll() is None, f"the build ended before it could be stopped: {process.communicate()}"
        time.sleep(0.002)
    raise AssertionError("the build made no parts")


def part_times(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in Layout(out).parts.glob("*.parquet")}
