"""Where recipes come from: shipped files, TOML files, locks, a folder alone; and options that change one."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lumid.catalog.errors import RecipeError
from lumid.catalog.settings import explain_all
from lumid.catalog.stores import NO_SECRETS, holds_secret
from lumid.pipeline.recipe import (
    AnySource,
    FolderSettings,
    IdcSettings,
    Modality,
    Recipe,
    SampleSettings,
    TciaSettings,
    collections_of,
)
from lumid.pipeline.recipe_cluster import TLS_FILES


def shipped_recipes() -> dict[str, str]:
    """Names and texts of the recipes inside the package."""
    folder = resources.files("lumid.pipeline") / "recipes"
    found = sorted((item for item in folder.iterdir() if item.name.endswith(".toml")), key=lambda item: item.name)
    return {item.name.removesuffix(".toml"): item.read_text("utf-8") for item in found}


def load_recipe(name_or_path: str) -> Recipe:
    """The recipe of that name among the shipped ones, or of that TOML file.

    Relative source paths of a file are taken from the file's own folder. Raises :class:`RecipeError`.
    """
    shipped = shipped_recipes()
    path = Path(name_or_path)
    if name_or_path in shipped:
        return parse_recipe(shipped[name_or_path], f"recipe '{name_or_path}'", base=Path.cwd())
    if path.is_dir():
        raise RecipeError(
            f"{name_or_path}: is a folder, not a recipe; to build from its files: --source {name_or_path}"
        )
    if not path.is_file():
        raise RecipeError(
            f"{name_or_path}: no such recipe; shipped are {', '.join(shipped)}, or give the path of a TOML file"
        )
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        raise RecipeError(f"{name_or_path}: cannot be read as UTF-8 text") from None
    return parse_recipe(text, name_or_path, base=path.resolve().parent)


def parse_recipe(text: str, label: str, *, base: Path) -> Recipe:
    """A recipe from TOML; ``label`` names it in errors, ``base`` is the folder that relative paths start from."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{label}: not valid TOML: {error}") from None
    except RecursionError:
        raise RecipeError(f"{label}: not a recipe: tables or lists nested too deeply") from None
    try:
        recipe = Recipe.model_validate_json(json.dumps(values, default=str))
    except RecursionError:
        raise RecipeError(f"{label}: not a recipe: tables or lists nested too deeply") from None
    except ValidationError as error:
        raise RecipeError("; ".join(f"{label}: {line}" for line in explain_all(error.errors(), Recipe)[:5])) from None
    cache = _anchored_path(recipe.fetch.cache, base)
    given = {name: getattr(recipe.cluster, name, None) for name in TLS_FILES}
    tls = {name: _anchored_path(path, base) for name, path in given.items() if path}
    return recipe.model_copy(
        update={
            "sources": tuple(_anchored(source, base) for source in recipe.sources),
            "fetch": recipe.fetch.model_copy(update={"cache": cache}),
            "cluster": recipe.cluster.model_copy(update=tls),
        }
    )


def parse_portable(text: str, label: str, *, base: Path) -> Recipe:
    """A recipe from what :meth:`Recipe.portable` gave; raises :class:`RecipeError`."""
    try:
        recipe = Recipe.model_validate_json(text)
    except ValidationError as error:
        raise RecipeError("; ".join(f"{label}: {line}" for line in explain_all(error.errors(), Recipe)[:5])) from None
    return recipe.model_copy(update={"sources": tuple(_anchored(source, base) for source in recipe.sources)})


def _anchored(source: AnySource, base: Path) -> AnySource:
    """A source whose relative local paths start from ``base``."""
    paths = {name: _anchored_path(getattr(source, name, None), base) for name in ("path", "manifest")}
    return source.model_copy(update={name: path for name, path in paths.items() if path})


def _anchored_path(path: str | None, base: Path) -> str | None:
    return str(base / Path(path).expanduser()) if path and "://" not in path else path


