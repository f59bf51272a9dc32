"""The index of the Imaging Data Commons, as the package idc-index-data brings it: which series a recipe chooses.

It has two tables. ``idc_index`` has the series of the newest version of IDC, each with the version that last revised
it. ``prior_versions_index`` has those that were revised or removed since, with the first and last version that served
them. So version N is the rows of the first that were not revised after N, and those of the second that served N. The
first gives sizes to the byte; the second rounds them to 10 kB and knows neither the number of objects nor licence, DOI,
body part and storage class: these are the newest revision's, or else the collection's (idc-index-data 25.0.5,
``idc_index.sql`` and ``prior_versions_index.sql``).
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lumid.catalog.cite import is_non_commercial
from lumid.catalog.collections import did_you_mean, of_source
from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import Keyer
from lumid.catalog.lock import LOCK
from lumid.catalog.schema import MODALITIES
from lumid.pipeline.recipe import IdcSettings

COMMERCIAL = "commercial"
GOOGLE_BUCKETS = {"idc-open-data-two": "idc-open-idc1", "idc-open-data-cr": "idc-open-cr"}
"""Google's name of an AWS bucket where the two differ (IDC documentation, "Files and metadata": storage buckets)."""

CANDIDATES = pa.schema(
    [
        pa.field("collection", pa.string()),
        pa.field("patient_id", pa.string()),
        pa.field("series_uid", pa.string()),
        pa.field("modality", pa.string()),
        pa.field("objects", pa.int64()),
        pa.field("bytes", pa.int64()),
        pa.field("license", pa.string()),
        pa.field("doi", pa.string()),
        pa.field("bucket", pa.string()),
        pa.field("uuid", pa.string()),
    ]
)
"""A series that a recipe chooses, with the archive's own identifiers: it stays in the pipeline."""

_PRIOR = """
    SELECT p.*, i.instanceCount AS slices, i.license_short_name, i.source_DOI, i.BodyPartExamined, i.SOPClassUID,
        i.analysis_result_id
    FROM (
        SELECT crdc_series_uuid, min(collection_id) AS collection_id, min(PatientID) AS PatientID,
            min(SeriesInstanceUID) AS SeriesInstanceUID, min(Modality) AS Modality, min(aws_bucket) AS aws_bucket,
            min(series_size_MB) AS series_size_MB  -- an instance that a version lists twice counts once
        FROM read_parquet($prior)
        WHERE $version BETWEEN min_idc_version AND max_idc_version
            AND collection_id IN (SELECT unnest($collections)) AND Modality IN (SELECT unnest($modalities))
        GROUP BY crdc_series_uuid
    ) p LEFT JOIN read_parquet($index) i USING (SeriesInstanceUID)
"""

_SERIES = f"""
    SELECT collection_id, PatientID, SeriesInstanceUID, Modality, instanceCount AS objects, instanceCount AS slices,
        series_size_MB, license_short_name, source_DOI, BodyPartExamined, SOPClassUID, analysis_result_id, aws_bucket,
        crdc_series_uuid
    FROM read_parquet($index) WHERE series_revised_idc_version <= $version
        AND collection_id IN (SELECT unnest($collections)) AND Modality IN (SELECT unnest($modalities))
    UNION ALL
    SELECT collection_id, PatientID, SeriesInstanceUID, Modality, NULL AS objects, slices,
        series_size_MB, license_short_name, source_DOI, BodyPartExamined, SOPClassUID, analysis_result_id, aws_bucket,
        crdc_series_uuid
    FROM ({_PRIOR})
"""


@cache
def index_folder() -> Path:
    """The folder of the installed index. Importing its package would read all of its schemas, so it is only found."""
    found = importlib.util.find_spec("idc_index_data")
    if found is None or not found.submodule_search_locations:
        raise RecipeError("the index of IDC is not installed; install it with: pip install idc-index-data")
    return Path(found.submodule_search_locations[0])


def newest_version(index: Path) -> int:
    """The newest version of IDC that an index knows."""
    versions = _versions(index)
    if versions:
        return max(versions)
    return int(_ask("SELECT max(series_revised_idc_version) FROM read_parquet($index)", index)[0][0])


def version_date(index: Path, version: int) -> str | None:
    """The day that a version of IDC appeared, as ``2024-11-06``; None where the index does not say."""
    return _versions(index).get(version)


def _versions(index: Path) -> dict[int, str]:
    """Every version of IDC and its day; empty where the index has no table of them."""
    file = index / "version_metadata_index.parquet"
    if not file.is_file():
        return {}
    sql = "SELECT idc_version, CAST(version_timestamp AS VARCHAR)[:10] FROM read_parquet($file)"
    return dict(_ask(sql, index, file=str(file)))


