"""Reading sets prepared by TensorFlow Datasets by record index, e.g. `Tfds("coco/2017", "train")`.

A record is a serialised example with the encoded image somewhere in it. One pass over the set notes where each
image's bytes lie; from then on an image is one read and a slice, and no example is parsed again. ArrayRecord gives
records by number; TFRECORD files have no index, so there the place in the file is noted.
The places and the boxes are kept in an index file beside the set (or in the user's cache folder where
that cannot be written), named after everything it depends on.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import io
import itertools
import json
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kpjax.data import files
from kpjax.data.source import Annotations, Source, make_source
from kpjax.data.tensorflow import import_tensorflow
from kpjax.errors import PASSING, TRUNCATED, UNREADABLE, ConfigError, DataError
from kpjax.images.decode import APPLY, size_of
from kpjax.objects import PointSet

_INDEX_VERSION = 2
METADATA = "metadata.json"  # where TFDS keeps a set's own metadata, and `python -m kpjax records` the category ids

# COCO's 80 detection classes have ids 1 to 90 without these; TFDS numbers them 0 to 79 in the same order.
_NOT_COCO = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _NOT_COCO)


def Tfds(
    name: str,
    split: str,
    data_dir: str | None = None,
    *,
    crowds: str = "ignore",
    keypoints: bool | None = False,
    exif: str = "size",
) -> Source:
    """Open a split of a prepared set (a function: it reads like a constructor and gives a plain Source).

    name: e.g. "coco/2017"; any set with `image` and `objects` of `bbox` and `label` as TFDS's COCO has them
        (`image/id`, `image/filename`, `objects/area`, `objects/is_crowd`, `objects/id` are used where present, and
        what `kpjax.datasets.records` adds).
    split: e.g. "train" or "validation[:10%]".  data_dir: TFDS's folder; None: its default.
    crowds: "ignore" or "train", see `config.data.crowds`.  keypoints: read the objects' keypoints, which the sets of
        `kpjax.datasets.records` have where they were written with them; None: where they have any.
    exif: `config.data.exif`; "apply" is refused where records do not state sizes: TFDS's boxes then fit stored pixels.
    Areas are the whole numbers that TFDS kept, boxes its fractions times the image's size, unless the set holds the
    exact ones.
    Nothing is ever downloaded. Raises DataError, one line, where the set is not prepared, not of this form, has no
    records or fewer than it states, or is ArrayRecord behind a URL.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            "config.data.source 'tfds' needs TensorFlow Datasets; pip install tensorflow-datasets"
        ) from error
    if data_dir and files.is_url(data_dir):
        import_tensorflow()  # before TFDS does: without its log
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises its own and many others for a name or folder it does not know
        where = f" in {data_dir}" if data_dir else ""
        raise DataError(f"tfds set {name!r}: cannot be opened{where} ({files.in_words(error)})") from error
    if not builder.info.splits:
        raise DataError(f"tfds set {name!r}: not prepared in {builder.data_dir}; prepare it with `tfds build {name}`")
    _require_features(builder, name)
    if exif == APPLY and "image/height" not in builder.info.features:
        raise ConfigError(
            f"config.data.exif is 'apply', but the records of {name!r} do not state the size of their images, so that "
            "boxes fit the pixels as stored; set it to 'ignore'"
        )
    try:
        instructions = list(builder.info.splits[split].file_instructions)
    except Exception as error:
        known = ", ".join(builder.info.splits)
        raise DataError(f"tfds set {name!r}: no split {split!r} ({files.in_words(error)}); it has {known}") from error
    file_format = builder.info.file_format.value
    if file_format not in ("array_record", "tfrecord"):
        raise DataError(f"tfds set {name!r}: prepared as {file_format}; array_record or tfrecord is needed")
    if not sum(instruction.take for instruction in instructions):
        raise DataError(f"tfds set {name!r}: the split {split!r} has no records")
    try:
        if file_format == "array_record":
            _check_array_records(instructions, name)
            record = _array_record(instructions)
            index = _load_or_build(
                builder, name, split, instructions, lambda: _scan_array_record(builder, record, instructions)
            )
            read = _array_reader(record, index)
        else:
            index = _load_or_build(builder, name, split, instructions, lambda: _scan_records(builder, instructions))
            read = _record_reader(index, instructions)
    except OSError as error:
        reason = error.strerror or files.in_words(error)
        raise DataError(f"{error.filename or name}: cannot be read ({reason})") from error
    points = None if keypoints is False else _point_set(builder)
    if keypoints and points is None:
        raise DataError(f"tfds set {name!r} has no keypoints; write it anew with `python -m kpjax records`")
    return _source(builder, name, split, index, read, crowds, points)


