"""The Arrow schemas of a data set: one definition, :class:`CatalogRow`, from which everything else is derived.

A row is built from this allow-list and from nothing else: what is not a field here cannot leave the pipeline.
"""

from __future__ import annotations

from dataclasses import Field, dataclass, fields
from functools import cache
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import pyarrow as pa

FORMAT_VERSION = 3
"""Version of the layout on disk and of the pixels' meaning: a change here makes old parts stale."""

MODALITIES = ("CT", "MR", "PT", "CR", "DX", "MG", "XA", "RF", "NM", "US", "SC", "OT")
"""Modalities a sample can have (DICOM CS 7.3.1.1.1); SC stands for secondary capture without a modality."""

SPLITS = ("train", "val", "test", "benchmark")

LABELS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia",
    "Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No Finding",
)  # fmt: skip
"""Labels a sample can have: the 14 findings of ChestX-ray14, as it writes them, and that there is none of them."""


@dataclass(frozen=True, slots=True)
class Column:
    """What a catalog column means, kept in the Parquet schema's field metadata."""

    meaning: str
    unit: str = ""
    dicom: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogRow:
    """One sample: where it is, where it came from, what it shows, and what its stored values mean."""

    key: Annotated[str, Column("24 hex digits of a keyed hash of the source frame; rows of all shards sort by it")]
    shard: Annotated[str | None, Column("file in shards/ that holds the sample")] = None
    offset: Annotated[int, Column("position of the encoded image in the shard", "bytes")] = 0
    length: Annotated[int, Column("size of the encoded image", "bytes")] = 0
    codec: Annotated[str, Column("file name extension and encoding of the image: jhc (HTJ2K codestream) or png")]
    sha256: Annotated[str, Column("SHA-256 of the encoded image")]
    pixel_hash: Annotated[str, Column("SHA-256 of the stored pixels, decoded: shape, type and little-endian values")]
    width: Annotated[int, Column("columns of the stored image", "pixels")]
    height: Annotated[int, Column("rows of the stored image", "pixels")]
    bits: Annotated[int, Column("bits of a stored value: 8 or 16", "bits")]
    channels: Annotated[int, Column("1 for grey, 3 for RGB")]

    modality: Annotated[str, Column("kind of equipment; the Hive partition", dicom="Modality (0008,0060)")]
    body_part: Annotated[
        str | None, Column("body part, from a closed vocabulary", dicom="BodyPartExamined (0018,0015)")
    ]
    laterality: Annotated[str | None, Column("L, R or B", dicom="ImageLaterality (0020,0062), Laterality (0020,0060)")]
    view_position: Annotated[
        str | None, Column("view of a projection: AP, PA, LL, CC, MLO …", dicom="ViewPosition (0018,5101)")
    ]
    plane: Annotated[
        str | None,
        Column("axial, coronal, sagittal, oblique or projection", dicom="ImageOrientationPatient (0020,0037)"),
    ]
    image_type: Annotated[
        str | None,
        Column(
            "original or derived, primary or secondary, and the third value where it is a known term",
            dicom="ImageType (0008,0008)",
        ),
    ]
    contrast: Annotated[
        bool | None,
        Column(
            "whether a contrast agent is stated; null where the header has no contrast module",
            dicom="ContrastBolusAgent (0018,0010)",
        ),
    ]

    collection: Annotated[str, Column("collection the slice comes from")]
    source: Annotated[str, Column("kind of source it was read from: idc, tcia, nih, folder or pydicom")]
    license: Annotated[str | None, Column("licence of the slice, as the archive names it")]
    doi: Annotated[str | None, Column("DOI of the collection")]
    source_version: Annotated[str | None, Column("version of the source: IDC version, package version …")]
    source_id: Annotated[str, Column("name of the object in its source, or a keyed hash of it where names are private")]

    patient: Annotated[str, Column("pseudonym of the patient", dicom="PatientID (0010,0020)")]
    study: Annotated[str, Column("pseudonym of the study", dicom="StudyInstanceUID (0020,000D)")]
    series: Annotated[str, Column("pseudonym of the series", dicom="SeriesInstanceUID (0020,000E)")]
    instance: Annotated[str, Column("pseudonym of the DICOM object", dicom="SOPInstanceUID (0008,0018)")]
    frame_of_reference: Annotated[
        str | None,
        Column(
            "pseudonym of the frame of reference: series that share it share their coordinates",
            dicom="FrameOfReferenceUID (0020,0052)",
        ),
    ] = None
    frame: Annotated[int, Column("frame of a multi-frame object, from 0")]
    slice_position: Annotated[
        float | None, Column("position along the slice normal", "mm", "ImagePositionPatient (0020,0032)")
    ]
    slice_count: Annotated[int, Column("frames of the same series that are in the data set")]
    slice_index: Annotated[
        int | None,
        Column(
            "place of the slice in its series, from 0: by position along the normal, one orientation after another. Frames "
            "at one position (echoes, time points) share it"
        ),
    ] = None
    slice_spacing: Annotated[
        float | None,
        Column("median distance between neighbouring positions of the series that are in the data set", "mm"),
    ] = None
    slice_gap: Annotated[
        bool | None, Column("whether a slice is missing beside this one: a neighbour is beyond 1.5 × slice_spacing")
    ] = None
    slice_repeats: Annotated[int | None, Column("frames of the series at this position, this one included")] = None

    orig_rows: Annotated[int, Column("rows before resizing", "pixels", "Rows (0028,0010)")]
    orig_columns: Annotated[int, Column("columns before resizing", "pixels", "Columns (0028,0011)")]
    pixel_spacing_row: Annotated[
        float | None,
        Column(
            "distance between rows of the stored image",
            "mm",
            "PixelSpacing (0028,0030), ImagerPixelSpacing (0018,1164), NominalScannedPixelSpacing (0018,2010)",
        ),
    ]
    pixel_spacing_column: Annotated[
        float | None, Column("distance between columns of the stored image", "mm", "as pixel_spacing_row")
    ]
    spacing_kind: Annotated[
        str | None,
        Column(
            "where the pixel spacing holds: patient (a slice), calibrated (a projection, corrected to the patient), detector "
            "(a projection, magnified), nominal (of a film scanner or screen), or unstated (a projection that does not say)",
            dicom="PixelSpacingCalibrationType (0028,0A02), ImagerPixelSpacing (0018,1164)",
        ),
    ] = None
    slice_thickness: Annotated[float | None, Column("nominal slice thickness", "mm", "SliceThickness (0018,0050)")]
    transfer_syntax: Annotated[str | None, Column("UID of the transfer syntax", dicom="TransferSyntaxUID (0002,0010)")]
    photometric: Annotated[
        str | None,
        Column("photometric interpretation before conversion", dicom="PhotometricInterpretation (0028,0004)"),
    ]

    manufacturer: Annotated[
        str | None, Column("manufacturer, from a closed vocabulary", dicom="Manufacturer (0008,0070)")
    ]
    model_name: Annotated[
        str | None,
        Column("model, where it is one that the public archives list", dicom="ManufacturerModelName (0008,1090)"),
    ]
    kvp: Annotated[float | None, Column("peak tube voltage", "kV", "KVP (0018,0060)")]
    exposure: Annotated[float | None, Column("exposure", "mAs", "Exposure (0018,1152)")]
    kernel: Annotated[
        str | None,
        Column("reconstruction kernel, where it has the form of a known one", dicom="ConvolutionKernel (0018,1210)"),
    ]
    field_strength: Annotated[float | None, Column("magnetic field strength", "T", "MagneticFieldStrength (0018,0087)")]
    sequence: Annotated[
        str | None,
        Column("kind of MR sequence: SE, GR, IR, EP, RM and combinations", dicom="ScanningSequence (0018,0020)"),
    ]

    sex: Annotated[str | None, Column("F, M or O", dicom="PatientSex (0010,0040)")]
    age_years: Annotated[int | None, Column("age, 90 for all above", "years", "PatientAge (0010,1010)")]

    intensity_unit: Annotated[str, Column("unit of slope × stored + intercept: HU, SUVbw, a.u., P-value or display")]
    store_slope: Annotated[float, Column("stored value → unit: factor", "intensity_unit")]
    store_intercept: Annotated[float, Column("stored value → unit: offset", "intensity_unit")]
    p01: Annotated[float, Column("1st percentile of the stored image", "intensity_unit")]
    p50: Annotated[float, Column("median of the stored image", "intensity_unit")]
    p99: Annotated[float, Column("99th percentile of the stored image", "intensity_unit")]

    foreground_fraction: Annotated[float, Column("share of pixels that are not background")]
    sharpness: Annotated[float, Column("variance of the Laplacian over the variance of the image")]
    noise: Annotated[
        float | None,
        Column(
            "standard deviation of the noise of the stored image, robustly from its diagonal differences; null where an "
            "earlier format did not record it",
            "intensity_unit",
        ),
    ]
    clipped_fraction: Annotated[
        float | None,
        Column(
            "share of pixels, before resizing, at the brightest value of the scale: what was brighter was clipped to it; null "
            "where an earlier format did not record it"
        ),
    ]
    duplicate_of: Annotated[
        str | None, Column("key of the sample with the very same stored pixels, the first of them by key")
    ] = None
    near_duplicate_of: Annotated[str | None, Column("key of the sample of the same series that it nearly repeats")] = (
        None
    )
    burned_in_text: Annotated[str, Column("what was done about text in the pixels: checked, removed, none or unknown")]
    labels: Annotated[
        tuple[str, ...] | None,
        Column(
            f"what the archive says the image shows: one or more of {', '.join(LABELS)}; null where it says nothing. "
            "Ask with list_contains(labels, 'Mass')"
        ),
    ] = None
    split: Annotated[str, Column("train, val, test or benchmark; a patient is in one only")]
    deid_policy: Annotated[str, Column("name and version of the de-identification policy")]


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectRow:
    """One planned frame, object or series that is not in the shards, and why."""

    collection: Annotated[str, Column("collection it was planned from")]
    source: Annotated[str, Column("kind of source")]
    source_id: Annotated[str, Column("name of the object in its source, or a keyed hash of it where names are private")]
    series: Annotated[str | None, Column("pseudonym of the series, where it is known")]
    frame: Annotated[int | None, Column("frame of the object, from 0; null when the row stands for the whole object")]
    frames: Annotated[int, Column("how many planned frames this row accounts for")]
    modality: Annotated[str | None, Column("modality, where it is known and in the vocabulary")]
    stage: Annotated[
        str, Column("stage that rejected it: fetch, read, decode, select, deidentify, normalize or encode")
    ]
    code: Annotated[str, Column("reason code")]
    message: Annotated[str, Column("what it means; never holds anything from a header")]


