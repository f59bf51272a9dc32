"""lumid rebuilds the LUMID medical image data set, streams it into pre-training and answers questions about it.

The rooms: :mod:`lumid.catalog` (what a data set is), :mod:`lumid.pipeline` (how one is made),
:mod:`lumid.model` (how one is used, needs ``lumid[train]``), :mod:`lumid.dags` (what runs).
"""

from lumid._version import __version__

__all__ = ["__version__"]