def _require_features(builder: Any, name: str) -> None:
    features = builder.info.features
    if "image" not in features or "objects" not in features:
        raise DataError(f"tfds set {name!r}: has the features {', '.join(features)}; 'image' and 'objects' are needed")
    objects = getattr(features["objects"], "feature", features["objects"])
    if "bbox" not in objects or "label" not in objects:
        raise DataError(f"tfds set {name!r}: its objects have no 'bbox' and 'label'")


def _check_array_records(instructions: list[Any], name: str) -> None:
    """Raise DataError where a file does not hold as many records as TFDS's index states."""
    from array_record.python import array_record_module

    for instruction in instructions:
        path = str(instruction.filename)
        if files.is_url(path):
            # For a URL its reader finds 0 records and raises nothing.
            raise DataError(
                f"{path}: ArrayRecord is read from local or mounted folders only; copy the set, mount the bucket, or "
                "prepare it as tfrecord"
            )
        if not os.path.exists(path):
            raise DataError(f"{path}: not found; the set {name!r} lists it")
        try:
            reader = array_record_module.ArrayRecordReader(path)
            count = reader.num_records()
            reader.close()
        except Exception as error:  # its C++ raises many kinds for a damaged file
            raise DataError(f"{path}: cut off or damaged, no ArrayRecord as it is; prepare the set anew") from error
        _require_count(path, count, instruction.examples_in_shard)


def _array_record(instructions: list[Any]) -> Callable[[int, str], bytes]:
    """(number in the split, what an error calls it) -> the record.

    One reader a file, opened when first needed, as ArrayRecord advises for random access. It has a position, so only
    one thread at a time uses it; `ArrayRecordDataSource`, which reads lists, copies each record once more.
    Raises DataError, with the file, where a record is damaged.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    ends = list(itertools.accumulate(instruction.take for instruction in instructions))
    readers: list[Any] = [None] * len(instructions)
    locks = [threading.Lock() for _ in instructions]

    def read(number: int, what: str) -> bytes:
        part = bisect.bisect_right(ends, number)
        place = instructions[part].skip + number - (ends[part] - instructions[part].take)
        path = str(instructions[part].filename)
        with locks[part]:
            try:
                if readers[part] is None:
                    readers[part] = ArrayRecordReader(
                        path, options="readahead_buffer_size:0,max_parallelism:0", file_reader_buffer_size=32 << 10
                    )
                readers[part].seek(place)
                record: bytes = readers[part].read()
            except Exception as error:  # as above
                readers[part] = None  # it would repeat this error for every record
                text = f"{path}: {what} cannot be read ({files.in_words(error)}); prepare the set anew"
                raise DataError(text, UNREADABLE) from error
        return record

    return read


def _require_count(path: str, count: int, stated: int) -> None:
    if count != stated:
        raise DataError(f"{path}: has {count} records, its index states {stated}; prepare the set anew")


def _load_or_build(
    builder: Any, name: str, split: str, instructions: list[Any], scan: Callable[[], Iterator[Any]]
) -> dict[str, Any]:
    paths = _index_paths(builder, split, instructions)
    for path in paths:
        try:
            with np.load(io.BytesIO(files.read_bytes(path))) as arrays:
                return dict(arrays)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            continue  # not there, or half a file, e.g. after a full disk: build it again
    index = _collect(scan(), name)
    data = io.BytesIO()
    np.savez(data, **index)
    for path in paths:
        with contextlib.suppress(OSError):  # a read-only place; without any, the next start scans again
            if not files.is_url(path):
                os.makedirs(os.path.dirname(path), exist_ok=True)
            files.write_bytes(path, data.getvalue())
            break
    return index


def _index_paths(builder: Any, split: str, instructions: list[Any]) -> list[str]:
    """Where the index may be: beside the set, with which it is copied and removed, or in the user's cache.

    In the cache it outlives the set, and a new set may have the same name and sizes: path and time have to match too.
    """
    parts = [(str(i.filename), i.skip, i.take) for i in instructions]
    key = [_INDEX_VERSION, builder.info.full_name, split]
    key += [[os.path.basename(path), files.size_in_bytes(path), skip, take] for path, skip, take in parts]
    here = [str(builder.data_dir), [files.modified(path) for path, _, _ in parts]]
    names = [f"kpjax_index_{hashlib.sha256(json.dumps(k).encode()).hexdigest()[:16]}.npz" for k in (key, [*key, *here])]
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return [files.join(str(builder.data_dir), names[0]), os.path.join(cache, "kpjax", names[1])]


def _parse(builder: Any, record: bytes) -> tuple[dict[str, Any], bytes, int]:
    """A record -> its example with the image still encoded, the image's bytes, and where in the record they begin."""
    import tensorflow_datasets as tfds

    example = builder.info.features.deserialize_example_np(record, decoders={"image": tfds.decode.SkipDecoding()})
    image = _as_bytes(example["image"])
    return example, image, record.find(image)


