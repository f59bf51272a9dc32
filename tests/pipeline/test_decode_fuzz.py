"""Broken input: whatever is done to a real file, there is a reason or a frame, in little memory and time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumid.pipeline.decode import Limits, decode_frames, image_size, parse, quiet_libraries
from lumid.pipeline.reject import Reject
from tests.dicom import TEST_FILES

quiet_libraries()
FILES = (
    "CT_small.dcm", "MR_small_RLE.dcm", "MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm", "MR_small_bigendian.dcm",
    "SC_rgb_jpeg_gdcm.dcm", "SC_rgb_dcmtk_+eb+cy+s4.dcm", "JPEG-lossy.dcm", "SC_rgb_rle_2frame.dcm", "image_dfl.dcm",
    "examples_palette.dcm", "SC_ybr_full_422_uncompressed.dcm", "liver_1frame.dcm", "JPEG2000.dcm",
)  # fmt: skip
LIMITS = Limits(max_pixels=1 << 22, max_frames=100)
ABSURD = (b"\xff\xff", b"\xff\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\xfe\xff\xdd\xe0", b"\xfe\xff\x00\xe0")


def run(data: bytes) -> int:
    """Everything from bytes to frames; how many frames came out. No exception is caught here."""
    dataset = parse(data)
    if isinstance(dataset, Reject):
        return 0
    size = image_size(dataset, LIMITS)
    if isinstance(size, Reject):
        return 0
    good, count = 0, 0
    for frame in decode_frames(dataset, size):
        count += 1
        if isinstance(frame, np.ndarray):
            good += 1
            assert frame.shape == ((size.rows, size.columns) if size.samples == 1 else (size.rows, size.columns, 3))
    assert count in (1, size.frames)
    return good


def mutant(name: str, seed: int) -> bytes:
    """A real file with some damage, the same for the same numbers."""
    rng = np.random.default_rng([seed, len(name)])
    data = bytearray((TEST_FILES / name).read_bytes())
    for _ in range(int(rng.integers(1, 6))):
        near = len(data) if rng.random() < 0.4 else min(len(data), 3000)
        place = int(rng.integers(132, max(near, 133)))
        kind = int(rng.integers(0, 5))
        if kind == 0:
            data[place % len(data)] ^= 1 << int(rng.integers(0, 8))
        elif kind == 1:
            data[place : place + 2] = rng.bytes(2)
        elif kind == 2:
            absurd = ABSURD[int(rng.integers(0, len(ABSURD)))]
            data[place : place + len(absurd)] = absurd
        elif kind == 3:
            del data[place : place + int(rng.integers(1, 200))]
        elif rng.random() < 0.5:
            del data[int(rng.integers(132, len(data))) :]
        if len(data) < 140:
            break
    return bytes(data)


@pytest.mark.parametrize("name", FILES)
def test_the_unbroken_files_decode(name: str) -> None:
    """Else the tests below would show nothing."""
    assert run((TEST_FILES / name).read_bytes()) >= 1


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(FILES), st.integers(0, 1 << 30))
def test_no_exception_escapes(name: str, seed: int) -> None:
    assert run(mutant(name, seed)) >= 0


MANY = """
import resource, sys, time
from tests.pipeline.test_decode_fuzz import FILES, mutant, run
resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))
first, count = map(int, sys.argv[1:])
slowest = frames = 0
for seed in range(first, first + count):
    for name in FILES:
        begin = time.process_time()
        frames += run(mutant(name, seed))
        slowest = max(slowest, time.process_time() - begin)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(frames, f"{slowest:.2f}", int(peak.split()[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of a process's memory")
@pytest.mark.parametrize("count", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_no_damage_kills_the_process_or_makes_it_large_or_slow(count: int) -> None:
    """In a process of its own: a decoder that crashes would take the tests with it."""
    done = subprocess.run(
        [sys.executable, "-c", MANY, "1", str(count)], capture_output=True, text=True, timeout=1200, check=False,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    frames, slowest, megabytes = done.stdout.split()
    assert int(frames) > count  # much damage does no harm to the pixels, or is none that can be seen
    assert float(slowest) < 20
    assert int(megabytes) < 1000
