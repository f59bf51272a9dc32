"""The synthetic catalog of the benchmarks has all the columns of a real one, in its order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lumid
from lumid.catalog.schema import CATALOG

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "synthetic_catalog.py"


def test_a_small_one_is_a_data_set_that_can_be_asked(tmp_path: Path) -> None:
    subprocess.run([sys.executable, SCRIPT, tmp_path, "--rows", "3000"], check=True, timeout=120)
    opened = lumid.open(tmp_path)
    table = opened.to_arrow()
    assert table.num_rows == 3000
    assert table.schema.names == CATALOG.names
    keys = table["key"].to_pylist()
    assert len(set(keys)) == 3000
    series = opened.query("SELECT series, count(*) AS n, any_value(slice_count) AS stated FROM catalog GROUP BY series")
    assert all(row["n"] == row["stated"] for row in series.to_pylist())
