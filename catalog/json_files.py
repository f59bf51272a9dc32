"""Small JSON files that lumid has written itself and somebody may have damaged, or made."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from lumid.catalog.errors import DatasetError
from lumid.catalog.paths import AnyPath

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

D = TypeVar("D", bound="DataclassInstance")


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


def typed(values: D) -> D:
    """A dataclass that was made from somebody's JSON, once its fields are what they are declared to be.

    Raises ``ValueError`` where one is not, or is a whole number that takes more than 64 bits: what is made of such
    values would only fail later.
    """
    from pydantic import TypeAdapter

    written = json.dumps(asdict(values))
    json.loads(written, parse_int=_of_64_bits)
    # in Python a strict validation wants the instances themselves, whose fields it then does not look at
    TypeAdapter(type(values)).validate_json(written, strict=True)
    return values


def _of_64_bits(digits: str) -> int:
    if not -(1 << 63) <= int(digits) < 1 << 63:
        raise ValueError("more than 64 bits")
    return int(digits)
