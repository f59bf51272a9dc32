"""A folder of real images full of made-up identifiers, in every place that a file has for them; and the list of those."""

from __future__ import annotations

import io
import random
import struct
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pydicom
from pydicom import Dataset, FileDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import ExplicitVRLittleEndian

from lumid.pipeline.decode import ImageSize, Limits, decode_frames, image_size
from lumid.pipeline.reject import Reject
from tests.dicom import TEST_FILES, as_bytes, gradient, image

NAMES = (
    ("ISO_IR 192", "Quimbleworth^Zebediah^Ulysses"), ("ISO_IR 192", "Yamazakura^Tarohei=山桜^太郎兵=やまざくら^たろへい"),
    ("ISO_IR 100", "Böhmelfürst^Jörgfried"), ("ISO_IR 192", "Wáng^XiǎoDōng=王^小東海"), ("GB18030", "Zhuangzi^Xiaohu=庄子^小虎儿"),
    (["", "ISO 2022 IR 149"], "Honggil^Dongsu=洪^吉洞=홍^길동수"), ("ISO_IR 144", "Люксембург^Роза"), ("ISO_IR 126", "Διονυσίου^Ιάκωβος"),
    (["", "ISO 2022 IR 87"], "Kobayakawa^Shinji=小早川^真二"), ("ISO_IR 192", "O'Flannigan-Szczebrzyk^Mairéad^^Dr."),
)  # fmt: skip
"""Character sets and names in them, component groups and all (PS3.5 6.2.1, annexes H to J)."""
TEXTS = {
    "InstitutionName": "Saint Wolfgangus Infirmary {}", "InstitutionAddress": "{} Elmtree Crescent, Springfieldia",
    "InstitutionalDepartmentName": "Dept. Xylography {}", "StationName": "WOLFSTATION{}", "DeviceSerialNumber": "DSN-77{}-ZK",
    "AccessionNumber": "ACC{}", "StudyID": "STU-{}", "StudyDescription": "CT for Ebenezer Quillfeather {}",
    "SeriesDescription": "CHEST J.QUIMBLEWORTH 12/03/1961 {}", "ProtocolName": "Protocol of Dr Hackenbusch {}",
    "PatientAddress": "{} Marzipan Alley, Hohenzollerstadt", "PatientTelephoneNumbers": "+49 (30) 55{}", "PatientComments": "see Aunt Philomena {}",
    "AdditionalPatientHistory": "fell off the Matterhornblick {}", "ImageComments": "call ext. 88{} Nurse Wigglesbottom",
    "RequestedProcedureDescription": "wanted by Professor Zwackelmann {}", "PerformedProcedureStepDescription": "done by Frau Knusperbein {}",
    "MilitaryRank": "Oberstleutnant Z{}", "Occupation": "Glockenspieler {}", "RequestingService": "Praxis Butterblum {}",
    "ContrastBolusAgent": "Omnipaque for Wilhelmine {}", "AcquisitionDeviceProcessingDescription": "as Igor Plonkiewicz likes it {}",
    "FilterType": "WEDGE for Hrothgar {}", "ReasonForStudy": "because Ptolemaios {} asked", "CountryOfResidence": "Freedonia{}",
    "PatientInsurancePlanCodeSequence": None, "MedicalRecordLocator": "MRL{}", "DetectorID": "DET-{}-QX", "PlateID": "PLT-{}-QX",
    "GantryID": "GAN-{}-QX", "CassetteID": "CAS-{}-QX", "GeneratorID": "GEN-{}-QX", "SoftwareVersions": "sw built by Tobermory {}",
}  # fmt: skip
PERSONS = ("ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName", "NameOfPhysiciansReadingStudy", "RequestingPhysician",
           "PatientMotherBirthName", "ResponsiblePerson", "PhysiciansOfRecord", "OtherPatientNames")  # fmt: skip
