"""A data set in the words that others read: Croissant (mlcommons.org/croissant 1.0), and a Hugging Face data set card."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from lumid.catalog.cite import CollectionUse, citation_bib, collections_in
from lumid.catalog.filters import license_parts
from lumid.catalog.layout import Manifest, atomic_file, storage_errors
from lumid.catalog.places import Anywhere, SubsetNote, as_place, fetched_bytes, list_tables, place_manifest, read_note
from lumid.catalog.query import connect
from lumid.catalog.schema import CATALOG

CROISSANT = "croissant.json"
CARD = "README.md"
CONFORMS_TO = "http://mlcommons.org/croissant/1.0"
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "equivalentProperty": "cr:equivalentProperty", "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract",
    "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
    "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
    "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "samplingRate": "cr:samplingRate", "sc": "https://schema.org/",
    "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField", "transform": "cr:transform",
}  # fmt: skip
"""The JSON-LD context that the format's 1.0 prescribes."""
DATA_TYPES = {pa.string(): "sc:Text", pa.int64(): "sc:Integer", pa.float64(): "sc:Float", pa.bool_(): "sc:Boolean"}
LICENSE_URLS = {"by": "licenses/by", "by-nc": "licenses/by-nc", "by-sa": "licenses/by-sa", "by-nc-sa": "licenses/by-nc-sa",
                "by-nd": "licenses/by-nd", "by-nc-nd": "licenses/by-nc-nd"}  # fmt: skip
HASHED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class _File:
    """A file of the data set, below its root."""

    name: str
    size: int
    sha256: str


def write_croissant(where: Anywhere, out: Path, url: str | None = None) -> tuple[Path, Path]:
    """Write ``croissant.json`` and ``README.md`` (a Hugging Face data set card) into the folder ``out``.

    They name the files by their places below the data set's root, so that is where they belong. Of a subset they describe
    its file, too, which must then lie beside them. ``url``: the page where the data set is published. Returns both paths.

    >>> croissant, card = write_croissant(DATASET, FOLDER / "described")
    >>> card.read_text().splitlines()[:4]
    ['---', 'pretty_name: synthetic', 'license: other', 'license_name: several']
    """
    place = as_place(where)
    manifest = place_manifest(place)
    note = None if place.subset is None else read_note(place.subset)
    with connect(place) as connection:
        uses = collections_in(connection)
    files = list(_catalog_files(where))
    described = describe(manifest, uses, files, note, _subset_file(place.subset), url)
    texts = {CROISSANT: json.dumps(described, indent=1, ensure_ascii=False) + "\n", CARD: card(manifest, uses, note)}
    with storage_errors(out):
        for name, text in texts.items():
            with atomic_file(out / name) as file:
                file.write(text.encode())
    return out / CROISSANT, out / CARD


def describe(
    manifest: Manifest, uses: Sequence[CollectionUse], catalog: Sequence[_File], note: SubsetNote | None, subset: _File | None,
    url: str | None,
) -> dict[str, Any]:  # fmt: skip
    """The data set in JSON-LD, as Croissant 1.0 has it."""
    shards = [_File(f"shards/{shard.name}", shard.bytes, shard.sha256) for shard in manifest.shards]
    distribution = [_file_object(file, "application/x-parquet") for file in catalog]
    distribution += [_file_object(file, "application/x-tar") for file in shards]
    # without an archive that it is in, a set of files is looked for beside the description
    distribution.append(_file_set("catalog", (), "catalog/*/*.parquet", "application/x-parquet"))
    distribution.append(_file_set("sample-json", shards, "*.json", "application/json"))
    records = [_samples()]
    if note is not None and subset is not None:
        distribution.append(_file_object(subset, "application/x-parquet"))
        records.append(_subset_records(note, subset))
    samples, name = (manifest.counts.kept, manifest.name) if note is None else (note.samples, note.name)
    finished = str(manifest.build.get("finished", ""))[:10]
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": CONFORMS_TO,
        "name": name,
        "description": _description(manifest, uses, samples),
        "version": "1.0.0",
        "license": [license_url(one) for one in dict.fromkeys(use.license for use in uses) if one] or ["not stated"],
        "url": url or "https://doi.org/10.3390/computation13040088",
        **({"datePublished": finished} if finished else {}),
        "creator": {"@type": "sc:Organization", "name": "lumid"},
        "citeAs": citation_bib(uses, manifest),
        "keywords": ["medical imaging", *manifest.modalities],
        "distribution": distribution,
        "recordSet": records,
    }


def license_url(name: str) -> str:
    """The address of a Creative Commons licence; other names stay as they are.

    >>> license_url("CC BY-NC 4.0"), license_url("TCIA Restricted")
    ('https://creativecommons.org/licenses/by-nc/4.0/', 'TCIA Restricted')
    """
    words, version = license_parts(name)
    if words == ("cc0",):
        return f"https://creativecommons.org/publicdomain/zero/{version or '1.0'}/"
    path = LICENSE_URLS.get("-".join(words[1:])) if words[:1] == ("cc",) else None
    return f"https://creativecommons.org/{path}/{version}/" if path and version else name


