from __future__ import annotations

import io
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumid.catalog.errors import DatasetError
from lumid.catalog.find import find_sample, read_found
from lumid.catalog.shards import END_OF_TAR, member


def make_shard(keys: list[str], sizes: list[int], json_size: int = 40) -> tuple[bytes, dict[str, int]]:
    tar, starts = io.BytesIO(), {}
    for key, size in zip(keys, sizes, strict=True):
        starts[key] = tar.tell()
        # an image that holds headers, as a hostile or unlucky one might
        image = (member("0" * 24 + ".png", b"").replace(b"0" * 24, b"1" * 24) * (size // 512 + 1))[:size]
        tar.write(member(f"{key}.png", image) + member(f"{key}.json", b'{"n": "' + b"x" * json_size + b'"}'))
    return tar.getvalue() + END_OF_TAR, starts


def reader(data: bytes, counted: list[int]) -> Callable[[int, int], bytes]:
    def read(offset: int, length: int) -> bytes:
        counted.append(length)
        assert 0 <= offset <= offset + length <= len(data)
        return data[offset : offset + length]

    return read


@settings(max_examples=150, deadline=None)
@given(
    st.sets(st.integers(0, 16**24 - 1), min_size=1, max_size=60),
    st.lists(st.integers(1, 9000), min_size=60, max_size=60),
    st.sampled_from([512, 2048, 65536]),
    st.integers(0, 16**24 - 1),
)
def test_every_sample_is_found_and_no_other(numbers: set[int], sizes: list[int], window: int, other: int) -> None:
    keys = [f"{number:024x}" for number in sorted(numbers)]
    data, starts = make_shard(keys, sizes[: len(keys)])
    read = reader(data, [])
    for key, size in zip(keys, sizes, strict=False):
        found = find_sample(read, len(data), key, keys[0], keys[-1], window)
        assert found is not None
        assert (found.start, found.length, found.codec, found.key) == (starts[key], size, "png", key)
    absent = f"{other:024x}"
    if absent not in keys:
        assert find_sample(read, len(data), absent, keys[0], keys[-1], window) is None


def test_a_shard_of_thousands_takes_a_few_reads() -> None:
    rng = random.Random(0)
    keys = sorted(f"{rng.getrandbits(96):024x}" for _ in range(4000))
    data, starts = make_shard(keys, [int(rng.lognormvariate(8.6, 0.5)) for _ in keys])
    reads = []
    for key in rng.sample(keys, 200):
        counted: list[int] = []
        found = find_sample(reader(data, counted), len(data), key, keys[0], keys[-1])
        assert found is not None
        assert found.start == starts[key]
        reads.append(len(counted))
    assert sum(reads) / len(reads) < 25
    assert max(reads) < 80


def test_json_longer_than_usual() -> None:
    data, _ = make_shard(["a" * 24], [700], json_size=20_000)
    found = find_sample(reader(data, []), len(data), "a" * 24, "a" * 24, "a" * 24)
    assert found is not None
    image, values = read_found(reader(data, []), len(data), found)
    assert len(image) == 700
    assert len(values["n"]) == 20_000


def test_a_file_that_is_no_shard() -> None:
    data = bytes(100_000)
    assert find_sample(reader(data, []), len(data), "5" * 24, "0" * 24, "f" * 24) is None
    broken = make_shard(["a" * 24, "b" * 24], [700, 700])[0][:2000]
    with pytest.raises((DatasetError, AssertionError)):
        find_sample(reader(broken, []), len(broken), "b" * 24, "a" * 24, "b" * 24)
