"""The report's table beside the paper: what Gupta et al. say of each collection, what its archive holds, what is here."""

from __future__ import annotations

from dataclasses import dataclass

import duckdb

from lumid.catalog.collections import collections
from lumid.catalog.connect import ask


@dataclass(frozen=True, slots=True)
class Drift:
    """A collection of LUMID. ``paper_patients``: of the paper's row, which two collections may share; ``archive_patients``:
    None where nobody says; ``share``: of the archive's patients (else the paper's) that are here.
    """

    collection: str
    paper_row: str
    paper_patients: int
    archive_patients: int | None
    patients: int
    share: float
    paper_modalities: str
    modalities: str
    remark: str


def drift(connection: duckdb.DuckDBPyConnection) -> tuple[Drift, ...]:
    """The collections of a catalog that the paper names, by name; none for a data set of something else."""
    answer = ask(
        connection,
        "SELECT collection, count(DISTINCT patient), list_sort(list(DISTINCT modality)) FROM catalog "
        "GROUP BY collection ORDER BY collection",
    )
    rows = zip(*(column.to_pylist() for column in answer.columns), strict=True)
    known = collections()
    found = []
    for name, patients, modalities in rows:
        if name not in known:
            continue
        one = known[name]
        found.append(
            Drift(
                collection=name,
                paper_row=one.paper_row,
                paper_patients=one.paper_subjects,
                archive_patients=one.patients,
                patients=patients,
                share=patients / (one.patients or one.paper_subjects),
                paper_modalities=", ".join(one.paper_modalities),
                modalities=", ".join(modalities),
                remark=one.paper_errors,
            )
        )
    return tuple(found)
