"""Writes expected.csv: what real files must become, by readers that are not lumid's.

    LUMID_REAL_IMAGES=… python -m tests.pipeline.make_expected > tests/pipeline/expected.csv

Nothing of lumid is imported here. Values of slices come from SimpleITK (GDCM), as does colour; what SimpleITK cannot
read, or inverts by itself (MONOCHROME1), comes from pydicom's pixel_array, and the column ``reader`` says so. Windows and VOI LUTs of projections are applied
by pydicom. Slices of Siemens mosaics, and their places, come from nibabel. SUV is computed by the formula of PS3.3 C.8.9.1, the times being read off the header here. Percentiles are
numpy's. Of a long series every so many files are listed, but
all of them make its percentiles.
"""

from __future__ import annotations

import csv
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import SimpleITK as sitk  # noqa: N813
from nibabel.nicom.dicomwrappers import MosaicWrapper
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.uid import ExplicitVRBigEndian

HERE = Path(__file__).parent
ROOTS = {
    "pydicom": Path(pydicom.__file__).parent / "data" / "test_files",
    "shared": Path(os.environ.get("LUMID_REAL_IMAGES") or HERE.parents[2] / "shared" / "data"),
}
FIELDS = ("file", "syntax", "modality", "frames", "rows", "columns", "channels", "unit", "min", "max", "mean",
          "tolerance", "row_mm", "column_mm", "position_mm", "reader", "note")  # fmt: skip
PROJECTIONS = ("CR", "DX", "MG", "XA", "RF")
SLICES = ("CT", "MR", "PT", "NM")
MODALITIES = (*SLICES, *PROJECTIONS, "US", "SC", "OT")
LONG_SERIES, MOST_OF_A_SERIES = 40, 12

NOTES = {
    "parametric_map_float.dcm": "window LINEAR of width 1 over values 0 to 1: of real numbers it is meant as LINEAR_EXACT",
    "parametric_map_double_float.dcm": "as parametric_map_float.dcm",
    "IM_0027_fMAP.dcm": "rescale differs from frame to frame: SimpleITK applies the first to all",
    "OBXXXX1A_expb.dcm": "palette in big-endian words, which pydicom does not swap",
    "OBXXXX1A_expb_2frame.dcm": "as OBXXXX1A_expb.dcm",
}
TOLERANCES: dict[str, float] = {}


def files() -> Iterator[tuple[str, Path]]:
    for root, folder in ROOTS.items():
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix not in (".nrrd", ".gz", ".nii", ".png", ".csv", ".md"):
                yield f"{root}/{path.relative_to(folder)}", path


