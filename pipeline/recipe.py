"""Recipes: what to build, as a typed TOML file whose errors name the file, the key and what is allowed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lumid.catalog.codecs import Codec
from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import MIN_SECRET_BYTES, PUBLIC_SECRET, Keyer
from lumid.catalog.settings import explain

Modality = Literal["CT", "MR", "PT", "CR", "DX", "MG", "XA", "RF", "NM", "US", "SC", "OT"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SourceSettings(_Section):
    """One place that images come from, and the collection they are put under."""

    kind: Literal["folder", "pydicom", "idc", "tcia", "nih"]
    path: str | None = None
    collection: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")] = "local"
    license: str | None = None
    doi: str | None = None
    version: str | None = None
    names: Literal["keyed", "plain"] = "keyed"
    collections: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    idc_version: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _folder_has_path(self) -> SourceSettings:
        if self.kind == "folder" and not self.path:
            raise ValueError("a source of kind 'folder' needs the key 'path'")
        return self


class DeidSettings(_Section):
    """The de-identification policy, and where a private secret is found (never the secret itself)."""

    policy: Literal["public", "private"] = "public"
    key_file: str | None = None
    key_env: str = "LUMID_KEY"


class SelectSettings(_Section):
    """Which frames are taken."""

    modalities: tuple[Modality, ...] = ("CT", "MR", "PT", "CR", "DX", "MG", "XA", "RF", "NM", "US", "SC", "OT")
    localizers: bool = False
    min_side: Annotated[int, Field(ge=1, le=4096)] = 32
    min_foreground: Fraction = 0.01
    max_pixels: Annotated[int, Field(ge=1)] = 1 << 28
    max_frames: Annotated[int, Field(ge=1)] = 20_000


class PixelSettings(_Section):
    """How intensities are stored."""

    profile: Literal["lumid", "paper"] = "lumid"
    size: Annotated[int, Field(ge=16, le=8192)] = 256
    codec: Codec = "png"


class SplitSettings(_Section):
    """Shares of *patients* held out of training."""

    val: Fraction = 0.01
    test: Fraction = 0.01

    @model_validator(mode="after")
    def _leave_some(self) -> SplitSettings:
        if self.val + self.test >= 1:
            raise ValueError("val + test must be below 1, or nothing is left to train on")
        return self


class ShardSettings(_Section):
    """Sizes of what is written, and of what is worked on at once."""

    size_mb: Annotated[float, Field(gt=0, le=16_384)] = 256.0
    batch_slices: Annotated[int, Field(ge=1, le=100_000)] = 1000


class LimitSettings(_Section):
    """When a finished build counts as suspicious: the command then ends with exit code 3."""

    max_reject_fraction: Fraction = 1.0


class Recipe(_Section):
    """A recipe. Everything but ``name`` and ``sources`` has a default; see the recipes that lumid ships."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    sources: Annotated[tuple[SourceSettings, ...], Field(min_length=1)]
    deid: DeidSettings = DeidSettings()
    select: SelectSettings = SelectSettings()
    pixels: PixelSettings = PixelSettings()
    splits: SplitSettings = SplitSettings()
    shards: ShardSettings = ShardSettings()
    limits: LimitSettings = LimitSettings()

    @model_validator(mode="after")
    def _private_names(self) -> Recipe:
        if self.deid.policy == "private" and any(source.names == "plain" for source in self.sources):
            raise ValueError("sources.names must be 'keyed' under policy 'private': file names can hold identifiers")
        return self

    def canonical(self) -> dict[str, Any]:
        """The recipe as plain values, without what differs between machines (paths of sources and keys)."""
        values = self.model_dump(mode="json")
        for source in values["sources"]:
            source.pop("path")
        values["deid"].pop("key_file")
        return values

    def hash(self) -> str:
        """SHA-256 over all that shapes the data set; equal for equal recipes on any machine."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()


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
    try:
        recipe = Recipe.model_validate_json(json.dumps(values, default=str))
    except ValidationError as error:
        raise RecipeError("; ".join(f"{label}: {explain(detail, Recipe)}" for detail in error.errors()[:5])) from None
    sources = tuple(
        source.model_copy(update={"path": str(base / Path(source.path).expanduser())}) if source.path else source
        for source in recipe.sources
    )
    return recipe.model_copy(update={"sources": sources})


def make_recipe(folder: Path, *, collection: str, license: str | None = None, doi: str | None = None) -> Recipe:
    """The recipe of ``lumid build --source FOLDER``: everything by default. Raises :class:`RecipeError`."""
    values: dict[str, Any] = {
        "kind": "folder",
        "path": str(folder.expanduser().resolve()),
        "collection": collection,
        "license": license,
        "doi": doi,
    }
    try:
        return Recipe(name=re.sub(r"[^a-z0-9_-]", "-", collection), sources=(SourceSettings(**values),))
    except ValidationError as error:
        raise RecipeError("; ".join(explain(detail, Recipe) for detail in error.errors())) from None


def make_keyer(settings: DeidSettings) -> Keyer:
    """The keyer of a policy: the published secret, or the owner's from a file or an environment variable.

    Raises :class:`RecipeError` when a private secret is missing or shorter than 32 bytes.
    """
    if settings.policy == "public":
        return Keyer(PUBLIC_SECRET)
    if settings.key_file:
        try:
            secret = Path(settings.key_file).expanduser().read_bytes().strip()
        except OSError:
            raise RecipeError("deid.key_file: the file cannot be read") from None
        where = "deid.key_file"
    else:
        secret = os.environ.get(settings.key_env, "").encode().strip()
        where = f"the environment variable {settings.key_env}"
    if len(secret) < MIN_SECRET_BYTES:
        raise RecipeError(
            f"policy 'private' needs a secret of at least {MIN_SECRET_BYTES} characters in {where}; "
            'make one with: python -c "import secrets; print(secrets.token_hex(32))"'
        )
    return Keyer(secret)
