from __future__ import annotations

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
    import io

    from PIL import Image  # another reader than ours

    assert Image.open(io.BytesIO(encode(red, "png"))).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("data", [b"", b"not an image at all", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_refused(codec: Codec, data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data, codec)


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
