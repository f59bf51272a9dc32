"""Samples of a data set as batches, in an order that is a function of (seed, epoch, selection) and of nothing else.

Images are read by offset from local shards (a permutation costs nothing there), or in blocks from an object store, and
decoded in threads straight into the batch's memory, 16 bits wide; what is random is done later, on the device
(:mod:`lumid.model.augment`).
"""

from lumid.model.stream.batch import Batch, StreamState, on_device
from lumid.model.stream.images import ImageStream, StreamSettings
from lumid.model.stream.order import DRAWS, Mixture, block_order, epoch_order, sample_draws
from lumid.model.stream.selection import COLUMNS, Selection, select

__all__ = [
    "COLUMNS", "DRAWS", "Batch", "ImageStream", "Mixture", "Selection", "StreamSettings", "StreamState", "block_order",
    "epoch_order", "on_device", "sample_draws", "select",
]  # fmt: skip
