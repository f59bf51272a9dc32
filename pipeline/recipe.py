"""Recipes: all that one can say about what is to be built, each key with its type and its default."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from lumid.catalog.codecs import Codec
from lumid.catalog.errors import RecipeError
from lumid.catalog.keys import PUBLIC_SECRET, Keyer, weakness
from lumid.catalog.stores import NO_SECRETS, holds_secret
from lumid.pipeline.recipe_cluster import AnyCluster, LocalSettings

Modality = Literal["CT", "MR", "PT", "CR", "DX", "MG", "XA", "RF", "NM", "US", "SC", "OT"]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


def _no_secret(address: object) -> object:
    if isinstance(address, str) and "://" in address and holds_secret(address):
        raise ValueError(NO_SECRETS)
    return address


Address = Annotated[str, BeforeValidator(_no_secret), Field(pattern=r"^https?://[A-Za-z0-9.\[\]:_-]+(/\S*)?$")]
"""Of a server: ``https://host``, with a port or a path where it has them."""
Location = Annotated[str, BeforeValidator(_no_secret)]
"""A folder, or the address of an object store's prefix."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


CollectionName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]


class FolderSettings(_Section):
    """A folder of files, or an object store's prefix (``s3://…``, ``gs://…``, ``az://…``); what is in archives counts too.

    ``modality`` is that of files whose format has no place for one (PNG, NIfTI). ``by_hand``: the files have to be
    fetched by the user; a plan says from where until they are there.
    """

    kind: Literal["folder"] = "folder"
    path: Location
    collection: CollectionName = "local"
    license: str | None = None
    doi: str | None = None
    version: str | None = None
    names: Literal["keyed", "plain"] = "keyed"
    modality: Modality | None = None
    by_hand: bool = False


class PydicomSettings(_Section):
    """The test files inside the pydicom package."""

    kind: Literal["pydicom"] = "pydicom"
    collection: CollectionName = "pydicom_test_files"
    license: str | None = None
    doi: str | None = None
    names: Literal["keyed", "plain"] = "keyed"


class IdcSettings(_Section):
    """Series of the Imaging Data Commons, chosen from its index. What is left empty does not restrict.

    ``collections``: ids of IDC; empty stands for LUMID's 25. ``licenses``: names as the index has them, or
    ``commercial`` for those that allow commercial use. ``idc_version``: the newest of the index unless given.
    """

    kind: Literal["idc"] = "idc"
    collections: tuple[CollectionName, ...] = ()
    exclude: tuple[CollectionName, ...] = ()
    idc_version: Annotated[int, Field(ge=1)] | None = None
    modalities: tuple[Modality, ...] = ()
    body_parts: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    sop_classes: tuple[Annotated[str, Field(pattern=r"^[0-9.]{1,64}$")], ...] = ()
    min_slices: Annotated[int, Field(ge=1)] = 1
    max_slices: Annotated[int, Field(ge=1)] | None = None
    max_series_mb: Annotated[float, Field(gt=0)] | None = None
    analysis_results: bool = False

    @model_validator(mode="after")
    def _some_size_fits(self) -> IdcSettings:
        if self.max_slices is not None and self.max_slices < self.min_slices:
            raise ValueError("max_slices is below min_slices: no series has both")
        return self


class TciaSettings(_Section):
    """Series of The Cancer Imaging Archive: whole collections by name, or those of a ``.tcia`` manifest."""

    kind: Literal["tcia"] = "tcia"
    collections: tuple[str, ...] = ()
    manifest: str | None = None
    modalities: tuple[Modality, ...] = ()

    @model_validator(mode="after")
    def _names_something(self) -> TciaSettings:
        if not self.collections and not self.manifest:
            raise ValueError("a source of kind 'tcia' needs the key 'collections' or 'manifest'")
        return self


class NihSettings(_Section):
    """ChestX-ray14 of the NIH Clinical Center: its archives are fetched into ``path``, the CSV files must be there.

    ``archives``: numbers of the archives to take, all twelve by default. ``benchmark``: the official test list is held
    out as the split ``benchmark``, or goes with the rest (``include``).
    """

    kind: Literal["nih"] = "nih"
    path: str = "nih_chest_xray"
    collection: CollectionName = "nih_chest_xray"
    archives: tuple[Annotated[int, Field(ge=1, le=12)], ...] = tuple(range(1, 13))
    benchmark: Literal["hold_out", "include"] = "hold_out"


AnySource = FolderSettings | PydicomSettings | IdcSettings | TciaSettings | NihSettings
"""One place that images come from."""


class SampleSettings(_Section):
    """A part of what the archives hold: whole patients, drawn by a keyed hash, so that a larger part holds a smaller one.

    ``max_gb`` takes patients in the order of the draw for as long as they fit. Folders are always taken whole.
    """

    fraction: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_gb: Annotated[float, Field(gt=0.0)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0


class FetchSettings(_Section):
    """How archives are read. Nothing here changes what a data set holds, so nothing here is part of the recipe's hash.

    ``cache``: a folder or an object store's prefix that keeps IDC's and TCIA's own files by the archive's name of the
    series' version; with ``offline`` nothing else is asked. ``ahead_mb``: bytes that a worker may hold before they are
    processed. ``requests``: how many a worker has under way at one host. A request that gives no byte for
    ``timeout_s`` seconds has failed; each is tried ``attempts`` times at each of the archive's mirrors.
    """

    cache: Location | None = None
    offline: bool = False
    ahead_mb: Annotated[float, Field(gt=0)] = 256.0
    requests: Annotated[int, Field(ge=1, le=1024)] = 32
    attempts: Annotated[int, Field(ge=1, le=20)] = 5
    timeout_s: Annotated[float, Field(gt=0)] = 60.0
    s3_endpoint: Address = "https://s3.amazonaws.com"
    gs_endpoint: Address = "https://storage.googleapis.com"
    nbia_url: Address = "https://nbia.cancerimagingarchive.net/nbia-api/services/v4"
    nih_url: Address = "https://nihcc.box.com/shared/static"


class DeidSettings(_Section):
    """The de-identification policy, and where a private secret is found (never the secret itself).

    ``exclude_head_slices``: slices of CT, MR and PET that can hold a part of a face, or of a body part that is not known,
    are left out, for nothing removes the face from them.
    ``text``: found in the pixels, it is filled, or the image is left out. ``search``: collections all of whose images
    are searched for text under ``public``, which searches only kinds that commonly carry it.
    """

    policy: Literal["public", "private"] = "public"
    text: Literal["mask", "reject"] = "mask"
    search: tuple[str, ...] = ()
    key_file: str | None = None
    key_env: str = "LUMID_KEY"
    exclude_head_slices: bool = False

    @field_validator("key_env")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,31}", name) is None:  # it goes into dataset.json
            raise ValueError("must be the name of an environment variable, in capitals, never the secret itself")
        return name


class SelectSettings(_Section):
    """Which frames are taken; every rule that leaves one out has its reason code in the rejects.

    ``derived``: what was computed from other images, or made after the examination (reformats, maps, projections).
    ``secondary``: secondary captures. ``stride``: every n-th slice along a series; ``max_slices``: at most so many of
    it, spread evenly. ``max_series``: of each collection at most so many series, drawn by a keyed hash: the others are
    not even fetched, and of a folder not read. ``exact_duplicates``: the same pixels anywhere in the data set.
    ``near_duplicates``: within a series, perceptual hashes of 64 bits that differ in ``near_duplicate_bits`` at most.
    """

    modalities: tuple[Modality, ...] = ("CT", "MR", "PT", "CR", "DX", "MG", "XA", "RF", "NM", "US", "SC", "OT")
    localizers: bool = False
    derived: Literal["take", "drop"] = "take"
    secondary: Literal["take", "drop"] = "take"
    min_side: Annotated[int, Field(ge=1, le=4096)] = 32
    min_foreground: Fraction = 0.01
    implausible: Literal["take", "drop"] = "drop"
    stride: Annotated[int, Field(ge=1)] = 1
    max_slices: Annotated[int, Field(ge=1)] | None = None
    max_series: Annotated[int, Field(ge=1)] | None = None
    exact_duplicates: Literal["keep", "flag", "drop"] = "flag"
    near_duplicates: Literal["keep", "flag", "drop"] = "flag"
    near_duplicate_bits: Annotated[int, Field(ge=0, le=32)] = 0
    max_pixels: Annotated[int, Field(ge=1)] = 1 << 28
    max_frames: Annotated[int, Field(ge=1)] = 20_000


class PixelSettings(_Section):
    """How intensities are stored. ``size``: the long side at most, ``native`` for as many pixels as there are."""

    profile: Literal["lumid", "paper"] = "lumid"
    size: int | Literal["native"] = 256
    codec: Codec = "jhc"

    @field_validator("size", mode="before")
    @classmethod
    def _of_an_image(cls, size: object) -> object:
        if size != "native" and not (type(size) is int and 16 <= size <= 8192):
            raise ValueError(f"must be an integer from 16 to 8192 or 'native', not {size!r}")
        return size


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
    """Sizes of what is written, and of what is worked on at once; ``batch_slices`` of None goes by the source's size."""

    size_mb: Annotated[float, Field(gt=0, le=16_384)] = 256.0
    batch_slices: Annotated[int, Field(ge=1, le=100_000)] | None = None