DATES = (
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "PatientBirthDate",
    "LastMenstrualDate",
    "DateOfLastCalibration",
)
UIDS = (
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "DeviceUID",
    "IrradiationEventUID",
)
SANITISED = {
    "BodyPartExamined": "CHEST J.QUIMBLEWORTH 12/03/1961", "Manufacturer": "Saint Wolfgangus Makerszky", "ManufacturerModelName": "Hackenbusch 3000",
    "ConvolutionKernel": "KOWALSKIEGO", "ScanningSequence": "HROTHGAR", "SequenceVariant": "BUTTERBLUM", "Laterality": "WIGGLESBOTTOM",
    "ViewPosition": "QUIMBLEWORTH", "PatientSex": "ZWACKELMANN", "PatientAge": "097Y",
}  # fmt: skip
"""Texts in the very elements that columns are made of."""
FILES = ("CT_small.dcm", "MR_small.dcm", "JPEG2000.dcm", "examples_ybr_color.dcm", "SC_rgb_small_odd.dcm", "MR_small_bigendian.dcm",
         "JPEG2000-embedded-sequence-delimiter.dcm", "MR_small_RLE.dcm", "liver_1frame.dcm", "examples_rgb_color.dcm")  # fmt: skip


@dataclass
class Corpus:
    """A folder, and every identifier that was planted in it or in its names."""

    folder: Path
    terms: list[str] = field(default_factory=list)
    seed: random.Random = field(default_factory=lambda: random.Random(7))

    def number(self, digits: int = 7) -> str:
        return str(self.seed.randrange(10 ** (digits - 1), 10**digits))

    def date(self) -> str:
        return f"{self.seed.randint(1921, 1989)}{self.seed.randint(1, 12):02}{self.seed.randint(1, 28):02}"

    def plant(self, term: str) -> str:
        self.terms.append(term)
        return term

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def write_terms(self, path: Path) -> Path:
        path.write_text("\n".join(dict.fromkeys(term.strip() for term in self.terms)) + "\n", "utf-8")
        return path


def make_corpus(folder: Path) -> Corpus:
    corpus = Corpus(folder)
    for number, (charset, name) in enumerate(NAMES):
        dataset = made_small(pydicom.dcmread(TEST_FILES / FILES[number]))
        plant_header(corpus, dataset, charset, name)
        if number >= 4:
            plant_sanitised(corpus, dataset)
        corpus.write(
            f"{corpus.plant('Euphrosyne Quackenbush')}/{corpus.plant('MRN' + corpus.number())}_{number}.dcm",
            as_bytes(dataset),
        )
    plant_pixels(corpus)
    plant_others(corpus)
    return corpus


