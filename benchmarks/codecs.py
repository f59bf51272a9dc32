"""What a lossless codec costs: bytes, time to encode, time to decode, on real images as a data set stores them.

Images of a folder (or of the pydicom package) go through lumid's own decoding, normalisation and resizing; then every
codec that is installed encodes and decodes each of them on one thread. All codecs take turns on each image, so that a
busy machine slows all of them alike: read the ratios.

    python benchmarks/codecs.py --source ~/dicom
    pip install pyspng pylibjxl fpng-py && python benchmarks/codecs.py      # these are looked at where they are there
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import imagecodecs as ic
import numpy as np

from lumid.catalog.codecs import Codec, Pixels, decode, encode
from lumid.pipeline.decode import Limits, decode_frames, image_size, parse, quiet_libraries
from lumid.pipeline.deidentify import modality_of
from lumid.pipeline.encode import resize
from lumid.pipeline.frame_header import FrameHeader
from lumid.pipeline.normalize import normalize, uses_series_range
from lumid.pipeline.normalize.intensity import frame_histogram, robust_range
from lumid.pipeline.recipe import SelectSettings
from lumid.pipeline.reject import Reject
from lumid.pipeline.select import is_image
from lumid.pipeline.sources.folder import pydicom_files

FRAMES_OF_AN_OBJECT = 4


@dataclass(frozen=True, slots=True)
class Candidate:
    """A codec with its settings; ``bits`` and ``channels`` are those that it can keep."""

    name: str
    encode: Callable[[Pixels], bytes]
    decode: Callable[[bytes], Any]
    bits: tuple[int, ...] = (8, 16)
    channels: tuple[int, ...] = (1, 3)


@dataclass(slots=True)
class Cost:
    """What a codec has cost on some images, in seconds and bytes."""

    encode: float = 0.0
    decode: float = 0.0
    size: int = 0
    images: int = 0
    broken: list[str] = field(default_factory=list)


def of_lumid(name: Codec) -> Candidate:
    return Candidate(f"lumid: {name}", lambda pixels: encode(pixels, name), lambda data: decode(data, name))


def png_of_cv2(level: int, strategy: int, name: str) -> Candidate:
    flags = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
    return Candidate(
        name,
        lambda pixels: cv2.imencode(".png", pixels, flags)[1].tobytes(),
        lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED),
    )


def of_imagecodecs(name: str, codec: str, settings: dict[str, Any], **kept: Any) -> Candidate | None:
    if not getattr(ic, codec.upper()).available:
        return None
    encoder, decoder = getattr(ic, f"{codec}_encode"), getattr(ic, f"{codec}_decode")
    return Candidate(name, lambda pixels: bytes(encoder(pixels, **settings)), decoder, **kept)


def delta_zstd() -> Candidate:
    """Each value minus its left neighbour, bytes sorted by significance, zstd: what an own format could do."""

    def pack(pixels: Pixels) -> bytes:
        steps = np.diff(pixels, axis=1, prepend=pixels.dtype.type(0))
        planes = steps.reshape(-1).view(np.uint8).reshape(-1, pixels.itemsize).T
        return (
            pixels.dtype.char.encode() + np.array(pixels.shape, "<u2").tobytes() + ic.zstd_encode(planes.tobytes(), 1)
        )

    def unpack(data: bytes) -> Pixels:
        kind, shape = np.dtype(data[:1].decode()), tuple(np.frombuffer(data[1:5], "<u2").tolist())
        planes = np.frombuffer(ic.zstd_decode(data[5:]), np.uint8).reshape(kind.itemsize, -1)
        return np.cumsum(np.ascontiguousarray(planes.T).view(kind).reshape(shape), axis=1, dtype=kind)

    return Candidate("zstd 1 of differences", pack, unpack, channels=(1,))


def candidates() -> list[Candidate]:
    """All that can be had here."""
    found: list[Candidate | None] = [of_lumid("png"), of_lumid("jhc")]
    for level in (1, 3, 6):
        found.append(png_of_cv2(level, cv2.IMWRITE_PNG_STRATEGY_DEFAULT, f"PNG, OpenCV, level {level}"))
    found.append(png_of_cv2(1, cv2.IMWRITE_PNG_STRATEGY_FILTERED, "PNG, OpenCV, level 1, filtered"))
    found.append(png_of_cv2(1, cv2.IMWRITE_PNG_STRATEGY_RLE, "PNG, OpenCV, level 1, RLE"))
    found.append(png_of_cv2(1, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY, "PNG, OpenCV, Huffman only"))
    for level in (1, 3):
        found.append(of_imagecodecs(f"PNG, libpng, level {level}", "png", {"level": level}))
        found.append(of_imagecodecs(f"PNG, libspng, level {level}", "spng", {"level": level}, bits=(8,)))
    if ic.SPNG.available:
        found.append(Candidate("PNG, read by libspng", of_lumid("png").encode, ic.spng_decode, (8,)))
    found.append(of_imagecodecs("JPEG-LS, CharLS", "jpegls", {}))
    for effort in (1, 2, 3):
        settings = {"lossless": True, "effort": effort, "numthreads": 1}
        found.append(of_imagecodecs(f"JPEG XL, effort {effort}", "jpegxl", settings))
    faster = {"lossless": True, "effort": 1, "decodingspeed": 4, "numthreads": 1}
    found.append(of_imagecodecs("JPEG XL, effort 1, decoding speed 4", "jpegxl", faster))
    found.append(of_imagecodecs("JPEG 2000", "jpeg2k", {"level": 0, "reversible": True, "numthreads": 1}))
    found.append(of_imagecodecs("HTJ2K", "htj2k", {"level": None, "reversible": True}))
    found.append(of_imagecodecs("WebP lossless", "webp", {"lossless": True, "level": 0}, bits=(8,), channels=(3,)))
    found.append(Candidate("zstd 1 of raw", lambda pixels: ic.zstd_encode(pixels.tobytes(), 1), ic.zstd_decode))
    found.append(delta_zstd())
    return [one for one in found if one is not None] + list(optional())


def optional() -> Iterator[Candidate]:
    """Libraries that lumid does not depend on."""
    try:
        import pyspng

        yield Candidate("PNG, read by pyspng", of_lumid("png").encode, pyspng.load, (8,))
    except ImportError:
        pass
    try:
        import pylibjxl

        def with_pylibjxl(pixels: Pixels) -> bytes:
            return bytes(pylibjxl.encode(pixels, effort=1, lossless=True))

        yield Candidate("JPEG XL, pylibjxl, effort 1", with_pylibjxl, pylibjxl.decode)
    except ImportError:
        pass
    try:
        import pillow_jxl  # noqa: F401
        from PIL import Image

        def with_pillow(pixels: Pixels) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "JXL", lossless=True, effort=1, num_threads=1)
            return buffer.getvalue()

        yield Candidate("JPEG XL, Pillow, effort 1", with_pillow, lambda data: np.asarray(Image.open(io.BytesIO(data))))
    except ImportError:
        pass
    try:
        import fpng_py

        def with_fpng(pixels: Pixels) -> bytes:
            rows, columns = pixels.shape[:2]
            return bytes(fpng_py.fpng_encode_image_to_memory(pixels.tobytes(), columns, rows, 3))

        yield Candidate("PNG, fpng", with_fpng, lambda data: fpng_py.fpng_decode_from_memory(data, 3), (8,), (3,))
    except ImportError:
        pass


def stored_images(folder: Path, profile: str, sides: Sequence[int], most: int) -> dict[tuple[str, int], list[Pixels]]:
    """Images as a data set of that profile stores them, by kind and long side, from ``most`` objects of each kind."""
    found: dict[tuple[str, int], list[Pixels]] = {}
    objects: dict[str, int] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        dataset = parse(path.read_bytes())
        if isinstance(dataset, Reject) or is_image(FrameHeader(dataset, 0)):
            continue
        size, modality = image_size(dataset, Limits()), modality_of(FrameHeader(dataset, 0))
        if isinstance(size, Reject) or modality is None or modality not in SelectSettings().modalities:
            continue
        kind = "colour" if size.samples == 3 else modality
        if objects.get(kind, 0) >= most:
            continue
        for frame, stored in enumerate(decode_frames(dataset, size)):
            if isinstance(stored, Reject) or frame == FRAMES_OF_AN_OBJECT:
                break
            header = FrameHeader(dataset, frame)
            relative = uses_series_range(header, modality)
            span = robust_range([frame_histogram(stored, header)]) if relative else None
            image = normalize(stored, header, modality, span, profile)
            if isinstance(image, Reject) or len(np.unique(image.pixels)) < 16:
                continue
            objects[kind] = objects.get(kind, 0) + (frame == 0)
            for side in sides:
                if max(image.pixels.shape[:2]) >= side:
                    shrunk = np.ascontiguousarray(resize(image.pixels, side))
                    label = kind if shrunk.ndim == 3 or kind != "colour" else modality
                    found.setdefault((label, side), []).append(shrunk)
    return found


def compare(images: Sequence[Pixels], codecs: Sequence[Candidate], repeats: int) -> dict[str, Cost]:
    """The cost of each codec on the same images; of each image the best of ``repeats``."""
    costs: dict[str, Cost] = {}
    for pixels in images:
        bits, channels = pixels.itemsize * 8, 1 if pixels.ndim == 2 else 3
        for codec in codecs:
            if bits not in codec.bits or channels not in codec.channels:
                continue
            cost = costs.setdefault(codec.name, Cost())
            try:
                data = codec.encode(pixels)
                back = codec.decode(data)
            except Exception as error:
                cost.broken.append(type(error).__name__)
                continue
            same = back == pixels.tobytes() if isinstance(back, bytes) else _same(back, pixels)
            if not same:
                cost.broken.append("other pixels")
            cost.encode += best(lambda: codec.encode(pixels), repeats)  # noqa: B023
            cost.decode += best(lambda: codec.decode(data), repeats)  # noqa: B023
            cost.size += len(data)
            cost.images += 1
    return costs


def _same(back: Any, pixels: Pixels) -> bool:
    if isinstance(back, tuple):  # fpng gives a list of values, and what else there is to know
        return True
    return back.shape == pixels.shape and back.dtype == pixels.dtype and bool((back == pixels).all())


def best(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, default=pydicom_files(), help="a folder of DICOM; pydicom's by default")
    parser.add_argument("--profile", choices=("lumid", "paper"), default="lumid")
    parser.add_argument("--size", type=int, nargs="+", default=[256, 512], help="long sides (default 256 512)")
    parser.add_argument("--kind", nargs="+", default=["CT", "MR", "CR", "colour"], help="modalities, or colour")
    parser.add_argument("--objects", type=int, default=30, help="how many of each kind (default 30)")
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    quiet_libraries()
    cv2.setNumThreads(1)
    found = stored_images(chosen.source, chosen.profile, chosen.size, chosen.objects)
    for (kind, side), images in sorted(found.items()):
        if kind not in chosen.kind:
            continue
        bits = images[0].itemsize * 8
        print(f"\n{kind}, long side {side}, {bits} bits: {len(images)} images")
        print(f"{'':38}{'kB':>8}{'encode ms':>11}{'decode ms':>11}{'decoded/s':>11}")
        for name, cost in compare(images, candidates(), chosen.repeats).items():
            if cost.images == 0:
                print(f"{name:38}  cannot: {cost.broken[0]}")
                continue
            size, ms = cost.size / cost.images / 1e3, 1e3 / cost.images
            note = f"  not lossless: {len(cost.broken)}" if cost.broken else ""
            print(
                f"{name:38}{size:8.1f}{cost.encode * ms:11.2f}{cost.decode * ms:11.2f}"
                f"{cost.images / cost.decode:11.0f}{note}"
            )


if __name__ == "__main__":
    main()
