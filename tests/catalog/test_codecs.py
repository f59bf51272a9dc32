from __future__ import annotations

import hashlib
import io
import threading
import time

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lumid.catalog.codecs import CODECS, Codec, decode, encode, pixel_hash

sides = st.integers(1, 24)
images = st.one_of(
    hnp.arrays(np.uint8, st.tuples(sides, sides)),
    hnp.arrays(np.uint16, st.tuples(sides, sides)),
    hnp.arrays(np.uint8, st.tuples(sides, sides, st.just(3))),
)


@pytest.mark.parametrize("codec", CODECS)
@given(image=images)
@settings(max_examples=60, deadline=None)
def test_round_trip(codec: Codec, image: npt.NDArray[np.uint8]) -> None:
    data = encode(image, codec)
    back = decode(data, codec)
    assert back.dtype == image.dtype
    np.testing.assert_array_equal(back, image)
    assert data == encode(image.copy(), codec)
    assert pixel_hash(back) == pixel_hash(image)


def test_colours_stay_in_order() -> None:
    red = np.zeros((4, 4, 3), np.uint8)
    red[..., 0] = 255
    from PIL import Image  # another reader than ours

    assert Image.open(io.BytesIO(encode(red, "png"))).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n", b"\xff\x4f\xff\x51"])
def test_what_is_no_image_is_refused(codec: Codec, data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data, codec)


def picture(shape: tuple[int, ...], white: int, seed: int = 0) -> npt.NDArray[np.uint16]:
    noise = np.random.default_rng(seed).normal(0, white / 50, shape)
    row = np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return np.clip(row * white / shape[0] + noise, 0, white).astype(np.uint8 if white == 255 else np.uint16)


@pytest.mark.parametrize(
    "pixels", [picture((70, 90), 65535), picture((256, 31), 4095), picture((60, 50), 255), picture((60, 50, 3), 255)]
)
def test_another_decoder_reads_our_codestreams(pixels: npt.NDArray[np.uint16]) -> None:
    from PIL import Image  # OpenJPEG, where ours is OpenJPH

    found = np.asarray(Image.open(io.BytesIO(encode(pixels, "jhc"))))
    assert found.dtype == pixels.dtype
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (256, 256), (97, 256)])
def test_incompressible_images_come_back_too(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, shape).astype(np.uint16)
    for codec in CODECS:
        np.testing.assert_array_equal(decode(encode(pixels, codec), codec), pixels)


def test_no_damage_goes_unseen() -> None:
    data = encode(picture((64, 64), 4095), "jhc")
    rng = np.random.default_rng(0)
    damaged = [data[:-1], data[: len(data) // 2], data + b"\0", data[:-9] + bytes(9)]
    for _ in range(300):
        one = bytearray(data)
        one[rng.integers(len(data))] ^= 1 << rng.integers(8)
        damaged.append(bytes(one))
    for one in damaged:
        with pytest.raises(ValueError, match="HTJ2K"):
            decode(one, "jhc")
    np.testing.assert_array_equal(decode(memoryview(data), "jhc"), picture((64, 64), 4095))


def test_codestreams_do_not_say_which_version_made_them() -> None:
    import imagecodecs

    data = encode(picture((64, 64), 4095), "jhc")
    assert b"OpenJPH" in imagecodecs.htj2k_encode(picture((64, 64), 4095))
    assert b"OpenJPH" not in data
    assert data.count(b"CRC-32 ") == 1


def test_the_bytes_are_those_of_this_hash() -> None:
    """Of any machine and version: that OpenJPH 0.26 and 0.32, with SSE4, AVX2 and AVX-512, give the same was checked."""
    digest = hashlib.sha256()
    row, column = np.mgrid[:120, :100]
    for pixels in (row * 300 + column, (row * column) % 4096, (row * 7919 + column * 104729) % 65536):
        digest.update(encode(pixels.astype(np.uint16), "jhc"))
    digest.update(encode(np.stack([row % 256, column, (row + column) % 256], 2).astype(np.uint8), "jhc"))
    assert digest.hexdigest() == "d586b6cc159a373abcf16d6ac59430e7fb52ee25fa035f96d5b106d8fe9a2f31"


def test_decoding_lets_other_threads_run() -> None:
    data = encode(picture((1500, 1500), 65535), "jhc")
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.wait(0.0002):
            ticks.append(time.perf_counter())

    thread = threading.Thread(target=tick)
    thread.start()
    most = 0
    for _ in range(30):  # on a busy machine the other thread does not get its turn every time
        begin = time.perf_counter()
        decode(data, "jhc")
        end = time.perf_counter()
        most = max(most, sum(begin < at < end for at in ticks))
    stop.set()
    thread.join()
    assert most >= 5


def test_unknown_codec() -> None:
    with pytest.raises(ValueError, match="png"):
        decode(b"", "gif")


def test_pixel_hash_tells_type_shape_and_values() -> None:
    flat = np.arange(6, dtype=np.uint8)
    hashes = {pixel_hash(one) for one in (flat.reshape(2, 3), flat.reshape(3, 2), flat.reshape(2, 3).astype(np.uint16))}
    assert len(hashes) == 3
    big = flat.reshape(2, 3).astype(">u2")
    assert pixel_hash(big) == pixel_hash(flat.reshape(2, 3).astype("<u2"))
    assert pixel_hash(np.asfortranarray(flat.reshape(2, 3))) == pixel_hash(flat.reshape(2, 3))
