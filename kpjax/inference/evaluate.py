"""Evaluation of a split: every image exactly once, on any number of hosts and devices.

One plan is computed alike on every host: batches of one canvas each, in one order.  Each host decodes
the rows its own devices need; a row's image index travels through the device program beside its
detections, which come back replicated, and at the end every index has to have arrived once.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.config import Config
from kpjax.data.source import Source
from kpjax.detectors import at_test
from kpjax.detectors.base import Detector, check_size
from kpjax.errors import ConfigError, DataError
from kpjax.images.decode import decode
from kpjax.images.views import Size, View, make_view, place, share_canvases
from kpjax.inference.engine import finished, rows_in_image
from kpjax.inference.outputs import Evaluation, coco_rows
from kpjax.inference.program import Infer, Merge, make_infer, make_merge, protocol_of
from kpjax.metrics.coco import MAX_DETS, measure
from kpjax.objects import Objects, empty_objects, padded
from kpjax.parallel.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """Images of one canvas that run together: indices (B,) int32 into the views, -1 for a slot without one."""

    canvas: Size
    indices: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """A compiled evaluation; made once, it evaluates any variables and split without compiling again.

    batch: images a program, over all devices: config.eval.batch rounded up to a multiple of the devices.
    max_canvases: most canvases a scale (0: as many as the images need); see `share_canvases`.
    oracle: heads whose maps are replaced by the ground truth's.  max_dets: see `coco_metric.measure`.
    """

    detector: Detector
    config: Config
    mesh: Mesh
    infer: Infer
    merge: Merge | None
    batch: int
    max_canvases: int = 0
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
        returned, to be spared the work; None: they are made.  progress: a bar on process 0.
        between: called before each batch, equally often on every process; may raise to end the evaluation there.
        Raises ConfigError where detector and source differ in their classes, DataError for an unreadable
        image or one of another size than annotated (with config.data.bad_images "skip": where that is all of them).
        """
        check_classes(self.detector, source)
        started = time.perf_counter()
        views = self.views(source) if views is None else views
        count = len(views) // len(self.scales)
        rows: list[list[Any]] = [[None] * len(self.scales) for _ in range(count)]
        detections: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        arrivals = np.zeros(len(views), np.int64)
        skipped = 0
        variables = _on_mesh(variables, self.mesh)
        with _bar(len(views), progress) as bar:
            for found, tags in self._results(variables, source, views, between):
                for slot, (number, readable) in enumerate(tags.tolist()):
                    if number < 0:
                        continue
                    arrivals[number] += 1
                    which, index = divmod(number, count)
                    skipped += not readable and which == 0
                    if readable:
                        rows[index][which] = rows_in_image(found, slot, views[number])
                        if all(seen is not None for seen in rows[index]):
                            seen = finished(tuple(rows[index]), self.merge)
                            detections[index] = coco_rows(seen, int(source.image_ids[index]), source.category_ids)
                            rows[index] = []
                    bar.update()
        if count and skipped == count:
            raise DataError(
                f"none of the {count} images of {source.name} can be read, {source.files[0]} first; "
                "they seem gone, and there is nothing to measure"
            )
        for of_scale in arrivals.reshape(len(self.scales), count):
            check_coverage(of_scale, source)
        flat = [row for of_image in detections for row in of_image]
        seconds = time.perf_counter() - started
        result = Evaluation({}, "", {}, flat, images=count, skipped=skipped, seconds=seconds)
        return _measured(result, source, source.image_ids[:count], self.max_dets)

    @property
    def scales(self) -> tuple[float, ...]:
        """The test scales of config.eval.preset."""
        return protocol_of(self.detector, self.config.eval.preset).scales

    def views(self, source: Source) -> list[View]:
        """Every image at the first scale, then every image at the next: view number i shows image i modulo the images.

        Only the first `config.eval.images` images of the source (0: all), on at most `max_canvases` canvases a scale.
        """
        return self.shared(self.own_views(source))

    def own_views(self, source: Source) -> list[View]:
        """`views` with the canvas that each image has by its own size, as many as there may be."""
        settings = self.config
        count = min(len(source), settings.eval.images) if settings.eval.images else len(source)
        options: dict[str, Any] = {
            "resolution": settings.eval.resolution,
            "fixed": (settings.augment.height, settings.augment.width),
            "max_side": settings.eval.max_side,
        }
        sizes = list(zip(source.heights[:count].tolist(), source.widths[:count].tolist(), strict=True))
        preprocess = self.detector.preprocess
        return [make_view(preprocess, size, scale=scale, **options) for scale in self.scales for size in sizes]

    def shared(self, views: list[View]) -> list[View]:
        """What `own_views` returned, on at most `max_canvases` canvases a scale."""
        if not self.max_canvases:
            return views
        count = len(views) // len(self.scales)
        of_scales = [views[i * count : (i + 1) * count] for i in range(len(self.scales))]
        preprocess = self.detector.preprocess
        return [v for some in of_scales for v in share_canvases(some, self.max_canvases, preprocess)]

    def first_program(self, variables: Any, source: Source, canvas: Size) -> float:
        """Seconds that one canvas's program takes to compile (or to come from the cache) and to run once."""
        started = time.perf_counter()
        canvases, windows = np.zeros((self.batch, *canvas, 3), np.uint8), np.zeros((self.batch, 4), np.int32)
        tags = np.full((self.batch, 2), -1, np.int32)
        inputs = (canvases, windows, tags, *self._objects(source, [], tags[:, 0]))
        jax.block_until_ready(self.infer(_on_mesh(variables, self.mesh), *jax.tree.map(self._shard, inputs)))
        return time.perf_counter() - started

    def _results(
        self,
        variables: Any,
        source: Source,
        views: Sequence[View],
        between: Callable[[], None] | None,
    ) -> Iterator[tuple[Any, np.ndarray]]:
        """NumPy rows and tags of each planned batch; the device works on one while the next is prepared."""
        running: collections.deque[tuple[Any, jax.Array]] = collections.deque()
        for inputs in self._batches(source, views):
            if between:
                between()
            inputs = (*inputs, *self._objects(source, views, inputs[2][:, 0]))
            running.append(self.infer(variables, *jax.tree.map(self._shard, inputs)))
            if len(running) > 1:
                yield jax.device_get(running.popleft())
        while running:
            yield jax.device_get(running.popleft())

    def _batches(self, source: Source, views: Sequence[View]) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Canvases, windows and tags (view number, readable) of each planned batch; other hosts' rows stay empty."""
        sharding = self._sharding()
        mine = sorted({s for (rows,) in _addressable(sharding, self.batch) for s in range(*rows.indices(self.batch))})
        count = len(views) // len(self.scales)
        ahead: collections.deque[tuple[PlannedBatch, dict[int, Future]]] = collections.deque()
        pool = ThreadPoolExecutor(self.config.data.threads or os.cpu_count() or 1, "kpjax-eval")
        try:
            for planned in plan(views, self.batch):
                jobs = {
                    slot: pool.submit(self._canvas, source, number % count, views[number])
                    for slot in mine
                    if (number := int(planned.indices[slot])) >= 0
                }
                ahead.append((planned, jobs))
                if len(ahead) > self.config.data.prefetch:
                    yield self._filled(*ahead.popleft(), views)
            while ahead:
                yield self._filled(*ahead.popleft(), views)
        finally:
            pool.shutdown(cancel_futures=True)

    def _filled(
        self, planned: PlannedBatch, jobs: dict[int, Future], views: Sequence[View]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        canvases = np.zeros((self.batch, *planned.canvas, 3), np.uint8)
        windows = np.zeros((self.batch, 4), np.int32)
        tags = np.stack([planned.indices, np.zeros_like(planned.indices)], axis=1)
        for slot, job in jobs.items():
            canvas = job.result()
            windows[slot] = views[planned.indices[slot]].window
            if canvas is not None:
                canvases[slot], tags[slot, 1] = canvas, 1
        return canvases, windows, tags

    def _objects(self, source: Source, views: Sequence[View], numbers: np.ndarray) -> tuple[Objects] | tuple[()]:
        """With an oracle: what `make_infer` calls objects, of the views `numbers` (-1: none), slots for the fullest."""
        if not self.oracle:
            return ()
        slots = max(1, *map(len, source.objects))
        rows = [
            padded(views[n].to_canvas(source.objects[n]), slots) if n >= 0 else empty_objects(source.objects[0], slots)
            for n in numbers.tolist()
        ]
        return (jax.tree.map(lambda *parts: np.stack(parts), *rows),)

    def _canvas(self, source: Source, index: int, view: View) -> np.ndarray | None:
        """The canvas of one image; None where it cannot be read and the configuration says to skip it."""
        name = source.files[index]
        try:
            image = decode(source.read(index), name)
            if image.shape[:2] != view.image:
                got, want = f"{image.shape[1]}x{image.shape[0]}", f"{view.image[1]}x{view.image[0]}"
                raise DataError(f"{name}: the file is {got} pixels, the annotations say {want}; correct one of them")
        except DataError:
            if self.config.data.bad_images == "skip":
                return None
            raise
        return place(image, view, self.detector.preprocess)

    def _sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(tuple(self.mesh.axis_names)))

    def _shard(self, rows: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(rows.shape, self._sharding(), lambda index: rows[index])


def make_evaluator(
    detector: Detector,
    config: Config,
    mesh: Mesh | None = None,
    *,
    max_canvases: int = 0,
    oracle: tuple[str, ...] = (),
    max_dets: tuple[int, int, int] = MAX_DETS,
) -> Evaluator:
    """An `Evaluator` for config.eval on a mesh (None: all devices).

    max_canvases: most canvases a scale, for fewer compilations (0: each image's own).
    oracle: heads that the ground truth speaks for, to see what each one's errors cost (Objects as Points, error
        analysis); with preset "na".  max_dets: see `coco_metric.measure`.

    Raises ConfigError for a preset or an oracle's head unknown here and a fixed size that the network cannot take.
    """
    if config.eval.resolution == "fixed":
        size = (config.augment.height, config.augment.width)
        check_size(detector, size, "config.augment.height", "config.augment.width")
    mesh = make_mesh() if mesh is None else mesh
    detector = at_test(detector, config.eval.nms)
    infer = make_infer(detector, mesh, preset=config.eval.preset, top_k=config.eval.top_k, oracle=oracle)
    merge = make_merge(detector, config.eval.preset, config.eval.top_k)
    batch = -(-config.eval.batch // mesh.size) * mesh.size
    return Evaluator(detector, config, mesh, infer, merge, batch, max_canvases, oracle, max_dets)


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


def plan(views: Sequence[View], batch: int) -> list[PlannedBatch]:
    """All images as batches of one canvas each: canvases ascending, images in the source's order.

    A pure function of the annotated sizes, so that every host makes the same list: hosts that
    run different programs wait for each other for ever.
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


def check_coverage(arrivals: np.ndarray, source: Source) -> None:
    """Raise RuntimeError unless every image arrived exactly once (arrivals: (N,) counts)."""
    wrong = np.flatnonzero(arrivals != 1)
    if len(wrong):
        ids = ", ".join(str(int(source.image_ids[i])) for i in wrong[:5])
        raise RuntimeError(f"{len(wrong)} images did not arrive exactly once in the evaluation, first ids {ids}")


def _measured(result: Evaluation, source: Source, image_ids: np.ndarray, max_dets: tuple[int, int, int]) -> Evaluation:
    truth = source.ground_truth()
    if not truth.get("annotations"):  # image-info files of test splits: boxes only, nothing to measure
        return result
    stats, per_category, text = measure(truth, result.detections, [int(i) for i in image_ids], max_dets)
    pairs = zip(source.classes, source.category_ids, strict=True)
    per_class = {name: per_category.get(category, float("nan")) for name, category in pairs}
    return dataclasses.replace(result, stats=stats, text=text, per_class=per_class)


def _on_mesh(variables: Any, mesh: Mesh) -> Any:
    replicated = NamedSharding(mesh, PartitionSpec())
    devices = set(mesh.devices.flat)

    def move(x: Any) -> jax.Array:
        there = isinstance(x, jax.Array) and x.sharding.device_set == devices
        return x if there else jax.device_put(x, replicated)

    return jax.tree.map(move, variables)


def _addressable(sharding: NamedSharding, batch: int) -> list[tuple[slice, ...]]:
    return [rows for rows in sharding.addressable_devices_indices_map((batch,)).values() if rows is not None]


def _bar(count: int, progress: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=count, unit="image", desc="evaluating", disable=not progress or jax.process_index() != 0)
