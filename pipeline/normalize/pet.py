"""PET: standardised uptake values by body weight, where the header allows it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydicom import Dataset

from lumid.pipeline.decode import Stored
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize.intensity import (
    VALUE_TRANSFORM,
    Intensities,
    ModalityLut,
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

BODY_WEIGHT, ACTIVITY = frozenset({"G/ML{SUVBW}", "{SUVBW}G/ML"}), frozenset({"BQ/ML"})
"""Units of the Real World Value Mapping that lead to SUVbw (PS3.16 CID 84; dcmqi writes the first the other way round).
Plain g/ml does not say by which weight."""

CONVERTED = "UnassignedPerFrameConvertedAttributesSequence", "UnassignedSharedConvertedAttributesSequence"
"""Where a converter puts what an enhanced object has no other place for (PS3.3 C.7.6.16.2.25, C.7.6.16.2.26)."""

LONGEST_WAIT_S = 2 * 86400
"""Beyond so long after the injection nothing is left to scan: then one of the two dates is another's."""


@dataclass(frozen=True, slots=True)
class SuvScale:
    """Stored values → SUVbw: through ``units``, then times ``factor``."""

    units: ModalityLut
    factor: float


@dataclass(frozen=True, slots=True)
class _Converted(FrameHeader):
    """A frame of an object that was converted from single images, seen as the image that it was made of."""

    def get(self, keyword: str, macro: str | None = None) -> Any:
        """The value of a keyword where the standard has it, else among the attributes without a place."""
        frame = FrameHeader(self.dataset, self.frame)
        for place in (macro, *CONVERTED):
            if (value := frame.get(keyword, place)) is not None:
                return value
        return None


def suv_scale(header: FrameHeader) -> SuvScale | None:
    """How the stored values of a frame become SUVbw (g/ml), or None when the header does not allow it.

    Of an image by its Units (:func:`suv_factor`); so is a frame of a legacy converted object, which holds them among its
    unassigned attributes. Of an enhanced object by its Real World Value Mapping, which is a function of stored values,
    or by the Rescale Type (PS3.3 C.7.6.16.2.9, C.7.6.16.2.11, C.8.22).
    """
    if header.get("SharedFunctionalGroupsSequence") or header.get("PerFrameFunctionalGroupsSequence"):
        header = _Converted(header.dataset, header.frame)
    # the slope is another one in every slice of most scanners: where it is missing, no other will do (PS3.3 C.8.9.1)
    if header.number("RescaleSlope", VALUE_TRANSFORM) and (factor := suv_factor(header)) is not None:
        return SuvScale(modality_lut(header), factor)
    if (mapped := _real_world_values(header, BODY_WEIGHT)) is not None:
        return SuvScale(mapped, 1.0)
    mapped = _real_world_values(header, ACTIVITY)
    if mapped is None and not header.term("Units") and header.term("RescaleType", VALUE_TRANSFORM) == "BQML":
        mapped = modality_lut(header)
    per_becquerel = _enhanced_suv_per_becquerel(header) if mapped is not None else None
    return SuvScale(mapped, per_becquerel) if mapped is not None and per_becquerel is not None else None


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


def normalize_suv(stored: Stored, header: FrameHeader, scale: SuvScale, bits: int) -> Intensities:
    """A PET frame in SUVbw, 0.001 a step in 16 bits, clipped at 65.535; in 8 bits 0.1 a step, clipped at 25.5.

    ``stored``: ``[rows, columns]``; returns ``uint16`` or ``uint8`` of the same shape.
    """
    span = Range(0.0, MAX_SUV if bits == 16 else 25.5)
    store = padded(
        lambda values: quantized(scale.units(values) * scale.factor, span, bits), padding_range(stored, header)
    )
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


def _enhanced_suv_per_becquerel(header: FrameHeader) -> float | None:
    """SUVbw of 1 Bq/ml by the modules of an enhanced object, which states the dose in MBq and the moment that decay is
    corrected to (PS3.3 C.8.22.4, C.8.22.6).
    """
    if header.term("DecayCorrected") != "YES" or header.term("AttenuationCorrected") != "YES":
        return None
    weight_kg, agent = header.number("PatientWeight"), _agent(header)
    if agent is None or weight_kg is None or not 0.01 < weight_kg < 1000:
        return None
    dose_mbq, half_life = agent.number("RadionuclideTotalDose"), agent.number("RadionuclideHalfLife")
    if dose_mbq is None or not DOSE_BQ[0] <= dose_mbq * 1e6 <= DOSE_BQ[1] or half_life is None or half_life <= 0:
        return None
    elapsed = _seconds_between(agent.term("RadiopharmaceuticalStartDateTime"), header.term("DecayCorrectionDateTime"))
    if elapsed is None or not 0 <= elapsed < LONGEST_WAIT_S:
        return None
    remaining = dose_mbq * 1e6 * 2.0 ** (-elapsed / half_life)
    return weight_kg * 1000.0 / remaining if remaining > 0 else None


