"""The dose of CT images of one phantom on 13 scanners (collection CT4Harmonization-Multicentric of IDC): scanner quality
control on real images, tested on scanners that were not trained on."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lumid.catalog.errors import DatasetError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.places import Anywhere
from lumid.model.evaluate.images import CatalogImages
from lumid.model.evaluate.tasks.base import Task
from lumid.model.evaluate.tasks.catalog import chosen, deal
from lumid.model.evaluate.tasks.reported import CT_SCANNERS
from lumid.model.stream import Selection

COLLECTION = "ct4harmonization_multicentric"
SERIES = re.compile(r"([A-H]\d)_Harmonized_(\d+)mGy_(FBP|IR|DL)\b")
"""How the collection names a series: scanner, dose, reconstruction."""
SCANNERS = 13


def ct_scanners(data: Anywhere | None) -> Task:
    """At which of five doses (1 to 14 mGy) an image was made.

    The doses are in the series' names in IDC's public index, which a data set leaves out; they are joined by the
    pseudonym of the series. A scanner is in one split only, and stands where a patient does in intervals and tests.
    """
    selection = chosen("ct-scanners", data, f"collection = '{COLLECTION}' AND modality = 'CT'", "series")
    known = series_of_index()
    table = selection.table
    mask = pc.is_in(table["series"], value_set=pc.cast(list(known), "string"))
    kept = Selection(selection.place, table.filter(mask).combine_chunks(), selection.version)
    if not len(kept):
        raise DatasetError(f"{data}: its series are not in IDC's index; build it from IDC, with the public policy")
    named = [known[series] for series in kept.table["series"].to_pylist()]
    doses = sorted({dose for _, dose in named})
    classes = tuple(f"{dose} mGy" for dose in doses)
    scanners = [scanner for scanner, _ in named]
    dealt = deal(scanners, ["scanner"] * len(scanners))
    count = len(set(scanners))
    return Task(
        name="ct-scanners",
        kind="multiclass",
        classes=classes,
        images=CatalogImages(kept),
        labels=np.array([doses.index(dose) for _, dose in named], np.int64),
        patients=scanners,
        splits=[dealt[scanner] for scanner in scanners],
        ids=kept.table["key"].to_pylist(),
        data=data,
        version=kept.version,
        note=f"split by scanner, {count} of {SCANNERS}, which stand for patients: one phantom was imaged",
        reported=CT_SCANNERS,
    )


def series_of_index() -> dict[str, tuple[str, int]]:
    """Scanner and dose in mGy of the collection's series, by pseudonym. Raises :class:`DatasetError` without the index."""
    found = importlib.util.find_spec("idc_index_data")
    files = [] if found is None or found.origin is None else sorted(Path(found.origin).parent.glob("idc_index.parquet"))
    if not files:
        raise DatasetError("IDC's index is not installed: pip install idc-index-data")
    table = pq.read_table(
        files[0],
        columns=["SeriesInstanceUID", "SeriesDescription"],
        filters=[("collection_id", "=", COLLECTION), ("Modality", "=", "CT")],
    )
    keyer = Keyer(PUBLIC_SECRET)
    named = zip(table["SeriesInstanceUID"].to_pylist(), table["SeriesDescription"].to_pylist(), strict=True)
    return {
        keyer.pseudonym("series", uid): (match[1], int(match[2]))
        for uid, name in named
        if (match := SERIES.match(name or ""))
    }
