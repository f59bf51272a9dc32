"""Rough sizes and times of a build that has not begun: good to tell an hour from a week, and not for more."""

from __future__ import annotations

import os
from dataclasses import dataclass

from lumid.pipeline.recipe import PixelSettings

KB_PER_SLICE = {("lumid", "png"): 68.0, ("lumid", "jhc"): 53.0, ("paper", "png"): 21.0, ("paper", "jhc"): 17.0}
"""Kilobytes of a stored slice of 256 × 256 of CT, by profile and codec."""
MEASURED_SIZE = 256
LARGEST_SLICE = 512
"""Most archived slices have no more pixels a side, and images are never enlarged."""
RAW_SLICE_BYTES = 526_000
"""A 512 × 512 slice of 16 bits, uncompressed, with its header."""
FETCH_MB_S = 100.0
MS_PER_SLICE = 8.0
"""Decode, normalise, resize and encode, on one core."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What estimates of size and time are made from."""

    kb_per_slice: float
    fetch_mb_s: float
    ms_per_slice: float
    cores: int

    def __str__(self) -> str:
        return (
            f"estimates assume {self.kb_per_slice:,.0f} kB a stored slice, {self.fetch_mb_s:,.0f} MB/s from the archives "
            f"and {self.ms_per_slice:,.0f} ms a slice on each of {self.cores} cores"
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a collection will take: 10^9 bytes in the shards, and seconds, fetching and processing side by side."""

    gb_out: float
    seconds: float


def assumptions_of(pixels: PixelSettings) -> Assumptions:
    """The assumptions for a pixel profile on this machine; the size of a stored slice grows with its pixels."""
    side = LARGEST_SLICE if pixels.size == "native" else min(pixels.size, LARGEST_SLICE)
    kilobytes = KB_PER_SLICE[pixels.profile, pixels.codec] * (side / MEASURED_SIZE) ** 2
    return Assumptions(kilobytes, FETCH_MB_S, MS_PER_SLICE, os.cpu_count() or 1)


def estimate(slices: int, size_bytes: int, uncounted_bytes: int, assumed: Assumptions) -> Estimate:
    """The estimate for so many counted slices; ``uncounted_bytes`` of ``size_bytes`` hold slices nobody has counted."""
    expected = slices + uncounted_bytes / RAW_SLICE_BYTES
    fetching = size_bytes / 1e6 / assumed.fetch_mb_s
    processing = expected * assumed.ms_per_slice / 1e3 / assumed.cores
    return Estimate(expected * assumed.kb_per_slice * 1e3 / 1e9, max(fetching, processing))
