"""Where a task's images come from: a data set's shards, or files and arrays; always the same images in the same order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from lumid.catalog.errors import DatasetError
from lumid.model.augment import evaluation_input
from lumid.model.stream import ImageStream, Selection, StreamSettings

Numbers = npt.NDArray[np.int64]


class Images(Protocol):
    """A task's images, by their index."""

    def batches(self, size: int, bicubic: bool, batch_size: int) -> Iterator[tuple[Numbers, Tensor]]:
        """All of them once: their indices, and ``float32 [batch, 1 or 3, size, size]`` in [0, 1]."""
        ...

    def subset(self, indices: Numbers) -> Images:
        """Some of them, counted anew."""
        ...

    @property
    def channels(self) -> int:
        """3 where any may be in colour, else 1."""
        ...


@dataclass(frozen=True, slots=True)
class CatalogImages:
    """Samples of a data set, in the order of the selection's rows; colour as it is, CT from -1000 to 1000 HU."""

    selection: Selection
    threads: int = 2

    def batches(self, size: int, bicubic: bool, batch_size: int) -> Iterator[tuple[Numbers, Tensor]]:
        """Grey images first, then colour ones. Raises :class:`DatasetError` for an image that cannot be read."""
        channels = self.selection.table["channels"]
        for count in (1, 3):
            of_it = np.flatnonzero(pc.equal(channels, count).to_numpy(zero_copy_only=False))
            if len(of_it):
                yield from self._of(of_it, count, size, bicubic, batch_size)

    def subset(self, indices: Numbers) -> CatalogImages:
        """Some of them, counted anew."""
        return replace(self, selection=replace(self.selection, table=self.selection.table.take(pa.array(indices))))

    @property
    def channels(self) -> int:
        """3 where any is in colour, else 1."""
        return int(pc.max(self.selection.table["channels"]).as_py())

    def _of(
        self, rows: Numbers, channels: int, size: int, bicubic: bool, batch_size: int
    ) -> Iterator[tuple[Numbers, Tensor]]:
        table = self.selection.table.take(pa.array(rows)).combine_chunks()
        canvas = max(pc.max(table["width"]).as_py(), pc.max(table["height"]).as_py())
        count = min(batch_size, len(rows))
        settings = StreamSettings(count, channels, canvas, threads=self.threads, max_bad=0)
        index = dict(zip(table["key"].to_pylist(), rows.tolist(), strict=True))
        stream = ImageStream(replace(self.selection, table=table), settings)
        batches = iter(stream)
        try:
            for begin in range(0, len(rows), count):
                batch = next(batches)
                kept = min(count, len(rows) - begin)
                if not bool(batch.valid[:kept].all()):
                    raise DatasetError(f"{self.selection.place}: an image cannot be read; see: lumid verify DATASET")
                images = evaluation_input(batch, size, torch.device("cpu"), bicubic=bicubic)
                yield np.array([index[key] for key in batch.keys[:kept]]), images.add_(1).div_(2)[:kept]
        finally:
            batches.close()  # type: ignore[attr-defined]
            stream.close()


@dataclass(frozen=True, slots=True)
class FileImages:
    """Pictures in files that OpenCV reads (PNG, JPEG, TIFF …), of 8 or 16 bits, over the whole range of these.

    ``colour``: as it is, else as grey; ``whole``: stretched to a square, else cut to the largest centred one.
    """

    paths: Sequence[Path] = field(repr=False)
    colour: bool = True
    whole: bool = False

    def batches(self, size: int, bicubic: bool, batch_size: int) -> Iterator[tuple[Numbers, Tensor]]:
        """Raises :class:`DatasetError` for a file that is no picture."""
        yield from _from_arrays(len(self.paths), self._read, size, bicubic, batch_size, whole=self.whole)

    def subset(self, indices: Numbers) -> FileImages:
        """Some of them, counted anew."""
        return replace(self, paths=[self.paths[index] for index in indices])

    @property
    def channels(self) -> int:
        """3 where they may be in colour, else 1."""
        return 3 if self.colour else 1

    def _read(self, index: int) -> npt.NDArray[np.float32]:
        colour = cv2.IMREAD_ANYCOLOR if self.colour else cv2.IMREAD_GRAYSCALE
        image = cv2.imread(str(self.paths[index]), cv2.IMREAD_ANYDEPTH | colour)
        if image is None:
            raise DatasetError(f"image {index + 1} of the table cannot be read as a picture")
        if image.ndim == 3:
            image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        return np.asarray(image, np.float32) / np.float32(255 if image.dtype == np.uint8 else 65535)


