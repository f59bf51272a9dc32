"""``python -m tests.soak --minutes 60 --seed 1``: strikes at random, and what came of them."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.soak.rounds import soak


def main() -> int:
    """Run it, and print a table and, with ``--json``, the same as JSON."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--round", type=int, help="only this one, to see it again")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # the bucket's every request
    with tempfile.TemporaryDirectory(prefix="lumid-soak-") as folder:
        told = lambda line: print(line, flush=True)  # noqa: E731
        rounds = soak(Path(folder) / "site", given.seed, 60 * given.minutes, told, only=given.round)
    outcomes = Counter((strike, outcome) for one in rounds for strike, outcome in one.strikes)
    print(f"\n{'what befell':18} {'what came of it':20} {'times':>6}")
    for (strike, outcome), times in sorted(outcomes.items()):
        print(f"{strike:18} {outcome:20} {times:6}")
    broken = [one for one in rounds if one.broken]
    seconds = sum(one.seconds for one in rounds)
    print(
        f"\n{len(rounds)} rounds in {seconds:,.0f} s, {sum(outcomes.values())} strikes, {len(broken)} broken promises"
    )
    for one in broken:
        print(f"round {one.number} ({one.kind}, {' + '.join(name for name, _ in one.strikes)}): {one.broken}")
    if given.json:
        facts = {
            "seed": given.seed,
            "seconds": round(seconds, 1),
            "outcomes": [{"strike": s, "outcome": o, "times": n} for (s, o), n in sorted(outcomes.items())],
            "rounds": [one.facts() for one in rounds],
        }
        given.json.write_text(json.dumps(facts, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
