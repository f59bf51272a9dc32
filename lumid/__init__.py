"""lumid rebuilds the LUMID medical image data set, streams it into pre-training and answers questions about it.

The rooms: :mod:`lumid.catalog` (what a data set is), :mod:`lumid.pipeline` (how one is made),
:mod:`lumid.model` (how one is used, needs ``lumid[train]``), :mod:`lumid.dags` (what runs).
``lumid.open(...)`` opens a data set; see :class:`lumid.catalog.dataset.Dataset`.
"""

from typing import TYPE_CHECKING, Any

from lumid._version import __version__

if TYPE_CHECKING:
    from lumid.catalog.dataset import open_dataset as open  # noqa: A004  lumid.open is meant to read as open does

__all__ = ["__version__", "open"]


def __getattr__(name: str) -> Any:
    # the command line imports lumid for its version alone: DuckDB and Arrow can wait
    if name == "open":
        from lumid.catalog.dataset import open_dataset

        return open_dataset
    raise AttributeError(f"module 'lumid' has no attribute {name!r}")
