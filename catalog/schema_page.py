"""The page docs/catalog.md, from the Arrow schemas: ``python -m lumid.catalog.schema_page > docs/catalog.md``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pyarrow as pa

from lumid.catalog.schema import CATALOG, FORMAT_VERSION, MODALITIES, REASONS, REJECTS, SAMPLE_FIELDS, SPLITS

HEAD = """# The catalog's columns

<!-- Written by `python -m lumid.catalog.schema_page`; do not edit. -->

One row a sample, in `DATASET/catalog/modality=*/*.parquet` (format version {version}). The column `modality` is not in
the files: it is the name of their folder, as every reader of Hive partitions knows. A Parquet field's metadata hold the
same unit, DICOM source and meaning; `lumid query DATASET --columns` prints them.

`?` after a type: the value can be null. A stored value becomes its unit by `store_slope × stored + store_intercept`.

"""


@dataclass(frozen=True, slots=True)
class ColumnInfo:
    """A column as the page and ``lumid query --columns`` show it."""

    column: str
    type: str
    unit: str
    dicom: str
    meaning: str


def columns_of(schema: pa.Schema) -> list[ColumnInfo]:
    """The columns of :data:`~lumid.catalog.schema.CATALOG` or :data:`~lumid.catalog.schema.REJECTS`, in their order."""
    infos = []
    for field in schema:
        words = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        kind = f"{field.type}{'?' if field.nullable else ''}"
        infos.append(
            ColumnInfo(field.name, kind, words.get("unit", ""), words.get("dicom", ""), words.get("meaning", ""))
        )
    return infos


def schema_page() -> str:
    """The page, in Markdown."""
    lines = [HEAD.format(version=FORMAT_VERSION)]
    lines.append("| column | type | unit | meaning | DICOM source |\n|---|---|---|---|---|\n")
    lines += [
        f"| `{info.column}` | {info.type} | {info.unit} | {info.meaning} | {info.dicom} |\n"
        for info in columns_of(CATALOG)
    ]
    lines.append(f"\nModalities: {', '.join(MODALITIES)}. Splits: {', '.join(SPLITS)}.\n")
    lines.append("\n## In the shards\n\n`<key>.json`, beside every image, holds these columns of its row: ")
    lines.append(", ".join(f"`{name}`" for name in SAMPLE_FIELDS) + ".\n")
    lines.append("\n## Rejects\n\n`DATASET/rejects/*.parquet`: what was planned and is not in the shards.\n\n")
    lines.append("| column | type | meaning |\n|---|---|---|\n")
    lines += [f"| `{info.column}` | {info.type} | {info.meaning} |\n" for info in columns_of(REJECTS)]
    lines.append("\n## Reason codes\n\n| code | meaning |\n|---|---|\n")
    lines += [f"| `{code}` | {meaning} |\n" for code, meaning in REASONS.items()]
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    sys.stdout.write(schema_page())