def planned_version(settings: IdcSettings, index: Path) -> int:
    """The version of IDC that settings ask for; raises :class:`RecipeError` when the index does not know it."""
    newest = newest_version(index)
    if settings.idc_version is None:
        return newest
    if settings.idc_version > newest:
        raise RecipeError(
            f"idc_version = {settings.idc_version}: the installed index knows the versions 1 to {newest}; "
            "for a newer one: pip install --upgrade idc-index-data"
        )
    return settings.idc_version


def candidates(settings: IdcSettings, version: int, index: Path) -> pa.Table:
    """Every series of a version of IDC that the settings choose, under :data:`CANDIDATES`.

    Raises :class:`RecipeError` for a collection, licence or body part that the index does not know.
    """
    conditions = ["true" if settings.analysis_results else "analysis_result_id IS NULL"]
    values: dict[str, Any] = {
        "version": version,
        "collections": _collections(settings, index),
        "modalities": list(settings.modalities or MODALITIES),
    }

    def restrict(condition: str, **bound: Any) -> None:
        conditions.append(condition)
        values.update(bound)

    if settings.body_parts:
        parts = _body_parts(settings.body_parts, index)
        restrict("BodyPartExamined IN (SELECT unnest($body_parts))", body_parts=parts)
    if settings.sop_classes:
        restrict("SOPClassUID IN (SELECT unnest($sop_classes))", sop_classes=list(settings.sop_classes))
    if settings.min_slices > 1:
        restrict("slices >= $min_slices", min_slices=settings.min_slices)
    if settings.max_slices is not None:
        restrict("slices <= $max_slices", max_slices=settings.max_slices)
    if settings.max_series_mb is not None:
        restrict("series_size_MB <= $max_mb", max_mb=settings.max_series_mb)
    columns = (
        "collection_id, PatientID, SeriesInstanceUID, Modality, objects, CAST(round(series_size_MB * 1e6) AS BIGINT), "
        "license_short_name, source_DOI, aws_bucket, crdc_series_uuid"
    )
    sql = f"SELECT {columns} FROM ({_SERIES}) WHERE {' AND '.join(conditions)}"
    with duckdb.connect() as connection:
        bound = values | _files(index, sql)
        found = connection.execute(sql, bound).to_arrow_table()
    found = found.rename_columns(CANDIDATES.names).cast(CANDIDATES)
    return _licensed(_with_terms(found, index), settings.licenses, index)


def _collections(settings: IdcSettings, index: Path) -> list[str]:
    sql = "SELECT DISTINCT collection_id FROM read_parquet($index) UNION SELECT DISTINCT collection_id FROM read_parquet($prior)"
    known = sorted(row[0] for row in _ask(sql, index))
    for name in (*settings.collections, *settings.exclude):
        if name not in known:
            raise RecipeError(f"collection '{name}': IDC has none of that name{did_you_mean(name, known)}")
    wanted = settings.collections or tuple(one.source_id for one in of_source("idc"))
    return [name for name in wanted if name not in settings.exclude]


def _body_parts(wanted: Sequence[str], index: Path) -> list[str]:
    """How archives write the wanted body parts."""
    # the vocabulary's module brings the decoders, which most plans do without
    from lumid.pipeline.vocabularies import body_part_term, body_part_terms

    terms = set()
    for name in wanted:
        term = body_part_term(name)
        if term is None:
            hint = did_you_mean(name, body_part_terms())
            raise RecipeError(
                f"body_parts: '{name}' is not in the vocabulary{hint}; terms are those of DICOM, as CHEST"
            )
        terms.add(term)
    stated = _ask(
        "SELECT DISTINCT BodyPartExamined FROM read_parquet($index) WHERE BodyPartExamined IS NOT NULL", index
    )
    return [raw for (raw,) in stated if body_part_term(raw) in terms]


def _licensed(found: pa.Table, wanted: Sequence[str], index: Path) -> pa.Table:
    """The series under one of the wanted licences; one that nobody states is never wanted."""
    if not wanted:
        return found
    stated = _ask(
        "SELECT DISTINCT license_short_name FROM read_parquet($index) WHERE license_short_name IS NOT NULL", index
    )
    known = {name for (name,) in stated}
    allowed = {name for name in known if COMMERCIAL in wanted and not is_non_commercial(name)}
    for name in wanted:
        if name != COMMERCIAL and name not in known:
            raise RecipeError(
                f"licenses: '{name}' is none of IDC's; use 'commercial' or {', '.join(repr(one) for one in sorted(known))}"
            )
        allowed |= {name} - {COMMERCIAL}
    return found.filter(pc.is_in(found["license"], pa.array(sorted(allowed), pa.string())))