def _scan_array_record(
    builder: Any, record: Callable[[int, str], bytes], instructions: list[Any]
) -> Iterator[tuple[dict[str, Any], bytes, tuple[int, int, int]]]:
    """Each example, its image bytes, and where they lie: (number of the record, offset in it, length)."""
    for n in range(sum(instruction.take for instruction in instructions)):
        example, image, offset = _parse(builder, record(n, f"record {n}"))
        yield example, image, (n, offset, len(image))


def _scan_records(
    builder: Any, instructions: list[Any]
) -> Iterator[tuple[dict[str, Any], bytes, tuple[int, int, int]]]:
    """Each example, its image bytes, and where they lie: (number of the file, offset, length)."""
    tf = import_tensorflow()
    for number, instruction in enumerate(instructions):
        path = str(instruction.filename)
        last = instruction.skip + instruction.take
        begin = count = 0
        try:
            # Framing of a TFRECORD: 8 bytes of length, 4 of checksum, the record, 4 of checksum.
            for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
                if instruction.skip <= count < last:
                    example, image, offset = _parse(builder, record)
                    yield example, image, (number, begin + 12 + offset, len(image))
                begin += 16 + len(record)
                count += 1
        except tf.errors.OpError as error:
            raise DataError(
                f"{path}: damaged after {count} records ({files.in_words(error)}); prepare the set anew"
            ) from error
        _require_count(path, count, instruction.examples_in_shard)


