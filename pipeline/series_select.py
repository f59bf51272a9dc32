"""Which slices of a series are taken, seen beside each other: every n-th, so many at most, none that repeats another.

What is decided here depends on the slices alone: on their place and their keys, and not on the order of files.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

T = TypeVar("T", bound=Hashable)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a frame stands in its series: by position along the normal, then by the numbers that its header gives.

    ``nowhere``: it has no position; such frames come last. ``key`` decides where nothing else does.
    """

    nowhere: bool
    position: float
    instance_number: float
    frame: int
    key: str


def place(position: float | None, instance_number: float | None, frame: int, key: str) -> Place:
    """The place of a frame, of what its header states."""
    return Place(position is None, position or 0.0, instance_number or 0.0, frame, key)


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
    order = sorted(frames, key=lambda one: frames[one])
    strided = [order[number] for number in evenly(len(order), -(-len(order) // stride))]
    capped = strided if most is None else [strided[number] for number in evenly(len(strided), most)]
    reasons = dict.fromkeys(order, "stride") | dict.fromkeys(strided, "series_cap")
    for one in capped:
        del reasons[one]
    return reasons


def near_duplicates(hashes: Sequence[int], groups: Sequence[str], bits: int) -> dict[int, int]:
    """Which images nearly repeat which, as indices: images in the order of their places, 64 bits each.

    An image repeats the nearest of those before it, in its group, that repeat none themselves, when no more than
    ``bits`` of their hashes differ. So nothing is called a repetition of something that is one, and a slow change along
    a series ends in a new image, not in one long chain.
    """
    found: dict[int, int] = {}
    members: defaultdict[str, list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        members[group].append(index)
    for indices in members.values():
        values = np.array([hashes[index] for index in indices], np.uint64)
        own = np.zeros(len(indices), np.int64)
        count = 0
        for number, index in enumerate(indices):
            distances = np.bitwise_count(values[own[:count]] ^ values[number])
            nearest = int(distances.argmin()) if count else 0
            if count and distances[nearest] <= bits:
                found[index] = indices[own[nearest]]
            else:
                own[count] = number
                count += 1
    return found
