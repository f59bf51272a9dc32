"""Keys and pseudonyms: HMAC-SHA256 of source identifiers.

A key is uniform over 96 bits, so *sorting by key is the global shuffle*: shard ``i`` holds the ``i``-th range of
keys, whatever order the slices arrived in. Public sources use one published constant as the secret, so that
everyone who rebuilds the data set gets the same keys; private sources use the owner's own.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import math
from collections import Counter
from typing import NoReturn

KEY_DIGITS = 24
PSEUDONYM_DIGITS = 16
PUBLIC_SECRET = b"lumid: the published secret of public sources, version 1"
MIN_SECRET_BYTES = 32
MIN_SECRET_BITS = 80.0


class Keyer:
    """Turns source identifiers into keys and pseudonyms under one secret.

    Every kind of identifier has its own domain, so equal strings of different kinds get unrelated pseudonyms.
    The secret itself is not kept, only the state of the hash that it began; nor can a keyer be pickled or printed, so that
    it is in no task's arguments, no log and no traceback. A worker reads the secret where it stands.

    >>> Keyer(PUBLIC_SECRET).key("1.2.3", 0) == Keyer(PUBLIC_SECRET).key("1.2.3", 0)
    True
    >>> len(Keyer(PUBLIC_SECRET).key("1.2.3", 0))
    24
    """

    __slots__ = ("_begun",)

    def __init__(self, secret: bytes) -> None:
        self._begun = hmac.new(secret, digestmod=hashlib.sha256)

    def __repr__(self) -> str:
        return "Keyer()"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a keyer does not leave its process")

    def _digest(self, domain: str, parts: tuple[str, ...]) -> str:
        # the length of each part is signed too: ("ab", "c") and ("a", "bc") must differ
        message = domain.encode() + b"".join(
            len(raw).to_bytes(4, "big") + raw for raw in (part.encode("utf-8", "surrogateescape") for part in parts)
        )
        digest = self._begun.copy()
        digest.update(message)
        return digest.hexdigest()

    def key(self, instance_uid: str, frame: int) -> str:
        """The key of a frame: 24 hex digits of HMAC-SHA256(secret, SOP Instance UID and frame number)."""
        return self._digest("frame", (instance_uid, str(frame)))[:KEY_DIGITS]

    def pseudonym(self, domain: str, *parts: str) -> str:
        """16 hex digits that stand for an identifier of one kind (``patient``, ``study``, ``series`` …)."""
        return self._digest("pseudonym:" + domain, parts)[:PSEUDONYM_DIGITS]

    def fraction(self, domain: str, *parts: str) -> float:
        """A number in [0, 1), uniform and fixed for the identifier: what splits and samples are drawn with."""
        return int(self._digest("fraction:" + domain, parts)[:13], 16) / 16**13


def weakness(secret: bytes) -> str | None:
    """Why a private secret would protect nobody, in words without any of it; None for one that may be used.

    What a program made at random passes: 32 characters of it and more. Words cannot be told from random letters, so this
    is no proof of strength.
    """
    if len(secret) < MIN_SECRET_BYTES:
        return f"it is shorter than {MIN_SECRET_BYTES} characters"
    if secret == PUBLIC_SECRET:
        return "it is the published one of public sources"
    head = secret[:4096]
    if any(head == (head[:period] * len(head))[: len(head)] for period in range(1, len(head) // 2 + 1)):
        return "it repeats itself"
    steps = bytes((b - a) % 256 for a, b in itertools.pairwise(secret))
    if min(_bits(secret), _bits(steps)) < MIN_SECRET_BITS:
        return "it has too few different characters, or they follow one upon another"
    return None


def _bits(data: bytes) -> float:
    """Shannon's information of a text, as if its characters were drawn by their shares in it."""
    counts = Counter(data).values()
    return -sum(count * math.log2(count / len(data)) for count in counts)