REASONS: dict[str, str] = {
    "fetch_failed": "not to be had whole and verified",
    "unsafe_member": "a member of an archive that is not taken: its path leads out, it is a link or device, encrypted, or of absurd size",
    "not_listed": "an image that the archive's own table does not list",
    "broken_archive": "the archive cannot be read to its end; what came before is whole",
    "nested_archive": "an archive inside an archive, or one that its name does not tell in an object store: unpack it",
    "symlink_loop": "a symbolic link that leads back to itself or to nothing",
    "unreadable": "the file could not be opened or read (permission, I/O error)",
    "empty_file": "zero bytes long",
    "not_dicom": "neither DICOM by its preamble nor by its first elements",
    "unsupported_format": "a file format, or a variety of one, that lumid does not read",
    "not_a_file": "a socket, pipe or device, not a regular file",
    "dicomdir": "a DICOMDIR: a directory of other files, holds no image",
    "broken_header": "the header cannot be parsed to its end",
    "truncated": "the file ends before its header or pixel data do",
    "duplicate_instance": "the same SOP Instance UID was already read from another object; of two series, the first in the lock keeps it",
    "not_an_image": "an object that holds no image of a patient: report, segmentation, plan, dose, waveform",
    "missing_tag": "a tag that the image cannot be read without is missing, empty or malformed",
    "no_pixel_data": "an image object without pixel data",
    "unsupported_syntax": "a transfer syntax that no decoder here reads",
    "wrong_length": "the pixel data's length does not fit rows × columns × frames",
    "absurd_size": "an object, or the image that its header claims, is larger than the limits",
    "decode_failed": "the decoder refused the pixel data",
    "decoder_crash": "decoding it killed the process that tried, more than once",
    "unsupported_modality": "a modality that has no profile",
    "modality_not_selected": "the recipe does not take this modality",
    "localizer": "a localizer or scout, not a diagnostic slice",
    "report_page": "a screen of text (dose, patient or protocol information), not an image of a patient",
    "too_small": "smaller than the recipe's smallest side",
    "blank": "(almost) nothing in it: foreground under the recipe's threshold",
    "constant": "all pixels have one value",
    "derived": "derived from other images, which the recipe does not take",
    "secondary_capture": "a secondary capture (screen save, scan of a film), which the recipe does not take",
    "implausible": "values that nothing which is imaged can have: the scale in the header cannot be right",
    "stride": "between the slices that the recipe takes of a series",
    "series_cap": "more slices of the series than the recipe takes, which are spread evenly",
    "collection_cap": "more series of the collection than the recipe takes, which are drawn by a keyed hash",
    "exact_duplicate": "the very same pixels are in the data set already, under a smaller key",
    "near_duplicate": "nearly the same image as another of its series",
    "text_in_pixels": "text in the pixels that the recipe does not let be masked, that the header states and nothing found, or that could not be looked for",
    "face": "a slice that can hold a part of a face, or is of a body part that is not known, which the recipe leaves out",
    "internal_error": "lumid failed on it: please report the stage and the place named in the message",
}
"""Every reason code, with what it means."""


