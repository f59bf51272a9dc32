"""A part of what there is: patients of archives, or series of a collection, drawn so that a larger part holds a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.keys import Keyer
from lumid.pipeline.recipe import SampleSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.sources import Series


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


def series_draw(keyer: Keyer, collection: str, series: str) -> float:
    """The number in [0, 1) of a series' pseudonym: of a collection those with the smallest are taken."""
    return keyer.fraction("series", collection, series)


def cap_series(lock: pa.Table, most: int | None, keyer: Keyer) -> pa.Table:
    """The lock's rows of ``most`` series of each collection at most, in their order; what is left out is not fetched.

    Series are drawn, by a number that depends on the secret, the collection and the series alone. Of ChestX-ray14 an
    archive counts as a series.
    """
    if most is None or lock.num_rows == 0:
        return lock
    collections = lock["collection"].to_pylist()
    names = [
        location or series
        for location, series in zip(*(lock[n].to_pylist() for n in ("location", "series")), strict=True)
    ]
    draws = [series_draw(keyer, *pair) for pair in zip(collections, lock["series"].to_pylist(), strict=True)]
    order = sorted(range(lock.num_rows), key=lambda row: (collections[row], draws[row], names[row]))
    taken = np.zeros(lock.num_rows, bool)
    counts: dict[str, int] = {}
    for row in order:
        counts[collections[row]] = counts.get(collections[row], 0) + 1
        taken[row] = counts[collections[row]] <= most
    return lock.filter(pa.array(taken))


def cap_listed(series: Sequence[Series], most: int | None, keyer: Keyer) -> list[Series]:
    """A folder's series, of which ``most`` at most will be read; the others' objects have ``collection_cap`` as reason.

    Files that no header names a series for are left as they are, and so is what cannot be read anyway: nothing is drawn
    of it, and each has a reason of its own.
    """
    if most is None:
        return list(series)
    counted = [one for one in series if not _is_nameless(one, keyer)]
    counted.sort(key=lambda one: (series_draw(keyer, one.provenance.collection, one.id), one.id))
    over = {one.id for one in counted[most:]}
    reason = Reject("select", "collection_cap")
    return [
        replace(one, members=tuple(replace(member, reject=member.reject or reason) for member in one.members))
        if one.id in over
        else one
        for one in series
    ]


def _is_nameless(series: Series, keyer: Keyer) -> bool:
    """Whether the scan has found nothing that could be an image: see :func:`lumid.pipeline.scan.scan`."""
    if len(series.members) != 1:
        return False
    (member,) = series.members
    own = keyer.pseudonym("object", series.provenance.collection, member.ref.source_id)
    return member.reject is not None or series.id == own
