"""Writing splits as sharded records, through TensorFlow Datasets: for pods, where many small files are slow.

The set has the features of TFDS's coco/2017, so that its other readers accept it, and further ones for what
those cannot hold: sizes as annotated, boxes and areas to the last bit, COCO's category ids.  Image files are copied,
not encoded again, and record i is image i of the folder: `kpjax.data.tfds` gives the batches of the folder.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import io
import os
import re
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np

from kpjax.data import files
from kpjax.data.source import Source, truth_ids
from kpjax.data.tfds import Tfds
from kpjax.errors import ConfigError, DataError

FORMATS = ("array_record", "tfrecord")
NAME = "kpjax_records"
_VERSION = "1.0.0"
_READ_BACK = 100  # images of a split, at most, compared with their files
_KEYS = 2**128  # TFDS sorts records into buckets by equal parts of so many keys


def write_records(
    splits: dict[str, Source],
    out: str,
    *,
    name: str = NAME,
    shards: int = 0,
    file_format: str = "array_record",
    skip_missing: bool = False,
) -> str:
    """Write the splits as the prepared set OUT/name, and return that folder.

    shards: files of each split; 0: TFDS's default for its size.  skip_missing: an image that cannot be
    read becomes an empty record, which training with data.bad_images="skip" treats as it treats the file.
    The set is written beside OUT/name, read back, compared and then renamed, so that it is complete once it appears.
    Needs twice the set's size on the disk while it works.
    Raises ConfigError for a setting that cannot work and DataError, one line, for data or a disk that cannot be used.
    """
    out = files.absolute(os.path.expanduser(out))
    _check(splits, out, name, shards, file_format)
    goal = os.path.join(out, name)
    _remove_leftovers(goal)
    staging = f"{goal}{_partial()}{os.getpid()}"
    try:
        os.makedirs(staging)
        _prepare(splits, staging, name, shards, file_format, skip_missing)
        for split, source in splits.items():
            _compare(source, Tfds(name, split, staging, keypoints=source.points is not None))
        os.rename(os.path.join(staging, name), goal)
    except OSError as error:
        raise DataError(f"{goal} cannot be written: {error.strerror or error}; nothing of it was kept") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return goal


def _check(splits: dict[str, Source], out: str, name: str, shards: int, file_format: str) -> None:
    if file_format not in FORMATS:
        raise ConfigError(f"--format is {file_format!r}; choose one of {', '.join(FORMATS)}")
    if shards < 0:
        raise ConfigError(f"--shards is {shards}; give a number of files, or 0 to let TFDS choose")
    if files.is_url(out):
        advice = "write to a local folder and copy that" if file_format == "tfrecord" else "ArrayRecord is local only"
        raise ConfigError(f"--out {out}: sets are written to local or mounted folders; {advice}")
    if not re.fullmatch("[a-z_][a-z0-9_]*", name):
        raise ConfigError(f"--name is {name!r}; TFDS takes lower-case letters, digits and _")
    if os.path.exists(os.path.join(out, name)):
        raise ConfigError(f"{os.path.join(out, name)} is already there; remove it, or name another --out")
    first = next(iter(splits.values()))
    for split, source in splits.items():
        if source.classes != first.classes or source.category_ids != first.category_ids:
            raise DataError(f"{source.name} lists other classes than {first.name}; a set has the same in all splits")
        if _points_metadata(source) != _points_metadata(first):
            raise DataError(f"{source.name} has other keypoints than {first.name}; a set has the same in all splits")
        if source.annotations.solid is not None or source.cameras is not None:
            raise DataError(f"{source.name} has 3D boxes, which are not kept in records; train on the folder")
        if not len(source):
            raise DataError(f"{source.name}: no images")
        if shards > len(source):
            raise ConfigError(f"--shards is {shards}, but {split} has only {len(source)} images")
    if len(set(first.classes)) < len(first.classes) or any(c != c.strip() or "\n" in c for c in first.classes):
        raise DataError(f"{first.name}: class names have to differ, each a line of text; TFDS keeps them in a file")


def _partial() -> str:
    return f".partial-{socket.gethostname()}-"


def _remove_leftovers(goal: str) -> None:
    """Remove what killed runs left: folders named after a process id of this machine that no longer exists."""
    for folder in glob.glob(f"{glob.escape(goal + _partial())}*"):
        with contextlib.suppress(OSError, ValueError):
            number = int(folder.rpartition("-")[2])
            try:
                os.kill(number, 0)
            except ProcessLookupError:
                shutil.rmtree(folder)


def _prepare(
    splits: dict[str, Source], folder: str, name: str, shards: int, file_format: str, skip_missing: bool
) -> None:
    import tensorflow_datasets as tfds

    from kpjax.data.tensorflow import import_tensorflow

    tf = import_tensorflow()
    builder = _builder_class(splits, name, skip_missing)(data_dir=folder)
    settings = tfds.download.DownloadConfig(num_shards=shards or None)
    tfds.disable_progress_bar()
    try:
        # TFDS prints that it downloads.
        with contextlib.redirect_stdout(io.StringIO()), _uncompressed():
            builder.download_and_prepare(download_config=settings, file_format=file_format)
    except (DataError, OSError):
        raise
    except tf.errors.OpError as error:
        raise OSError(_system_number(error.message), _system_text(error.message)) from error
    except Exception as error:
        text = " ".join(str(error).split())
        if _system_number(text):
            raise OSError(_system_number(text), _system_text(text)) from error
        raise DataError(f"TensorFlow Datasets could not write {name!r} ({text[:200]})") from error
    finally:
        tfds.enable_progress_bar()


@contextlib.contextmanager
def _uncompressed() -> Iterator[None]:
    """Let TFDS write ArrayRecord without compressing: image files are small already, and reading takes a quarter less.

    TFDS has no setting for that, but a table of file-format adapters, of which one is replaced here.
    """
    from tensorflow_datasets.core import file_adapters

    adapters, key = file_adapters.ADAPTER_FOR_FORMAT, file_adapters.FileFormat.ARRAY_RECORD
    usual = adapters[key]

    class Uncompressed(file_adapters.ArrayRecordFileAdapter):
        @classmethod
        def write_examples(cls, path: Any, iterator: Any) -> None:
            # Imported here only: TFRECORD does not need the package.
            from array_record.python.array_record_module import ArrayRecordWriter

            writer = ArrayRecordWriter(os.fspath(path), "group_size:1,uncompressed")
            for _, example in iterator:
                writer.write(example)
            writer.close()

    adapters[key] = Uncompressed
    try:
        yield
    finally:
        adapters[key] = usual


def _builder_class(splits: dict[str, Source], name: str, skip_missing: bool) -> Any:
    import tensorflow_datasets as tfds

    first = next(iter(splits.values()))
    features = tfds.features

    class Records(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        """COCO images and boxes as kpjax wrote them."""

        VERSION = tfds.core.Version(_VERSION)

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                description="Images and boxes of a COCO instances JSON, written by `python -m kpjax records`.",
                disable_shuffling=True,
                metadata=tfds.core.MetadataDict(
                    {"category_ids": list(first.category_ids), "written_by": "kpjax"} | _points_metadata(first),
                ),
                features=features.FeaturesDict(
                    {
                        "image": features.Image(),
                        "image/filename": features.Text(),
                        "image/id": np.int64,
                        "image/height": np.int64,
                        "image/width": np.int64,
                        "objects": features.Sequence(
                            {
                                "area": np.int64,
                                "bbox": features.BBoxFeature(),
                                "id": np.int64,
                                "is_crowd": np.bool_,
                                "label": features.ClassLabel(names=list(first.classes)),
                                # x, y, width, height and area as annotated: float64 seen as int64, since TFDS keeps
                                # floats in 32 bits.
                                "exact": features.Tensor(shape=(5,), dtype=np.int64),
                                # x, y and visibility of each point, in the same way.
                                **(
                                    {"keypoints": features.Tensor(shape=(3 * len(first.points),), dtype=np.int64)}
                                    if first.points
                                    else {}
                                ),
                            }
                        ),
                    }
                ),
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {split: self._generate_examples(split, source) for split, source in splits.items()}

        def _generate_examples(self, split: str, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
            return _examples(split, source, skip_missing)

    Records.name = name
    return Records


def _examples(split: str, source: Source, skip_missing: bool) -> Iterator[tuple[int, dict[str, Any]]]:
    from tqdm import tqdm

    truth = source.ground_truth()
    of_image: dict[int, list[dict[str, Any]]] = {int(i): [] for i in source.image_ids}
    for annotation in truth["annotations"]:
        of_image[annotation["image_id"]].append(annotation)
    labels = {category_id: k for k, category_id in enumerate(source.category_ids)}
    for i, image in enumerate(tqdm(truth["images"], desc=split, unit="image", disable=None)):
        data = _data(source, i) if skip_missing else source.read(i)
        # Keys over the whole range, in order: TFDS sorts a part of them at a time, and each part has to fit in memory.
        yield (
            i * (_KEYS // len(source)),
            {
                "image": io.BytesIO(data),
                "image/filename": os.fsencode(image["file_name"]),
                "image/id": image["id"],
                "image/height": image["height"],
                "image/width": image["width"],
                "objects": [_object(a, image, labels) for a in of_image[image["id"]]],
            },
        )


def _object(annotation: dict[str, Any], image: dict[str, Any], labels: dict[int, int]) -> dict[str, Any]:
    import tensorflow_datasets as tfds

    x, y, w, h = annotation["bbox"]
    width, height = image["width"], image["height"]
    # TFDS refuses what lies outside the image; the annotated box is in `exact`.
    left, right = (float(np.clip(v / width, 0, 1)) for v in (x, x + w))
    top, bottom = (float(np.clip(v / height, 0, 1)) for v in (y, y + h))
    return {
        "area": int(annotation["area"]),
        "bbox": tfds.features.BBox(ymin=top, xmin=left, ymax=bottom, xmax=right),
        "id": annotation["id"],
        "is_crowd": bool(annotation["iscrowd"]),
        "label": labels[annotation["category_id"]],
        "exact": np.array([x, y, w, h, annotation["area"]], np.float64).view(np.int64),
        **(
            {"keypoints": np.array(annotation["keypoints"], np.float64).view(np.int64)}
            if "keypoints" in annotation
            else {}
        ),
    }


def _points_metadata(source: Source) -> dict[str, Any]:
    if source.points is None:
        return {}
    points = source.points
    return {
        "points": {
            "names": list(points.names),
            "edges": [list(edge) for edge in points.edges],
            "sigmas": list(points.sigmas),
        }
    }


def _compare(source: Source, written: Source) -> None:
    """Raise DataError unless the set holds all annotations of the folder, and the same bytes for some images."""
    some = range(0, len(source), -(-len(source) // _READ_BACK))
    same = (
        source.classes == written.classes
        and _points_metadata(source) == _points_metadata(written)  # the mirror is a setting of training
        and source.category_ids == written.category_ids
        and np.array_equal(source.image_ids, written.image_ids)
        and np.array_equal(source.heights, written.heights)
        and np.array_equal(source.widths, written.widths)
        and all(map(np.array_equal, _by_image(source), _by_image(written)))
        and all(_data(source, i) == _data(written, i) for i in some)
    )
    if not same:
        raise DataError(f"{source.name}: the records written do not say what it says; nothing of them was kept")


def _by_image(source: Source) -> list[np.ndarray]:
    """All annotations, crowds too, image by image: a folder's file may have them in another order."""
    a = source.annotations
    order = np.argsort(a.image, kind="stable")
    kept = [a.image, a.label, a.bbox, a.area, a.crowd, truth_ids(a.ids)]
    return [x[order] for x in (kept if a.keypoints is None else [*kept, a.keypoints])]


def _data(source: Source, i: int) -> bytes:
    """An encoded image; empty where it cannot be read, which makes an empty record."""
    try:
        return source.read(i)
    except DataError:
        return b""


_REFUSALS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)


def _system_number(text: str) -> int:
    return next((e for e in _REFUSALS if os.strerror(e).lower() in text.lower()), 0)


def _system_text(text: str) -> str:
    return os.strerror(_system_number(text)) if _system_number(text) else " ".join(text.split())[:160]