def _arrow_type(hint: Any) -> tuple[pa.DataType, bool]:
    """Arrow type of a Python annotation, and whether it may be null."""
    nullable = type(None) in get_args(hint)
    base = next(arg for arg in get_args(hint) if arg is not type(None)) if nullable else hint
    kinds = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
        tuple[str, ...]: pa.list_(pa.string()),
    }
    return kinds[base], nullable


def _field(item: Field[Any], hint: Any) -> pa.Field:
    assert get_origin(hint) is Annotated, f"{item.name} has no Column"
    annotation, column = get_args(hint)
    arrow, nullable = _arrow_type(annotation)
    metadata = {"meaning": column.meaning, "unit": column.unit, "dicom": column.dicom}
    return pa.field(item.name, arrow, nullable=nullable, metadata={k: v for k, v in metadata.items() if v})


@cache
def arrow_schema(row: type[CatalogRow] | type[RejectRow]) -> pa.Schema:
    """The Arrow schema of a row class: a field an attribute, with meaning, unit and DICOM source as metadata."""
    hints = get_type_hints(row, include_extras=True)
    return pa.schema([_field(item, hints[item.name]) for item in fields(row)])


CATALOG = arrow_schema(CatalogRow)
REJECTS = arrow_schema(RejectRow)

SAMPLE_FIELDS = (
    "key", "modality", "body_part", "laterality", "view_position", "plane", "contrast", "collection", "license",
    "patient", "study", "series", "frame", "slice_position", "slice_count", "slice_index", "slice_spacing",
    "slice_gap", "slice_repeats", "pixel_spacing_row", "pixel_spacing_column", "spacing_kind", "slice_thickness", "sex", "age_years", "width", "height", "bits", "channels", "intensity_unit", "store_slope",
    "store_intercept", "p01", "p50", "p99", "labels", "split",
)  # fmt: skip
"""Fields of a sample's JSON in a shard: what a training loop wants without opening the catalog."""


def to_table(rows: list[CatalogRow] | list[RejectRow], schema: pa.Schema) -> pa.Table:
    """An Arrow table of the rows, in their order, under ``schema`` (:data:`CATALOG` or :data:`REJECTS`)."""
    columns = {name: [getattr(row, name) for row in rows] for name in schema.names}
    return pa.Table.from_pydict(columns, schema=schema)
