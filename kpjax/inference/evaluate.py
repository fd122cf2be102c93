"""Evaluation of a split: every image exactly once, on any number of hosts and devices.

Every host computes the same plan: batches of one canvas each, in one order.  Each host decodes the rows that
its own devices need.  A row's image index goes through the device program beside its detections, which come
back replicated; at the end every index must have arrived once.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from kpjax.config import Config
from kpjax.data.batch import may_skip
from kpjax.data.source import Source, difference, require_outlines
from kpjax.data.turned import pixels_of
from kpjax.detectors import at_test, check_resolution
from kpjax.detectors.base import Detector, check_size
from kpjax.errors import ConfigError, DataError
from kpjax.images.views import Size, View, make_view, place, share_canvases
from kpjax.inference.engine import Engine, Job, Result, ViewQueue, cameras_of, make_engine, select
from kpjax.inference.outputs import Evaluation, coco_rows, kitti_objects
from kpjax.inference.program import protocol_of
from kpjax.metrics import kitti
from kpjax.metrics.coco import MAX_DETS, measure, measure_keypoints
from kpjax.objects import Objects, empty_objects, move_ends, padded
from kpjax.parallel.sharding import make_mesh

MANY_PROGRAMS = 8  # from more programs than this on an evaluation prints how to need fewer


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Images of one canvas that run together: indices (B,) int32 into the views, -1 for a slot without one."""

    canvas: Size
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A compiled evaluation; made once, it evaluates any variables and split without compiling again.

    engine: the compiled program; its batch is config.eval.batch rounded up to a multiple of the devices.
    oracle: heads whose maps are replaced by the ground truth's.  max_dets: see `kpjax.metrics.coco.measure`.
    """

    detector: Detector
    config: Config
    engine: Engine
    oracle: tuple[str, ...] = ()
    max_dets: tuple[int, int, int] = MAX_DETS

    def __call__(
        self,
        variables: Any,
        source: Source,
        *,
        views: Sequence[View] | None = None,
        progress: bool = True,
        between: Callable[[], None] | None = None,
    ) -> Evaluation:
        """Evaluate `variables` on the first `config.eval.images` images of the source (0: all).

        variables: {"params", "batch_stats"}, as NumPy or as arrays on the mesh.  views: what `self.views(source)`
        returned; None: they are computed.  progress: a bar on process 0.
        between: called before each batch, equally often on every process; may raise to end the evaluation there.
        Raises ConfigError where detector and source differ in their classes or keypoints, DataError for an unreadable
        image or one of another size than annotated (with config.data.bad_images "skip": where that is all of them).
        """
        check_classes(self.detector, source)
        check_points(self.detector, source)
        if self.oracle and self.detector.outlines:
            require_outlines(source)  # the ground truth's heads are made of its extreme points
        check_cameras(self.detector, source)
        started = time.perf_counter()
        views = self.views(source) if views is None else views
        count = len(views) // len(self.engine.scales)
        detections: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        arrivals = np.zeros(count, np.int64)
        skipped = 0
        queue = ViewQueue(
            self.engine,
            self.engine.on_devices(variables),
            lambda job: self._canvas(source, job),
            threads=self.config.data.threads,
            prefetch=self.config.data.prefetch,
            more_inputs=lambda jobs: self._objects(source, jobs),
        )
        with _bar(len(views), progress) as bar, queue:

            def keep(results: Iterable[Result]) -> None:
                nonlocal skipped
                for index, found in results:
                    arrivals[index] += 1
                    if found is None:
                        skipped += 1
                    else:
                        found = select(found, found.scores > self.config.eval.score_threshold)
                        detections[index] = coco_rows(found, int(source.image_ids[index]), source.category_ids)
                    bar.update(queue.arrived - bar.n)

            for planned in plan(views, self.engine.batch):
                if between:
                    between()
                numbers = planned.indices[planned.indices >= 0].tolist()
                keep(
                    queue.start(
                        [self._job(source, number % count, number // count, views[number]) for number in numbers]
                    )
                )
            keep(queue.finish())
        if count and skipped == count:
            raise DataError(
                f"none of the {count} images of {source.name} can be read, {source.files[0]} first; "
                "they seem gone, and there is nothing to measure"
            )
        check_coverage(arrivals, source)
        flat = [row for of_image in detections for row in of_image]
        seconds = time.perf_counter() - started
        metric = self.detector.metric
        result = Evaluation({}, "", {}, flat, images=count, skipped=skipped, seconds=seconds, metric=metric)
        return measured(result, source, self.max_dets)

    def views(self, source: Source) -> list[View]:
        """`make_views` of this detector and configuration."""
        return make_views(self.detector, self.config, source)

    def first_program(self, variables: Any, source: Source, canvas: Size) -> float:
        """Seconds that one canvas's program takes to compile (or to come from the cache) and to run once."""
        started, engine = time.perf_counter(), self.engine
        canvases, windows = np.zeros((engine.batch, *canvas, 3), np.uint8), np.zeros((engine.batch, 4), np.int32)
        inputs = (canvases, windows, np.full((engine.batch, 2), -1, np.int32))
        more: dict[str, Any] = self._objects(source, [])
        if engine.cameras:
            more |= {"cameras": cameras_of([], engine.batch)}
        inputs, more = jax.tree.map(engine.shard, (inputs, more))
        jax.block_until_ready(engine.infer(engine.on_devices(variables), *inputs, **more))
        return time.perf_counter() - started

    def _job(self, source: Source, image: int, scale: int, view: View) -> Job:
        return Job(image, scale, view, None if source.cameras is None else source.cameras[image])

    def _objects(self, source: Source, jobs: Sequence[Job]) -> dict[str, Objects]:
        """With an oracle: the argument `objects` of `make_infer` for a batch, padded to the most of any image."""
        if not self.oracle:
            return {}
        slots = max(1, *map(len, source.objects))
        ends = -1 if self.detector.inclusive else 0
        objects = [move_ends(source.objects[job.image], ends) for job in jobs]
        rows = [padded(job.view.to_canvas(one), slots) for job, one in zip(jobs, objects, strict=True)]
        rows += [empty_objects(source.objects[0], slots)] * (self.engine.batch - len(jobs))
        return {"objects": jax.tree.map(lambda *parts: np.stack(parts), *rows)}

    def _canvas(self, source: Source, job: Job) -> np.ndarray | None:
        """The canvas of one image; None where it cannot be read and `config.data.bad_images` is "skip"."""
        try:
            image = pixels_of(source, job.image)
        except DataError as error:
            if may_skip(self.config.data, error):
                return None
            raise
        return place(image, job.view, self.detector.preprocess)


