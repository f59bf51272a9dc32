"""Text in pixels: how much of it is found, what is taken for it, and what looking costs; beside other detectors.

Text is drawn into real images without any, in several fonts, heights, polarities, places and directions. It is
covered when 98 % of its pixels are masked. Each image is also searched without it: what is found there is an alarm.
Fonts of Debian's packages (fonts-dejavu-core, fonts-liberation, fonts-unifont, fonts-terminus-otb, fonts-noto-core,
fonts-noto-cjk) are used where they are installed; tesseract, and a classical detector made of OpenCV, are there to compare.

    python benchmarks/text.py --source ~/dicom            # any folder of DICOM without text; else the files inside pydicom
    python benchmarks/text.py --cases 200 --others 60     # text to plant; of these, how many others are tried on
    python benchmarks/text.py --build                     # share of the time that a batch takes
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import numpy.typing as npt
import pydicom

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lumid.catalog.codecs import Pixels
from lumid.pipeline import burned_in
from lumid.pipeline.batches import make_batches
from lumid.pipeline.decode import Limits, decode_frames, image_size, parse, quiet_libraries
from lumid.pipeline.deidentify import modality_of
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.ingest import ingest
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.intensity import frame_histogram, robust_range
from lumid.pipeline.recipe import DeidSettings, make_keyer
from lumid.pipeline.recipe_files import make_recipe
from lumid.pipeline.reject import Reject
from lumid.pipeline.scan import group_series, scan
from lumid.pipeline.select import is_image
from lumid.pipeline.sources import open_listed
from lumid.pipeline.text import search_text
from lumid.pipeline.text.search import levels
from tests.planted_text import POLARITIES, Planted, contrast, drawn, font_files, plant

LATIN = ("SMITH^JOHN", "Doe, Jane A.", "12/03/1961", "1961-03-12 14:22", "MRN 4471-0932", "ID: 00923817", "ST MARY HOSPITAL",
         "Dr. B. Keller", "M 63Y", "DOB 03-Dec-61", "Tel 555-0142", "ACC#A7730021", "Jones", "08:15:37", "R.T. Lee")  # fmt: skip
SCRIPTS = {
    "Cyrillic": ("Иванова Мария", "DejaVuSans"),
    "Greek": ("ΠΑΠΑΔΟΠΟΥΛΟΣ", "DejaVuSans"),
    "Chinese": ("王小明 男 45岁", "NotoSansCJK-Regular"),
    "Japanese": ("山田 太郎 様", "NotoSansCJK-Regular"),
    "Korean": ("김철수 환자", "NotoSansCJK-Regular"),
    "Arabic": ("محمد علي حسن", "NotoNaskhArabic-Regular"),
    "Hebrew": ("ישראל ישראלי", "NotoSansHebrew-Regular"),
    "Hindi": ("राजेश कुमार", "NotoSansDevanagari-Regular"),
    "Thai": ("สมชาย ใจดี", "NotoSansThai-Regular"),
}
FILES = ("DejaVuSans", "DejaVuSansMono", "DejaVuSans-Bold", "LiberationSans-Regular", "LiberationSerif-Regular",
         "LiberationSansNarrow-Regular", "unifont", "terminus-normal")  # fmt: skip
HEIGHTS = (7, 9, 12, 16, 24, 40)
COLOURS = ((255, 255, 0), (0, 255, 0), (255, 60, 60), (0, 200, 255))
WITH_TEXT = ("SC_ybr_full_422", "jpeg2k", "image_dfl", "I40", "I50", "JLSL_RGB", "JLSN_RGB", "JPGLossless", "OBXXXX1A",
             "mlut_18", "vlut_04", "US1", "rgb", "palette", "color", "ybr")  # fmt: skip
"""Parts of names of public files that hold text of their own, or test patterns."""
AREA = 1 << 17
"""Images are cut to about so many pixels, around where the text is put."""

Found = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Base:
    """A real image without text."""

    name: str
    modality: str
    pixels: Pixels


@dataclass(frozen=True, slots=True)
class Case:
    """Text in an image, and what it was drawn like: value by property."""

    planted: Planted
    modality: str
    properties: dict[str, str]


def bases(source: Path | None, skip: Sequence[str]) -> Iterator[Base]:
    """The first frame of up to three objects of every folder."""
    folders = [Path(pydicom.__file__).parent / "data" / "test_files"] + ([source] if source else [])
    taken: dict[Path, int] = defaultdict(int)
    looks: set[bytes] = set()
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if (
            taken[path.parent]
            >= (12 if path.suffix in (".png", ".jpg", ".jpeg") else 3 if "pydicom" not in str(path) else 1000)
            or path.stat().st_size > 50_000_000
        ):
            continue
        if any(word in path.name for word in (*skip, *WITH_TEXT)):
            continue
        with contextlib.suppress(Exception):
            base = first_frame(path)
            if base is None or min(base.pixels.shape[:2]) < 100 or base.pixels.min() == base.pixels.max():
                continue
            look = cv2.resize(base.pixels, (8, 8), interpolation=cv2.INTER_AREA).tobytes()
            if look not in looks:
                looks.add(look)
                taken[path.parent] += 1
                yield base


def first_frame(path: Path) -> Base | None:
    """The first frame of a file as lumid stores it; PNG and JPEG are taken for chest X-rays."""
    if path.suffix in (".png", ".jpg", ".jpeg"):
        return Base(path.name, "CR", cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    dataset = parse(path.read_bytes())
    if isinstance(dataset, Reject):
        return None
    header = FrameHeader(dataset, 0)
    size = image_size(dataset, Limits(1 << 26, 10_000))
    if is_image(header) or isinstance(size, Reject):
        return None
    modality = modality_of(header) or "OT"
    stored = next(iter(decode_frames(dataset, size)))
    if isinstance(stored, Reject):
        return None
    span = robust_range([frame_histogram(stored, header)]) if uses_series_range(header, modality) else None
    found = normalize(stored, header, modality, span, "lumid")
    return None if isinstance(found, Reject) else Base(path.name, modality, found.pixels)


def cases(images: Sequence[Base], count: int, seed: int) -> Iterator[Case]:
    """Text that can be read, in images drawn at random: all of it different from what is around."""
    rng = random.Random(seed)
    fonts = {"hershey": "hershey", "bitmap": "bitmap", "sans": "sans"} | font_files(*FILES)
    others = font_files(*(font for _, font in SCRIPTS.values()))
    made = 0
    while made < count:
        base = rng.choice(images)
        font, height = rng.choice(sorted(fonts)), rng.choice(HEIGHTS)
        text, script, path = rng.choice(LATIN), "Latin", fonts[font]
        if others and height >= 12 and rng.random() < 0.2:
            script = rng.choice(sorted(name for name, (_, needed) in SCRIPTS.items() if needed in others))
            text, font = SCRIPTS[script]
            path = others[font]
        turned, smooth = rng.choice((0, 0, 0, 1, 3)), rng.random() < 0.5
        alpha = drawn(text, path, height, smooth=smooth, turned=turned)
        pixels = cut(base.pixels, alpha.shape, rng)
        polarity, place = rng.choice(POLARITIES), rng.choice(("corner", "edge", "centre"))
        rows, columns = (side - length - 4 for side, length in zip(pixels.shape, alpha.shape, strict=False))
        if min(rows, columns) < 0:
            continue
        top, left = where(place, rows, columns, rng)
        colour = rng.choice(COLOURS) if pixels.ndim == 3 and rng.random() < 0.5 and polarity == "white" else None
        planted = plant(pixels, alpha, top, left, polarity, colour)
        share, deviations = contrast(pixels, planted)
        if share < 0.1 or deviations < 1.5:
            continue
        made += 1
        direction = "level" if not turned else "upright"
        properties = {"height": f"{height:2d} px", "polarity": polarity, "place": place, "direction": direction,
                      "font": font, "edges": "smooth" if smooth else "hard", "script": script, "modality": base.modality}  # fmt: skip
        yield Case(planted, base.modality, properties)


def cut(pixels: Pixels, needed: tuple[int, ...], rng: random.Random) -> Pixels:
    """A part of a large image, with room for the text; searched whole, a mammogram would take all the time."""
    rows, columns = pixels.shape[:2]
    side = math.isqrt(AREA)
    height, width = min(rows, max(side, needed[0] + 40)), min(columns, max(side, needed[1] + 40))
    top, left = rng.randint(0, rows - height), rng.randint(0, columns - width)
    return pixels[top : top + height, left : left + width]


def where(place: str, rows: int, columns: int, rng: random.Random) -> tuple[int, int]:
    """The text's first row and column, two pixels from the border at least."""
    if place == "corner":
        return 2 + rng.choice((0, rows)), 2 + rng.choice((0, columns))
    if place == "edge":
        return (2 + rng.choice((0, rows)), 2 + rng.randint(0, columns)) if rng.random() < 0.5 else (2 + rng.randint(0, rows), 2 + rng.choice((0, columns)))  # fmt: skip
    return 2 + rng.randint(rows // 4, rows - rows // 4), 2 + rng.randint(columns // 4, columns - columns // 4)


def tesseract(pixels: Pixels) -> Found:
    """Boxes of what Tesseract takes for words, at twice the size, which it likes better."""
    found = np.zeros(pixels.shape[:2], bool)
    shown = levels(pixels)
    if shown is None:
        return found
    png = cv2.imencode(".png", cv2.resize(shown, None, fx=2, fy=2))[1].tobytes()
    done = subprocess.run(["tesseract", "-", "-", "--psm", "11", "tsv"], input=png, capture_output=True, check=False)
    for line in done.stdout.decode(errors="replace").splitlines()[1:]:
        cells = line.split("\t")
        if len(cells) == 12 and cells[11].strip() and float(cells[10]) >= 0:
            left, top, width, height = (int(cell) // 2 for cell in cells[6:10])
            found[max(0, top - 3) : top + height + 4, max(0, left - 3) : left + width + 4] = True
    return found


def classical(pixels: Pixels) -> Found:
    """Strokes by top-hat and black-hat, joined to lines: components that are line-shaped and full of edges."""
    found = np.zeros(pixels.shape[:2], bool)
    shown = levels(pixels)
    if shown is None:
        return found
    grey = shown.max(axis=2)
    window = np.ones((11, 11), np.uint8)
    for kind in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT):
        strokes = (cv2.morphologyEx(grey, kind, window) > 25).astype(np.uint8)
        for kernel in ((1, 15), (15, 1)):
            joined = cv2.morphologyEx(strokes, cv2.MORPH_CLOSE, np.ones(kernel, np.uint8))
            _, labels, boxes, _ = cv2.connectedComponentsWithStats(joined)
            for left, top, width, height, area in boxes[1:]:
                short, long = min(width, height), max(width, height)
                if 5 <= short <= 50 and long >= 1.5 * short and area > 0.35 * width * height:
                    found[max(0, top - 2) : top + height + 2, max(0, left - 2) : left + width + 2] = True
        del labels
    return found


def wilson(good: int, of: int) -> str:
    """A share in percent with its 95 % interval (Wilson, 1927)."""
    if not of:
        return "–"
    z, share = 1.96, good / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return f"{100 * share:.0f} ({100 * (middle - half):.0f}–{100 * min(1.0, middle + half):.0f})"


def clock(search: Callable[[Pixels], Found], pixels: Pixels) -> tuple[Found, float]:
    """What is found, and the milliseconds of processor that it took, children counted."""
    before = time.process_time() + sum(os.times()[2:4])
    found = search(pixels)
    return found, 1000 * (time.process_time() + sum(os.times()[2:4]) - before)


def report(covered: Sequence[tuple[Case, float]]) -> None:
    """Recall by every property."""
    print("\n| property | | cases | covered, % (95 %) | half of it |\n|---|---|---|---|---|")
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for case, share in covered:
        groups["all", ""].append(share)
        for name, value in case.properties.items():
            groups[name, value].append(share)
    for (name, value), shares in sorted(groups.items()):
        whole, half = (sum(share >= least for share in shares) for least in (0.98, 0.5))
        print(f"| {name} | {value} | {len(shares)} | {wilson(whole, len(shares))} | {wilson(half, len(shares))} |")


def alarms(name: str, images: Sequence[Base], search: Callable[[Pixels], Found]) -> None:
    """What is taken for text in images without any, and the time that the search takes, by modality."""
    groups: dict[str, list[tuple[float, float, int]]] = defaultdict(list)
    for base in images:
        pixels = base.pixels[:1024, :1024]
        found, took = clock(search, pixels)
        groups[base.modality].append((float(found.mean()), took, found.size))
    print(
        f"\n{name}\n\n| | images | with an alarm, % (95 %) | area, mean | area, median | ms an image | ms a megapixel |"
    )
    print("|---|---|---|---|---|---|---|")
    for modality, rows in sorted(groups.items()):
        areas, times, sizes = (np.array(column) for column in zip(*rows, strict=True))
        some = wilson(int((areas > 0).sum()), len(areas))
        print(f"| {modality} | {len(rows)} | {some} | {100 * areas.mean():.2f} % | {100 * np.median(areas):.2f} % "
              f"| {np.median(times):.0f} | {1e6 * times.sum() / sizes.sum():.0f} |")  # fmt: skip


def share_of_build(source: Path | None) -> None:
    """How much of a batch's processor time is the search: ultrasound and CT, as an archive's and as a hospital's."""
    test_files = Path(pydicom.__file__).parent / "data" / "test_files"
    os.environ["LUMID_KEY"] = "a secret that only this measurement has"
    print("\n| | images | ms an image | of which the search |\n|---|---|---|---|")
    for modality, policy in (("CT", "public"), ("CT", "private"), ("US", "public")):
        with tempfile.TemporaryDirectory() as folder:
            taken = 0
            for root in (source, test_files) if source else (test_files,):
                for path in sorted(root.rglob("*.dcm")):
                    with contextlib.suppress(Exception):
                        header = pydicom.dcmread(path, stop_before_pixels=True)
                        if header.Modality == modality and header.Rows >= 240 and taken < 20:
                            shutil.copy(path, Path(folder) / f"{taken}.dcm")
                            taken += 1
            recipe = make_recipe(folder, collection="measured")
            recipe = recipe.model_copy(update={"deid": DeidSettings(policy=policy)})
            keyer = make_keyer(recipe.deid)
            listed = open_listed(recipe.sources[0], recipe, keyer)
            series = group_series(scan(listed, listed.objects(), keyer, policy), listed.provenance)
            spent = [0.0]

            def timed(pixels: Pixels, spent: list[float] = spent) -> Found:
                found, took = clock(search_text, pixels)
                spent[0] += took
                return found

            with mock.patch.object(burned_in, "search_text", timed):
                before, images = time.process_time(), 0
                for batch in make_batches(series, 0, recipe.hash(), 1000):
                    images += len(ingest(batch, listed, recipe, keyer).samples)
                whole = 1000 * (time.process_time() - before)
        print(f"| {modality}, {policy} | {images} | {whole / max(1, images):.1f} | {100 * spent[0] / whole:.1f} % |")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path)
    parser.add_argument("--skip", nargs="*", default=[], help="parts of names of files that hold text of their own")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--others", type=int, default=0, help="cases that other detectors are tried on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", action="store_true", help="measure the share of build time alone")
    parser.add_argument("--look", type=Path, help="write the images that alarms are counted on as PNG, to be looked at")
    options = parser.parse_args()
    quiet_libraries()
    cv2.setNumThreads(1)
    if options.build:
        share_of_build(options.source)
        return
    images = list(bases(options.source, options.skip))
    if options.look:
        options.look.mkdir(parents=True, exist_ok=True)
        for number, base in enumerate(images):
            shown = levels(base.pixels)
            cv2.imwrite(str(options.look / f"{number:03d}-{base.modality}-{base.name}.png"), shown)
        return
    planted = list(cases(images, options.cases, options.seed))
    covered = []
    for number, case in enumerate(planted, 1):
        covered.append((case, float(search_text(case.planted.pixels)[case.planted.ink].mean())))
        print(f"\r{number} of {len(planted)}", end="", file=sys.stderr)
    report(covered)
    others: dict[str, Callable[[Pixels], Found]] = {"lumid": search_text, "classical": classical}
    if shutil.which("tesseract"):
        others["tesseract"] = tesseract
    alarms("lumid", images, search_text)
    if options.others:
        print(
            "\n| of the same cases and images | covered, % | half of it, % | area of alarms | ms a case |\n|---|---|---|---|---|"
        )
        some, clean = planted[: options.others], images[:: max(1, len(images) // 20)]
        for name, search in others.items():
            shares, took = [], []
            for case in some:
                found, spent = clock(search, case.planted.pixels)
                shares.append(float(found[case.planted.ink].mean()))
                took.append(spent)
            whole, half = (wilson(sum(share >= least for share in shares), len(shares)) for least in (0.98, 0.5))
            area = float(np.mean([search(base.pixels[:1024, :1024]).mean() for base in clean]))
            print(f"| {name} | {whole} | {half} | {100 * area:.2f} % | {np.mean(took):.0f} |")


if __name__ == "__main__":
    main()
