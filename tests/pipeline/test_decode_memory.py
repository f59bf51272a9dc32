"""An object of many frames takes its own bytes and one frame more, and time that grows with its frames only."""

from __future__ import annotations

import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, encapsulate_extended

from lumid.pipeline.decode import ImageSize, Limits, decode_frames, image_size, parse
from lumid.pipeline.reject import Reject
from tests.dicom import as_bytes, encapsulated, image
from tests.pipeline.test_decode_encoded import rle

MEASURE = """
import sys
from pathlib import Path
from lumid.pipeline.decode import Limits, decode_frames, image_size, parse, quiet_libraries

def peak():
    line = next(one for one in open("/proc/self/status") if one.startswith("VmHWM"))
    return int(line.split()[1]) // 1024

quiet_libraries()
data = Path(sys.argv[1]).read_bytes()
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
begin, frames = peak(), 0
dataset = parse(data)
size = image_size(dataset, Limits())
for _ in range(2):  # as for a series whose range is found first
    for frame in decode_frames(dataset, size):
        frames += frame.shape == (1024, 1024) and int(frame[7, 9]) >= 0
print(frames, begin, peak())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize(
    "kind",
    ["native", "RLE without a table", *(
        pytest.param(kind, marks=pytest.mark.slow) for kind in ("native, 12 bits with junk", "RLE", "JPEG-LS")
    )],
)  # fmt: skip
def test_half_a_gigabyte_needs_no_more_than_itself_and_a_frame(kind: str, tmp_path: Path) -> None:
    """Frames of 2 MB. 40 MB are left for one frame in each stage and for what the libraries load."""
    noise = np.random.default_rng(0).integers(0, 1 << 14, (1024, 1024), dtype=np.uint16)
    path, count = tmp_path / "large.dcm", 260
    if kind.startswith("native"):
        elements = {"BitsStored": 12, "HighBit": 11} if "12" in kind else {}
        path.write_bytes(as_bytes(image(np.broadcast_to(noise, (count, 1024, 1024)), **elements)))
    else:
        stream = rle(noise) if "RLE" in kind else bytes(imagecodecs.jpegls_encode(noise))
        count = (520 << 20) // len(stream)
        syntax = uid.RLELossless if "RLE" in kind else uid.JPEGLSLossless
        frames = encapsulate([stream] * count, has_bot="without" not in kind)
        # the pixels here only give the header its numbers
        shape = np.broadcast_to(np.uint16(0), (count, 1, 1))
        path.write_bytes(as_bytes(encapsulated([], syntax, shape, PixelData=frames, Rows=1024, Columns=1024)))
    assert path.stat().st_size > 500 << 20
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True, timeout=300
    )
    decoded, before, after = map(int, done.stdout.split())
    assert decoded == 2 * count
    assert after - before < 40, f"{after - before} MB more than the {before} MB with the file read"


def test_python_s_own_account_of_a_frame_at_a_time() -> None:
    """The same by tracemalloc, which knows every platform: eight frames of 2 MB, never two at once."""
    pixels = np.random.default_rng(0).integers(0, 4096, (8, 1024, 1024), dtype=np.uint16)
    for elements, limit in (({}, 1 << 19), ({"BitsStored": 12, "HighBit": 11}, 5 << 20)):
        data = as_bytes(image(pixels, **elements))
        tracemalloc.start()
        dataset = parse(data)
        assert not isinstance(dataset, Reject)
        size = image_size(dataset, Limits())
        assert isinstance(size, ImageSize)
        for frame in decode_frames(dataset, size):
            assert isinstance(frame, np.ndarray)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < limit


@pytest.mark.parametrize("table", ["basic", "extended", "none"])
def test_finding_frames_takes_one_pass(table: str) -> None:
    """20,000 frames: looking for each from the beginning would take 200 million steps, which is minutes."""
    pixels = np.zeros((1, 2, 2), np.uint8)
    count = 20_000
    streams = [rle(pixels[0])] * count
    elements = {"NumberOfFrames": count}
    if table == "extended":
        value, offsets, lengths = encapsulate_extended(streams)
        elements |= {"ExtendedOffsetTable": offsets, "ExtendedOffsetTableLengths": lengths}
    else:
        value = encapsulate(streams, has_bot=table == "basic")
    dataset = parse(as_bytes(encapsulated([], uid.RLELossless, pixels, PixelData=value, **elements)))
    assert not isinstance(dataset, Reject)
    begin = time.process_time()
    size = image_size(dataset, Limits())
    assert isinstance(size, ImageSize)
    assert sum(isinstance(frame, np.ndarray) for frame in decode_frames(dataset, size)) == count
    assert time.process_time() - begin < 20