class LimitSettings(_Section):
    """When a finished build counts as suspicious: the command then ends with exit code 3."""

    max_reject_fraction: Fraction = 1.0


class Recipe(_Section):
    """A recipe. Everything but ``name`` and ``sources`` has a default; see the recipes that lumid ships."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
    description: str = ""
    sources: Annotated[tuple[Annotated[AnySource, Field(discriminator="kind")], ...], Field(min_length=1)]
    deid: DeidSettings = DeidSettings()
    select: SelectSettings = SelectSettings()
    pixels: PixelSettings = PixelSettings()
    splits: SplitSettings = SplitSettings()
    shards: ShardSettings = ShardSettings()
    limits: LimitSettings = LimitSettings()
    sample: SampleSettings = SampleSettings()
    fetch: FetchSettings = FetchSettings()
    cluster: Annotated[AnyCluster, Field(discriminator="kind")] = LocalSettings()

    @model_validator(mode="after")
    def _private_names(self) -> Recipe:
        plain = any(getattr(source, "names", "keyed") == "plain" for source in self.sources)
        if self.deid.policy == "private" and plain:
            raise ValueError("sources.names must be 'keyed' under policy 'private': file names can hold identifiers")
        return self

    def canonical(self) -> dict[str, Any]:
        """The recipe as plain values, without what differs between machines (paths, keys, ways of fetching, the cluster)."""
        values = self.model_dump(mode="json")
        for source in values["sources"]:
            source.pop("path", None)
            source.pop("manifest", None)
        values["deid"].pop("key_file")
        values.pop("fetch")
        values.pop("cluster")
        # 1,000 was the default, for any source, when the hashes of the first data sets and locks were made
        values["shards"]["batch_slices"] = self.shards.batch_slices or 1000
        return values

    def hash(self) -> str:
        """SHA-256 over all that shapes the data set; equal for equal recipes on any machine."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()

    def portable(self) -> str | None:
        """The recipe as JSON that any machine can build from; None when it reads files of this one."""
        local = any(source.kind == "folder" or getattr(source, "manifest", None) for source in self.sources)
        values = self.canonical()
        values["shards"]["batch_slices"] = self.shards.batch_slices
        return None if local else json.dumps(values, sort_keys=True)


def collections_of(source: AnySource) -> tuple[str, ...]:
    """The collections that a source's settings name, those of LUMID where an IDC source names none."""
    if isinstance(source, IdcSettings):
        from lumid.catalog.collections import of_source

        named = source.collections or tuple(one.source_id for one in of_source("idc"))
        return tuple(name for name in named if name not in source.exclude)
    return source.collections if isinstance(source, TciaSettings) else (source.collection,)


def make_keyer(settings: DeidSettings) -> Keyer:
    """The keyer of a policy: the published secret, or the owner's from a file or an environment variable.

    Raises :class:`RecipeError` when a private secret is missing, short, or not random enough to be one.
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
    if not secret:
        raise RecipeError(f"policy 'private' needs a secret in {where}; make one with: lumid deid key new FILE")
    if weak := weakness(secret):
        raise RecipeError(f"the secret in {where} cannot be used: {weak}; make one with: lumid deid key new FILE")
    return Keyer(secret)
