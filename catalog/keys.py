"""Keys and pseudonyms: HMAC-SHA256 of source identifiers.

A key is uniform over 96 bits, so *sorting by key is the global shuffle*: shard ``i`` holds the ``i``-th range of
keys, whatever order the slices arrived in. Public sources use one published constant as the secret, so that
everyone who rebuilds the data set gets the same keys; private sources use the owner's own.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field

KEY_DIGITS = 24
PSEUDONYM_DIGITS = 16
PUBLIC_SECRET = b"lumid: the published secret of public sources, version 1"
MIN_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class Keyer:
    """Turns source identifiers into keys and pseudonyms under one secret.

    Every kind of identifier has its own domain, so equal strings of different kinds get unrelated pseudonyms.

    >>> Keyer(PUBLIC_SECRET).key("1.2.3", 0) == Keyer(PUBLIC_SECRET).key("1.2.3", 0)
    True
    >>> len(Keyer(PUBLIC_SECRET).key("1.2.3", 0))
    24
    """

    secret: bytes = field(repr=False)

    def _digest(self, domain: str, parts: tuple[str, ...]) -> str:
        # the length of each part is signed too: ("ab", "c") and ("a", "bc") must differ
        message = domain.encode() + b"".join(
            len(raw).to_bytes(4, "big") + raw for raw in (part.encode("utf-8", "surrogateescape") for part in parts)
        )
        return hmac.digest(self.secret, message, "sha256").hex()

    def key(self, instance_uid: str, frame: int) -> str:
        """The key of a frame: 24 hex digits of HMAC-SHA256(secret, SOP Instance UID and frame number)."""
        return self._digest("frame", (instance_uid, str(frame)))[:KEY_DIGITS]

    def pseudonym(self, domain: str, *parts: str) -> str:
        """16 hex digits that stand for an identifier of one kind (``patient``, ``study``, ``series`` …)."""
        return self._digest("pseudonym:" + domain, parts)[:PSEUDONYM_DIGITS]

    def fraction(self, domain: str, *parts: str) -> float:
        """A number in [0, 1), uniform and fixed for the identifier: what splits and samples are drawn with."""
        return int(self._digest("fraction:" + domain, parts)[:13], 16) / 16**13
