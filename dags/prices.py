"""What requests and bytes cost at list prices: an estimate, for those who pay for a store; docs/operations.md says whence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lumid.pipeline.traffic import Traffic


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars for a thousand requests that read, for a thousand that list or write, and for a GB that leaves the cloud."""

    get: float
    put: float
    gigabyte_out: float


PRICES = {
    "s3": Price(get=0.0004, put=0.005, gigabyte_out=0.09),
    "gs": Price(get=0.0004, put=0.005, gigabyte_out=0.12),
    "az": Price(get=0.00044, put=0.0055, gigabyte_out=0.087),
}
"""By the scheme of a store's address: Amazon us-east-1, Google us-east1, Azure West US hot; the first tier of each."""
PROVIDERS = {"idc-aws": "s3", "idc-google": "gs"}
"""Public buckets that are read anonymously: whoever keeps them pays."""


@dataclass(frozen=True, slots=True)
class Cost:
    """In US dollars, at list prices: what the reader pays for requests, and at most for bytes; and what others pay."""

    requests: float = 0.0
    bytes_out: float = 0.0
    paid_by_archives: float = 0.0


FREE = Cost()


def cost_of(traffic: Iterable[Traffic]) -> Cost:
    """The cost of requests and of the bytes that came with them.

    Bytes are counted as if they left the cloud; a worker in the store's own region pays nothing for them.

    >>> cost_of([Traffic("folder-s3", "get", "ok", 1_000_000, 10**12)])
    Cost(requests=0.4, bytes_out=90.0, paid_by_archives=0.0)
    """
    requests = bytes_out = others = 0.0
    for one in traffic:
        scheme = PROVIDERS.get(one.archive) or one.archive.rpartition("-")[2]
        if scheme not in PRICES:  # a disk, TCIA, NIH: nobody is billed by the request
            continue
        price = PRICES[scheme]
        for_requests = one.requests / 1000 * (price.get if one.operation == "get" else price.put)
        for_bytes = one.bytes / 1e9 * price.gigabyte_out if one.operation == "get" else 0.0
        if one.archive in PROVIDERS:
            others += for_requests + for_bytes
        else:
            requests += for_requests
            bytes_out += for_bytes
    return Cost(round(requests, 4), round(bytes_out, 4), round(others, 4))