def _agent(header: FrameHeader) -> FrameHeader | None:
    """The radiopharmaceutical that a frame shows: the one that it names, or the only one; of two no one can tell."""
    agents = header.items("RadiopharmaceuticalInformationSequence")
    used = header.items("RadiopharmaceuticalUsageSequence")
    numbers = {one.number("RadiopharmaceuticalAgentNumber") for one in used}
    if used:
        agents = [one for one in agents if one.number("RadiopharmaceuticalAgentNumber") in numbers - {None}]
    return agents[0] if len(agents) == 1 and len(numbers) <= 1 else None


def _real_world_values(header: FrameHeader, units: frozenset[str]) -> ModalityLut | None:
    """The frame's mapping of stored values to one of ``units``; None where there is none, or several, or a table."""
    found = []
    for mapping in header.items("RealWorldValueMappingSequence"):
        unit = mapping.items("MeasurementUnitsCodeSequence")
        if len(unit) == 1 and unit[0].term("CodingSchemeDesignator") == "UCUM" and unit[0].term("CodeValue") in units:
            slope, intercept = mapping.number("RealWorldValueSlope"), mapping.number("RealWorldValueIntercept")
            found.append(ModalityLut(slope, intercept) if slope and intercept is not None else None)
    return found[0] if len(found) == 1 else None


def _private(header: FrameHeader, group: int, element: int, creator: str) -> float | None:
    """A positive number of a private block; Philips' SUV (7053,xx00) and Bq/ml (7053,xx09) a count."""
    value = _private_value(header, group, element, creator)
    try:
        factor = float(value.decode("ascii").strip(" \0") if isinstance(value, bytes) else value)
    except (TypeError, ValueError):
        return None
    return factor if 0 < factor < math.inf else None


def _private_value(header: FrameHeader, group: int, element: int, creator: str) -> Any:
    for dataset in _holders(header):
        try:
            return dataset.get_private_item(group, element, creator).value
        except (KeyError, ValueError, AttributeError):
            continue
    return None


def _holders(header: FrameHeader) -> Iterator[Dataset]:
    """The data set, and what of a converted one holds the attributes of the images it was made of."""
    yield header.dataset
    if isinstance(header, _Converted):
        for sequence in CONVERTED:
            yield from (one.dataset for one in header.items(sequence))


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
    if start is not None and 0 <= (scan - start).total_seconds() < LONGEST_WAIT_S:
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
    if acquired is None and isinstance(header, _Converted):
        stamp = header.term("FrameAcquisitionDateTime", "FrameContentSequence")
        acquired = _moment(stamp[:8], stamp[8:])
    if series is not None and (acquired is None or series <= acquired):
        return series
    if acquired is None:
        return None
    if (scan := _ge_scan_time(header)) is not None and scan <= acquired:
        return scan
    reference_ms, duration_ms = header.number("FrameReferenceTime"), header.number("ActualFrameDuration")
    if duration_ms is None:
        duration_ms = header.number("FrameAcquisitionDuration", "FrameContentSequence")
    if not reference_ms or not duration_ms or reference_ms < 0 or duration_ms < 0:
        return None
    # activity of the middle of the decay during the frame, not of its beginning
    decays = math.log(2) / half_life * duration_ms / 1000
    into_frame = half_life / math.log(2) * math.log(decays / -math.expm1(-decays))
    return acquired + timedelta(seconds=into_frame - reference_ms / 1000)


def _ge_scan_time(header: FrameHeader) -> datetime | None:
    value = _private_value(header, 0x0009, 0x0D, GE)
    stamp = value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
    return _moment(stamp[:8], stamp[8:])


def _seconds_between(start: str, end: str) -> float | None:
    """Seconds from one DT to another (PS3.5 6.2); a zone counts where both state one, else both are the scanner's."""
    moments = [_moment(stamp[:8], stamp[8:]) for stamp in (start, end)]
    if moments[0] is None or moments[1] is None:
        return None
    zones = [re.search(r"([+-])(\d{2})(\d{2})$", stamp) for stamp in (start, end)]
    ahead = [int(f"{zone[1]}1") * (int(zone[2]) * 60 + int(zone[3])) * 60 if zone else None for zone in zones]
    shift = ahead[1] - ahead[0] if ahead[0] is not None and ahead[1] is not None else 0
    return (moments[1] - moments[0]).total_seconds() - shift


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
