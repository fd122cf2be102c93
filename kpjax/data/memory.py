"""Training batches from memory, without TensorFlow: for small data sets and arrays of your own.

Every image is decoded once.  The order of an epoch is NumPy's own permutation, which differs from that
of `kpjax.data.pipeline`; without shuffling the two agree bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from kpjax.config import DataConfig
from kpjax.data.batch import Batch, Unread, assemble, check_slices, decode_checked, may_skip, sizes_on_canvas, unskipped
from kpjax.data.sampling import images_at, part_ends
from kpjax.data.source import LARGEST, Annotations, Source, make_source
from kpjax.errors import DataError
from kpjax.images.decode import shrink
from kpjax.objects import PointSet

# image (H, W, 3) uint8 RGB, boxes (n, 4) x1 y1 x2 y2, labels (n,) and, where there are points, (n, J, 3) x, y, COCO's
# visibility
Record = tuple[np.ndarray, np.ndarray, np.ndarray] | tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def memory_batches(
    source: Source | Sequence[Record],
    data: DataConfig,
    *,
    batch: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    shuffle: bool = True,
    points: PointSet | None = None,
) -> MemoryBatches:
    """As `kpjax.data.pipeline.train_batches`; `source` may also be a sequence of (image, boxes, labels[, keypoints]).

    points: what the keypoints of such a sequence are.

    All images are decoded here, before the first batch: three bytes a pixel of memory. Raises as that does.
    """
    images: list[np.ndarray] | None = None
    if not isinstance(source, Source):
        source, images = _from_arrays(source, points)
    check_slices(source, batch, start_step, process_index, process_count)
    return MemoryBatches(source, data, images, batch, seed, start_step, process_index, process_count, shuffle)


class MemoryBatches(Iterator[Batch]):
    """What `memory_batches` returns.  bad_files: one line for each image that became an empty one ("skip")."""

    def __init__(
        self,
        source: Source,
        data: DataConfig,
        images: list[np.ndarray] | None,
        batch: int,
        seed: int,
        start_step: int,
        process_index: int,
        process_count: int,
        shuffle: bool,
    ) -> None:
        self.bad_files: list[str] = []
        self._source, self._data, self._batch, self._seed, self._shuffle = source, data, batch, seed, shuffle
        self._slots = np.arange(batch // process_count) + process_index * (batch // process_count)
        self._step = start_step
        self._order: tuple[int, np.ndarray] | None = None
        self._ends = part_ends(source, data.repeat_threshold)
        # A small set ends where all of it is unreadable, a larger one at so many in a row.
        self._unread = Unread(source, most=min(len(source), max(32, 2 * len(self._slots))))
        self._sizes = sizes_on_canvas(source, data.canvas)
        self._images = [self._decode(i, images) for i in range(len(source))]

    def __next__(self) -> Batch:
        counters = self._step * self._batch + self._slots
        records = np.array([self._record(int(i)) for i in counters])
        side = self._data.canvas
        canvas = np.zeros((len(records), side, side, 3), np.uint8)
        for slot, record in enumerate(records):
            image = self._images[record]
            if image is not None:
                canvas[slot, : image.shape[0], : image.shape[1]] = image
        empty = np.array([self._images[record] is None for record in records])
        self._step += 1
        return assemble(self._source, self._data, canvas, self._sizes[records], counters, records, empty)

    def _record(self, counter: int) -> int:
        total = len(self._source) if self._ends is None else int(self._ends[-1])
        epoch, place = divmod(counter, total)
        if self._shuffle:
            if self._order is None or self._order[0] != epoch:
                self._order = epoch, np.random.default_rng([self._seed, epoch]).permutation(total)
            place = int(self._order[1][place])
        if self._ends is None:
            return place
        return int(images_at(self._ends, np.array([place]), np.array([epoch]))[0])

    def _decode(self, record: int, images: list[np.ndarray] | None) -> np.ndarray | None:
        if images is not None:
            return shrink(images[record], self._data.canvas)
        image = None
        try:
            image = decode_checked(self._source, record, self._data.canvas)
        except DataError as bad:
            if not may_skip(self._data, bad):
                raise unskipped(self._data, bad) from None
            self.bad_files.append(str(bad))
        self._unread.count(np.array([record]), np.array([image is None]))
        return image


def _from_arrays(records: Sequence[Record], points: PointSet | None) -> tuple[Source, list[np.ndarray]]:
    images: list[np.ndarray] = []
    boxes: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    keypoints: list[np.ndarray] = []
    for n, (image, box, label, *more) in enumerate(records):
        box, label = np.asarray(box, np.float64).reshape(-1, 4), np.asarray(label).reshape(-1)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise DataError(f"record {n}: the image is {image.dtype} {image.shape}; give uint8 (H, W, 3)")
        if len(box) != len(label) or not (np.abs(box) <= LARGEST).all() or not ((label >= 0) & (label % 1 == 0)).all():
            raise DataError(
                f"record {n}: {len(box)} boxes and {len(label)} labels; give finite boxes, a whole label >= 0 each"
            )
        if points is not None:
            given = np.asarray(more[0] if more else (), np.float64)
            if given.size != 3 * len(label) * len(points) or not np.isfinite(given).all():
                raise DataError(f"record {n}: its keypoints are {given.shape}; give {(len(label), len(points), 3)}")
            keypoints.append(given.reshape(len(label), len(points), 3))
        images.append(image)
        boxes.append(box)
        labels.append(label.astype(np.int32))
    if not images:
        raise DataError("no records; give at least one image")
    corners, label = np.concatenate(boxes), np.concatenate(labels)
    bbox = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    classes = max(int(label.max(initial=0)) + 1, 1)

    def read(i: int) -> bytes:
        raise DataError(f"record {i}: an array in memory; there is no file to read")

    source = make_source(
        name="arrays in memory",
        classes=[f"class {k}" for k in range(classes)],
        category_ids=range(1, classes + 1),
        image_ids=np.arange(len(images)),
        heights=np.array([image.shape[0] for image in images], np.int32),
        widths=np.array([image.shape[1] for image in images], np.int32),
        files=[f"record {n}" for n in range(len(images))],
        annotations=Annotations(
            image=np.repeat(np.arange(len(images)), [len(b) for b in boxes]),
            label=label,
            bbox=bbox,
            area=bbox[:, 2] * bbox[:, 3],
            crowd=np.zeros(len(label), bool),
            ids=np.arange(1, len(label) + 1),
            keypoints=np.concatenate(keypoints) if points is not None else None,
        ),
        points=points,
        read=read,
    )
    return source, images
