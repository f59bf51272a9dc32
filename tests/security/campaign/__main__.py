"""``python -m tests.security.campaign --mutants 5000 --seed 1``: a campaign of every kind, and a table of what came of it."""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

from tests.security.campaign.run import campaign


def main() -> int:
    """Run it; 1 where a mutant did what none may."""
    from tests.security.campaign.readers import KINDS

    parser = argparse.ArgumentParser(prog="python -m tests.security.campaign", description=__doc__)
    parser.add_argument("--mutants", type=int, default=2000, help="of each kind")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", action="append", choices=sorted(KINDS))
    parser.add_argument("--number", type=int, help="only this mutant, to see it again")
    parser.add_argument("--defects", type=Path, default=Path("build/fuzz"), help="where files of defects are kept")
    given = parser.parse_args()
    total = 0
    for kind in given.kind or KINDS:
        begun = time.monotonic()
        found = campaign(kind, given.seed, given.mutants, given.defects.resolve(), given.number)
        total += len(found.defects)
        told = ", ".join(f"{name} {count}" for name, count in found.outcomes.most_common(7))
        print(
            f"{kind:8} {found.mutants:6} mutants in {time.monotonic() - begun:5.0f} s, slowest {found.slowest_s:5.1f} s, "
            f"largest {found.largest_mb:5.0f} MB: {told}",
            flush=True,
        )
        for why, times in Counter(why for _, why in found.defects).most_common(25):
            number = next(number for number, one in found.defects if one == why)
            print(f"         {times} × {why} (--kind {kind} --number {number})", flush=True)
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main())