def _with_terms(found: pa.Table, index: Path) -> pa.Table:
    """Licence and DOI from the collection's record, where a removed series has no row of its own to state them."""
    missing = pc.is_null(found["license"])
    file = index / "collections_index.parquet"
    if not pc.any(missing).as_py() or not file.is_file():
        return found
    sql = "SELECT collection_id, sources FROM read_parquet($file)"
    sources = {name: held or [] for name, held in _ask(sql, index, file=str(file))}
    licenses, dois = found["license"].to_pylist(), found["doi"].to_pylist()
    names, modalities = found["collection"].to_pylist(), found["modality"].to_pylist()
    for row, absent in enumerate(missing.to_pylist()):
        if absent:
            licenses[row], dois[row] = _terms(sources.get(names[row], []), modalities[row])
    return found.set_column(6, CANDIDATES.field("license"), [licenses]).set_column(7, CANDIDATES.field("doi"), [dois])


def _terms(sources: Iterable[dict[str, Any]], modality: str) -> tuple[str | None, str | None]:
    """Licence and DOI of a collection's original images: of the record that lists the modality, else of radiology."""
    original = [one for one in sources if one["source_type"] == "original_data"]
    kinds = [(set((one["ImageTypes"] or "").split(", ")), one) for one in original]
    ranked = sorted(kinds, key=lambda pair: (modality not in pair[0], "SM" in pair[0], pair[1]["source_doi"]))
    if not ranked:
        return None, None
    chosen = ranked[0][1]
    return (chosen["license"] or {}).get("license_short_name"), chosen["source_doi"]


# ---- the lock


def plan_idc(settings: IdcSettings, keyer: Keyer, policy: str, index: Path | None = None) -> pa.Table:
    """The lock's rows of everything that the settings choose, by series, under :data:`LOCK`.

    Pseudonyms are those that :func:`lumid.pipeline.deidentify.identify` will make from the headers. Under ``private``
    the patient's issuer counts, which is in no index: it is taken as empty. Raises :class:`RecipeError`.
    """
    index = index or index_folder()
    version = planned_version(settings, index)
    found = candidates(settings, version, index)
    count = found.num_rows
    columns = {
        "recipe_source": pa.repeat(0, count),
        "source": pa.repeat("idc", count),
        "collection": found["collection"],
        "source_version": pa.repeat(f"IDC v{version}", count),
        "license": found["license"],
        "doi": found["doi"],
        "series": [keyer.pseudonym("series", uid.strip()) for uid in found["series_uid"].to_pylist()],
        "patient": _patients(found, keyer, policy),
        "modality": found["modality"],
        "objects": found["objects"],
        "bytes": found["bytes"],
        "location": found["uuid"],
        "urls": _urls(found["bucket"], found["uuid"]),
        "digest": [hashlib.sha256(uuid.encode()).hexdigest() for uuid in found["uuid"].to_pylist()],
    }
    return pa.table(columns, schema=LOCK).sort_by([("series", "ascending"), ("location", "ascending")])


def _patients(found: pa.Table, keyer: Keyer, policy: str) -> pa.Array:
    """The pseudonym of every series' patient; each patient is hashed once."""
    issuers = found["collection"] if policy == "public" else pa.repeat("", found.num_rows)
    pairs = pc.binary_join_element_wise(issuers, found["patient_id"], "\n").combine_chunks().dictionary_encode()
    split = (pair.split("\n", 1) for pair in pairs.dictionary.to_pylist())
    pseudonyms = [keyer.pseudonym("patient", issuer, patient.strip()) for issuer, patient in split]
    return pa.DictionaryArray.from_arrays(pairs.indices, pa.array(pseudonyms, pa.string())).cast(pa.string())


def _urls(buckets: pa.ChunkedArray, uuids: pa.ChunkedArray) -> pa.Array:
    """Where each version of a series is: its prefix in the AWS bucket, and the same in the mirror at Google."""
    names = buckets.combine_chunks().dictionary_encode()
    mirrors = pa.array([GOOGLE_BUCKETS.get(name, name) for name in names.dictionary.to_pylist()], pa.string())
    google = mirrors.take(names.indices)
    prefixes = [
        pc.binary_join_element_wise(scheme, bucket, "/", uuids.combine_chunks(), "/", "")
        for scheme, bucket in (("s3://", buckets.combine_chunks()), ("gs://", google))
    ]
    count = len(uuids)
    pairwise = np.arange(2 * count).reshape(2, count).T.ravel()
    return pa.ListArray.from_arrays(
        np.arange(0, 2 * count + 1, 2, dtype=np.int32), pa.concat_arrays(prefixes).take(pairwise)
    )


def _files(index: Path, sql: str) -> dict[str, str]:
    files = {"index": "idc_index.parquet", "prior": "prior_versions_index.parquet"}
    return {name: str(index / file) for name, file in files.items() if f"${name}" in sql}


def _ask(sql: str, index: Path, **bound: Any) -> list[tuple[Any, ...]]:
    with duckdb.connect() as connection:
        return connection.execute(sql, bound | _files(index, sql)).fetchall()
