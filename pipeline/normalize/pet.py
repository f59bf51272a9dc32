"""PET: standardised uptake values by body weight, where the header allows it."""

from __future__ import annotations

import re
from datetime import datetime, timedelta

from lumid.pipeline.decode import FrameHeader, Stored
from lumid.pipeline.normalize.intensity import Intensities, Range, quantize, rescale

MAX_SUV = 65.535
"""Brightest stored value: 16 bits then mean 0.001 SUV a step, the same in every series."""


def suv_factor(header: FrameHeader) -> float | None:
    """What a rescaled value is multiplied by to give SUVbw (g/ml), or None when the header does not allow it.

    SUVbw = activity (Bq/ml) × weight (g) / injected dose decayed to the time the images are corrected to: the start of
    the scan (DecayCorrection START) or the injection (ADMIN). PS3.3 C.8.9.1; QIBA's vendor-neutral SUV pseudo-code.
    """
    units = header.term("Units")
    if units == "GML":
        return 1.0
    if units == "CNTS":
        return _philips_suv_scale(header)
    if units != "BQML" or "ATTN" not in header.terms("CorrectedImage") or "DECY" not in header.terms("CorrectedImage"):
        return None
    weight_kg = header.number("PatientWeight")
    injection = _injection(header)
    if injection is None or weight_kg is None or not 0.01 < weight_kg < 1000:
        return None
    dose = injection.number("RadionuclideTotalDose")
    half_life = injection.number("RadionuclideHalfLife")
    if not dose or dose <= 0 or not half_life or half_life <= 0:
        return None
    if header.term("DecayCorrection") == "ADMIN":
        decayed = dose
    elif header.term("DecayCorrection") == "START":
        elapsed = _seconds_since_injection(header, injection)
        if elapsed is None:
            return None
        decayed = dose * 2.0 ** (-elapsed / half_life)
    else:
        return None
    return weight_kg * 1000.0 / decayed


def normalize_suv(stored: Stored, header: FrameHeader, factor: float, bits: int) -> Intensities:
    """A PET frame in SUVbw, 0.001 a step in 16 bits, clipped at 65.535; in 8 bits 0.1 a step, clipped at 25.5."""
    values = rescale(stored, header)
    values *= factor
    return quantize(values, Range(0.0, MAX_SUV if bits == 16 else 25.5), bits, "SUVbw")


def _philips_suv_scale(header: FrameHeader) -> float | None:
    """The private SUV Scale Factor (7053,xx00) of Philips, which turns its counts into SUVbw."""
    try:
        factor = float(header.dataset.get_private_item(0x7053, 0x00, "Philips PET Private Group").value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return factor if factor > 0 else None


def _injection(header: FrameHeader) -> FrameHeader | None:
    items = header.get("RadiopharmaceuticalInformationSequence")
    try:
        return FrameHeader(items[0], 0)
    except (TypeError, IndexError, KeyError):
        return None


def _seconds_since_injection(header: FrameHeader, injection: FrameHeader) -> float | None:
    """From injection to the time that decay is corrected to: the series' time, unless the acquisition began before it."""
    series = _moment(header.term("SeriesDate"), header.term("SeriesTime"))
    acquired = _moment(header.term("AcquisitionDate"), header.term("AcquisitionTime"))
    if series is None:
        return None
    # a series time after the acquisition means that the series was derived later (QIBA): the scan's own time counts
    scan = min(series, acquired) if acquired is not None else series
    stamp = injection.term("RadiopharmaceuticalStartDateTime")
    start = _moment(stamp[:8], stamp[8:]) if len(stamp) >= 14 else None
    if start is None:
        start = _moment(scan.strftime("%Y%m%d"), injection.term("RadiopharmaceuticalStartTime"))
        if start is not None and start > scan:  # injected before midnight
            start -= timedelta(days=1)
    if start is None:
        return None
    elapsed = (scan - start).total_seconds()
    return elapsed if 0 <= elapsed < 2 * 86400 else None


def _moment(date: str, time: str) -> datetime | None:
    match = re.fullmatch(r"(\d{2})(\d{2})?(\d{2})?(?:\.(\d{1,6}))?.*", time)
    if not re.fullmatch(r"\d{8}", date) or not match:
        return None
    try:
        day = datetime.strptime(date, "%Y%m%d")
        hours, minutes, seconds = (int(part or 0) for part in match.groups()[:3])
        return day + timedelta(
            hours=hours, minutes=minutes, seconds=seconds, microseconds=int((match[4] or "0").ljust(6, "0"))
        )
    except (ValueError, OverflowError):
        return None