def made_small(dataset: FileDataset) -> FileDataset:
    """At most two frames of 96 pixels a side: a search for text in their pixels takes seconds a megapixel, and what is
    planted in headers does not care.
    """
    if max(dataset.Rows, dataset.Columns) <= 128 and int(dataset.get("NumberOfFrames", 1)) <= 2:
        return dataset
    size = image_size(dataset, Limits())
    assert isinstance(size, ImageSize)
    frames = [one for one in decode_frames(dataset, size, range(min(2, size.frames))) if not isinstance(one, Reject)]
    if not frames:
        return dataset  # it is there to be rejected
    pixels = np.stack(frames)
    top, left = (max(0, (side - 96) // 2) for side in pixels.shape[1:3])
    pixels = pixels[:, top : top + 96, left : left + 96]
    if dataset.SamplesPerPixel == 3:
        dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0
    if "NumberOfFrames" in dataset:
        dataset.NumberOfFrames = len(pixels)
    elif len(pixels) > 1:
        raise AssertionError("frames without their number")
    dataset.Rows, dataset.Columns = pixels.shape[1:3]
    if dataset.BitsAllocated == 1:
        packed = np.packbits(pixels.ravel(), bitorder="little").tobytes()
        dataset.PixelData = packed + b"\0" * (len(packed) % 2)
    else:
        dataset.PixelData = np.ascontiguousarray(pixels).tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if "SequenceOfUltrasoundRegions" in dataset:
        del dataset.SequenceOfUltrasoundRegions
    return dataset


def plant_header(corpus: Corpus, dataset: FileDataset, charset: str | list[str], name: str) -> None:
    """Identifiers into every element that has a place for them, private and nested ones, and around the data set."""
    dataset.SpecificCharacterSet = charset
    dataset.PatientName = corpus.plant(name)
    dataset.PatientID = corpus.plant(corpus.number())
    dataset.IssuerOfPatientID = corpus.plant(f"Klinikum Waldmeister {corpus.number(5)}")
    for keyword, text in TEXTS.items():
        if text:
            setattr(dataset, keyword, corpus.plant(text.format(corpus.number(5)))[:64])
    for keyword in PERSONS:
        setattr(dataset, keyword, corpus.plant(f"Physicianov{corpus.number(4)}^Bartholomew"))
    for keyword in DATES:
        setattr(dataset, keyword, corpus.plant(corpus.date()))
    for keyword in UIDS:
        setattr(dataset, keyword, corpus.plant(f"1.2.840.99{corpus.number(9)}.{corpus.number(8)}"))
    dataset.PatientAge = "093Y"
    dataset.AcquisitionDateTime = corpus.plant(corpus.date()) + "101530.123"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    other = Dataset()
    other.PatientID, other.TypeOfPatientID = corpus.plant("OTH" + corpus.number()), "TEXT"
    request = Dataset()
    request.RequestedProcedureID = corpus.plant("RP" + corpus.number())
    request.ReferencedStudySequence = [Dataset()]
    request.ReferencedStudySequence[0].ReferencedSOPInstanceUID = corpus.plant(f"1.2.840.77.{corpus.number(9)}")
    dataset.OtherPatientIDsSequence, dataset.RequestAttributesSequence = [other], [request]
    block = dataset.private_block(0x0011, "LUMIDTEST PRIVATE", create=True)
    block.add_new(1, "LO", corpus.plant(f"privately Rumpelstilzchen {corpus.number()}"))
    block.add_new(2, "UN", corpus.plant(f"unknown Rapunzelina {corpus.number()}").encode())
    dataset.add_new((0x6000, 0x0010), "US", 8)
    dataset.add_new((0x6000, 0x0022), "LO", corpus.plant(f"overlay by Sneewittchen {corpus.number()}"))
    dataset.add_new(
        (0x6000, 0x3000), "OW", corpus.plant(f"overlaydata Dornroschen {corpus.number()} ").encode().ljust(64)
    )
    dataset.preamble = corpus.plant(f"preamble of Hansel Gretelmann {corpus.number()}").encode().ljust(128)
    dataset.file_meta.SourceApplicationEntityTitle = corpus.plant("AET" + corpus.number())
    dataset.file_meta.ImplementationVersionName = corpus.plant("IVN" + corpus.number())


def plant_sanitised(corpus: Corpus, dataset: FileDataset) -> None:
    """Texts, and numbers that are dates, where a column's own value is expected."""
    for keyword, text in SANITISED.items():
        setattr(dataset, keyword, text)
        corpus.terms += [text] if len(text) > 4 else []
    day = int(corpus.plant(corpus.date()))
    dataset.KVP = dataset.SliceThickness = dataset.Exposure = dataset.MagneticFieldStrength = day
    dataset.ImageType = ["ORIGINAL", "PRIMARY", corpus.plant("BUTTERBLUM")]
    if dataset.get("ImagePositionPatient"):
        dataset.ImagePositionPatient = [0, 0, day]


def plant_pixels(corpus: Corpus) -> None:
    """Texts beside the pixels: after the last frame, in a comment of a codestream; and headers that are rejected."""
    tail = corpus.plant(f"afterpixels Blaubartholomae {corpus.number()}").encode()
    plain = image(
        gradient(),
        PatientID=corpus.plant(corpus.number()),
        StudyInstanceUID="1.5",
        SeriesInstanceUID="1.5.1",
        SOPInstanceUID="1.5.2",
    )
    plain.PixelData = plain.PixelData + tail + b" " * (len(tail) % 2)
    corpus.write("tail.dcm", as_bytes(plain) + corpus.plant(f"afterdataset Kasperlina {corpus.number()}").encode())
    jpeg = pydicom.dcmread(TEST_FILES / "SC_rgb_jpeg_dcmtk.dcm")
    frame = next(generate_frames(jpeg.PixelData, number_of_frames=1))
    said = corpus.plant(f"jpegcomment Pumuckelius {corpus.number()}").encode()
    jpeg.PixelData = encapsulate([frame[:2] + b"\xff\xfe" + struct.pack(">H", len(said) + 2) + said + frame[2:]])
    jpeg.PatientID, jpeg.PatientName = corpus.plant(corpus.number()), corpus.plant("Meisterederle^Franziskus")
    corpus.write("comment.dcm", as_bytes(jpeg))
    for number, changes in enumerate(
        ({"Modality": "ZWACKELMANN"}, {"PhotometricInterpretation": "HACKENBUSCH"}, {"NumberOfFrames": 19610312},
         {"BurnedInAnnotation": "YES"}, {"Rows": 0}, {"BitsAllocated": 13})
    ):  # fmt: skip
        odd = image(
            gradient(),
            PatientID=corpus.plant(corpus.number()),
            PatientName=corpus.plant("Ederlezi^Kunibert"),
            **changes,
        )
        odd.SOPInstanceUID = corpus.plant(f"1.2.840.55.{corpus.number(9)}.{number}")
        corpus.write(f"odd-{number}.dcm", as_bytes(odd))
    whole = (TEST_FILES / "MR_small.dcm").read_bytes()
    named = pydicom.dcmread(io.BytesIO(whole))
    named.PatientName, named.PatientID = corpus.plant("Abgeschnitten^Ottokar"), corpus.plant(corpus.number())
    corpus.write("truncated-header.dcm", as_bytes(named)[:900])
    corpus.write("truncated-pixels.dcm", as_bytes(named)[:-3000])
    named.file_meta.TransferSyntaxUID = "1.2.840.4711.0815"
    corpus.write("unknown-syntax.dcm", as_bytes(named))
    broken = pydicom.dcmread(TEST_FILES / "JPEG2000.dcm")
    broken.PatientName = corpus.plant("Kaputtnik^Wendelin")
    broken.PixelData = encapsulate([bytes([255, 79, 255, 81]) + b"Kaputtnik Wendelin " * 40])
    corpus.write("broken-pixels.dcm", as_bytes(broken))
    corpus.terms += ["ZWACKELMANN", "HACKENBUSCH", "19610312", "1.2.840.4711.0815"]


def plant_others(corpus: Corpus) -> None:
    """Other formats, archives, and files that are no images."""
    picture = bytearray(cv2.imencode(".png", gradient(96, 96, np.uint8, 250))[1].tobytes())
    text = b"Patient\0" + corpus.plant(f"pngtext Klabautermann {corpus.number()}").encode()
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", zlib.crc32(b"tEXt" + text))
    picture[33:33] = chunk
    corpus.write(f"{corpus.plant('Schnackerl_Hubertus')}.png", bytes(picture))
    corpus.write("nested/notes.txt", corpus.plant("Geheimrat^Notburga").encode())
    corpus.write(f"letter {corpus.plant('Petronella Zipfelmeier')}.pdf", b"%PDF-1.4 " + b"Petronella Zipfelmeier")
    corpus.write("empty.dcm", b"")
    member = image(
        gradient(high=800),
        PatientID=corpus.plant(corpus.number()),
        PatientName=corpus.plant("Zipperlein^Amalia"),
        SOPInstanceUID="1.7",
    )
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(f"{corpus.plant('Zipperlein_Amalia_19330412')}/a.dcm", as_bytes(member))
        archive.writestr("../out.dcm", b"x")
    corpus.write("pack.zip", packed.getvalue())
    damaged = bytearray(packed.getvalue())
    damaged[200] ^= 0xFF
    corpus.write("damaged.zip", bytes(damaged))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo(f"{corpus.plant('Teerfass_Adalbert')}.dcm")
        data = as_bytes(member)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    corpus.write("pack.tar.gz", packed.getvalue())
