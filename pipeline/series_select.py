"""Which slices of a series are taken, seen beside each other: every n-th, so many at most, none that repeats another.

What is decided here depends on the slices alone: on their place and their keys, and not on the order of files.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lumid.pipeline.geometry import Placed, stacks

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Place:
    """What decides where a frame stands in its series: where it lies, if that is known, and the numbers of its header.

    ``key`` decides where nothing else does.
    """

    placed: Placed | None
    instance_number: float | None
    frame: int
    key: str


def in_order(places: Sequence[Place]) -> list[int]:
    """The frames of a series from the first to the last, as indices.

    In space first (:func:`lumid.pipeline.geometry.stacks`, which ``slice_index`` counts too), then by InstanceNumber and
    frame; those without a position come last.
    """
    at: dict[int, tuple[int, int]] = {}
    for stack, (members, levels) in enumerate(stacks([one.placed for one in places])):
        at |= {number: (stack, int(level)) for number, level in zip(members, levels, strict=True)}

    def rank(number: int) -> tuple[bool, tuple[int, int], float, int, str]:
        one = places[number]
        return number not in at, at.get(number, (0, 0)), one.instance_number or 0.0, one.frame, one.key

    return sorted(range(len(places)), key=rank)


def evenly(total: int, wanted: int) -> list[int]:
    """``wanted`` of ``total`` places, as evenly as can be, and as far from both ends as from each other.

    >>> evenly(10, 3)
    [1, 5, 8]
    """
    if wanted >= total:
        return list(range(total))
    return [(2 * number + 1) * total // (2 * wanted) for number in range(wanted)]


def left_out(frames: Mapping[T, Place], stride: int, most: int | None) -> dict[T, str]:
    """The frames of a series that are not taken, with the code of the reason.

    Of every ``stride`` neighbours one is taken, and of those ``most`` at most, spread evenly; of a series there is
    always one left.
    """
    names = list(frames)
    order = [names[number] for number in in_order(list(frames.values()))]
    strided = [order[number] for number in evenly(len(order), -(-len(order) // stride))]
    capped = strided if most is None else [strided[number] for number in evenly(len(strided), most)]
    reasons = dict.fromkeys(order, "stride") | dict.fromkeys(strided, "series_cap")
    for one in capped:
        del reasons[one]
    return reasons


def near_duplicates(hashes: Sequence[int], bits: int) -> dict[int, int]:
    """Which images of a series nearly repeat which, as indices: images in the series' order, 64 bits each.

    An image repeats the nearest of those before it that repeat none themselves, when no more than ``bits`` of their
    hashes differ. So nothing is called a repetition of something that is one, and a slow change along a series ends in
    a new image, not in one long chain.
    """
    found: dict[int, int] = {}
    values = np.array(hashes, np.uint64)
    own = np.zeros(len(hashes), np.int64)
    count = 0
    for number in range(len(hashes)):
        distances = np.bitwise_count(values[own[:count]] ^ values[number])
        nearest = int(distances.argmin()) if count else 0
        if count and distances[nearest] <= bits:
            found[number] = int(own[nearest])
        else:
            own[count] = number
            count += 1
    return found
