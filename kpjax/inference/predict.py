"""From an image to boxes: `Predictor`, which `detect.py` and other programs call.

Needs neither TensorFlow nor pycocotools.
"""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.detectors import at_test
from kpjax.detectors.base import Detector, check_size
from kpjax.errors import ConfigError, DataError
from kpjax.images import video
from kpjax.images.decode import SUFFIXES, decode
from kpjax.images.views import Size, View, make_view, place
from kpjax.inference.engine import finished, rows_in_image
from kpjax.inference.program import Merge, make_infer, make_merge, protocol_of
from kpjax.objects import Detections

MAX_WAITING = 64  # decoded images that may wait for others of their canvas (or four batches, where that is more)


@dataclasses.dataclass(frozen=True)
class Found:
    """What `Predictor.stream` yields for one input.

    index: its place among the inputs.  name: its path, or `image 3` for an array.
    image: HWC uint8 RGB, as the boxes refer to it (EXIF orientation applied); None where unreadable.
    detections: None where unreadable.  error: the reason then, one line; else empty.
    """

    index: int
    name: str
    image: np.ndarray | None
    detections: Detections | None
    error: str = ""


class Predictor:
    """Runs a detector on images of any size.

        pred = kpjax.Predictor(det, variables, preset="flip", names=("cat", "dog"))
        found = pred("photo.jpg")          # found.boxes (N, 4), found.scores (N,), found.labels (N,)

    Images are processed as in evaluation: at their own resolution on the padded canvas of the model's
    family (`resolution="keep"`), or warped onto one canvas of `size` (`"fixed"`).  One program is
    compiled for each canvas met, whatever the number of images; a last incomplete batch is padded.
    """

    def __init__(
        self,
        detector: Detector,
        variables: Any,
        preset: str = "na",
        names: Sequence[str] = (),
        *,
        batch: int = 1,
        top_k: int = 100,
        resolution: str = "keep",
        size: tuple[int, int] = (512, 512),
        max_side: int = 0,
        nms: str = "",
        device: jax.Device | None = None,
    ) -> None:
        """detector, variables: what `kpjax.build` and `kpjax.import_torch` (or `det.net.init`) return.

        preset: test protocol, "na" (plain), "flip" (with the mirror image) or "ms" (several scales too), as
            published for the model: `detector.protocols`.
        names: class names, as many as the detector has classes, or none.
        batch: images of one canvas that run together.  top_k: most detections an image.
        size: (height, width) of the canvas, for resolution="fixed" only; multiples of `detector.multiple`.
        max_side: for "keep": larger images are shrunk to this side first; 0: never.
        nms: soft-NMS: "hard", "linear", "gaussian" or "none"; "": the model's own, as published.
        device: where to run; None: the first device.

        Raises ConfigError for a value that cannot work.
        """
        detector = at_test(detector, nms)
        self.scales = protocol_of(detector, preset).scales
        if resolution not in ("keep", "fixed"):
            raise ConfigError(f"resolution is {resolution!r}; choose one of 'keep', 'fixed'")
        if names and len(names) != detector.num_classes:
            raise ConfigError(f"{len(names)} class names were given for a detector of {detector.num_classes} classes")
        if resolution == "fixed":
            check_size(detector, size, "size[0] (the height)", "size[1] (the width)")
        for key, value, least in (("batch", batch, 1), ("top_k", top_k, 1), ("max_side", max_side, 0)):
            if value < least:
                raise ConfigError(f"{key} is {value}; it must be at least {least}")
        device = device or jax.local_devices()[0]
        mesh = Mesh(np.array([device]), ("data",))
        self.detector = detector
        self.names = tuple(names)
        self.batch = batch
        self.resolution, self.size, self.max_side = resolution, size, max_side
        self.variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))
        self.infer = make_infer(detector, mesh, preset=preset, top_k=top_k)
        merge = make_merge(detector, preset, top_k)
        # Its rows come from the host: without a word they would go to the default device.
        self.merge: Merge | None = None if merge is None else lambda rows: merge(jax.device_put(rows, device))

    def __call__(self, inputs: Any) -> Detections | list[Detections]:
        """Detect in one image (a path, or an HWC uint8 RGB array), in many (a list, a folder, a glob), or in a video.

        One image gives Detections, a list, folder or glob a list of them in the order of the inputs (files of a
        folder or glob by name), a video file's path those of its frames.  Boxes are float32 x1 y1 x2 y2 in the
        image's pixels, best first, not clipped to the image.  Raises DataError with one line for the first
        unreadable input; `stream` goes on instead.
        """
        if video.is_video(inputs) and os.path.isfile(inputs):
            clip = video.Video(inputs)
            frames = {found.index: found.detections for found in self.stream(image for _, image in clip)}
            if clip.cut_off():
                raise DataError(clip.cut_off())
            return [frames[index] for index in sorted(frames)]  # type: ignore[misc]
        items, single = list_inputs(inputs)
        results: list[Detections] = [None] * len(items)  # type: ignore[list-item]
        for found in self.stream(items):
            if found.detections is None:
                raise DataError(found.error)
            results[found.index] = found.detections
        return results[0] if single else results

    def stream(self, items: Iterable[str | np.ndarray]) -> Iterator[Found]:
        """Yield a `Found` for each image path or array, as batches complete: not in the order of the inputs."""
        waiting: dict[Size, list[tuple[_Pending, int]]] = {}
        limit = max(MAX_WAITING, 4 * self.batch) * len(self.scales)
        for index, item in enumerate(items):
            array = _as_array(item)
            name = str(item) if array is None else f"image {index}"
            try:
                image = read_image(name) if array is None else _checked(array, name)
            except DataError as error:
                yield Found(index, name, None, None, str(error))
                continue
            pending = _Pending(Found(index, name, image, None), self._views(image), [None] * len(self.scales))
            for which, view in enumerate(pending.views):
                group = waiting.setdefault(view.canvas, [])
                group.append((pending, which))
                if len(group) == self.batch:
                    yield from self._run(waiting.pop(view.canvas))
            while sum(map(len, waiting.values())) >= limit:
                fullest = max(waiting, key=lambda canvas: len(waiting[canvas]))
                yield from self._run(waiting.pop(fullest))
        for group in waiting.values():
            yield from self._run(group)

    def _views(self, image: np.ndarray) -> list[View]:
        return [
            make_view(
                self.detector.preprocess,
                (image.shape[0], image.shape[1]),
                resolution=self.resolution,
                fixed=self.size,
                max_side=self.max_side,
                scale=scale,
            )
            for scale in self.scales
        ]

    def _run(self, group: list[tuple[_Pending, int]]) -> list[Found]:
        """At most `batch` views of one canvas through the network; the images that have all their views now."""
        height, width = group[0][0].views[group[0][1]].canvas
        canvases = np.zeros((self.batch, height, width, 3), np.uint8)
        windows = np.zeros((self.batch, 4), np.int32)
        for slot, (pending, which) in enumerate(group):
            view = pending.views[which]
            canvases[slot] = place(pending.found.image, view, self.detector.preprocess)  # type: ignore[arg-type]
            windows[slot] = view.window
        tags = np.arange(self.batch, dtype=np.int32)[:, None]
        result = jax.device_get(self.infer(self.variables, canvases, windows, tags)[0])
        done = []
        for slot, (pending, which) in enumerate(group):
            pending.rows[which] = rows_in_image(result, slot, pending.views[which])
            if all(rows is not None for rows in pending.rows):
                detections = finished(tuple(pending.rows), self.merge, self.names)
                done.append(dataclasses.replace(pending.found, detections=detections))
        return done


