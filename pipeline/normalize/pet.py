"""PET: standardised uptake values by body weight, where the header allows it."""

from __future__ import annotations

import math
import re
from datetime import datetime, timedelta

from lumid.pipeline.decode import FrameHeader, Stored
from lumid.pipeline.normalize.intensity import (
    Intensities,
    Range,
    by_value,
    modality_lut,
    padded,
    padding_range,
    quantized,
    step_of,
)

MAX_SUV = 65.535
"""Brightest stored value: 16 bits then mean 0.001 SUV a step, the same in every series."""

DOSE_BQ = (1e4, 1e11)
"""What an injected dose can be, mouse to man; a smaller number is one in MBq, and nothing says so."""

PHILIPS, GE = "Philips PET Private Group", "GEMS_PETD_01"


def suv_factor(header: FrameHeader) -> float | None:
    """What a rescaled value is multiplied by to give SUVbw (g/ml), or None when the header does not allow it.

    SUVbw = activity (Bq/ml) × weight (g) / injected dose decayed to the time the images are corrected to: the start of
    the scan (DecayCorrection START) or the injection (ADMIN). PS3.3 C.8.9.1; QIBA's vendor-neutral SUV pseudo-code.
    Units CNTS are Philips': a private factor makes them SUV, or where it is 0 another one Bq/ml.
    """
    units = header.term("Units")
    if units == "GML":  # by lean mass or by an ideal weight is another unit
        return 1.0 if header.term("SUVType") in ("", "BW") else None
    if units == "BQML":
        return _suv_per_becquerel(header)
    if units != "CNTS":
        return None
    if (factor := _private(header, 0x7053, 0x00, PHILIPS)) is not None:
        return factor
    per_count, per_becquerel = _private(header, 0x7053, 0x09, PHILIPS), _suv_per_becquerel(header)
    return per_count * per_becquerel if per_count is not None and per_becquerel is not None else None


def normalize_suv(stored: Stored, header: FrameHeader, factor: float, bits: int) -> Intensities:
    """A PET frame in SUVbw, 0.001 a step in 16 bits, clipped at 65.535; in 8 bits 0.1 a step, clipped at 25.5.

    ``stored``: ``[rows, columns]``; returns ``uint16`` or ``uint8`` of the same shape.
    """
    units, span = modality_lut(header), Range(0.0, MAX_SUV if bits == 16 else 25.5)
    store = padded(lambda values: quantized(units(values) * factor, span, bits), padding_range(stored, header))
    return Intensities(by_value(stored, store), step_of(span, bits), 0.0, "SUVbw")


def _suv_per_becquerel(header: FrameHeader) -> float | None:
    """SUVbw of 1 Bq/ml: for values that are corrected for attenuation and decay, and nothing less."""
    corrected = header.terms("CorrectedImage")
    if "ATTN" not in corrected or "DECY" not in corrected:
        return None
    weight_kg = header.number("PatientWeight")
    injection = _injection(header)
    if injection is None or weight_kg is None or not 0.01 < weight_kg < 1000:
        return None
    dose = injection.number("RadionuclideTotalDose")
    if dose is None or not DOSE_BQ[0] <= dose <= DOSE_BQ[1]:
        return None
    if header.term("DecayCorrection") == "ADMIN":
        return weight_kg * 1000.0 / dose
    half_life = injection.number("RadionuclideHalfLife")
    if header.term("DecayCorrection") != "START" or half_life is None or half_life <= 0:
        return None
    elapsed = _seconds_since_injection(header, injection, half_life)
    if elapsed is None:
        return None
    remaining = dose * 2.0 ** (-elapsed / half_life)
    return weight_kg * 1000.0 / remaining if remaining > 0 else None


def _private(header: FrameHeader, group: int, element: int, creator: str) -> float | None:
    """A positive number of a private block; Philips' SUV (7053,xx00) and Bq/ml (7053,xx09) a count."""
    try:
        value = header.dataset.get_private_item(group, element, creator).value
        factor = float(value.decode("ascii").strip(" \0") if isinstance(value, bytes) else value)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return factor if 0 < factor < math.inf else None


def _injection(header: FrameHeader) -> FrameHeader | None:
    items = header.get("RadiopharmaceuticalInformationSequence")
    try:
        return FrameHeader(items[0], 0)
    except (TypeError, IndexError, KeyError):
        return None


def _seconds_since_injection(header: FrameHeader, injection: FrameHeader, half_life: float) -> float | None:
    """From injection to the time that decay is corrected to; None where either is unknown or they contradict."""
    scan = _scan_start(header, half_life)
    if scan is None:
        return None
    # dates are shifted by archives, and this one forgotten by some: then the time of day has to do
    stamp = injection.term("RadiopharmaceuticalStartDateTime")
    start = _moment(stamp[:8], stamp[8:]) if len(stamp) >= 14 else None
    if start is not None and 0 <= (scan - start).total_seconds() < 2 * 86400:
        return (scan - start).total_seconds()
    start = _moment(scan.strftime("%Y%m%d"), injection.term("RadiopharmaceuticalStartTime"))
    if start is None:
        return None
    if start > scan:  # injected before midnight
        start -= timedelta(days=1)
    return (scan - start).total_seconds()


def _scan_start(header: FrameHeader, half_life: float) -> datetime | None:
    """The moment that all images of a series are decay-corrected to.

    It is the series' time, unless this image was acquired before that: then the series was derived later, and the time
    is GE's own scan time, or goes back from the acquisition by the frame's reference time (QIBA). The acquisition time
    itself will not do: it is another one at every bed position.
    """
    series = _moment(header.term("SeriesDate"), header.term("SeriesTime"))
    acquired = _moment(header.term("AcquisitionDate"), header.term("AcquisitionTime"))
    if series is not None and (acquired is None or series <= acquired):
        return series
    if acquired is None:
        return None
    if (scan := _ge_scan_time(header)) is not None and scan <= acquired:
        return scan
    reference_ms, duration_ms = header.number("FrameReferenceTime"), header.number("ActualFrameDuration")
    if not reference_ms or not duration_ms or reference_ms < 0 or duration_ms < 0:
        return None
    # activity of the middle of the decay during the frame, not of its beginning
    decays = math.log(2) / half_life * duration_ms / 1000
    into_frame = half_life / math.log(2) * math.log(decays / -math.expm1(-decays))
    return acquired + timedelta(seconds=into_frame - reference_ms / 1000)


def _ge_scan_time(header: FrameHeader) -> datetime | None:
    try:
        value = header.dataset.get_private_item(0x0009, 0x0D, GE).value
        stamp = value.decode("ascii") if isinstance(value, bytes) else str(value)
    except (KeyError, ValueError, AttributeError):
        return None
    return _moment(stamp[:8], stamp[8:])


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
