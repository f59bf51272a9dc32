"""How numbers of things are written."""

from __future__ import annotations


def many(number: int, one: str, more: str | None = None) -> str:
    """A number and its noun.

    >>> many(1, "shard"), many(1200, "shard"), many(2, "batch", "batches")
    ('1 shard', '1,200 shards', '2 batches')
    """
    return f"{number:,} {one if number == 1 else more or one + 's'}"
