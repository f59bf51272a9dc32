"""What a verification can find wrong with a data set, and how it says so."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["damage", "warning"]
Framing = Literal["intact", "broken", "missing"]

FINDINGS: dict[str, str] = {
    "manifest_damaged": "dataset.json cannot be read, or contradicts itself",
    "recipe_hash": "the recipe in dataset.json is not the one that its hash was made from",
    "file_missing": "a file that every data set has is missing or empty",
    "stray_file": "a file that no build of this data set wrote",
    "catalog_unreadable": "a file of the catalog cannot be read, or does not have the catalog's columns",
    "catalog_hash": "the catalog's rows are not those that were built",
    "catalog_count": "the catalog does not have as many rows as dataset.json says",
    "catalog_shard": "rows of the catalog name a shard that dataset.json does not list",
    "catalog_order": "keys in a shard are not sorted, not unique, or outside of the shard's range of keys",
    "catalog_range": "bytes that rows of the catalog point to overlap, or lie outside of the shard",
    "catalog_header": "the shard is whole, but does not have the sample where the catalog says",
    "row_mismatch": "the shard is whole, but the sample is not what its row says",
    "rejects_unreadable": "a file of the rejects cannot be read, or does not have their columns",
    "account": "planned frames, kept ones and rejected ones do not add up",
    "lock_unreadable": "the lock cannot be read, or does not have a lock's columns",
    "lock_hash": "the lock is not the one that was built",
    "lock_provenance": "the catalog or the rejects have a collection, source, licence or DOI that the lock does not have",
    "lock_series": "the rejects have series that the lock does not have",
    "shard_missing": "a shard is not there",
    "shard_unreadable": "the disk refuses to read a shard",
    "shard_size": "a shard does not have the size that dataset.json says",
    "shard_hash": "a shard's bytes are not those that were built",
    "sample_damaged": "samples whose bytes in the shard are not those that were built",
    "framing_broken": "a shard is not a whole tar: readers stop or fail inside of it",
}
"""Every code of a finding, with what it means."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong: how bad, which kind, in which file, and what exactly."""

    severity: Severity
    code: str
    where: str
    what: str

    def __post_init__(self) -> None:
        if self.code not in FINDINGS:
            raise ValueError(f"unknown code of a finding: {self.code}")


def damage(code: str, where: str, what: str = "") -> Finding:
    """A finding that makes the data set unsound."""
    return Finding("damage", code, where, what or FINDINGS[code])


def warning(code: str, where: str, what: str = "") -> Finding:
    """A finding that a user may want to know of."""
    return Finding("warning", code, where, what or FINDINGS[code])


@dataclass(frozen=True, slots=True)
class DamagedShard:
    """A shard whose bytes are not those that were built, and which of its samples that concerns, in their order.

    ``framing``: whether the file is still a whole tar, so that the other samples can be read from it.
    """

    name: str
    keys: tuple[str, ...]
    framing: Framing


@dataclass(frozen=True, slots=True)
class Checked:
    """How much was looked at."""

    shards: int = 0
    samples: int = 0
    bytes: int = 0
    images_decoded: int = 0
    catalog_rows: int = 0
    rejects: int = 0


@dataclass(frozen=True, slots=True)
class Verification:
    """The outcome of a verification. ``damaged`` has the shards that must be made again, in their order."""

    deep: bool
    findings: tuple[Finding, ...]
    damaged: tuple[DamagedShard, ...]
    counts: Checked
    seconds: float

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged; warnings do not count."""
        return not any(finding.severity == "damage" for finding in self.findings)

    @property
    def damaged_keys(self) -> dict[str, tuple[str, ...]]:
        """The keys of damaged samples by shard."""
        return {shard.name: shard.keys for shard in self.damaged}