def make_recipe(
    folder: Path | str,
    *,
    collection: str,
    license: str | None = None,
    doi: str | None = None,
    modality: Modality | None = None,
) -> Recipe:
    """The recipe of ``lumid build --source FOLDER``: everything by default. Raises :class:`RecipeError`."""
    try:
        path = str(folder) if "://" in str(folder) else str(Path(folder).expanduser().resolve())
    except RuntimeError:  # so says Python before 3.13 of a link to itself
        raise RecipeError(f"{folder}: symbolic links lead round in a circle") from None
    try:
        source = FolderSettings(path=path, collection=collection, license=license, doi=doi, modality=modality)
        return Recipe(name=re.sub(r"[^a-z0-9_-]", "-", collection), sources=(source,))
    except ValidationError as error:
        raise RecipeError("; ".join(explain_all(error.errors(), Recipe))) from None


def parse_fraction(text: str) -> float:
    """A share from ``0.1%`` or ``0.001``; raises :class:`RecipeError`.

    >>> parse_fraction("5%"), parse_fraction("0.05")
    (0.05, 0.05)
    """
    number = text.strip().removesuffix("%")
    try:
        share = float(number) / (100 if number != text.strip() else 1)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise RecipeError(f"--sample {text}: not a share; write it as 0.1% or 0.001, above 0 and at most 100%")
    return share


def with_overrides(
    recipe: Recipe,
    *,
    sample: float | None = None,
    max_gb: float | None = None,
    collections: Sequence[str] = (),
    cache: str | None = None,
    offline: bool = False,
) -> Recipe:
    """The recipe changed by options of the command line; its hash changes with what shapes the data set.

    ``sample`` and ``max_gb`` replace those of ``[sample]``; ``collections`` keeps only these of the recipe's own;
    ``cache`` replaces that of ``[fetch]``, a relative one starts from the working directory; ``offline`` turns it on.
    Raises :class:`RecipeError` for a collection that the recipe does not have.
    """
    changes: dict[str, Any] = {}
    if cache is not None and "://" in cache and holds_secret(cache):
        raise RecipeError(f"--cache: {NO_SECRETS}")
    if sample is not None or max_gb is not None:
        sizes = {name: value for name, value in (("fraction", sample), ("max_gb", max_gb)) if value is not None}
        try:
            changes["sample"] = SampleSettings(**(recipe.sample.model_dump() | sizes))
        except ValidationError as error:
            raise RecipeError("; ".join(f"sample.{line}" for line in explain_all(error.errors(), Recipe))) from None
    if collections:
        changes["sources"] = _only(recipe.sources, collections)
    if cache is not None or offline:
        fetch = recipe.fetch
        changes["fetch"] = fetch.model_copy(
            update={
                "cache": fetch.cache if cache is None else _anchored_path(cache, Path.cwd()),
                "offline": fetch.offline or offline,
            }
        )
    return recipe.model_copy(update=changes)


def _only(sources: Sequence[AnySource], wanted: Sequence[str]) -> tuple[AnySource, ...]:
    """The sources with no more than the wanted collections; those that have none of them are left out."""
    from lumid.catalog.collections import did_you_mean, plain_name

    names = {plain_name(name) for name in wanted}
    having = [(source, collections_of(source)) for source in sources]
    known = [name for _, held in having for name in held]
    for name in wanted:
        if plain_name(name) not in map(plain_name, known):
            raise RecipeError(f"collection '{name}': not among the recipe's{did_you_mean(name, known)}")
    kept: list[AnySource] = []
    for source, held in having:
        chosen = tuple(name for name in held if plain_name(name) in names)
        if chosen and isinstance(source, IdcSettings):
            kept.append(source.model_copy(update={"collections": chosen, "exclude": ()}))
        elif chosen and isinstance(source, TciaSettings):
            kept.append(source.model_copy(update={"collections": chosen, "manifest": None}))
        elif chosen:
            kept.append(source)
    return tuple(kept)
