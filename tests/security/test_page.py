"""The page on security names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_defence_has_its_test() -> None:
    page = (ROOT / "docs" / "security.md").read_text("utf-8")
    table = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| threat")]
    assert len(table) >= 10
    for line in table:
        named = re.findall(r"`(tests/[\w/]+\.py)`", line)
        assert named, line
        assert all((ROOT / name).is_file() for name in named), line
