"""Rounds of a soak: some strikes against one build, then its end in peace, which must give the undisturbed bytes."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.soak.site import BrokenPromiseError, Site, promise, site, state_of
from tests.soak.strikes import STRIKES

DISK_BYTES = 1 << 28


@dataclass(slots=True)
class Round:
    """What befell one build, what came of each strike, and which promise was broken, if one was."""

    number: int
    kind: str
    strikes: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0
    broken: str = ""

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def soak(
    folder: Path, seed: int, seconds: float, told: Callable[[str], None], *,
    only: int | None = None, strikes: tuple[str, ...] = (), rounds: int | None = None,
) -> list[Round]:  # fmt: skip
    """Rounds until ``seconds`` are over, or so many; each is drawn from ``seed`` and its number alone.

    ``strikes``: instead of drawn ones, those of the rounds, one each, in this order.
    """
    ended: list[Round] = []
    with site(folder, seed, seconds + 900) as place:
        begun = time.monotonic()
        number = -1
        while time.monotonic() - begun < seconds and len(ended) != rounds:
            number += 1
            if only is not None and number != only:
                if number > only:
                    break
                continue
            rng = random.Random(f"{seed} {number}")
            chosen = (strikes[number % len(strikes)],) if strikes else None
            ended.append(_round(place, rng, number, chosen))
            last = ended[-1]
            what = ", ".join(f"{name}: {outcome}" for name, outcome in last.strikes)
            told(f"{number:4} {last.kind:9} {last.seconds:5.1f} s  {what}  {last.broken or 'same bytes'}")
    return ended


def _round(place: Site, rng: random.Random, number: int, chosen: tuple[str, ...] | None) -> Round:
    if chosen is None:
        kind = rng.choice(("archive",) * 4 + ("folder",) * 4 + ("poisoned",))  # the last takes minutes
        possible = [name for name, (_, kinds) in STRIKES.items() if kind in kinds]
        chosen = tuple(rng.choice(possible) for _ in range(rng.choice((1, 1, 2, 3))))
    else:
        kind = rng.choice([kind for kind in STRIKES[chosen[0]][1] if kind != "poisoned"])
    one = Round(number, kind)
    begun = time.monotonic()
    with _disk(place.folder / f"round-{number}", mounted="disk full" in chosen) as folder:
        out = folder / "data"
        name = ""
        try:
            for name in chosen:
                one.strikes.append((name, STRIKES[name][0](place, rng, kind, out)))
                name = ""
                promise(state_of(out) in ("nothing", "stopped", "finished"), "nobody builds, and status says so")
            place.finish(kind, out)
        except (BrokenPromiseError, subprocess.SubprocessError) as error:
            if name:
                one.strikes.append((name, "broken"))
            one.broken = str(error).replace("\n", " | ")
            place.weather.stormy = False
    one.seconds = round(time.monotonic() - begun, 1)
    return one


@contextmanager
def _disk(folder: Path, mounted: bool) -> Iterator[Path]:
    """A folder for a round; on a disk of its own where one is asked for and may be mounted."""
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "lumid-soak", str(folder)]
    mounted = mounted and os.geteuid() == 0 and subprocess.run(options, capture_output=True).returncode == 0
    try:
        yield folder
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