def card(manifest: Manifest, uses: Sequence[CollectionUse], note: SubsetNote | None = None) -> str:
    """The Hugging Face card: YAML that its library loads the catalog and the shards by, and a few words."""
    names = list(dict.fromkeys(use.license or "not stated" for use in uses))
    title, samples = (manifest.name, manifest.counts.kept) if note is None else (note.name, note.samples)
    one = _hub_license(names[0]) if len(names) == 1 else None
    terms = (
        [f"license: {one}"]
        if one
        else ["license: other", f"license_name: {'several' if len(names) > 1 else 'as-stated'}"]
    )
    configs = [] if note is None else [("subset", f"{note.name}.parquet")]
    configs.append(("catalog", "catalog/*/*.parquet"))
    # the hub's readers take no column from a folder's name
    configs += [(modality, f"catalog/modality={modality}/*.parquet") for modality in manifest.modalities]
    lines = ["---", f"pretty_name: {_yaml(title)}", *terms, "task_categories:", "- image-feature-extraction"]
    lines += [f"size_categories:\n- {_size(samples)}", "tags:", "- medical", "- croissant", "- webdataset", "configs:"]
    for name, pattern in configs:
        lines += [f"- config_name: {name}", f"  data_files: {_yaml(pattern)}"]
    lines += ["---", "", f"# {title}", "", _description(manifest, uses, samples), ""]
    lines += ["Licences: " + "; ".join(names) + ". Each image stays under the terms of its source: the catalog's columns "
              "`license`, `doi` and `collection` say which, CITATION.bib what to cite.", ""]  # fmt: skip
    lines += ['The shards are in WebDataset\'s layout: `load_dataset("webdataset", data_files="shards/*.tar")`.', ""]
    return "\n".join(lines)


# ---- parts of the description


def _description(manifest: Manifest, uses: Sequence[CollectionUse], samples: int) -> str:
    collections = sorted({use.collection for use in uses})
    return (
        f"{samples:,} medical images from {len(collections)} public collections ({', '.join(collections)}), built by lumid "
        f"{manifest.lumid_version}: shards in WebDataset's layout, and a catalog in Parquet with a row a sample."
    )


def _file_object(file: _File, encoding: str) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": file.name,
        "name": file.name,
        "contentUrl": file.name,
        "contentSize": f"{file.size} B",
        "encodingFormat": encoding,
        "sha256": file.sha256,
    }


def _file_set(name: str, archives: Sequence[_File], pattern: str, encoding: str) -> dict[str, Any]:
    inside = {"containedIn": [{"@id": file.name} for file in archives]} if archives else {}
    return {
        "@type": "cr:FileSet",
        "@id": name,
        "name": name,
        **inside,
        "encodingFormat": encoding,
        "includes": pattern,
    }


def _samples() -> dict[str, Any]:
    """The catalog as records."""
    return {
        "@type": "cr:RecordSet",
        "@id": "samples",
        "name": "samples",
        "description": "A row a sample: what it shows, where it came from, where its image lies in the shards.",
        "key": {"@id": "samples/key"},
        "field": [_field("samples", field, {"fileSet": {"@id": "catalog"}}) for field in CATALOG],
    }


def _subset_records(note: SubsetNote, file: _File) -> dict[str, Any]:
    source = {"fileObject": {"@id": file.name}}
    field = _field("subset", CATALOG.field("key"), source) | {"references": {"field": {"@id": "samples/key"}}}
    return {
        "@type": "cr:RecordSet",
        "@id": "subset",
        "name": "subset",
        "description": f"The samples that belong to {note.name}: {note.samples:,} of the catalog's.",
        "field": [field],
    }


def _field(records: str, field: pa.Field, source: dict[str, Any]) -> dict[str, Any]:
    metadata = {name.decode(): value.decode() for name, value in (field.metadata or {}).items()}
    unit = f" ({metadata['unit']})" if "unit" in metadata else ""
    repeated = pa.types.is_list(field.type)
    if field.name == "modality":  # it is the name of the file's folder, not in the file
        how: dict[str, Any] = {"extract": {"fileProperty": "fullpath"}, "transform": {"regex": ".*modality=([^/]+)/.*"}}
    else:
        how = {"extract": {"column": field.name}}
    described: dict[str, Any] = {
        "@type": "cr:Field",
        "@id": f"{records}/{field.name}",
        "name": field.name,
        "description": metadata.get("meaning", field.name) + unit,
        "dataType": DATA_TYPES[field.type.value_type if repeated else field.type],
        "source": source | how,
    }
    return described | ({"repeated": True} if repeated else {})


# ---- files


def _catalog_files(where: Anywhere) -> Iterator[_File]:
    place = as_place(where)
    tables = list_tables(place)
    for name in tables.catalog:
        if tables.store is None:
            path = Path(name)
            yield _hashed(path, f"catalog/{path.parent.name}/{path.name}")
        else:
            data = fetched_bytes(place, name)
            yield _File(name, len(data), hashlib.sha256(data).hexdigest())


def _subset_file(path: Path | None) -> _File | None:
    return None if path is None else _hashed(path, path.name)


def _hashed(path: Path, name: str) -> _File:
    with path.open("rb") as file:
        return _File(name, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


# ---- words of the hub


def _hub_license(name: str) -> str | None:
    """A licence as the hub names it, where it has a name for it."""
    words, version = license_parts(name)
    if words == ("cc0",):
        return "cc0-1.0"
    known = words[:1] == ("cc",) and "-".join(words[1:]) in LICENSE_URLS and version
    return "-".join((*words, version or "")) if known else None


def _size(samples: int) -> str:
    for size, name in ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M")):
        if samples < size:
            return name
    return "1M<n<10M" if samples < 10_000_000 else "10M<n<100M"


def _yaml(value: str) -> str:
    return value if re.fullmatch(r"[A-Za-z][\w .-]*", value) else json.dumps(value, ensure_ascii=False)
