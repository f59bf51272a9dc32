"""Colour, and grey images of 8 bits: ultrasound, secondary captures, photographs."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt
from pydicom import Dataset
from pydicom.pixels.processing import apply_color_lut

from lumid.pipeline.decode import Stored
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import Intensities
from lumid.pipeline.normalize.projection import display_unit, is_inverted
from lumid.pipeline.pixelformat import COLOUR

TABLES = tuple(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))


def is_colour(header: FrameHeader) -> bool:
    """Whether a frame has three samples a pixel, or a palette that gives it three: by what its samples mean."""
    return header.term("PhotometricInterpretation") in (*COLOUR, "PALETTE COLOR")


def normalize_colour(stored: Stored, header: FrameHeader, *, grey: bool) -> Intensities:
    """A colour frame as 8-bit RGB; as grey where all its pixels are, or where ``grey`` asks for it.

    ``stored``: RGB ``[rows, columns, 3]`` of any integer depth, or palette indices ``[rows, columns]``. A palette that
    cannot be read raises what pydicom raises, or ``ValueError``.
    """
    if stored.ndim == 2:
        stored = apply_color_lut(stored, _palette(header))[..., :3]
        if stored.shape[2:] != (3,):
            raise ValueError("a table without entries")
        depth = stored.dtype.itemsize * 8
        if depth == 16 and int(stored.max()) < 256:
            depth = 8  # a palette of 8 bits that says it has 16
    else:
        depth = int(header.number("BitsStored") or stored.dtype.itemsize * 8)
    rgb = _to_8_bits(stored, depth)
    same = bool((rgb[..., 0] == rgb[..., 1]).all() and (rgb[..., 1] == rgb[..., 2]).all())
    if same:
        return _display(rgb[..., 0])
    return _display(cast(npt.NDArray[np.uint8], cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)) if grey else rgb)


def normalize_grey_8(stored: Stored, header: FrameHeader) -> Intensities:
    """A grey frame of at most 8 bits without a VOI transformation, as displayed: ``uint8 [rows, columns]``."""
    pixels = _to_8_bits(stored, int(header.number("BitsStored") or 8))
    if is_inverted(header):
        pixels = np.bitwise_not(pixels)
    return replace(_display(pixels), unit=display_unit(header))


def _palette(header: FrameHeader) -> Dataset:
    """A data set with the frame's palette.

    pydicom takes the words of a plain palette, though not of a segmented one, for little-endian whatever the file is.
    """
    dataset = header.dataset
    if dataset.original_encoding[1] is not False or TABLES[0] not in dataset:
        return dataset
    palette = Dataset()
    for table in TABLES:
        descriptor = f"{table.removesuffix('Data')}Descriptor"
        setattr(palette, descriptor, dataset[descriptor].value)
        setattr(palette, table, np.frombuffer(dataset[table].value, ">u2").astype("<u2").tobytes())
    return palette


def _to_8_bits(stored: Stored, depth: int) -> npt.NDArray[np.uint8]:
    if stored.dtype.kind == "i":
        stored = stored.astype(np.int64) + (1 << (depth - 1))
    if depth > 8:
        stored = np.right_shift(stored, depth - 8)
    elif depth < 8:
        stored = stored.astype(np.uint16) * 255 // ((1 << depth) - 1)
    pixels: npt.NDArray[np.uint8] = np.minimum(stored, 255).astype(np.uint8)
    return pixels


def _display(pixels: npt.NDArray[np.uint8]) -> Intensities:
    return Intensities(np.ascontiguousarray(pixels), 1 / 255, 0.0, "display")