@dataclass(frozen=True, slots=True)
class ArrayImages:
    """Pictures in memory: ``uint8 [n, rows, columns]`` or ``[n, rows, columns, 3]``."""

    values: npt.NDArray[np.uint8] = field(repr=False)

    def batches(self, size: int, bicubic: bool, batch_size: int) -> Iterator[tuple[Numbers, Tensor]]:
        """All of them, in order."""

        def read(index: int) -> npt.NDArray[np.float32]:
            return np.asarray(self.values[index], np.float32) / np.float32(255)

        yield from _from_arrays(len(self.values), read, size, bicubic, batch_size)

    def subset(self, indices: Numbers) -> ArrayImages:
        """Some of them, counted anew."""
        return ArrayImages(self.values[indices])

    @property
    def channels(self) -> int:
        """3 where they are in colour, else 1."""
        return 3 if self.values.ndim == 4 else 1


@dataclass(frozen=True, slots=True)
class Changed:
    """Other images, each changed by a function of its index: ``change(index, float32 [side, side]) → the same shape``.

    It is applied at ``side`` pixels, whatever size an encoder wants: every encoder judges the same image.
    """

    images: Images
    change: Callable[[int, npt.NDArray[np.float32]], npt.NDArray[np.float32]]
    side: int = 256

    def batches(self, size: int, bicubic: bool, batch_size: int) -> Iterator[tuple[Numbers, Tensor]]:
        """The changed images, grey."""
        for indices, images in self.images.batches(self.side, False, batch_size):
            grey = images.mean(1).numpy()
            changed = np.stack([self.change(int(index), one) for index, one in zip(indices, grey, strict=True)])
            whole = torch.from_numpy(np.clip(changed, 0, 1).astype(np.float32))[:, None]
            mode = "bicubic" if bicubic else "bilinear"
            resized = torch.nn.functional.interpolate(
                whole, (size, size), mode=mode, antialias=True, align_corners=False
            )
            yield indices, resized.clamp_(0, 1)

    def subset(self, indices: Numbers) -> Changed:
        """Some of them, counted anew, changed as before."""
        return replace(
            self,
            images=self.images.subset(indices),
            change=lambda index, image: self.change(int(indices[index]), image),
        )

    @property
    def channels(self) -> int:
        """They are grey."""
        return 1


def _from_arrays(
    count: int,
    read: Callable[[int], npt.NDArray[np.float32]],
    size: int,
    bicubic: bool,
    batch_size: int,
    *,
    whole: bool = False,
) -> Iterator[tuple[Numbers, Tensor]]:
    """Batches of pictures of one number of channels each; the largest centred square, resized."""
    for begin in range(0, count, batch_size):
        by_channels: dict[int, list[tuple[int, npt.NDArray[np.float32]]]] = {}
        for index in range(begin, min(begin + batch_size, count)):
            square = _square(read(index), size, bicubic, whole)
            by_channels.setdefault(square.shape[0], []).append((index, square))
        for found in by_channels.values():
            yield np.array([index for index, _ in found]), torch.from_numpy(np.stack([one for _, one in found]))


def _square(image: npt.NDArray[np.float32], size: int, bicubic: bool, whole: bool) -> npt.NDArray[np.float32]:
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    if not whole:
        top, left = (rows - side) // 2, (columns - side) // 2
        image = np.ascontiguousarray(image[top : top + side, left : left + side])
    larger = cv2.INTER_CUBIC if bicubic else cv2.INTER_LINEAR
    resized = cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if side > size else larger)
    planes = resized[None] if resized.ndim == 2 else resized.transpose(2, 0, 1)
    return np.clip(np.ascontiguousarray(planes), 0, 1)