def _collect(examples: Iterator[tuple[dict[str, Any], bytes, tuple[int, int, int]]], name: str) -> dict[str, Any]:
    places, sizes, ids, names = [], [], [], []
    images, labels, boxes, areas, crowds, object_ids, keypoints = [], [], [], [], [], [], []
    for n, (example, data, place) in enumerate(examples):
        file_name = os.fsdecode(_as_bytes(example.get("image/filename", b""))) or f"record {n}"
        if "image/height" in example:  # as annotated, so that a file of another size is found when it is read
            height, width = int(example["image/height"]), int(example["image/width"])
        else:
            height, width, _ = size_of(data, f"tfds set {name!r}, {file_name}")
        objects = example["objects"]
        if "exact" in objects:
            exact = np.asarray(objects["exact"], np.int64).reshape(-1, 5).view(np.float64)
            box, area = exact[:, :4], exact[:, 4]
        else:
            # (ymin, xmin, ymax, xmax) as fractions of the image.
            corners = np.asarray(objects["bbox"], np.float64).reshape(-1, 4) * (height, width, height, width)
            size = corners[:, 2:] - corners[:, :2]
            box = np.stack([corners[:, 1], corners[:, 0], size[:, 1], size[:, 0]], axis=1)
            area = np.asarray(objects.get("area", size.prod(axis=1)), np.float64).reshape(-1)
        if "keypoints" in objects:
            points = np.asarray(objects["keypoints"], np.int64)
            keypoints.append(points.view(np.float64).reshape(len(box), points.shape[-1] // 3, 3))
        count = len(box)
        places.append(place)
        sizes.append((height, width))
        ids.append(int(example.get("image/id", n)))
        names.append(file_name)
        images.append(np.full(count, n, np.int64))
        labels.append(np.asarray(objects["label"], np.int32).reshape(-1))
        boxes.append(box)
        areas.append(area)
        crowds.append(np.asarray(objects.get("is_crowd", np.zeros(count)), bool).reshape(-1))
        object_ids.append(np.asarray(objects.get("id", np.full(count, -1)), np.int64).reshape(-1))
    if not ids:
        raise DataError(f"tfds set {name!r}: the split has no records")
    if len(set(ids)) < len(ids):
        raise DataError(f"tfds set {name!r}: an image id occurs twice")
    numbers = np.concatenate(object_ids)
    if len(np.unique(numbers)) < len(numbers):
        numbers = np.arange(1, len(numbers) + 1)
    return {
        "place": np.asarray(places, np.int64),
        "size": np.asarray(sizes, np.int32),
        "image_id": np.asarray(ids, np.int64),
        "file_name": np.asarray(names, np.str_),
        "image": np.concatenate(images),
        "label": np.concatenate(labels),
        "bbox": np.concatenate(boxes),
        "area": np.concatenate(areas),
        "crowd": np.concatenate(crowds),
        "id": numbers,
    } | ({"keypoints": np.concatenate(keypoints)} if keypoints else {})


def _array_reader(record: Callable[[int, str], bytes], index: dict[str, Any]) -> Callable[[int], bytes]:
    place, names = index["place"], index["file_name"]

    def read(i: int) -> bytes:
        (number, offset, length), name = place[i].tolist(), names[i]
        return _whole(record(number, name)[offset : offset + length], length, name)

    return read


def _record_reader(index: dict[str, Any], instructions: list[Any]) -> Callable[[int], bytes]:
    pieces = files.Pieces([str(instruction.filename) for instruction in instructions])
    place = index["place"]

    def read(i: int) -> bytes:
        number, offset, length = place[i].tolist()
        path = pieces.paths[number]
        try:
            data = files.with_retries(lambda: pieces.read(number, offset, length))
        except OSError as error:
            kind = PASSING if files.is_transient(error) else UNREADABLE
            raise DataError(f"{path}: cannot be read ({error.strerror})", kind) from error
        return _whole(data, length, path)

    return read


def _whole(data: bytes, length: int, name: str) -> bytes:
    if len(data) != length:
        raise DataError(f"{name}: ends {length - len(data)} bytes too early; prepare the set anew", TRUNCATED)
    return data


def _category_ids(builder: Any, classes: int) -> tuple[int, ...]:
    """The ids: those in the set's metadata, COCO's own, or 1, 2, 3, ..."""
    path = files.join(str(builder.data_dir), METADATA)
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        stated = json.loads(files.read_bytes(path)).get("category_ids")
        if stated and len(stated) == classes:
            return tuple(int(i) for i in stated)
    if builder.name == "coco" and classes == len(COCO_CATEGORY_IDS):
        return COCO_CATEGORY_IDS
    return tuple(range(1, classes + 1))


def _point_set(builder: Any) -> PointSet | None:
    """The point set that `kpjax.datasets.records` wrote, if any."""
    path = files.join(str(builder.data_dir), METADATA)
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError, KeyError):
        stated = json.loads(files.read_bytes(path))["points"]
        edges, sigmas = tuple((a, b) for a, b in stated["edges"]), tuple(stated.get("sigmas", ()))
        return PointSet(tuple(stated["names"]), edges=edges, sigmas=sigmas)
    return None


def _source(
    builder: Any,
    name: str,
    split: str,
    index: dict[str, Any],
    read: Callable[[int], bytes],
    crowds: str,
    points: PointSet | None,
) -> Source:
    features = builder.info.features
    label = getattr(features["objects"], "feature", features["objects"])["label"]
    classes = tuple(label.names)
    return make_source(
        name=f"{name}:{split}",
        classes=classes,
        category_ids=_category_ids(builder, len(classes)),
        image_ids=index["image_id"],
        heights=index["size"][:, 0],
        widths=index["size"][:, 1],
        files=[str(file_name) for file_name in index["file_name"]],
        annotations=Annotations(
            image=index["image"],
            label=index["label"],
            bbox=index["bbox"],
            area=index["area"],
            crowd=index["crowd"],
            ids=index["id"],
            keypoints=index["keypoints"] if points is not None else None,
        ),
        read=read,
        crowds=crowds,
        points=points,
    )


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        value = value.item()
    return value.encode() if isinstance(value, str) else bytes(value)
