"""`Tfds("coco/2017")`: a set prepared by TensorFlow Datasets, open for random access.

Sets prepared as ArrayRecord are read through TFDS's own data source with image decoding skipped.  TFRECORD
files cannot be entered in the middle: one pass over them notes where each image's bytes begin, and from then
on an image is one read.  That pass, and the boxes it meets, are kept in an index file beside the set (or in
the user's cache folder where that cannot be written), named after everything it depends on.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kpjax.data.images import size_of
from kpjax.data.source import Annotations, DataError, Source, make_source

_INDEX_VERSION = 1

# COCO's 80 detection classes have ids 1 to 90 without these; TFDS numbers them 0 to 79 in the same order.
_NOT_COCO = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _NOT_COCO)


def Tfds(name: str, split: str, data_dir: str | None = None) -> Source:
    """Open a split of a prepared set (a function: it reads like a constructor and gives a plain Source).

    name: e.g. "coco/2017"; any set with `image` and `objects` of `bbox` and `label` as TFDS's COCO has them
        (`image/id`, `image/filename`, `objects/area`, `objects/is_crowd`, `objects/id` are used where present).
    split: e.g. "train" or "validation[:10%]".  data_dir: TFDS's folder; None: its default.
    Areas are those TFDS kept, whole numbers; boxes are its fractions times the image's size.
    Nothing is ever downloaded. Raises DataError, one line, where the set is not prepared or not of this form.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise DataError(
            "config.data.source 'tfds' needs TensorFlow Datasets; pip install tensorflow-datasets"
        ) from error
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TFDS raises its own and many others for a name or folder it does not know
        raise DataError(f"tfds set {name!r}: cannot be opened ({_one_line(error)})") from error
    if not builder.info.splits:
        raise DataError(f"tfds set {name!r}: not prepared in {builder.data_dir}; prepare it with `tfds build {name}`")
    _require_features(builder, name)
    try:
        instructions = list(builder.info.splits[split].file_instructions)
    except Exception as error:
        known = ", ".join(builder.info.splits)
        raise DataError(f"tfds set {name!r}: no split {split!r} ({_one_line(error)}); it has {known}") from error
    array_record = builder.info.file_format.value == "array_record"
    data_source = _array_record_source(builder, split, name) if array_record else None
    index = _load_or_build(builder, name, split, instructions, data_source)
    read = _array_reader(data_source, index) if array_record else _record_reader(index, instructions)
    return _source(builder, name, split, index, read)


def _require_features(builder: Any, name: str) -> None:
    features = builder.info.features
    if "image" not in features or "objects" not in features:
        raise DataError(f"tfds set {name!r}: has the features {', '.join(features)}; 'image' and 'objects' are needed")
    objects = getattr(features["objects"], "feature", features["objects"])
    if "bbox" not in objects or "label" not in objects:
        raise DataError(f"tfds set {name!r}: its objects have no 'bbox' and 'label'")


def _array_record_source(builder: Any, split: str, name: str) -> Any:
    import tensorflow_datasets as tfds

    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except Exception as error:
        raise DataError(f"tfds set {name!r}: cannot be read as ArrayRecord ({_one_line(error)})") from error


def _load_or_build(builder: Any, name: str, split: str, instructions: list[Any], data_source: Any) -> dict[str, Any]:
    key = json.dumps(
        [_INDEX_VERSION, builder.info.full_name, split]
        + [[os.path.basename(str(i.filename)), os.path.getsize(i.filename), i.skip, i.take] for i in instructions]
    )
    file_name = f"kpjax_index_{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    places = [str(builder.data_dir), os.path.join(cache, "kpjax")]
    for place in places:
        path = os.path.join(place, file_name)
        if os.path.exists(path):
            try:
                with np.load(path) as arrays:
                    return dict(arrays)
            except (OSError, ValueError, KeyError, EOFError):
                continue  # half a file, e.g. after a full disk: build it again
    examples = _scan_array_record(data_source) if data_source is not None else _scan_records(builder, instructions)
    index = _collect(examples, name)
    for place in places:
        try:
            os.makedirs(place, exist_ok=True)
            partial = os.path.join(place, f"{file_name}.{os.getpid()}.npz")
            try:
                np.savez(partial, **index)
                os.replace(partial, os.path.join(place, file_name))
            finally:
                if os.path.exists(partial):
                    os.remove(partial)
            break
        except OSError:
            continue  # a read-only place; without any, the next start scans again
    return index


