"""From the hashed names in a data set back to the files, for whoever has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lumid.catalog.errors import UsageError
from lumid.catalog.layout import read_manifest
from lumid.pipeline.recipe import DeidSettings, make_keyer
from lumid.pipeline.sources import Provenance
from lumid.pipeline.sources.folder import FolderSource


def paths_of(dataset: Path, folder: Path, source_ids: Sequence[str], key_file: Path | None = None) -> list[Path | None]:
    """The file below ``folder`` behind each ``source_id`` of a data set that was built from it, None where none is.

    Under the policy ``private`` this needs the owner's secret: from ``key_file``, or from the environment variable that
    the recipe names. Raises :class:`UsageError` when the data set was not built from a folder, and
    :class:`~lumid.catalog.errors.RecipeError` when the secret is missing.
    """
    recipe = read_manifest(dataset).recipe
    key = None if key_file is None else str(key_file)
    deid = DeidSettings.model_validate_json(json.dumps({**recipe["deid"], "key_file": key}))
    keyer = make_keyer(deid)
    paths: dict[str, Path] = {}
    for values in recipe["sources"]:
        if values["kind"] not in ("folder", "pydicom"):
            continue
        provenance = Provenance(values["collection"], values["kind"], None, None, None)
        plain = values["names"] == "plain"
        paths |= FolderSource(folder.expanduser().resolve(), provenance, keyer, plain_names=plain).paths()
    if not paths:
        raise UsageError(f"{folder}: this data set was not built from a folder, or there is nothing in this one")
    return [paths.get(source_id) for source_id in source_ids]
