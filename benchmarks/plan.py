"""How long planning the whole of LUMID takes, and how much memory: against what idc-index needs to open its index.

pip install idc-index
python benchmarks/plan.py
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 3
WAYS = {
    "lumid plan lumid, with its lock": [sys.executable, "-m", "lumid", "plan", "lumid", "--json", "--out"],
    "idc-index: IDCClient()": [sys.executable, "-c", "import idc_index; idc_index.IDCClient()"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def run(command: list[str]) -> tuple[float, float, bytes]:
    """Seconds, peak MB, and what the command printed."""
    begin = time.perf_counter()
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(command, stdout=printed, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - begin
        assert process.returncode == 0, command
        printed.seek(0)
        return seconds, usage.ru_maxrss / 1e3, printed.read()


def main() -> None:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "lock.parquet"
        for _ in range(ROUNDS):
            for name, command in WAYS.items():
                seconds, megabytes, printed = run([*command, str(lock)] if command[-1] == "--out" else command)
                found[name].append((seconds, megabytes))
                if command[-1] == "--out":
                    totals = json.loads(printed)["totals"]
        size = lock.stat().st_size / 1e6
    for name, runs in found.items():
        seconds, megabytes = statistics.median(one for one, _ in runs), max(one for _, one in runs)
        print(f"{name:<34} {seconds:5.2f} s  {megabytes:6.0f} MB at most")
    print(f"the lock has {size:.1f} MB; totals: {json.dumps(totals)}")


if __name__ == "__main__":
    main()