def _scan_array_record(data_source: Any) -> Iterator[tuple[dict[str, Any], bytes, tuple[int, int, int]]]:
    for n in range(len(data_source)):
        example = data_source[n]
        yield example, _as_bytes(example["image"]), (n, 0, 0)


def _scan_records(
    builder: Any, instructions: list[Any]
) -> Iterator[tuple[dict[str, Any], bytes, tuple[int, int, int]]]:
    """Each example, its image bytes, and where they lie: (number of the file, offset, length)."""
    import tensorflow_datasets as tfds

    from kpjax.data.pipeline import import_tensorflow

    tf = import_tensorflow()
    decoders = {"image": tfds.decode.SkipDecoding()}
    for number, instruction in enumerate(instructions):
        path = str(instruction.filename)
        last = None if instruction.take in (-1, None) else instruction.skip + instruction.take
        offset = 0
        # Framing of a TFRECORD: 8 bytes of length, 4 of checksum, the record, 4 of checksum.
        for n, record in enumerate(tf.data.TFRecordDataset(path).as_numpy_iterator()):
            if last is not None and n >= last:
                break
            if n >= instruction.skip:
                example = builder.info.features.deserialize_example_np(record, decoders=decoders)
                image = _as_bytes(example["image"])
                yield example, image, (number, offset + 12 + record.find(image), len(image))
            offset += 16 + len(record)


def _collect(examples: Iterator[tuple[dict[str, Any], bytes, tuple[int, int, int]]], name: str) -> dict[str, Any]:
    places, sizes, ids, names = [], [], [], []
    images, labels, boxes, areas, crowds, object_ids = [], [], [], [], [], []
    for n, (example, data, place) in enumerate(examples):
        file_name = _as_bytes(example.get("image/filename", b"")).decode("utf-8", "replace") or f"record {n}"
        height, width, _ = size_of(data, f"tfds set {name!r}, {file_name}")
        objects = example["objects"]
        # (ymin, xmin, ymax, xmax) as fractions of the image.
        box = np.asarray(objects["bbox"], np.float64).reshape(-1, 4) * (height, width, height, width)
        size = box[:, 2:] - box[:, :2]
        count = len(box)
        places.append(place)
        sizes.append((height, width))
        ids.append(int(example.get("image/id", n)))
        names.append(file_name)
        images.append(np.full(count, n, np.int64))
        labels.append(np.asarray(objects["label"], np.int32).reshape(-1))
        boxes.append(np.stack([box[:, 1], box[:, 0], size[:, 1], size[:, 0]], axis=1))
        areas.append(np.asarray(objects.get("area", size.prod(axis=1)), np.float64).reshape(-1))
        crowds.append(np.asarray(objects.get("is_crowd", np.zeros(count)), bool).reshape(-1))
        object_ids.append(np.asarray(objects.get("id", np.full(count, -1)), np.int64).reshape(-1))
    if not ids:
        raise DataError(f"tfds set {name!r}: the split is empty")
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
    }


def _array_reader(data_source: Any, index: dict[str, Any]) -> Callable[[int], bytes]:
    def read(i: int) -> bytes:
        try:
            return _as_bytes(data_source[int(i)]["image"])
        except Exception as error:
            raise DataError(f"{index['file_name'][i]}: cannot be read ({_one_line(error)})") from error

    return read


def _record_reader(index: dict[str, Any], instructions: list[Any]) -> Callable[[int], bytes]:
    paths = [str(instruction.filename) for instruction in instructions]
    place = index["place"]

    def read(i: int) -> bytes:
        number, offset, length = (int(v) for v in place[i])
        try:
            with open(paths[number], "rb") as file:
                file.seek(offset)
                return file.read(length)
        except OSError as error:
            raise DataError(f"{paths[number]}: cannot be read ({error.strerror})") from error

    return read


def _source(builder: Any, name: str, split: str, index: dict[str, Any], read: Callable[[int], bytes]) -> Source:
    features = builder.info.features
    label = getattr(features["objects"], "feature", features["objects"])["label"]
    classes = tuple(label.names)
    is_coco = builder.name == "coco" and len(classes) == len(COCO_CATEGORY_IDS)
    category_ids = COCO_CATEGORY_IDS if is_coco else tuple(range(1, len(classes) + 1))
    return make_source(
        name=f"{name}:{split}",
        classes=classes,
        category_ids=category_ids,
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
        ),
        read=read,
    )


def _as_bytes(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        value = value.item()
    return value.encode() if isinstance(value, str) else bytes(value)


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:160]