@dataclasses.dataclass
class _Pending:
    """An image some of whose views have not been seen by the network; rows: what each view gave, or None."""

    found: Found
    views: list[View]
    rows: list[Any]


def load(path: str | os.PathLike[str], preset: str = "na", **options: Any) -> Predictor:
    """A Predictor from a work directory of train.py or an inference checkpoint.

    Test-time resolution and size are those of the checkpoint's own configuration; `options` are the
    keywords of `Predictor` and go before them.  Raises what `kpjax.training.checkpoints.load_inference` raises.
    """
    from kpjax.checkpoint.weights import load_inference  # Orbax is slow to import and prediction does not need it

    loaded = load_inference(os.fspath(path))
    if loaded.config is not None:
        settings = loaded.config
        options = {
            "resolution": settings.eval.resolution,
            "size": (settings.augment.height, settings.augment.width),
            "max_side": settings.eval.max_side,
            "top_k": settings.eval.top_k,
            "nms": settings.eval.nms,
        } | options
    return Predictor(loaded.detector, loaded.variables, preset, loaded.names, **options)


def read_image(path: str) -> np.ndarray:
    """An image file as HWC uint8 RGB, turned as its EXIF orientation says.  Raises DataError, one line."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise DataError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    return decode(data, path, exif=True)


def list_inputs(inputs: Any, suffixes: tuple[str, ...] = SUFFIXES) -> tuple[list[str | np.ndarray], bool]:
    """What `Predictor` accepts -> (paths and arrays, whether it was one image).

    Folders and globs inside a list are expanded in their place; a folder's images are the files with
    an image's suffix (one of `suffixes`) directly in it.  A path that does not exist is kept: reading it reports it.
    Raises DataError where a folder or glob holds no image.
    """
    array = _as_array(inputs)
    if array is not None:
        return (list(array), False) if array.ndim == 4 else ([array], True)
    if not isinstance(inputs, (str, os.PathLike)):
        if not isinstance(inputs, Iterable):
            raise DataError(f"cannot detect in a {type(inputs).__name__}; give a path, an array or a list of these")
        return [item for each in inputs for item in list_inputs(each, suffixes)[0]], False
    path = os.fspath(inputs)
    if os.path.isdir(path):
        files = sorted(n for n in os.listdir(path) if n.lower().endswith(suffixes))
        if not files:
            raise DataError(f"{path}: no image in this folder ({', '.join(suffixes)})")
        return [os.path.join(path, name) for name in files], False
    if not os.path.exists(path) and glob.has_magic(path):
        matches = sorted(p for p in glob.glob(path, recursive=True) if os.path.isfile(p))
        if not matches:
            raise DataError(f"{path}: no file matches")
        return list(matches), False
    return [path], True


def _as_array(item: Any) -> np.ndarray | None:
    """NumPy's, JAX's and other arrays as NumPy's; None for what is no array."""
    if isinstance(item, (str, os.PathLike)) or not hasattr(item, "__array__"):
        return None
    return np.asarray(item)


def _checked(image: np.ndarray, name: str) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise DataError(f"{name}: an array must be HWC uint8 RGB, (H, W, 3); this is {image.shape} {image.dtype}")
    return image
