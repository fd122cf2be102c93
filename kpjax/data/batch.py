"""A training batch on the host: which images it holds, their pixels, and their boxes padded to fixed shapes.

Shared by `kpjax.data.pipeline` (tf.data) and `kpjax.data.memory` (NumPy alone).
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from kpjax.config import DataConfig
from kpjax.data.source import Source
from kpjax.data.turned import pixels_of
from kpjax.errors import MISSING, PASSING, ConfigError, DataError
from kpjax.images.decode import fitted_size, shrink
from kpjax.objects import map_coordinates

Batch = dict[str, Any]  # NumPy arrays, and `Objects` of them


class Unread:
    """Counts consecutive unreadable images: too many in a row mean that the data is gone, not that files are broken.

    It counts in the order of the examples, as batches are returned, independent of the timing of threads.
    """

    def __init__(self, source: Source, most: int) -> None:
        self._source, self._most, self._row = source, most, 0

    def count(self, records: np.ndarray, empty: np.ndarray) -> None:
        """Count the next examples, (n,) record numbers and whether each is an empty image.

        Raises DataError at the `most`-th in a row.
        """
        for record, is_empty in zip(records.tolist(), empty.tolist(), strict=True):
            self._row = self._row + 1 if is_empty else 0
            if self._row == self._most:
                raise DataError(
                    f"{self._source.files[record]}: the last of {self._row} images in a row that could not be read; "
                    "the images seem gone: bring their folder back, and the same command goes on",
                    MISSING,
                )


def check_slices(source: Source, batch: int, start_step: int, process_index: int, process_count: int) -> None:
    """Raise DataError where the source is empty, ConfigError where the batch cannot be divided among the processes."""
    if not len(source):
        raise DataError(f"{source.name}: no images")
    if batch < 1 or batch % process_count:
        raise ConfigError(f"config.batch is {batch}; it must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count or start_step < 0:
        raise ConfigError(f"process {process_index} of {process_count} at step {start_step} does not exist")


def may_skip(data: DataConfig, bad: DataError) -> bool:
    """Whether an image with this error becomes an empty one.

    A transient error is never skipped: it might not come again, and a run that is resumed would then differ from one
    that was never interrupted.
    """
    return data.bad_images == "skip" and bad.kind != PASSING


def unskipped(data: DataConfig, bad: DataError) -> DataError:
    """The error of an image that is not skipped, with what to do about it."""
    if bad.kind == PASSING:
        return DataError(
            f"{bad}; several tries failed: see to the disk or the network, and the same command goes on", PASSING
        )
    return DataError(f"{bad}; or set config.data.bad_images='skip'", bad.kind)


def decode_checked(source: Source, record: int, canvas: int) -> np.ndarray:
    """Record -> its pixels at their size on the canvas, (h, w, 3) uint8.

    Raises what `pixels_of` raises.
    """
    return shrink(pixels_of(source, record), canvas)


def sizes_on_canvas(source: Source, canvas: int) -> np.ndarray:
    """The size of each image of the source on the canvas, height and width, (N, 2) int32."""
    return np.stack(fitted_size(source.heights, source.widths, canvas), axis=1)


def assemble(
    source: Source,
    data: DataConfig,
    canvas: np.ndarray,
    size: np.ndarray,
    counters: np.ndarray,
    records: np.ndarray,
    empty: np.ndarray,
) -> Batch:
    """The batch of decoded images: objects looked up, scaled with their image, and padded to data.max_boxes.

    canvas: (b, S, S, 3).  size: (b, 2), their heights and widths on it.  counters, records: (b,).
    empty: (b,) bool, unreadable images, which get no objects.
    """
    rows = [source.objects[record] for record in records]
    # Written into zeros rather than padded and stacked: a batch has many small arrays.
    objects = jax.tree.map(lambda x: np.zeros((len(rows), data.max_boxes, *x.shape[1:]), x.dtype), source.objects[0])
    for slot, row in enumerate(rows):
        if not empty[slot]:
            for target, values in zip(jax.tree.leaves(objects), jax.tree.leaves(row), strict=True):
                n = min(len(values), data.max_boxes)
                target[slot, :n] = values[:n]
    scale = np.stack([size[:, 1] / source.widths[records], size[:, 0] / source.heights[records]], axis=1)
    scale = scale.astype(np.float32)[:, None, None]
    return {
        "canvas": canvas,
        "size": size,
        "objects": map_coordinates(objects, lambda xy: xy * scale),
        "counter": np.asarray(counters, np.int32),
        "index": np.asarray(records, np.int32),
    }
