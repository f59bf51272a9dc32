"""Vocabularies, what is counted as not known, the gate before the catalog, slices with a face; and that what is useful survives."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom import Dataset, dcmread

from lumid.catalog.keys import PUBLIC_SECRET, Keyer
from lumid.catalog.schema import CATALOG, CatalogRow
from lumid.pipeline.allowlist import RULES, checked
from lumid.pipeline.batches import Batch
from lumid.pipeline.convert import sniff
from lumid.pipeline.decode import parse
from lumid.pipeline.deidentify import WITH_A_FACE, Acquisition, acquisition, identify, modality_of, with_a_face
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.geometry import geometry
from lumid.pipeline.ingest import ingest
from lumid.pipeline.parts import series_account
from lumid.pipeline.recipe import make_keyer
from lumid.pipeline.recipe_files import parse_recipe
from lumid.pipeline.reject import Reject
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.sources import open_listed
from lumid.pipeline.vocabularies import (
    body_part_of_code,
    body_part_term,
    body_part_terms,
    kernel_term,
    manufacturer_term,
    model_term,
)
from tests.dicom import SHARED, TEST_FILES, as_bytes, gradient, image
from tests.factory import make_image, make_sample

ANNEX_L = [
    "ABDOMEN", "ABDOMENPELVIS", "ADRENAL", "ANKLE", "AORTA", "ARM", "AXILLA", "BACK", "BLADDER", "BRAIN", "BREAST",
    "BRONCHUS", "BUTTOCK", "CALCANEUS", "CALF", "CAROTID", "CEREBELLUM", "CERVIX", "CHEEK", "CHEST",
    "CHESTABDOMEN", "CHESTABDPELVIS", "CIRCLEOFWILLIS", "CLAVICLE", "COCCYX", "COLON", "CORNEA", "CORONARYARTERY",
    "CSPINE", "CTSPINE", "DUODENUM", "EAR", "ELBOW", "ESOPHAGUS", "EXTREMITY", "EYE", "EYELID", "FACE", "FEMUR",
    "FINGER", "FOOT", "GALLBLADDER", "HAND", "HEAD", "HEADNECK", "HEART", "HIP", "HUMERUS", "IAC", "ILEUM",
    "ILIUM", "JAW", "JEJUNUM", "KIDNEY", "KNEE", "LARYNX", "LEG", "LIVER", "LSPINE", "LSSPINE", "LUNG", "MAXILLA",
    "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NECKCHESTABDPELV", "NOSE", "OVARY",
    "PANCREAS", "PAROTID", "PATELLA", "PELVIS", "PENIS", "PHARYNX", "PROSTATE", "RADIUS", "RADIUSULNA", "RECTUM",
    "RIB", "SCALP", "SCAPULA", "SCLERA", "SCROTUM", "SHOULDER", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM",
    "STOMACH", "SUBMANDIBULAR", "TESTIS", "THIGH", "THUMB", "THYMUS", "THYROID", "TIBIA", "TIBIAFIBULA", "TLSPINE",
    "TMJ", "TOE", "TONGUE", "TRACHEA", "TSPINE", "ULNA", "URETER", "URETHRA", "UTERUS", "VAGINA", "VULVA",
    "WHOLEBODY", "WRIST", "ZYGOMA",
]  # fmt: skip
"""Terms of Body Part Examined (PS3.16 Annex L)."""
PLACEHOLDERS = {
    "None",
    "***",
    "debug",
    "MyManufacturer",
    "MyModel",
    "Acme Products",
    "Acme Medical Devices",
    "Super Dooper Scanner",
}
"""What some test files state and no scanner does."""


def header(**elements: Any) -> FrameHeader:
    return FrameHeader(image(gradient(), **elements), 0)


def test_every_standard_body_part_is_known_by_itself() -> None:
    assert {part: body_part_term(part) for part in ANNEX_L} == {part: part for part in ANNEX_L}
    assert body_part_term("ORBIT") == "EYE"
    assert body_part_term("CHEST SMITH") is None


def test_codes_of_the_standard_are_known_in_both_forms() -> None:
    assert [body_part_of_code(code) for code in ("41216001", "T-92000", "51185008", "12738006", "T-A0100", "774007")] == [
        "PROSTATE", "PROSTATE", "CHEST", "BRAIN", "BRAIN", "HEADNECK",
    ]  # fmt: skip
    region = Dataset()
    region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "T-04000", "SRT", "of Jane Doe"
    found = acquisition(header(AnatomicRegionSequence=[region], BodyPartExamined=None), "MG")
    assert (found.body_part, found.unknown) == ("BREAST", ())
    view = Dataset()
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = "399368009", "SCT", "medio-lateral oblique"
    assert acquisition(header(ViewCodeSequence=[view]), "MG").view_position == "MLO"


def test_vocabularies_give_what_they_hold_and_nothing_else() -> None:
    terms = set(body_part_terms())
    assert terms >= WITH_A_FACE
    assert manufacturer_term("G.E. Medical Systems") == "GE"
    assert manufacturer_term("gerhard") is None
    assert model_term("magnetom prisma FIT") == "MAGNETOM Prisma Fit"
    assert [kernel_term(text) for text in ("Br40d\\3", "bone", "XYZ Gauss2.00", "FC08", "B_SOFT_C", "B١٢f", "A1234", "SMITH")] == [
        "Br40d\\3", "BONE", "XYZ Gauss2.00", "FC08", "B_SOFT_C", None, None, None,
    ]  # fmt: skip


@given(st.text(min_size=1, max_size=20))
def test_no_vocabulary_gives_a_text_that_is_not_in_it(text: str) -> None:
    assert body_part_term(text) in (None, *body_part_terms())
    assert (kernel := kernel_term(text)) is None or kernel.isascii()
    assert (model := model_term(text)) is None or model_term(model) == model


def test_what_is_stated_and_not_known_is_counted_by_column_and_not_kept() -> None:
    found = acquisition(
        header(BodyPartExamined="CHEST J.SMITH", Manufacturer="Smith & Sons", KVP=19610312, PatientSex="", PatientAge="abc",
               ImageType=["ORIGINAL", "PRIMARY", "SMITH"], ConvolutionKernel="", Exposure=120, ManufacturerModelName="Aera"), "CT",
    )  # fmt: skip
    assert found.unknown == ("body_part", "manufacturer", "kvp", "age_years", "image_type")
    assert found.image_type == "ORIGINAL\\PRIMARY"
    assert "SMITH" not in repr(found).upper()
    assert acquisition(header(), "CT").unknown == ()


def test_the_space_of_a_series_has_a_pseudonym_of_its_own_domain() -> None:
    keyer = Keyer(PUBLIC_SECRET)
    one = identify(header(FrameOfReferenceUID="1.2.3.1"), keyer, collection="c", policy="private", source_id="x")
    assert one.frame_of_reference is not None
    assert one.frame_of_reference != one.study, "both uids are 1.2.3.1"
    assert identify(header(), keyer, collection="c", policy="private", source_id="x").frame_of_reference is None


@pytest.mark.parametrize(
    ("modality", "body_part", "exclude", "code"),
    [("CT", "HEAD", True, "face"), ("MR", "BRAIN", True, "face"), ("PT", "WHOLEBODY", True, "face"), ("CT", None, True, "face"),
     ("CT", "CSPINE", True, "face"), ("CT", "CHEST", True, None), ("CT", "HEAD", False, None), ("MR", None, False, None),
     ("CR", "SKULL", True, None), ("US", None, True, None)],
)  # fmt: skip
def test_slices_that_can_hold_a_face_are_left_out_where_the_recipe_says_so(
    modality: str, body_part: str | None, exclude: bool, code: str | None
) -> None:
    acquired = replace(acquisition(header(BodyPartExamined=body_part or ""), modality), modality=modality)
    found = with_a_face(acquired, exclude)
    assert (found.code if found else None) == code


# ---- the gate


def row() -> CatalogRow:
    import numpy as np

    made = make_sample("CT", 0, make_image(np.random.default_rng(0), "CT"))[0]
    return replace(made, deid_policy="lumid-public-2", patient="0" * 16, source_version="1")


def test_every_column_has_a_rule_and_a_sound_row_passes() -> None:
    assert RULES.keys() == set(CATALOG.names)
    assert {item.name for item in fields(CatalogRow)} == RULES.keys()
    assert checked(row()) == row()


TEXT = "Doe^Jane 19610312"
NUMBERS = [name for name in CATALOG.names if CATALOG.field(name).type in ("double", "int64")]
TEXTS = [name for name in CATALOG.names if CATALOG.field(name).type == "string"]
OF_THE_SOURCE = {"collection", "license", "doi", "source_version", "source_id"}


@pytest.mark.parametrize("column", [name for name in TEXTS if name not in OF_THE_SOURCE])
def test_no_text_passes_the_gate(column: str) -> None:
    wrong = replace(row(), **{column: TEXT})
    if CATALOG.field(column).nullable:
        assert getattr(checked(wrong), column) is None
    else:
        with pytest.raises(ValueError, match=column) as told:
            checked(wrong)
        assert "Doe" not in str(told.value)


@pytest.mark.parametrize("column", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "7"])
def test_no_number_that_is_none_passes_the_gate(column: str, value: object) -> None:
    wrong = replace(row(), **{column: value})
    if CATALOG.field(column).nullable:
        assert getattr(checked(wrong), column) is None
    else:
        with pytest.raises(ValueError, match=column):
            checked(wrong)


@pytest.mark.parametrize(
    "column",
    [
        "slice_position",
        "slice_thickness",
        "kvp",
        "exposure",
        "field_strength",
        "age_years",
        "slice_spacing",
        "pixel_spacing_row",
    ],
)
def test_a_date_is_no_number_of_a_column(column: str) -> None:
    assert getattr(checked(replace(row(), **{column: 19610312})), column) is None


# ---- what is useful survives


def _headers(folder: Path) -> list[FrameHeader]:
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.stat().st_size > 40_000_000:
            continue
        data = path.read_bytes()
        dataset = parse(data) if sniff(data[:16_384]) == "dicom" else Reject("read", "not_dicom")
        if not isinstance(dataset, Reject) and modality_of(header_ := FrameHeader(dataset, 0)) is not None:
            found.append(header_)
    return found


COLUMNS: dict[str, tuple[str, str | None]] = {
    "body_part": ("BodyPartExamined", None), "manufacturer": ("Manufacturer", None), "kernel": ("ConvolutionKernel", "CTReconstructionSequence"),
    "field_strength": ("MagneticFieldStrength", None), "sequence": ("ScanningSequence", None), "kvp": ("KVP", "CTXRayDetailsSequence"),
    "exposure": ("Exposure", None), "sex": ("PatientSex", None), "image_type": ("ImageType", None), "view_position": ("ViewPosition", None),
    "laterality": ("ImageLaterality", None), "photometric": ("PhotometricInterpretation", None),
}  # fmt: skip


@pytest.mark.parametrize("folder", [TEST_FILES, SHARED], ids=["pydicom", "shared"])
def test_what_real_files_state_in_the_standard_way_survives(folder: Path) -> None:
    if not folder.is_dir():
        pytest.skip("needs the shared folder of real images, which is not part of the project")
    stated: Counter[str] = Counter()
    lost: list[tuple[str, str]] = []
    for one in _headers(folder):
        modality = modality_of(one)
        assert modality is not None
        acquired: Acquisition = acquisition(one, modality)
        placed = geometry(one, modality)
        values = {column: getattr(acquired, column) for column in COLUMNS}
        for column, (keyword, macro) in COLUMNS.items():
            text = one.get(keyword, macro)
            if (
                text not in (None, "", [])
                and str(text) not in PLACEHOLDERS
                and not (column == "kvp" and float(text) == 0)
            ):
                stated[column] += 1
                lost += [(column, str(text))] if values[column] is None else []
        spacing = one.numbers("PixelSpacing", "PixelMeasuresSequence")
        if spacing and all(0 < value < 100 for value in spacing):
            stated["spacing"] += 1
            lost += [("spacing", str(spacing))] if placed.spacing_row is None else []
    assert stated["manufacturer"] > 20
    assert stated["spacing"] > 10
    assert lost in ([], [("kernel", "11")]), "the one is written by no scanner"


def test_models_of_the_public_archives_are_known() -> None:
    dataset = dcmread(TEST_FILES / "CT_small.dcm", stop_before_pixels=True)
    assert model_term(str(dataset.ManufacturerModelName)) == "RHAPSODE"


def test_a_recipe_that_leaves_faces_out_rejects_them_with_a_reason(tmp_path: Path) -> None:
    parts = {"1": "HEAD", "2": "CHEST", "3": "", "4": "J.SMITH HEAD"}
    for number, part in parts.items():
        one = image(gradient(high=900), BodyPartExamined=part, SOPInstanceUID=f"1.{number}", SeriesInstanceUID=f"2.{number}", RescaleIntercept=-1024, RescaleSlope=1)  # fmt: skip
        (tmp_path / f"{number}.dcm").write_bytes(as_bytes(one))
    found = {}
    for exclude in (False, True):
        recipe = parse_recipe(
            f'name = "x"\n[[sources]]\nkind = "folder"\npath = "{tmp_path}"\n[deid]\nexclude_head_slices = {str(exclude).lower()}\n',
            "f", base=tmp_path,
        )  # fmt: skip
        keyer = make_keyer(recipe.deid)
        source = open_listed(recipe.sources[0], recipe, keyer)  # type: ignore[arg-type]
        series = group_series(scan(source, source.objects(), keyer, "public"), source.provenance)
        result = ingest(Batch("b", 0, tuple(series)), source, recipe, keyer)
        found[exclude] = (
            sorted(one.row.body_part or "" for one in result.samples),
            [(one.stage, one.code) for one in result.rejects],
        )
        assert sum((Counter(dict(series_account(one).unknown)) for one in result.series), Counter()) == (
            {} if exclude else {"body_part": 1}
        )
    assert found == {False: (["", "", "CHEST", "HEAD"], []), True: (["CHEST"], [("deidentify", "face")] * 3)}


def test_the_page_says_of_every_column_what_is_done() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deidentification.md").read_text("utf-8")
    table = page[page.index("| column | from |") :].split("\n\n")[0]
    named = re.findall(r"`([a-z0-9_]+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))
    assert sorted(named) == sorted(CATALOG.names)
