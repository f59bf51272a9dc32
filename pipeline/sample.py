"""A sample of what archives hold: whole patients, drawn so that a larger sample holds every smaller one."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.keys import Keyer
from lumid.pipeline.recipe import SampleSettings


def draw_sample(lock: pa.Table, sample: SampleSettings, keyer: Keyer) -> pa.Table:
    """The lock's rows of the patients drawn, in their order.

    Every patient has a number in [0, 1) that depends on the secret, the seed, the collection and the patient alone.
    ``fraction`` keeps the numbers below it. ``max_gb`` takes what is kept by ascending number until the first that does
    not fit. Where no index tells the patients, whole series (of the chest X-rays: whole archives) are drawn instead.
    """
    if lock.num_rows == 0 or (sample.fraction >= 1.0 and sample.max_gb is None):
        return lock
    unit = pc.coalesce(lock["patient"], pc.binary_join_element_wise("series", lock["series"], " "))
    units = pc.binary_join_element_wise(lock["collection"], unit, "\t").combine_chunks().dictionary_encode()
    pairs = [pair.split("\t") for pair in units.dictionary.to_pylist()]
    draws = np.array([keyer.fraction("sample", str(sample.seed), *pair) for pair in pairs])
    indices = np.asarray(units.indices)
    kept = draws < sample.fraction
    if sample.max_gb is not None:
        sizes = np.zeros(len(pairs), np.int64)
        np.add.at(sizes, indices, np.asarray(pc.fill_null(lock["bytes"], 0)))
        kept = _that_fit(draws, sizes, kept, int(sample.max_gb * 1e9))
    return lock.filter(pa.array(kept[indices]))


def _that_fit(
    draws: npt.NDArray[np.float64], sizes: npt.NDArray[np.int64], kept: npt.NDArray[np.bool_], limit: int
) -> npt.NDArray[np.bool_]:
    """Of the kept, the first by draw whose sizes together are within the limit, as a mask."""
    order = np.argsort(draws, kind="stable")
    order = order[kept[order]]
    fitting = order[np.cumsum(sizes[order]) <= limit]
    mask = np.zeros_like(kept)
    mask[fitting] = True
    return mask
