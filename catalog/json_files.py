"""Small JSON files that lumid has written itself and somebody may have damaged, or made."""

from __future__ import annotations

import json
from typing import Any

from lumid.catalog.errors import DatasetError
from lumid.catalog.paths import AnyPath


def read_json(path: AnyPath, mend: str) -> dict[str, Any]:
    """The object in a file; ``mend`` says what to do about a damaged one.

    Raises :class:`DatasetError` where it is none: cut, nested without end, another value than an object.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise DatasetError(f"{path}: cannot be read, or is damaged; {mend}")
    return values