def make_evaluator(
    detector: Detector,
    config: Config,
    mesh: Mesh | None = None,
    *,
    oracle: tuple[str, ...] = (),
    max_dets: tuple[int, int, int] = MAX_DETS,
) -> Evaluator:
    """An `Evaluator` for config.eval on a mesh (None: all devices).

    oracle: heads whose maps are replaced by the ground truth's, to see what each one's errors cost (Objects as
        Points, error analysis); with preset "na".  max_dets: see `kpjax.metrics.coco.measure`.

    Raises ConfigError for an unknown preset or oracle head, for a fixed size that the network cannot take, and where a
    model that learns from stretched images would see others.
    """
    check_resolution(detector, config.eval.resolution)
    if config.eval.resolution == "fixed" or detector.preprocess.one_canvas:
        size = (config.augment.height, config.augment.width)
        check_size(detector, size, "config.augment.height", "config.augment.width")
    mesh = make_mesh() if mesh is None else mesh
    detector = at_test(detector, config.eval.nms)
    engine = make_engine(
        detector,
        mesh,
        preset=config.eval.preset,
        top_k=config.eval.top_k,
        batch=config.eval.batch,
        oracle=oracle,
    )
    return Evaluator(detector, config, engine, oracle, max_dets)


def evaluate(
    detector: Detector,
    variables: Any,
    source: Source,
    config: Config,
    *,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Evaluation:
    """Evaluate once; see `Evaluator`.  To evaluate again without compiling again, keep a `make_evaluator`."""
    return make_evaluator(detector, config, mesh)(variables, source, progress=progress)


def make_views(detector: Detector, config: Config, source: Source) -> list[View]:
    """Every image at the first scale, then every image at the next: view number i shows image i modulo the images.

    Only the first `config.eval.images` images of the source (0: all), at the scales of `config.eval.preset`, on at
    most `config.eval.max_canvases` canvases a scale (0: on as many as there are).
    """
    return on_fewer_canvases(own_views(detector, config, source), detector, config)


def on_fewer_canvases(views: list[View], detector: Detector, config: Config) -> list[View]:
    """What `own_views` returned, on at most `config.eval.max_canvases` canvases a scale (0: unchanged)."""
    most, scales = config.eval.max_canvases, len(protocol_of(detector, config.eval.preset).scales)
    if not most:
        return views
    count = len(views) // scales
    of_scales = [views[i * count : (i + 1) * count] for i in range(scales)]
    return [view for some in of_scales for view in share_canvases(some, most, detector.preprocess)]


def own_views(detector: Detector, config: Config, source: Source) -> list[View]:
    """`make_views` with each image's own canvas, however many there are."""
    count = min(len(source), config.eval.images) if config.eval.images else len(source)
    options: dict[str, Any] = {
        "resolution": config.eval.resolution,
        "fixed": (config.augment.height, config.augment.width),
        "max_side": config.eval.max_side,
    }
    sizes = list(zip(source.heights[:count].tolist(), source.widths[:count].tolist(), strict=True))
    scales = protocol_of(detector, config.eval.preset).scales
    return [make_view(detector.preprocess, size, scale=scale, **options) for scale in scales for size in sizes]


def programs_needed(views: Sequence[View], scales: int = 1) -> str:
    """How many programs the views of an evaluation need, in words, e.g. "37 canvases, a program each to compile"."""
    count = len(views) // scales
    of_scale = [len({view.canvas for view in views[i * count : (i + 1) * count]}) for i in range(scales)]
    programs = len({view.canvas for view in views})
    at = f" at {scales} scales ({' + '.join(map(str, of_scale))})" if scales > 1 else ""
    return f"{canvases_in_words(programs)}{at}, a program each to compile"


def canvases_in_words(count: int) -> str:
    """A number of canvases, e.g. "2 canvases"."""
    return "1 canvas" if count == 1 else f"{count} canvases"


def describe_evaluation(detector: Detector, config: Config, source: Source) -> str:
    """One line that says how many programs an evaluation compiles, which train.py prints before it starts."""
    views, scales = make_views(detector, config, source), len(protocol_of(detector, config.eval.preset).scales)
    line = f"eval     {programs_needed(views, scales)}"
    if not config.eval.max_canvases and len({view.canvas for view in views}) > MANY_PROGRAMS:
        line += "; config.eval.max_canvases=4 makes them fewer and changes the detections a little"
    return line


def plan(views: Sequence[View], batch: int) -> list[PlannedBatch]:
    """All images as batches of one canvas each: canvases ascending, images in the source's order.

    A pure function of the annotated sizes, so that every host makes the same list: hosts that
    run different programs deadlock.
    """
    groups: dict[Size, list[int]] = {}
    for index, view in enumerate(views):
        groups.setdefault(view.canvas, []).append(index)
    planned = []
    for canvas in sorted(groups):
        for start in range(0, len(groups[canvas]), batch):
            indices = np.full(batch, -1, np.int32)
            part = groups[canvas][start : start + batch]
            indices[: len(part)] = part
            planned.append(PlannedBatch(canvas, indices))
    return planned


def check_classes(detector: Detector, source: Source, names: Sequence[str] = ()) -> None:
    """Raise ConfigError unless the source has the detector's classes (`names`, where a checkpoint knows them)."""
    if detector.num_classes != len(source.classes):
        raise ConfigError(
            f"the detector has {detector.num_classes} classes and {source.name} lists {len(source.classes)}; "
            "evaluate on annotations with the classes it was trained on"
        )
    for k, (ours, theirs) in enumerate(zip(names, source.classes, strict=False)):
        if ours != theirs:
            raise ConfigError(
                f"class {k} is {ours!r} in the checkpoint and {theirs!r} in {source.name}; "
                "evaluate on annotations with the classes it was trained on"
            )


def check_points(detector: Detector, source: Source) -> None:
    """Raise ConfigError unless an annotated source has the detector's keypoints, where these are measured."""
    ours, theirs = detector.points, source.points
    if ours is None or detector.metric != "keypoints" or not len(source.annotations.ids):
        return
    if theirs is None:
        raise ConfigError(
            f"{detector.name} finds {len(ours)} keypoints and {source.name} was opened without; "
            "open it with keypoints=True"
        )
    if ours.names != theirs.names:
        odd = difference(theirs.names, ours.names)
        raise ConfigError(
            f"the detector has {len(ours)} keypoints and {source.name} lists {len(theirs)}, other ones ({odd}); "
            "evaluate on annotations with the keypoints it was trained on"
        )


def check_cameras(detector: Detector, source: Source) -> None:
    """Raise ConfigError unless the source has the cameras that a detector of 3D boxes needs."""
    if detector.solid and source.cameras is None:
        raise ConfigError(
            f"{detector.name} finds 3D boxes and {source.name} has no cameras; evaluate on data in KITTI's layout "
            "(config.data.source=kitti)"
        )


def check_coverage(arrivals: np.ndarray, source: Source) -> None:
    """Raise RuntimeError unless every image arrived exactly once (arrivals: (N,) counts)."""
    wrong = np.flatnonzero(arrivals != 1)
    if len(wrong):
        ids = ", ".join(str(int(source.image_ids[i])) for i in wrong[:5])
        raise RuntimeError(f"{len(wrong)} images did not arrive exactly once in the evaluation, first ids {ids}")


def measured(result: Evaluation, source: Source, max_dets: tuple[int, int, int] = MAX_DETS) -> Evaluation:
    """The evaluation with the numbers of its detections; as it is where the split has no annotations."""
    truth = source.ground_truth()
    if not truth.get("annotations"):  # image-info files of test splits: boxes only, nothing to measure
        return result
    ids = [int(i) for i in source.image_ids[: result.images]]
    if result.metric == "kitti":
        return _measured_by_kitti(result, source, ids)
    stats, per_category, text = measure(truth, result.detections, ids, max_dets)
    if result.metric == "keypoints":
        assert source.points is not None
        of_boxes, lines = {f"box_{name}": value for name, value in stats.items()}, text
        stats, per_category, text = measure_keypoints(truth, result.detections, ids, source.points)
        # COCO's lines of both begin alike and call both similarities IoU
        text = f"keypoints, by object keypoint similarity:\n{text}\nboxes, by IoU:\n{lines}"
        stats |= of_boxes
    pairs = zip(source.distinct_classes, source.category_ids, strict=True)
    per_class = {name: per_category.get(category, float("nan")) for name, category in pairs}
    return dataclasses.replace(result, stats=stats, text=text, per_class=per_class)


def _measured_by_kitti(result: Evaluation, source: Source, image_ids: list[int]) -> Evaluation:
    assert source.labels3d is not None
    found = kitti_objects(result.detections, image_ids, dict(zip(source.category_ids, source.classes, strict=True)))
    curves = kitti.evaluate_kitti(source.labels3d[: len(image_ids)], found, source.classes)
    per_class = {
        curve.name: float(kitti.average_precision(curve.precision[1], 40))
        for curve in curves
        if (curve.metric, curve.overlap) == ("3d", "loose")
    }
    stats = {
        name: -1.0 if np.isnan(value) else value for name, value in kitti.stats(curves).items()
    }  # as COCO marks it
    return dataclasses.replace(result, stats=stats, text=kitti.table(curves), per_class=per_class)


def _bar(count: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=count, unit="image", desc="evaluating", disable=not progress or jax.process_index() != 0)
