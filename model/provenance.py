"""What a run was trained on: collections, licences, modalities. Written beside the run when it begins, so that the card
of an encoder can say it years later, without the data set."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from lumid.catalog.cite import CollectionUse
from lumid.catalog.errors import DatasetError
from lumid.catalog.json_files import read_json
from lumid.catalog.layout import write_text
from lumid.catalog.places import Anywhere
from lumid.catalog.query import run_sql, where_clause

PROVENANCE = "data.json"


@dataclass(frozen=True, slots=True)
class Provenance:
    """The samples of a run's selection, by collection and licence, and by modality."""

    collections: tuple[CollectionUse, ...]
    modalities: dict[str, int]

    @property
    def samples(self) -> int:
        """All of them."""
        return sum(self.modalities.values())


def find_provenance(data: Anywhere, where: str) -> Provenance:
    """Ask a data set's catalog what a selection holds."""
    condition = where_clause(where)
    uses = run_sql(
        data,
        "SELECT collection, source, source_version, license, doi, count(*) AS samples, count(DISTINCT patient) AS "
        f"patients, count(DISTINCT series) AS series FROM catalog{condition}\n"
        "GROUP BY ALL ORDER BY samples DESC, collection, license, doi, source_version",
    )
    modalities = run_sql(data, f"SELECT modality, count(*) AS n FROM catalog{condition}\nGROUP BY ALL ORDER BY n DESC")
    return Provenance(
        tuple(CollectionUse(**row) for row in uses.to_pylist()),
        {row["modality"]: row["n"] for row in modalities.to_pylist()},
    )


def write_provenance(run: Path, provenance: Provenance) -> None:
    """Write ``data.json``."""
    write_text(run / PROVENANCE, json.dumps(asdict(provenance), indent=1, ensure_ascii=False) + "\n")


def read_provenance(run: Path) -> Provenance | None:
    """What :func:`write_provenance` wrote; None for a run without it. Raises :class:`DatasetError` when it is damaged."""
    path = run / PROVENANCE
    if not path.is_file():
        return None
    mend = "remove it: a card then says that its collections were not recorded"
    raw = read_json(path, mend)
    try:
        modalities = {str(name): int(samples) for name, samples in raw["modalities"].items()}
        return Provenance(tuple(CollectionUse(**use) for use in raw["collections"]), modalities)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise DatasetError(f"{path}: is damaged; {mend}") from None
