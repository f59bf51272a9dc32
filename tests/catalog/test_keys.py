from __future__ import annotations

import copy
import hashlib
import hmac
import pickle
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumid.catalog.keys import PUBLIC_SECRET, Keyer, weakness


def test_key_is_hmac_of_the_length_prefixed_parts() -> None:
    message = b"frame" + b"\x00\x00\x00\x05" + b"1.2.3" + b"\x00\x00\x00\x01" + b"7"
    expected = hmac.new(b"s" * 32, message, hashlib.sha256).hexdigest()[:24]
    assert Keyer(b"s" * 32).key("1.2.3", 7) == expected


def test_published_keys_never_change() -> None:
    # everyone who rebuilds the data set must get these; a change here is a new format version
    message = b"frame" + b"\x00\x00\x00\x051.2.3" + b"\x00\x00\x00\x010"
    secret = b"lumid: the published secret of public sources, version 1"
    assert Keyer(PUBLIC_SECRET).key("1.2.3", 0) == hmac.new(secret, message, hashlib.sha256).hexdigest()[:24]
    assert Keyer(PUBLIC_SECRET).key("1.2.3", 0) == "94df68e88cc309c5ae4d58c2"


@given(st.lists(st.text(), min_size=1, max_size=4), st.lists(st.text(), min_size=1, max_size=4))
def test_pseudonyms_differ_where_parts_differ(one: list[str], other: list[str]) -> None:
    keyer = Keyer(b"k" * 32)
    encode = [[part.encode("utf-8", "surrogatepass") for part in parts] for parts in (one, other)]
    assert (keyer.pseudonym("patient", *one) == keyer.pseudonym("patient", *other)) == (encode[0] == encode[1])


def test_kinds_and_secrets_are_unrelated() -> None:
    keyer = Keyer(b"k" * 32)
    assert (
        len(
            {keyer.pseudonym("patient", "1"), keyer.pseudonym("study", "1"), Keyer(b"l" * 32).pseudonym("patient", "1")}
        )
        == 3
    )


@given(st.text(alphabet="0123456789.", min_size=1))
def test_fractions_are_shares(uid: str) -> None:
    assert 0 <= Keyer(PUBLIC_SECRET).fraction("split", uid) < 1


def test_fractions_are_uniform() -> None:
    values = [Keyer(PUBLIC_SECRET).fraction("split", str(number)) for number in range(4000)]
    assert abs(sum(values) / len(values) - 0.5) < 0.02
    assert abs(sum(value < 0.1 for value in values) / len(values) - 0.1) < 0.02


def test_secret_stays_out_of_repr() -> None:
    assert "kkkk" not in repr(Keyer(b"k" * 32))


def test_a_keyer_holds_no_secret_and_does_not_leave_its_process() -> None:
    secret = b"Vd83kq0zP51xwLmYtB7cHn2Ru9JfaSe4"
    keyer = Keyer(secret)
    assert secret.decode() not in repr(keyer) + str(vars(type(keyer)))
    assert all(secret not in repr(getattr(keyer, name)).encode() for name in keyer.__slots__)
    for copied in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="process"):
            copied(keyer)


@pytest.mark.parametrize(
    ("secret", "why"),
    [(b"", "shorter"), (b"x" * 31, "shorter"), (b"x" * 64, "repeats"), (b"password" * 8, "repeats"), (b"0123456789abcdef" * 4, "repeats"),
     (PUBLIC_SECRET, "published"), (b"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "few different"), (bytes(range(48, 96)), "one upon another"),
     (b"abcdefghijklmnopqrstuvwxyz0123456789", "one upon another")],
)  # fmt: skip
def test_weak_secrets_are_refused_without_a_word_of_them(secret: bytes, why: str) -> None:
    told = weakness(secret)
    assert told is not None
    assert why in told
    assert len(secret) < 4 or secret.decode("latin-1") not in told


@given(st.binary(min_size=32, max_size=32))
def test_random_secrets_are_taken_as_hex(raw: bytes) -> None:
    if len(set(raw)) > 16:
        assert weakness(raw.hex().encode()) is None


def test_what_a_program_makes_at_random_is_taken() -> None:
    for make in (lambda: secrets.token_hex(32), lambda: secrets.token_urlsafe(32), lambda: secrets.token_hex(16)):
        assert all(weakness(make().encode()) is None for _ in range(200))
