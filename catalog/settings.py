"""What is wrong with a settings file, in words: the key, and what is allowed there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from lumid.catalog.collections import did_you_mean


def explain_all(details: Sequence[ErrorDetails], root: type[BaseModel]) -> list[str]:
    """A line for each of the errors; of a list and what is wrong with its entries, only the entries."""
    places = [detail["loc"] for detail in details]
    return [
        explain(detail, root)
        for detail, place in zip(details, places, strict=True)
        if not any(len(other) > len(place) and other[: len(place)] == place for other in places)
    ]


def explain(detail: ErrorDetails, root: type[BaseModel]) -> str:
    """One line for one validation error of a settings class: key, value, and what is allowed instead."""
    path, section = _walk(detail["loc"], root)
    key = ".".join(path) or "the recipe"
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        known = list(section.model_fields) if section else []
        return f"{key}: unknown key{did_you_mean(path[-1], known)}; allowed here: {', '.join(known)}"
    if kind == "missing":
        return f"{key}: missing; this key is required"
    if kind == "union_tag_invalid":
        tag_key = context["discriminator"].strip("'")
        known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        hint = did_you_mean(str(context["tag"]), known)
        return f"{key}.{tag_key}: {context['tag']!r} is not allowed; use {_either(context['expected_tags'])}{hint}"
    if kind == "union_tag_not_found":
        tag_key = context["discriminator"].strip("'")
        return f"{key}.{tag_key}: missing; this key is required"
    if kind == "literal_error":
        return f"{key}: {detail['input']!r} is not allowed; use {context['expected']}"
    if kind == "value_error":
        return f"{key}: {context['error']}"
    if kind == "too_short":
        return f"{key}: needs at least {context['min_length']} of them"
    if kind == "string_pattern_mismatch":
        name = context["pattern"].startswith("^[a-z0-9][")
        words = "lower-case letters, digits, '_' and '-', beginning with a letter or digit"
        field = section.model_fields.get(path[-1]) if section else None
        if field and field.examples:
            words = f"write it as {' or '.join(map(str, field.examples))}"
        elif not name:
            words = f"it has to match {context['pattern']}"
        return f"{key}: {detail['input']!r} is not allowed; {words}"
    return f"{key}: {detail['msg'][0].lower()}{detail['msg'][1:]}, not {detail['input']!r}"


def _walk(location: tuple[int | str, ...], root: type[BaseModel]) -> tuple[list[str], type[BaseModel] | None]:
    """An error's keys as they stand in the file, and the settings class that holds the last of them.

    Where one of several classes is chosen by a key of its own, the location names the choice as a step that is in no
    file: it chooses the class here and is left out of the keys.
    """
    path: list[str] = []
    annotation: Any = root
    holder: type[BaseModel] | None = root
    for part in location:
        if isinstance(part, int):
            path.append(str(part))
            continue
        sections = list(_sections(annotation))
        chosen = [section for section in sections if any(f.default == part for f in section.model_fields.values())]
        if len(sections) > 1 and chosen:
            annotation = chosen[0]
            continue
        holder = sections[0] if sections else None
        field = holder.model_fields.get(part) if holder else None
        annotation = field.annotation if field else None
        path.append(part)
    return path, holder


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    """The settings classes in an annotation such as ``Section``, ``tuple[Section, ...]`` or ``Section | Other``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for inner in get_args(annotation):
            yield from _sections(inner)


def _either(quoted: str) -> str:
    """``'a', 'b', 'c'`` as ``'a', 'b' or 'c'``."""
    before, comma, last = quoted.rpartition(", ")
    return f"{before} or {last}" if comma else quoted
