"""The host's input pipeline for training, on tf.data: read, decode, pad.  Everything else happens on the device.

The step number is the only state.  Example counter i = step * batch + position goes through a seeded
permutation of its epoch to a record (kpjax.data.sampling, where some are shown more often than others), so
that a batch is a pure function of (source, seed, step): resuming is starting at a step, and P processes read
P slices of one and the same global batch.

The fast path is TensorFlow's own JPEG decoder.  What it does not do as `kpjax.images.decode` does (other
formats, CMYK, images larger than the canvas) goes through that module instead, inside the same pipeline.
Each record has a route, so that the fast path need not test what a file is.  A route that turns out wrong
is corrected, and the step is started again.
TensorFlow is imported at the first call.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from kpjax.config import DataConfig
from kpjax.data.batch import Batch, Unread, assemble, check_slices, decode_checked, may_skip, sizes_on_canvas, unskipped
from kpjax.data.sampling import images_at, part_ends
from kpjax.data.source import Source
from kpjax.data.tensorflow import import_tensorflow
from kpjax.data.turned import header_of
from kpjax.errors import DataError
from kpjax.images.decode import APPLY, IGNORE_EXIF, OTHER_SUFFIXES, turned

_FAST, _PILLOW, _EMPTY = 0, 1, 2  # how a record becomes pixels
_SEED_PADDING = 498247692  # what index_shuffle itself puts before the two numbers of a seed


class _Unexpected(Exception):
    """A decoded image does not match its annotations, or is not RGB."""


def train_batches(
    source: Source,
    data: DataConfig,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
) -> Batches:
    """Batches of the steps start_step, start_step + 1, ... without end.

    batch: images of a step over all processes; this process gets b = batch // process_count of them.
    Each batch is a dictionary of NumPy arrays, S = data.canvas and M = data.max_boxes:
    canvas (b, S, S, 3) uint8 RGB, the image in the top left corner, zeros elsewhere; size (b, 2) int32, the
    image's height and width on the canvas; objects, `Objects` (b, M, ...) in canvas pixels; counter (b,) int32, the
    example counter; index (b,) int32, the record in `source`.
    Raises ConfigError where the batch cannot be divided.  Iterating raises DataError at an unreadable image where
    data.bad_images is "stop", and at so many unreadable ones in a row that the data seem gone (see `Unread`).
    """
    check_slices(source, batch, start_step, process_index, process_count)
    return Batches(source, data, batch, seed, start_step, process_index, process_count, shuffle)


class Batches(Iterator[Batch]):
    """What `train_batches` returns: an endless iterator.

    bad_files: one line for each image that could not be read and became an empty one ("skip").
    """

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        batch: int,
        seed: int,
        start_step: int,
        process_index: int,
        process_count: int,
        shuffle: bool,
    ) -> None:
        self.bad_files: list[str] = []
        self._tf = import_tensorflow()
        self._source, self._data, self._batch, self._seed, self._shuffle = source, data, batch, seed, shuffle
        self._slots = np.arange(batch // process_count) + process_index * (batch // process_count)
        self._step = start_step
        self._ends = part_ends(source, data.repeat_threshold)
        self._sizes = sizes_on_canvas(source, data.canvas)
        self._routes = np.array([_first_route(source, i, data.canvas) for i in range(len(source))], np.int32)
        self._orientations: dict[int, int] = {}  # by record
        # In a list, which is emptied before Python ends: deleting an iterator waits for TensorFlow's threads, and those
        # wait for Python, where images pass through it.
        self._readers: list[Iterator[Any]] = []
        weakref.finalize(self, self._readers.clear)
        self._unread = Unread(source, most=max(32, 2 * len(self._slots)))

    def __next__(self) -> Batch:
        tf = self._tf
        while True:
            if not self._readers:
                self._readers.append(self._dataset(tf).as_numpy_iterator())
            try:
                records, rows, shapes = next(self._readers[0])
                empty, size = self._routes[records] == _EMPTY, self._sizes[records]
                rows, shapes = self._turned(records, rows, shapes, size)
                canvas = self._canvas(rows, shapes, size, empty)
            except (tf.errors.OpError, _Unexpected) as error:
                # The stream delivers in order, so the failure lies in this very step.  Find the file, give it
                # another route, and go on from the same step.
                self.close()
                self._reroute(tf, error)
                continue
            self._unread.count(records, empty)
            counters = self._step * self._batch + self._slots
            self._step += 1
            return assemble(self._source, self._data, canvas, size, counters, records, empty)

    def close(self) -> None:
        """Stop reading ahead; the next batch begins again where the last one ended."""
        self._readers.clear()

    def _dataset(self, tf: Any) -> Any:
        source, side = self._source, self._data.canvas
        threads = self._data.threads or os.cpu_count() or 1
        all_fast = bool((self._routes == _FAST).all())
        routes = tf.constant(self._routes)
        # As bytes: a name need not be UTF-8.
        paths = tf.constant([os.fsencode(name) for name in source.files]) if source.on_disk else None

        # The functions have no control flow of Python, and AutoGraph would leave temporary files where a process is
        # killed.
        @tf.autograph.experimental.do_not_convert
        def plan(step: Any) -> Any:
            records = self._records(tf, step * self._batch + tf.constant(self._slots, tf.int64))
            if paths is not None:
                return records, records  # the file is read where it is decoded
            # One call of Python a batch: one an image costs a tenth of what decoding it does.
            data = tf.numpy_function(self._read, [records], tf.string, stateful=False)
            return records, tf.ensure_shape(data, (len(self._slots),))

        def fast(record: Any, found: Any) -> Any:
            data = found if paths is None else tf.io.read_file(tf.gather(paths, record))
            image = tf.io.decode_jpeg(data, channels=0, dct_method="INTEGER_ACCURATE")
            image.set_shape((None, None, None))
            return image

        @tf.autograph.experimental.do_not_convert
        def load(record: Any, found: Any) -> Any:
            if all_fast:
                image = fast(record, found)
            else:
                image = tf.cond(
                    tf.equal(tf.gather(routes, record), _FAST),
                    lambda: fast(record, found),
                    lambda: tf.ensure_shape(
                        tf.numpy_function(self._slow, [record], tf.uint8, stateful=False), (None, None, None)
                    ),
                )
            shape = tf.shape(image)
            # Padded as two-dimensional rows of bytes: half the cost of padding (H, W, 3).
            return record, tf.reshape(image, tf.concat([shape[:1], [-1]], 0)), shape

        steps = tf.data.Dataset.range(self._step, np.iinfo(np.int64).max // self._batch)
        # Encoded files are passed on, as many batches at a time as hold the images in flight below.
        ahead = min(threads, max(2, -(-4 * threads // len(self._slots))))
        planned = steps.map(plan, num_parallel_calls=ahead, deterministic=True) if paths is None else steps.map(plan)
        # More calls in flight than threads (the pool below bounds those), so that decoding goes on while a batch
        # is being copied together.
        dataset = planned.unbatch().map(load, num_parallel_calls=4 * threads, deterministic=True)
        dataset = dataset.padded_batch(len(self._slots), ([], [side, side * 3], [3]), drop_remainder=True)
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.private_threadpool_size = threads
        options.threading.max_intra_op_parallelism = 1
        return dataset.prefetch(self._data.prefetch).with_options(options)

    def _turned(
        self, records: np.ndarray, rows: np.ndarray, shapes: np.ndarray, size: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows and shapes as `_canvas` takes them, with what `fast` decoded turned as `source.exif` says."""
        source, sides = self._source, shapes[:, :2]
        fast = self._routes[records] == _FAST  # Pillow's images are turned already
        if source.exif == APPLY:
            look = fast
        else:  # where a wrong size may be that of the stored image
            look = fast & (source.exif != IGNORE_EXIF) & (sides != size).any(1) & (sides[:, ::-1] == size).all(1)
        wanted = [slot for slot in np.flatnonzero(look) if self._orientation(int(records[slot])) > 1]
        if wanted:
            rows, shapes = rows.copy(), shapes.copy()
        for slot in wanted:
            height, width, channels = shapes[slot]
            image = rows[slot, :height, : width * channels].reshape(height, width, channels)
            image = turned(image, self._orientation(int(records[slot])))
            rows[slot] = 0
            rows[slot, : image.shape[0], : image.shape[1] * channels] = image.reshape(image.shape[0], -1)
            shapes[slot] = image.shape
        return rows, shapes

    def _orientation(self, record: int) -> int:
        """An image's EXIF orientation; each header is read once.  Raises _Unexpected where it cannot be read."""
        if record not in self._orientations:
            try:
                self._orientations[record] = header_of(self._source, record).orientation
            except (OSError, DataError):
                raise _Unexpected from None
        return self._orientations[record]

    def _canvas(self, rows: np.ndarray, shapes: np.ndarray, size: np.ndarray, empty: np.ndarray) -> np.ndarray:
        """Padded rows (b, S, S * 3) -> canvas (b, S, S, 3).

        shapes: (b, 3), as decoded.  size: (b, 2), as expected.  empty: (b,), of which no size is.  Raises _Unexpected.
        """
        side = self._data.canvas
        fits, colour = (shapes[:, :2] == size).all(axis=1) | empty, shapes[:, 2] == 3
        if not (fits & colour).all():
            grey = shapes[:, 2] == 1
            if not (fits & (colour | grey)).all():
                raise _Unexpected
            rows = rows.copy()
            for slot in np.flatnonzero(grey):
                height, width = shapes[slot, :2]
                rows[slot, :height, : width * 3] = np.repeat(rows[slot, :height, :width], 3, axis=1)
        return rows.reshape(len(rows), side, side, 3)

    def _records(self, tf: Any, counters: Any) -> Any:
        """Example counters (n,) int64 -> record indices (n,) int64."""
        total = len(self._source) if self._ends is None else int(self._ends[-1])
        place, epoch = counters % total, counters // total
        if self._shuffle and total > 1:
            place = self._shuffled(tf, place, epoch, total)
        if self._ends is None:
            return place
        return tf.ensure_shape(
            tf.numpy_function(lambda p, e: images_at(self._ends, p, e), [place, epoch], tf.int64, stateful=False),
            place.shape,
        )

    def _shuffled(self, tf: Any, place: Any, epoch: Any, total: int) -> Any:
        # tf.random.experimental.index_shuffle(place, [seed, epoch], total - 1) for many at once: the public function
        # pads the seeds of more than one index along the wrong dimension (TensorFlow 2.21).
        seeds = tf.stack([tf.fill(tf.shape(epoch), tf.constant(v, tf.int64)) for v in (_SEED_PADDING, self._seed)], 1)
        seeds = tf.concat([seeds, epoch[:, None]], axis=1)
        last = tf.constant(total - 1, tf.int64)
        return tf.raw_ops.RandomIndexShuffle(index=place, seed=seeds, max_index=last, rounds=4)

    def _read(self, records: np.ndarray) -> np.ndarray:
        fast = (self._routes[records] == _FAST).tolist()  # the others are read where they are decoded
        found = zip(records.tolist(), fast, strict=True)
        return np.array([self._source.read(record) if f else b"" for record, f in found], object)

    def _slow(self, record: int) -> np.ndarray:
        if self._routes[record] == _EMPTY:
            return np.zeros((1, 1, 3), np.uint8)
        return decode_checked(self._source, int(record), self._data.canvas)

    def _reroute(self, tf: Any, error: Exception) -> None:
        counters = tf.constant(self._step * self._batch + self._slots, tf.int64)
        found = False
        for record in dict.fromkeys(self._records(tf, counters).numpy().tolist()):
            if self._routes[record] == _EMPTY:
                continue
            try:
                decode_checked(self._source, record, self._data.canvas)
            except DataError as bad:
                if not may_skip(self._data, bad):
                    raise unskipped(self._data, bad) from None
                self.bad_files.append(str(bad))
                self._routes[record], found = _EMPTY, True
        if found:
            return
        # Pillow reads all of them: TensorFlow alone refuses one.
        step_records = self._records(tf, counters).numpy()
        fast = step_records[self._routes[step_records] == _FAST]
        if not len(fast):
            raise DataError(f"step {self._step}: reading failed ({' '.join(str(error).split())[:200]})") from error
        self._routes[fast] = _PILLOW


def _first_route(source: Source, record: int, canvas: int) -> int:
    if source.files[record].lower().endswith(OTHER_SUFFIXES):
        return _PILLOW  # TensorFlow opens some of these too, but treats transparency and 16 bits differently
    # It would have to resize a larger image itself, and not as OpenCV does.
    return _PILLOW if max(source.heights[record], source.widths[record]) > canvas else _FAST
