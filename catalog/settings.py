"""What is wrong with a settings file, in words: the key, and what is allowed there."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def explain(detail: ErrorDetails, root: type[BaseModel]) -> str:
    """One line for one validation error of a settings class: key, value, and what is allowed instead."""
    key = ".".join(str(part) for part in detail["loc"]) or "the recipe"
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {', '.join(_allowed_keys(detail['loc'], root))}"
    if kind == "missing":
        return f"{key}: missing; this key is required"
    if kind == "literal_error":
        return f"{key}: {detail['input']!r} is not allowed; use {context['expected']}"
    if kind == "value_error":
        return f"{key}: {context['error']}"
    if kind == "string_pattern_mismatch":
        return f"{key}: {detail['input']!r} is not allowed; lower-case letters, digits, '_' and '-', beginning with a letter or digit"
    return f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}, not {detail['input']!r}"


def _allowed_keys(location: tuple[int | str, ...], root: type[BaseModel]) -> list[str]:
    section = root
    for part in location[:-1]:
        if isinstance(part, str):
            section = _section(section.model_fields[part].annotation)
    return list(section.model_fields)


def _section(annotation: Any) -> type[BaseModel]:
    """The settings class in an annotation such as ``Section`` or ``tuple[Section, ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_section(inner) for inner in get_args(annotation) if inner is not Ellipsis)