def header_of(path: Path) -> pydicom.Dataset | None:
    try:
        header = pydicom.dcmread(path, force=path.suffix == ".dcm")
    except Exception:
        return None
    image = any(name in header for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"))
    if not image or header.get("Modality", "") not in MODALITIES or "PhotometricInterpretation" not in header:
        return None
    return header


def is_mosaic(header: pydicom.Dataset) -> bool:
    return header.Modality == "MR" and "MOSAIC" in header.get("ImageType", [])


def values_of(path: Path, header: pydicom.Dataset) -> tuple[np.ndarray, str] | None:
    """Values after the rescale, ``[frames, rows, columns]`` or ``[frames, rows, columns, 3]``, and who has read them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if is_mosaic(header):
            return np.moveaxis(MosaicWrapper(header).get_data(), 2, 0), "nibabel"
        palette = header.PhotometricInterpretation == "PALETTE COLOR"
        try:
            unread = ("ModalityLUTSequence", "FloatPixelData", "DoubleFloatPixelData")
            inverts = header.PhotometricInterpretation == "MONOCHROME1"
            if palette or inverts or any(name in header for name in unread) or rescales_by_frame(header):
                raise RuntimeError
            pixels = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
            reader = "SimpleITK"
        except RuntimeError:
            try:
                pixels, reader = header.pixel_array, "pydicom"
            except Exception:
                return None
            if palette:
                swap_palette(header)
                pixels = pydicom.pixels.apply_color_lut(pixels, header)
                pixels = pixels[..., :3] >> (8 if pixels.dtype == np.uint16 else 0)
            elif header.SamplesPerPixel == 1:
                pixels = rescaled(pixels, header)
    colour = palette or header.SamplesPerPixel == 3
    shape = (-1, header.Rows, header.Columns, 3) if colour else (-1, header.Rows, header.Columns)
    return np.asarray(pixels).reshape(shape), reader


def swap_palette(header: pydicom.Dataset) -> None:
    """Tables of 16-bit words in big-endian files: pydicom leaves their bytes as they stand in the file."""
    if header.file_meta.TransferSyntaxUID == ExplicitVRBigEndian:
        for element in header:
            if element.keyword in ("RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData", "BluePaletteColorLookupTableData"):  # fmt: skip
                element.value = np.frombuffer(element.value, ">u2").astype("<u2").tobytes()


def rescales_by_frame(header: pydicom.Dataset) -> bool:
    """Whether frames have rescales of their own; SimpleITK takes the first for all."""
    groups = header.get("PerFrameFunctionalGroupsSequence") or []
    items = [group.get("PixelValueTransformationSequence") for group in groups]
    return len({(item[0].get("RescaleSlope"), item[0].get("RescaleIntercept")) for item in items if item}) > 1


def rescaled(pixels: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    if "PerFrameFunctionalGroupsSequence" not in header:
        return np.asarray(apply_modality_lut(pixels, header))
    frames = pixels.reshape(-1, header.Rows, header.Columns).astype(float)
    for number, frame in enumerate(frames):
        for group in (
            header.PerFrameFunctionalGroupsSequence[number],
            *header.get("SharedFunctionalGroupsSequence", []),
        ):
            if item := group.get("PixelValueTransformationSequence"):
                frame *= float(item[0].RescaleSlope)
                frame += float(item[0].RescaleIntercept)
                break
    return frames


def transformation(header: pydicom.Dataset) -> pydicom.Dataset:
    """Where the rescale stands: in the data set or in its functional groups."""
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for group in list(header.get(groups, []))[:1]:
            if item := group.get("PixelValueTransformationSequence"):
                return item[0]
    return header


def suv_per_becquerel(header: pydicom.Dataset) -> float | None:
    """Weight over the dose that is left at the start of the series, for BQML that is decay-corrected to START."""
    if (header.get("Units"), header.get("DecayCorrection")) != ("BQML", "START") or not header.get("PatientWeight"):
        return None
    injection = header.RadiopharmaceuticalInformationSequence[0]

    def seconds(time: str) -> float:
        moment = datetime.strptime(str(time).partition(".")[0], "%H%M%S")
        return (
            moment.hour * 3600 + moment.minute * 60 + moment.second + float("0." + (str(time).partition(".")[2] or "0"))
        )

    elapsed = seconds(header.SeriesTime) - seconds(injection.RadiopharmaceuticalStartTime)
    left = float(injection.RadionuclideTotalDose) * 0.5 ** (elapsed / float(injection.RadionuclideHalfLife))
    return float(header.PatientWeight) * 1000 / left


def unit_of(header: pydicom.Dataset) -> str:
    if header.get("SamplesPerPixel") == 3 or header.PhotometricInterpretation == "PALETTE COLOR":
        return "display"
    if header.Modality == "CT":
        stated = transformation(header)
        original = list(header.get("ImageType", []))[:1] == ["ORIGINAL"]
        if "RescaleSlope" in stated and stated.get("RescaleType", "HU") in ("HU", "US" if original else "HU"):
            return "HU"
        return "a.u."
    if header.Modality == "PT":
        return "SUVbw" if suv_per_becquerel(header) else "a.u."
    if header.Modality in SLICES:
        return "a.u."
    return "P-value" if header.get("PresentationLUTShape") else "display"


def percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = (float(value) for value in np.percentile(values, [0.1, 99.9], method="inverted_cdf"))
    return (low, high) if low < high else (float(values.min()), float(values.max()))


def displayed(values: np.ndarray, header: pydicom.Dataset) -> np.ndarray:
    """A projection as it is shown, 0 to 1."""
    if "VOILUTSequence" in header:
        shown = apply_voi_lut(values.astype(np.int32), header) / (2 ** header.VOILUTSequence[0].LUTDescriptor[2] - 1)
    elif header.get("WindowWidth") is not None:
        slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
        low, high = (0, 2**header.BitsStored - 1) if header.PixelRepresentation == 0 else (-(2 ** (header.BitsStored - 1)), 2 ** (header.BitsStored - 1) - 1)  # fmt: skip
        low, high = low * slope + intercept, high * slope + intercept
        shown = (apply_voi_lut(values, header) - low) / (high - low)
    elif header.BitsAllocated == 8:
        shown = values / 255
    elif "FloatPixelData" in header or "DoubleFloatPixelData" in header:
        voi = header.SharedFunctionalGroupsSequence[0].FrameVOILUTSequence[0]
        shown = np.clip((values - float(voi.WindowCenter)) / float(voi.WindowWidth) + 0.5, 0, 1)
    else:
        low, high = percentiles(values)
        shown = np.clip((values - low) / (high - low), 0, 1)
    white_is_low = header.PhotometricInterpretation == "MONOCHROME1" or header.get("PresentationLUTShape") == "INVERSE"
    return 1 - shown if white_is_low else shown


def in_unit(values: np.ndarray, header: pydicom.Dataset, unit: str, span: tuple[float, float]) -> np.ndarray:
    if unit == "HU":
        return np.clip(values, -1024, 3071)
    if unit == "SUVbw":
        return np.clip(values * suv_per_becquerel(header), 0, 65.535)
    if unit == "a.u.":
        return np.clip(values, *span)
    if values.ndim == 4:
        depth = int(header.BitsStored) if header.PhotometricInterpretation != "PALETTE COLOR" else 8
        return (values.astype(np.int64) >> max(depth - 8, 0)) / 255
    return displayed(values, header)


def spacing_of(header: pydicom.Dataset, path: Path) -> tuple[Any, Any, Any]:
    """Spacing of rows and columns, and position along the normal, mm, by SimpleITK, where a slice states them."""
    stated = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing")
    if header.Modality not in SLICES or not all(header.get(name) for name in stated):
        return "", "", ""
    if is_mosaic(header):
        affine = MosaicWrapper(header).affine
        normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
        stated = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
        normal *= np.sign(np.dot(normal, np.cross(*stated)))  # as SimpleITK's, whichever way the slices go
        return *header.PixelSpacing, float(np.dot(normal, affine[:3, 3]))
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError:
        return "", "", ""
    normal = np.array(image.GetDirection()).reshape(3, 3)[:, 2]
    return image.GetSpacing()[1], image.GetSpacing()[0], float(np.dot(normal, image.GetOrigin()))


def channels_of(values: np.ndarray) -> int:
    return 3 if values.ndim == 4 and (values[..., :1] != values).any() else 1


def main() -> None:
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    warnings.simplefilter("ignore")
    series: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    for name, path in files():
        if (header := header_of(path)) is not None:
            series[name.partition("/")[0] + str(header.get("SeriesInstanceUID", name))].append((name, path))
    writer = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
    writer.writeheader()
    rows = []
    for members in series.values():
        rows += list(rows_of(members))
    writer.writerows(sorted(rows, key=lambda row: row["file"]))


def rows_of(members: list[tuple[str, Path]]) -> Iterator[dict[str, Any]]:
    read = {}
    for name, path in members:
        header = header_of(path)
        if header is not None and (found := values_of(path, header)) is not None:
            read[name] = (path, header, *found)
    relative = defaultdict(list)
    for _, header, values, _ in read.values():
        if unit_of(header) == "a.u.":
            relative[header.Modality].append(values.ravel().astype(float))
    spans = {modality: percentiles(np.concatenate(parts)) for modality, parts in relative.items()}
    step = -(-len(read) // MOST_OF_A_SERIES) if len(read) > LONG_SERIES else 1
    for name in sorted(read)[::step]:
        path, header, values, reader = read[name]
        unit = unit_of(header)
        shown = in_unit(values, header, unit, spans.get(header.Modality, (0.0, 0.0)))
        row_mm, column_mm, position_mm = spacing_of(header, path)
        syntax = header.file_meta.get("TransferSyntaxUID", "") if hasattr(header, "file_meta") else ""
        yield {
            "file": name, "syntax": str(syntax), "modality": header.Modality, "frames": values.shape[0],
            "rows": values.shape[1], "columns": values.shape[2], "channels": channels_of(values), "unit": unit,
            "min": round(float(shown.min()), 5), "max": round(float(shown.max()), 5), "mean": round(float(shown.mean()), 5),
            "tolerance": TOLERANCES.get(path.name, ""), "row_mm": row_mm, "column_mm": column_mm, "position_mm": position_mm, "reader": reader,
            "note": NOTES.get(path.name, ""),
        }  # fmt: skip


if __name__ == "__main__":
    main()
