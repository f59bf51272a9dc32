"""A sample of what archives hold: whole patients, drawn so that a larger sample holds every smaller one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.keys import Keyer
from lumid.pipeline.recipe import SampleSettings


def draw(keyer: Keyer, seed: int, collection: str, unit: str) -> float:
    """The number in [0, 1) of a patient's pseudonym, or of what stands for one: the sample holds the small ones."""
    return keyer.fraction("sample", str(seed), collection, unit)


def kept_patients(sample: SampleSettings, keyer: Keyer, collection: str) -> Callable[[str], bool] | None:
    """Whether a patient, by its pseudonym, is in the sample; None where all are.

    For an archive that holds the images of many patients in one file: which of them are drawn is told as it is read.
    """
    if sample.fraction >= 1.0:
        return None
    return lambda patient: draw(keyer, sample.seed, collection, patient) < sample.fraction


def draw_sample(lock: pa.Table, sample: SampleSettings, keyer: Keyer) -> pa.Table:
    """The lock's rows of the patients drawn, in their order.

    Every patient has a number in [0, 1) that depends on the secret, the seed, the collection and the patient alone.
    ``fraction`` keeps the numbers below it. ``max_gb`` takes what is kept by ascending number until the first that does
    not fit. Where no index tells the patients, whole series are drawn instead. The archives of the chest X-rays hold
    thousands of patients each: ``fraction`` leaves all of them in, and the patients are drawn as they are read (see
    :func:`kept_patients`); ``max_gb`` draws among the archives, for it is they that are fetched.
    """
    if lock.num_rows == 0 or (sample.fraction >= 1.0 and sample.max_gb is None):
        return lock
    unit = pc.coalesce(lock["patient"], pc.binary_join_element_wise("series", lock["series"], " "))
    units = pc.binary_join_element_wise(lock["collection"], unit, "\t").combine_chunks().dictionary_encode()
    pairs = [pair.split("\t") for pair in units.dictionary.to_pylist()]
    draws = np.array([draw(keyer, sample.seed, *pair) for pair in pairs])
    indices = np.asarray(units.indices)
    kept = draws < sample.fraction
    kept[indices[np.asarray(pc.fill_null(pc.equal(lock["source"], "nih"), False))]] = True
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
