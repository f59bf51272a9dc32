"""Which versions are at work: for ``lumid --version`` and for dataset.json."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from lumid import __version__

LIBRARIES = (
    "pydicom", "imagecodecs", "simplejpeg", "SimpleITK", "numpy", "opencv-python-headless", "onnxruntime", "dask", "distributed",
    "pyarrow", "duckdb", "webdataset", "torch", "torchvision", "timm",
)  # fmt: skip
PIXEL_LIBRARIES = LIBRARIES[:7]
"""Those whose version can change the bytes of a shard."""


def versions(libraries: tuple[str, ...] = LIBRARIES) -> dict[str, str]:
    """Name → version of lumid, Python, and each library that is installed."""
    found = {"lumid": __version__, "python": platform.python_version()}
    for library in libraries:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
