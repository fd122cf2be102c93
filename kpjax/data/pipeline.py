"""The host's share of training, on tf.data: read, decode, pad.  Everything else happens on the device.

The step number is the only state.  Example counter i = step * batch + position goes through a seeded
permutation of its epoch to a record, so that a batch is a pure function of (source, seed, step): resuming
is starting at a step, and P processes read P slices of one and the same global batch.

The fast path is TensorFlow's own JPEG decoder.  What it does not do as `kpjax.data.images` does (other
formats, CMYK, images larger than the canvas) goes through that module instead, inside the same pipeline:
each record has a route, and one that turns out wrong is corrected and its step started again, so that
the fast path pays for no test of what a file is.
TensorFlow is imported at the first call.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kpjax.config import ConfigError, DataConfig
from kpjax.data.images import OTHER_SUFFIXES, decode, fitted_size, shrink
from kpjax.data.source import MISSING, WRONG_SIZE, DataError, Source

Batch = dict[str, np.ndarray]

_FAST, _PILLOW, _EMPTY = 0, 1, 2  # how a record becomes pixels
_IMPORTING = threading.Lock()
_SEED_PADDING = 498247692  # what index_shuffle itself puts before the two numbers of a seed


class _Unexpected(Exception):
    """A decoded image is not what the annotations promise, or not RGB."""


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
    image's height and width on the canvas; boxes (b, M, 4) float32 x1 y1 x2 y2 in canvas pixels; labels (b, M)
    int32; valid (b, M) bool; counter (b,) int32, the example counter; index (b,) int32, the record in `source`.
    Raises ConfigError where the batch cannot be divided, DataError while iterating where an image cannot be
    read and data.bad_images is "stop", or where so many in a row cannot be read that they seem gone (see `Unread`).
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
        self._sizes = sizes_on_canvas(source, data.canvas)
        self._routes = np.array([_first_route(source, i, data.canvas) for i in range(len(source))], np.int32)
        # In a list, which is emptied before Python ends: TensorFlow waits for its threads as it takes an iterator down,
        # and they for Python, where images pass through it.
        self._readers: list[Callable[[], list[np.ndarray]]] = []
        weakref.finalize(self, self._readers.clear)
        self._unread = Unread(source, most=max(32, 2 * len(self._slots)))
        _keep_freed_memory()

    def __next__(self) -> Batch:
        tf = self._tf
        while True:
            if not self._readers:
                self._readers.append(_reader(tf, self._dataset(tf)))
            try:
                records, rows, shapes = self._readers[0]()
                empty, size = self._routes[records] == _EMPTY, self._sizes[records]
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

        # Nothing in them is Python's control flow, and AutoGraph would leave files in the folder for temporary ones
        # where a process is killed.
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
        # Of records the encoded files travel: as many batches at a time as hold the images in flight below.
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
        total = len(self._source)
        place, epoch = counters % total, counters // total
        if not self._shuffle or total == 1:
            return place
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
                if self._data.bad_images == "stop":
                    raise DataError(f"{bad}; or set config.data.bad_images='skip'") from None
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


def _reader(tf: Any, dataset: Any) -> Callable[[], list[np.ndarray]]:
    """Start the dataset, of flat tuples of tensors; each call gives its next element, as `as_numpy_iterator` does.

    TensorFlow's operations are called by themselves: what its Python does around them there costs half as much again,
    10 us an image, on the cores that decode.
    """
    types, shapes = [spec.dtype for spec in dataset.element_spec], [spec.shape for spec in dataset.element_spec]
    iterator = tf.raw_ops.AnonymousIteratorV3(output_types=types, output_shapes=shapes)
    tf.raw_ops.MakeIterator(dataset=tf.data.experimental.to_variant(dataset), iterator=iterator)

    def following() -> list[np.ndarray]:
        tensors = tf.raw_ops.IteratorGetNext(iterator=iterator, output_types=types, output_shapes=shapes)
        return [np.asarray(memoryview(tensor)) for tensor in tensors]  # of their memory, not copied

    return following


def _keep_freed_memory() -> None:
    """Let the C library keep the memory of a batch's encoded files for those of the next.

    glibc gives freed memory back beyond twice the largest block it mapped and freed so far (mallopt(3), "dynamic mmap
    threshold"), of blocks up to 32 MiB, and the system then clears each page anew: 20 faults an image of records, 3% of
    all that is done for it. One such block, no page of which is touched, and it keeps 64 MiB. Other C libraries do
    nothing with it.
    """
    np.empty((32 << 20) - (64 << 10), np.uint8)


class Unread:
    """Counts the images that could not be read and came one after the other: too many are no broken files.

    It counts in the order of the examples, as batches are handed out, so that no timing of threads decides.
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


def _first_route(source: Source, record: int, canvas: int) -> int:
    if source.files[record].lower().endswith(OTHER_SUFFIXES):
        return _PILLOW  # TensorFlow opens some of these too, but treats transparency and 16 bits in its own way
    # It would have to resize a larger image itself, and not as OpenCV does.
    return _PILLOW if max(source.heights[record], source.widths[record]) > canvas else _FAST


def check_slices(source: Source, batch: int, start_step: int, process_index: int, process_count: int) -> None:
    """Raise one line where the source is empty or the batch cannot be dealt out."""
    if not len(source):
        raise DataError(f"{source.name}: no images")
    if batch < 1 or batch % process_count:
        raise ConfigError(f"config.batch is {batch}; it must be a positive multiple of the {process_count} processes")
    if not 0 <= process_index < process_count or start_step < 0:
        raise ConfigError(f"process {process_index} of {process_count} at step {start_step} does not exist")


def decode_checked(source: Source, record: int, canvas: int) -> np.ndarray:
    """Record -> its pixels at their size on the canvas, (h, w, 3) uint8.

    Raises DataError where it cannot be decoded or has another size than its annotations state.
    """
    name = source.files[record]
    image = decode(source.read(record), name)
    stated = int(source.heights[record]), int(source.widths[record])
    if image.shape[:2] != stated:
        raise DataError(
            f"{name}: decodes to {image.shape[1]} x {image.shape[0]} pixels, "
            f"the annotations state {stated[1]} x {stated[0]}; correct one of them",
            WRONG_SIZE,
        )
    return shrink(image, canvas)


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
    """The batch of decoded images: boxes looked up, scaled with their image, and padded.

    canvas: (b, S, S, 3).  size: (b, 2), their heights and widths on it.  counters, records: (b,).
    empty: (b,) bool, images that lost their boxes with their pixels.
    """
    count, most = len(records), data.max_boxes
    boxes = np.zeros((count, most, 4), np.float32)
    labels = np.zeros((count, most), np.int32)
    valid = np.zeros((count, most), bool)
    for slot, record in enumerate(records):
        n = 0 if empty[slot] else min(len(source.labels[record]), most)
        boxes[slot, :n] = source.boxes[record][:n]
        labels[slot, :n] = source.labels[record][:n]
        valid[slot, :n] = True
    scale = size[:, 1] / source.widths[records], size[:, 0] / source.heights[records]
    boxes *= np.stack([*scale, *scale], axis=1).astype(np.float32)[:, None]
    return {
        "canvas": canvas,
        "size": size,
        "boxes": boxes,
        "labels": labels,
        "valid": valid,
        "counter": np.asarray(counters, np.int32),
        "index": np.asarray(records, np.int32),
    }


_GREETING = (b"oneDNN custom operations are on", b"All log messages before absl::InitializeLog() is called")


@contextlib.contextmanager
def _without_greeting() -> Iterator[None]:
    """Take from the process's stderr what TensorFlow says as it is loaded, whatever its log's level."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            others = [line for line in said if not any(part in line for part in _GREETING)]
            if others:
                os.write(2, b"".join(others))


def import_tensorflow() -> Any:
    """TensorFlow, kept off the accelerators: it would take their memory from JAX, only to decode JPEG."""
    try:
        with _IMPORTING:
            first, level = "tensorflow" not in sys.modules, os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1")
            if first and level != "0":
                # Its errors come as exceptions too, and its log has a line for each broken JPEG. Only while it is
                # loaded: JAX, which sets the variable to 1, reads it too, and its errors are wanted.
                os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
            try:
                with _without_greeting() if first else contextlib.nullcontext():
                    import tensorflow as tf
            finally:
                if first:
                    os.environ["TF_CPP_MIN_LOG_LEVEL"] = level
    except ImportError as error:
        raise DataError("the data pipeline needs TensorFlow; pip install tensorflow") from error
    for kind in ("GPU", "TPU"):
        # A program that uses TensorFlow itself may have started them already.
        with contextlib.suppress(RuntimeError, ValueError):
            tf.config.set_visible_devices([], kind)
    return tf
