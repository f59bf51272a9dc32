"""Lookup tables of DICOM: the modality LUT and the VOI LUT (PS3.3 C.11.1, C.11.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lumid.pipeline.frame_header import FrameHeader

MAX_ENTRIES = 1 << 16


@dataclass(frozen=True, slots=True)
class LookupTable:
    """A table of ``values`` (``uint16 [n]``) for the inputs from ``first`` on; ``bits`` is the depth of its outputs.

    Inputs below the first are mapped as the first, those above the last as the last (PS3.3 C.11.1.1).
    """

    first: int
    bits: int
    values: npt.NDArray[np.uint16]

    def __call__(self, inputs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """What inputs are mapped to; those that are not whole go to the nearest entry, and no number to the first."""
        places = np.clip(np.nan_to_num(np.rint(inputs - self.first), nan=0.0), 0, self.values.size - 1)
        outputs: npt.NDArray[np.float64] = self.values[places.astype(np.intp)].astype(np.float64)
        return outputs


def first_table(header: FrameHeader, sequence: str, *, macro: str | None = None, signed: bool) -> LookupTable | None:
    """The first LUT of a sequence, or None where there is none that can be read.

    ``signed``: whether its inputs can be negative, which decides how the first input of its descriptor is read.
    """
    items = header.get(sequence, macro)
    try:
        return _read(items[0], signed, little_endian=header.dataset.original_encoding[1] is not False)
    except Exception:  # no sequence, an empty one, or an item without its descriptor or data
        return None


def _read(item: Any, signed: bool, *, little_endian: bool) -> LookupTable | None:
    entries, first, bits = (int(value) for value in item.LUTDescriptor)
    entries = entries % MAX_ENTRIES or MAX_ENTRIES  # 0 stands for 65536; some write a number of entries as signed
    # US or SS by the sign of its inputs, which writers and readers mistake for each other
    if signed and first >= 1 << 15:
        first -= 1 << 16
    elif not signed and first < 0:
        first += 1 << 16
    data = item.LUTData
    if isinstance(data, bytes):
        wide = len(data) >= 2 * entries
        values = np.frombuffer(data, ("<u2" if little_endian else ">u2") if wide else np.uint8).astype(np.uint16)
    else:
        values = np.atleast_1d(np.asarray(data, np.int64)).astype(np.uint16)
    values = values[:entries]
    if values.size == 0:
        return None
    highest = int(values.max())
    # the depth is often stated wrong: believed where it is that of the highest entry, or one more
    fits = 1 <= bits <= 16 and highest < 1 << bits and 2 * highest >= 1 << (bits - 1)
    return LookupTable(first, bits if fits else max(1, highest.bit_length()), values)
