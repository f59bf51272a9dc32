"""Text in pixels: that it is found, that what is not text mostly is not, and what becomes of an image that has some."""

from __future__ import annotations

import builtins
import itertools
import shutil
import subprocess
import sys
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from lumid.catalog.codecs import Pixels
from lumid.pipeline import burned_in
from lumid.pipeline.burned_in import clear_text, ultrasound_regions
from lumid.pipeline.decode import Limits, decode_frames, image_size, parse
from lumid.pipeline.deidentify import modality_of
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.intensity import Intensities, frame_histogram, robust_range
from lumid.pipeline.reject import Reject
from lumid.pipeline.text import mask, network, search_text
from tests.dicom import gradient, image, real_file
from tests.planted_text import contrast, drawn, plant

CLEAN = ("CT_small.dcm", "693_J2KI.dcm", "RG1_J2KI.dcm", "MR2_J2KI.dcm", "JPEG-LL.dcm")
"""Real images without text: CT, CT, CR, MR, NM."""


def shown(name: str) -> Pixels:
    """The first frame of a real file, normalised, at most 512 pixels a side of it."""
    dataset = parse(real_file(name))
    assert not isinstance(dataset, Reject)
    size = image_size(dataset, Limits(1 << 28, 1000))
    assert not isinstance(size, Reject)
    stored = next(iter(decode_frames(dataset, size)))
    header = FrameHeader(dataset, 0)
    modality = modality_of(header) or "OT"
    assert not isinstance(stored, Reject)
    span = robust_range([frame_histogram(stored, header)]) if uses_series_range(header, modality) else None
    found = normalize(stored, header, modality, span, "lumid")
    assert not isinstance(found, Reject)
    rows, columns = found.pixels.shape[:2]
    top, left = max(0, rows // 2 - 256), max(0, columns // 2 - 256)
    return np.ascontiguousarray(found.pixels[top : top + 512, left : left + 512])


def as_image(pixels: Pixels) -> Intensities:
    return Intensities(pixels, 1.0, 0.0, "a.u.")


def named(pixels: Pixels, *, name: str = "SMITH^JOHN", height: int = 14, **options: Any) -> Pixels:
    return plant(pixels, drawn(name, "hershey", height), 6, 6, "white", **options).pixels


@pytest.fixture(scope="module")
def scan() -> Pixels:
    """Smooth anatomy with noise, ``uint16 [160, 224]``: what does not need a real image."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[:160, :224]
    body = np.hypot((rows - 90) / 60, (columns - 112) / 90) < 1
    noisy = np.where(body, 1060, 24) + rng.normal(0, 12, body.shape)
    return cv2.GaussianBlur(np.clip(noisy, 0, 4095).astype(np.uint16), (3, 3), 0)


@pytest.mark.parametrize("name", CLEAN[:4])
def test_what_is_found_of_planted_text(name: str) -> None:
    """A small corpus, the same every time; the whole one, with intervals, is in benchmarks/text.py."""
    missed, count = [], 0
    texts = ("Doe, Jane A.", "12/03/1961", "MRN 4471-0932", "M 63Y")
    ways = itertools.product(
        ("hershey", "bitmap", "sans"), (9, 16), ("white", "black", "boxed", "outlined"), (True, False), (0, 1)
    )
    pixels = shown(name)[:224, :224]
    for number, (font, height, polarity, smooth, turned) in enumerate(ways):
        if number % 11:
            continue
        alpha = drawn(texts[number // 11 % 4], font, height, smooth=smooth, turned=turned)
        rows, columns = (side - size for side, size in zip(pixels.shape, alpha.shape, strict=True))
        if min(rows, columns) < 4:
            continue
        top, left = ((2, 2), (rows - 2, columns - 2), (rows // 3, columns // 2))[number // 11 % 3]
        planted = plant(pixels, alpha, top, left, polarity)
        share, noise = contrast(pixels, planted)
        if share < 0.1 or noise < 1.5:  # black on black
            continue
        count += 1
        if search_text(planted.pixels)[planted.ink].mean() < 0.98:
            missed.append((font, height, polarity, smooth, turned))
    assert count >= 5
    assert len(missed) <= 1, missed


def test_how_much_of_real_images_is_taken_for_text() -> None:
    shares = [float(search_text(shown(name)).mean()) for name in CLEAN]
    assert sum(share == 0 for share in shares) >= 2
    assert max(shares) < 0.12


@pytest.mark.parametrize("polarity", ["MONOCHROME1", "MONOCHROME2", "RGB"])
def test_an_independent_reader_finds_nothing_in_what_was_masked(polarity: str) -> None:
    reader = shutil.which("tesseract")
    if reader is None:
        pytest.skip("needs tesseract: apt-get install tesseract-ocr")
    rng = np.random.default_rng(1)
    body = np.hypot(*(np.mgrid[:240, :400] - np.array([[[120]], [[330]]]))) < 60
    pixels = np.where(body, 120, 60).astype(np.uint8) + rng.integers(0, 9, body.shape, np.uint8)
    if polarity == "MONOCHROME1":
        pixels = np.bitwise_not(pixels)
    colour: Any = 0.0 if polarity == "MONOCHROME1" else 255.0
    if polarity == "RGB":
        pixels, colour = np.stack([pixels] * 3, axis=2), (255, 255, 0)
    wanted = ("HARTMANN", "19610312", "44710932")
    for row, text in zip((10, 100, 200), wanted, strict=True):
        pixels = plant(pixels, drawn(text, "sans", 20), row, 30, "white", colour).pixels

    def read(one: Pixels) -> str:
        large = cv2.resize(one if one.ndim == 2 else cv2.cvtColor(one, cv2.COLOR_RGB2GRAY), None, fx=2, fy=2)
        png = cv2.imencode(".png", large)[1].tobytes()
        done = subprocess.run([reader, "-", "-", "--psm", "11"], input=png, capture_output=True, check=True, timeout=60)
        return done.stdout.decode(errors="replace")

    assert all(text in read(pixels) for text in wanted)
    cleared = clear_text(as_image(pixels), FrameHeader(image(gradient()), 0), "search", "mask")
    assert not isinstance(cleared, Reject)
    assert cleared[1] == "removed"
    left = read(cleared[0].pixels)
    assert not any(text in left for text in wanted)
    assert not any(character.isalnum() for character in left)


def test_what_is_masked_is_black_and_the_rest_as_it_was(scan: Pixels) -> None:
    planted = plant(scan, drawn("SMITH^JOHN", "hershey", 14), 6, 6, "white")
    found = search_text(planted.pixels)
    assert found[planted.ink].all()
    masked = mask(planted.pixels, found)
    assert (masked[found] == 0).all()
    assert (masked[~found] == scan[~found]).all()
    assert (planted.pixels[planted.ink] > 0).all(), "the pixels given are left alone"


def test_text_that_hardly_differs_from_bright_metal_is_found(scan: Pixels) -> None:
    """16 bits: the brightest pixels must not take the contrast from the rest."""
    with_metal = scan.copy()
    with_metal[120:128, 100:110] = 60_000
    alpha = drawn("JONES 1961", "sans", 12)
    pixels = with_metal.astype(np.int64)
    pixels[80 : 80 + alpha.shape[0], 60 : 60 + alpha.shape[1]] += np.rint(alpha * 500).astype(np.int64)
    ink = np.zeros(scan.shape, bool)
    ink[80 : 80 + alpha.shape[0], 60 : 60 + alpha.shape[1]] = alpha > 0.3
    assert search_text(pixels.astype(np.uint16))[ink].mean() > 0.98


def test_the_same_again_and_by_many(scan: Pixels) -> None:
    from concurrent.futures import ThreadPoolExecutor

    pixels = named(scan)
    one = search_text(pixels)
    with ThreadPoolExecutor(4) as pool:
        others = list(pool.map(search_text, [pixels] * 8))
    assert all((other == one).all() for other in others)


def test_what_is_found_is_whole_cells(scan: Pixels) -> None:
    found = search_text(named(scan))
    cells = found.reshape(40, 4, 56, 4).swapaxes(1, 2).reshape(-1, 16)
    assert (cells.all(axis=1) == cells.any(axis=1)).all()


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 10_000), (10_000, 1), (3, 700), (31, 33), (2, 2, 3), (1, 5, 3), (737, 737)]
)
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_odd_sizes(shape: tuple[int, ...], kind: Any) -> None:
    if len(shape) == 3 and kind is np.uint16:
        pytest.skip("colour has 8 bits")
    top = np.iinfo(kind).max
    ramp = np.linspace(0, top, int(np.prod(shape))).astype(kind).reshape(shape)
    for pixels in (ramp, np.zeros(shape, kind), np.full(shape, top, kind)):
        assert search_text(pixels).shape == shape[:2]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 2**32 - 1), st.booleans())
def test_any_image_can_be_searched(rows: int, columns: int, seed: int, deep: bool) -> None:
    pixels = np.random.default_rng(seed).integers(0, 65536 if deep else 256, (rows, columns))
    found = search_text(pixels.astype(np.uint16 if deep else np.uint8))
    assert found.shape == (rows, columns)


def test_tiles_cover_an_image_and_share_enough() -> None:
    for length in (1, 95, 735, 736, 737, 1376, 1377, 5000):
        spans = list(network._spans(length))
        assert spans[0][0] == 0
        assert spans[-1][1] == length
        assert all(one[1] - two[0] >= network.OVERLAP for one, two in itertools.pairwise(spans))
        assert all(end - start <= network.TILE for start, end in spans)


def test_text_across_the_border_of_tiles_is_found() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(20, 40, (60, 1000), np.uint8)
    planted = plant(
        pixels, drawn("IDENTIFIER 4471-0932 OF A PATIENT WITH A LONG NAME", "sans", 14), 20, 100, "white", 200.0
    )
    assert planted.ink[:, 300:420].any()
    assert search_text(planted.pixels)[planted.ink].mean() > 0.98


def ultrasound(*regions: tuple[Any, ...]) -> FrameHeader:
    items = []
    for corners in regions:
        item = Dataset()
        for name, value in zip(("MinX0", "MinY0", "MaxX1", "MaxY1"), corners, strict=True):
            if value is not None:
                setattr(item, f"RegionLocation{name}", value)
        items.append(item)
    return FrameHeader(image(gradient(), Modality="US", SequenceOfUltrasoundRegions=items), 0)


def test_of_ultrasound_only_the_declared_regions_are_kept() -> None:
    grey = (np.add.outer(np.arange(160), np.arange(224)) // 4 + 1).astype(np.uint8)
    cleared = clear_text(as_image(grey), ultrasound((20, 30, 200, 150)), "search", "mask")
    assert not isinstance(cleared, Reject)
    kept = np.zeros(grey.shape, bool)
    kept[30:151, 20:201] = True
    assert cleared[1] == "removed"
    assert (cleared[0].pixels[~kept] == 0).all()
    assert (cleared[0].pixels[kept] == grey[kept]).all()


def test_what_is_filled_anyway_is_searched_only_if_the_header_says_that_there_is_text(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched: list[tuple[int, ...]] = []

    def search(pixels: Pixels) -> npt.NDArray[np.bool_]:
        searched.append(pixels.shape)
        return np.zeros(pixels.shape[:2], bool)

    monkeypatch.setattr(burned_in, "search_text", search)
    header = ultrasound((20, 30, 99, 59), (60, 50, 119, 99))
    grey = np.random.default_rng(0).integers(0, 255, (160, 224), np.uint8)
    assert not isinstance(clear_text(as_image(grey), header, "search", "mask"), Reject)
    assert isinstance(clear_text(as_image(grey), header, "stated", "mask"), Reject)
    assert searched == [(70, 100), (160, 224)]


def test_text_inside_a_declared_region_is_masked_and_text_outside_is_gone(scan: Pixels) -> None:
    grey = (scan // 16).astype(np.uint8) + 1
    inside = plant(grey, drawn("JOHN", "sans", 14), 60, 60, "white", 255.0)
    both = plant(inside.pixels, drawn("ST MARY", "sans", 10), 3, 3, "white", 255.0)
    cleared = clear_text(as_image(both.pixels), ultrasound((20, 30, 200, 150)), "search", "mask")
    assert not isinstance(cleared, Reject)
    assert (cleared[0].pixels[inside.ink | both.ink] == 0).all()
    assert cleared[0].pixels.any()


@pytest.mark.parametrize(
    "corners", [(None, 0, 5, 5), (9, 9, 3, 3), (5, 5, 900, None), (500, 500, 600, 600)]
)  # fmt: skip
def test_impossible_regions_declare_nothing(corners: tuple[Any, ...]) -> None:
    assert ultrasound_regions(ultrasound(corners), (160, 224)) is None
    found = ultrasound_regions(ultrasound(corners, (0, 0, 9999, 9)), (160, 224))
    assert found is not None
    assert found.sum() == 10 * 224
    assert ultrasound_regions(FrameHeader(image(gradient()), 0), (160, 224)) is None


def test_what_becomes_of_it(scan: Pixels) -> None:
    header, named_one = FrameHeader(image(gradient()), 0), as_image(named(scan))
    clean = as_image(np.tile(np.arange(224, dtype=np.uint16), (160, 1)))

    def outcome(one: Intensities, risk: str, how: Any = "mask") -> str:
        found = clear_text(one, header, risk, how)
        return f"{found.stage} {found.code}" if isinstance(found, Reject) else found[1]

    assert outcome(clean, "search") == "checked"
    assert outcome(clean, "stated") == "deidentify text_in_pixels"
    assert outcome(named_one, "search") == "removed"
    assert outcome(named_one, "stated") == "removed"
    assert outcome(named_one, "search", "reject") == "deidentify text_in_pixels"
    assert outcome(named_one, "none") == "none"
    assert outcome(named_one, "unknown") == "unknown"


def test_a_page_of_text_is_no_image() -> None:
    page = np.zeros((300, 400), np.uint8)
    for row in range(8, 280, 22):
        page = plant(page, drawn("PATIENT INFORMATION 4471", "sans", 12), row, 8, "white", 255.0).pixels
    found = clear_text(as_image(page), FrameHeader(image(gradient()), 0), "search", "mask")
    assert isinstance(found, Reject)
    assert found.code == "report_page"
    sparse = plant(np.full((300, 400), 255, np.uint8), drawn("REPORT", "sans", 20), 20, 20, "black", 0.0).pixels
    found = clear_text(as_image(sparse), FrameHeader(image(gradient()), 0), "search", "mask")
    assert isinstance(found, Reject)
    assert found.code == "report_page"


def test_what_cannot_be_searched_does_not_pass(scan: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("onnxruntime"):
            raise ImportError(name)
        return real(name, *rest, **more)

    network._session.cache_clear()
    for module in [name for name in sys.modules if name.startswith("onnxruntime")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(builtins, "__import__", without)
    found = clear_text(as_image(scan), FrameHeader(image(gradient()), 0), "search", "mask")
    assert isinstance(found, Reject)
    assert found.code == "text_in_pixels"
    assert "pip install" in found.detail
