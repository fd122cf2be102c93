"""From an image to boxes and keypoints: `Predictor`, which `detect.py` and other programs call.

Needs neither TensorFlow nor pycocotools.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.data.kitti_files import check_projection
from kpjax.detectors import at_test
from kpjax.detectors.base import Detector, check_size
from kpjax.detectors.box3d import KITTI_CAMERA
from kpjax.errors import ConfigError, DataError
from kpjax.images import video
from kpjax.images.decode import IGNORE_EXIF
from kpjax.images.views import make_view, place
from kpjax.inference.engine import Job, Result, ViewQueue, make_engine
from kpjax.inference.inputs import ReadAhead, in_words, list_inputs, name_of, read_image
from kpjax.inference.program import protocol_of
from kpjax.objects import Detections

MAX_WAITING = 64  # decoded images that may wait for others of their canvas (or four batches, where that is more)


@dataclasses.dataclass(frozen=True)
class Found:
    """What `Predictor.stream` yields for one input.

    index: its place among the inputs.  name: its path, or `image 3` for an array.
    image: HWC uint8 RGB, as the boxes refer to it (EXIF orientation applied); None where unreadable.
    detections: None where unreadable.  error: the reason then, one line; else empty.
    orientation: EXIF's, 1..8; from 2 on `image` is the file's turned or mirrored.
    """

    index: int
    name: str
    image: np.ndarray | None
    detections: Detections | None
    error: str = ""
    orientation: int = 1


class Predictor:
    """Runs a detector on images of any size.

        pred = kpjax.Predictor(det, variables, preset="flip", names=("cat", "dog"))
        found = pred("photo.jpg")          # found.boxes (N, 4), found.scores (N,), found.labels (N,)

    A detector of points also gives found.keypoints (N, J, 3), x, y and score, in the order of `det.points.names`.  One
    of 3D boxes gives found.boxes3d (N, 7) and found.alpha (N,), see `kpjax.objects.Detections`.
    Images are processed as in evaluation: at their own resolution on the padded canvas of the model's
    family (`resolution="keep"`), or warped onto one canvas of `size` (`"fixed"`).  By default models of 3D boxes and
    TTFNet do the latter, all others the former.  One program is compiled for each size of canvas; an incomplete batch
    is padded.
    """

    def __init__(
        self,
        detector: Detector,
        variables: Any,
        preset: str | None = "na",
        names: Sequence[str] = (),
        *,
        batch: int = 1,
        top_k: int = 100,
        resolution: str = "",
        size: tuple[int, int] | None = None,
        max_side: int = 0,
        nms: str = "",
        precision: str = "",
        device: jax.Device | None = None,
        camera: Any = None,
        exif: bool = True,
    ) -> None:
        """detector, variables: what `kpjax.build` and `kpjax.import_torch` (or `det.net.init`) return.

        preset: test protocol, "na" (plain), "flip" (with the mirror image) or "ms" (several scales too), as
            published for the model: `detector.protocols`; None: "na".
        names: class names, as many as the detector has classes, or none.
        batch: images of one canvas that run together.
        top_k: most detections of a view, and of an image; those of a pose model's several scales are merged uncut, as
            published.  It also limits the peaks of each channel that a pose model's points can move to.
        resolution: "keep" or "fixed", see above; "": the model's own.
        size: (height, width) of the canvas, for resolution="fixed" and for models of 3D boxes; multiples of
            `detector.multiple`.  None: 384x1280 for models of 3D boxes, else 512x512.
        max_side: for "keep": larger images are shrunk to this side first; 0: never.
        nms: soft-NMS: "hard", "linear", "gaussian" or "none"; "": the model's own, as published.
        precision: of the network's products: "default", "high" or "highest", see `kpjax.config.ModelConfig`; "": as the
            detector was built.
        device: where to run; None: the first device.
        camera: for 3D boxes, the (3, 4) projection matrix of the camera that took the images, metres to pixels; None:
            that of the released programs, which fits KITTI's images alone.
        exif: turn images as their EXIF orientation says; boxes are then those of the turned image.  `load` does, unless
            the checkpoint was trained with config.data.exif="ignore".

        Raises ConfigError for a value that cannot work.
        """
        detector = at_test(detector, nms, precision)
        preset = preset or "na"
        protocol_of(detector, preset)
        one_canvas = detector.preprocess.one_canvas
        resolution, size = resolution or ("fixed" if one_canvas else "keep"), size or one_canvas or (512, 512)
        if resolution not in ("keep", "fixed"):
            raise ConfigError(f"resolution is {resolution!r}; choose one of 'keep', 'fixed'")
        if names and len(names) != detector.num_classes:
            raise ConfigError(f"{len(names)} class names were given for a detector of {detector.num_classes} classes")
        if resolution == "fixed" or one_canvas:
            check_size(detector, size, "size[0] (the height)", "size[1] (the width)")
        for key, value, least in (("batch", batch, 1), ("top_k", top_k, 1), ("max_side", max_side, 0)):
            if value < least:
                raise ConfigError(f"{key} is {value}; it must be at least {least}")
        mesh = Mesh(np.array([device or jax.local_devices()[0]]), ("data",))
        self.detector = detector
        self.preset = preset
        self.names = tuple(names)
        self.batch, self.top_k = batch, top_k
        self.resolution, self.size, self.max_side = resolution, size, max_side
        self.engine = make_engine(detector, mesh, preset=preset, top_k=top_k, batch=batch)
        self.camera = self._camera(camera)
        self.exif = exif
        self.variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

    def _camera(self, matrix: Any) -> np.ndarray | None:
        if matrix is None:
            return np.array(KITTI_CAMERA) if self.detector.solid else None
        if not self.detector.solid:
            raise ConfigError(f"camera was given, and {self.detector.name} finds no 3D boxes; leave it out")
        try:
            return check_projection(np.asarray(matrix, np.float64), "camera")
        except DataError as error:
            raise ConfigError(str(error)) from None
        except (TypeError, ValueError):
            raise ConfigError(f"camera is {matrix!r:.60}; give a 3x4 projection matrix") from None

    def _fits_stored(self, camera: np.ndarray | None) -> bool:
        """Whether a camera was given, which an image that is turned no longer fits; the default one fits neither."""
        return self.exif and camera is not None and not np.array_equal(camera, KITTI_CAMERA)

    def _cameras(self, camera: Any, items: Any) -> Callable[[int], np.ndarray | None]:
        """Input number -> its camera.  camera: as `stream` has it."""
        if camera is None or np.shape(camera[0] if len(camera) else ()) != (3, 4):
            own = self.camera if camera is None else self._camera(camera)
            return lambda index: own
        each = [self._camera(one) for one in camera]
        if isinstance(items, Sized) and len(items) != len(each):
            raise ConfigError(f"{len(each)} cameras were given for {len(items)} images; give one, or one for each")

        def of(index: int) -> np.ndarray | None:
            if index >= len(each):
                raise ConfigError(f"{len(each)} cameras were given, and there are more images; give one for each")
            return each[index]

        return of

    def __call__(self, inputs: Any, camera: Any = None) -> Detections | list[Detections]:
        """Detect in one image, in many (a list, a folder, a glob), or in a video.

        An image is a path, an HWC uint8 RGB array, an image of Pillow's of any mode, or an encoded file: its bytes or
        an object with `read` and `seek`.  One image gives Detections.  A list, folder or glob gives a list of them in
        the order of the inputs (files of a folder or glob by name), the path of a video one for each frame.  Boxes are
        float32 x1 y1 x2 y2 in the image's pixels, best first, not clipped to the image; keypoints are in its pixels
        too.  camera: see `stream`.  Raises DataError with one line for the first unreadable input; `stream` goes
        on instead.  Warns of a folder's files that are no images.
        """
        if video.is_video(inputs) and os.path.isfile(inputs):
            clip = video.Video(inputs)
            stream = self.stream((image for _, image in clip), camera)
            frames = {found.index: found.detections for found in stream}
            if clip.cut_off():
                raise DataError(clip.cut_off())
            return [frames[index] for index in sorted(frames)]  # type: ignore[misc]
        left_out = Counter[str]()
        items, single = list_inputs(inputs, left_out=left_out)
        if left_out:
            warnings.warn(in_words(left_out), stacklevel=2)
        results: list[Detections] = [None] * len(items)  # type: ignore[list-item]
        with contextlib.closing(self.stream(items, camera)) as stream:
            for found in stream:
                if found.detections is None:
                    raise DataError(found.error)
                results[found.index] = found.detections
        return results[0] if single else results

    def stream(self, items: Iterable[Any], camera: Any = None) -> Generator[Found, None, None]:
        """Yield a `Found` for each image (see `__call__`), as batches complete: not in the order of the inputs.

        Threads walk through `items` and read images ahead of the device, `batch` of them and one for each core; what
        is read waits for others of its canvas, up to MAX_WAITING of them.  While the next input is not there yet,
        what has been started is finished and yielded.  An array must not change before its `Found` has come.
        camera: (3, 4) of all of them, or a list of one each, in place of the Predictor's own.
        """
        camera_of = self._cameras(camera, items)
        images: dict[int, Found] = {}
        limit = max(MAX_WAITING, 4 * self.batch) * len(self.engine.scales)
        views = functools.partial(
            make_view,
            self.detector.preprocess,
            resolution=self.resolution,
            fixed=self.size,
            max_side=self.max_side,
        )

        def canvas_of(job: Job) -> np.ndarray:
            image = images[job.image].image
            assert image is not None
            return place(image, job.view, self.detector.preprocess)

        def found(results: Iterable[Result]) -> Iterator[Found]:
            for index, detections in results:
                yield dataclasses.replace(images.pop(index), detections=detections)

        ahead = self.batch + (os.cpu_count() or 1)
        inputs = ReadAhead(items, functools.partial(read_input, exif=self.exif), ahead=ahead)
        with inputs, ViewQueue(self.engine, self.variables, canvas_of, names=self.names) as queue:
            while (image := inputs.take(wait=not queue.busy)) is not inputs.END:
                if image is None:
                    yield from found(queue.results())
                elif image.error:
                    yield image
                elif image.orientation != 1 and self._fits_stored(camera_of(image.index)):
                    error = f"{image.name}: turned by its EXIF orientation, and the camera fits its stored pixels"
                    yield dataclasses.replace(image, image=None, error=f"{error}; turn those")
                else:
                    images[image.index] = image
                    for which, scale in enumerate(self.engine.scales):
                        view = views(image.image.shape[:2], scale=scale)
                        yield from found(queue.add(Job(image.index, which, view, camera_of(image.index))))
                    while queue.waiting >= limit:
                        yield from found(queue.start_fullest())
            yield from found(queue.finish())


def read_input(index: int, item: Any, exif: bool = True) -> Found:
    """Item number `index` of `Predictor.stream` with its image, or with the reason why there is none."""
    name = name_of(index, item)
    try:
        image, orientation = read_image(item, name, exif)
    except DataError as error:
        return Found(index, name, None, None, str(error))
    return Found(index, name, image, None, orientation=orientation)


def load(path: str | os.PathLike[str], preset: str | None = None, **options: Any) -> Predictor:
    """A Predictor from a work directory of train.py or an inference checkpoint.

    preset: see `Predictor`; None: that of the checkpoint's configuration, as eval.py has it, and "na" where it holds
    none.  Test-time resolution and size are the configuration's too; `options` are keywords of `Predictor` and
    override them.  Raises what `kpjax.checkpoint.load_inference` raises.
    """
    from kpjax.checkpoint.weights import load_inference  # Orbax is slow to import and prediction does not need it

    loaded = load_inference(os.fspath(path))
    if loaded.config is not None:
        settings = loaded.config
        preset = preset or settings.eval.preset
        options = {
            "resolution": settings.eval.resolution,
            "size": (settings.augment.height, settings.augment.width),
            "max_side": settings.eval.max_side,
            "top_k": settings.eval.top_k,
            "nms": settings.eval.nms,
            "exif": settings.data.exif != IGNORE_EXIF,
        } | options
    return Predictor(loaded.detector, loaded.variables, preset, loaded.names, **options)
