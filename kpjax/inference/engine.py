"""Batching at test time: a queue that places images on canvases, runs batches of one canvas size and fetches results.

`Predictor` feeds it with images as they are read, evaluation by a plan.  While the device
works on one batch, threads place the next ones on their canvases and the rows of the one before are fetched.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from kpjax.detectors.base import Detector
from kpjax.images.views import Size, View
from kpjax.inference.program import Infer, Merge, make_infer, make_merge, protocol_of
from kpjax.objects import Detections, move_ends

IN_FLIGHT = 2  # batches that are on the device at once: one that runs, and the next

Result = tuple[int, Detections | None]  # an image's number; its detections, or None where it could not be read


@dataclasses.dataclass(frozen=True)
class Job:
    """One view of one image.

    image: the caller's number of the image.  scale: which of the test scales it shows.  camera: (3, 4) of the image,
    see `kpjax.objects.Placed`; only detectors of 3D boxes need it.
    """

    image: int
    scale: int
    view: View
    camera: np.ndarray | None = None


@dataclasses.dataclass
class Engine:
    """A detector's compiled test program with what feeds it; `make_engine` makes one.

    infer: see `kpjax.inference.program.make_infer`; one compilation for each canvas.  merge: one image's rows of each
    scale -> its Detections; None: there is nothing to merge.  scales: the test scales.  batch: images a program, over
    all devices of the mesh.  cameras: whether the program needs a camera for each view.  inclusive: whether its boxes
    end on their last pixel.
    """

    infer: Infer
    merge: Merge | None
    scales: tuple[float, ...]
    mesh: Mesh
    batch: int
    cameras: bool = False
    inclusive: bool = False

    def shard(self, rows: np.ndarray) -> Any:
        """(B, ...) as an array whose rows are divided over the devices.  Other processes' rows are not read."""
        if self.mesh.size == 1:  # `jax.jit` puts it where the variables are, and sooner
            return rows
        return jax.make_array_from_callback(rows.shape, self._sharding(), lambda index: rows[index])

    @functools.cached_property
    def own_slots(self) -> frozenset[int]:
        """The rows of a batch that this process's devices need."""
        where = self._sharding().addressable_devices_indices_map((self.batch,)).values()
        return frozenset(slot for rows in where if rows for slot in range(*rows[0].indices(self.batch)))

    def on_devices(self, variables: Any) -> Any:
        """The variables on every device of the mesh; arrays that are there already are not copied."""
        replicated, devices = NamedSharding(self.mesh, PartitionSpec()), set(self.mesh.devices.flat)

        def move(x: Any) -> jax.Array:
            there = isinstance(x, jax.Array) and x.sharding.device_set == devices
            return x if there else jax.device_put(x, replicated)

        return jax.tree.map(move, variables)

    def _sharding(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(tuple(self.mesh.axis_names)))


def make_engine(
    detector: Detector, mesh: Mesh, *, preset: str, top_k: int, batch: int, oracle: Sequence[str] = ()
) -> Engine:
    """An `Engine` whose batch is `batch` rounded up to a multiple of the devices.  Raises what `make_infer` raises."""
    scales = protocol_of(detector, preset).scales
    infer = make_infer(detector, mesh, preset=preset, top_k=top_k, oracle=oracle)
    merge = make_merge(detector, preset, top_k)
    device = mesh.local_devices[0]  # rows come from the host, and would go to the default device
    on_device = None if merge is None else lambda rows: merge(jax.device_put(rows, device))
    rows = -(-batch // mesh.size) * mesh.size
    return Engine(infer, on_device, scales, mesh, rows, cameras=detector.solid, inclusive=detector.inclusive)


class ViewQueue:
    """Runs views on the device in batches; results come out image by image.

        with ViewQueue(engine, variables, canvas_of) as queue:
            for job in jobs:
                for image, detections in queue.add(job): ...
            for image, detections in queue.finish(): ...

    Batches come back in the order in which they were started.  At most `prefetch` of them are being
    placed beside IN_FLIGHT on the device; then `add` and `start` wait for the oldest.  Leaving the block ends the
    threads and drops unfinished work.
    """

    def __init__(
        self,
        engine: Engine,
        variables: Any,
        canvas_of: Callable[[Job], np.ndarray | None],
        *,
        names: tuple[str, ...] = (),
        threads: int = 0,
        prefetch: int = 0,
        more_inputs: Callable[[Sequence[Job]], dict[str, Any]] = lambda jobs: {},
    ) -> None:
        """variables: on the devices, see `Engine.on_devices`.

        canvas_of: (H, W, 3) uint8, the canvas of a view, called in threads (but for a single view that is wanted at
            once), for the views whose slot this process's devices need; None where the image cannot be read.  What it
            raises is raised again by `add` or `start`.
        names: class names that the Detections get.  threads: 0: one for each core.
        more_inputs: further keywords of the program, trees of (B, ...), for the jobs of a batch.
        """
        self._engine, self._variables = engine, variables
        self._canvas_of, self._more_inputs = canvas_of, more_inputs
        self._names, self._prefetch = names, prefetch
        self._pool = ThreadPoolExecutor(threads or os.cpu_count() or 1, "kpjax-place")
        self._waiting: dict[Size, list[Job]] = {}
        self._placing: collections.deque[_Batch] = collections.deque()
        self._running: collections.deque[_Batch] = collections.deque()
        self._merging: list[tuple[int, Any]] = []
        self._rows: dict[int, list[Any]] = {}
        self._sent = 0
        self.arrived = 0  # views that have come back

    def __enter__(self) -> ViewQueue:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Whether a batch has been started whose results are not out yet."""
        return bool(self._placing or self._running or self._merging)

    @property
    def waiting(self) -> int:
        """Views that wait for others of their canvas."""
        return sum(map(len, self._waiting.values()))

    def add(self, job: Job) -> list[Result]:
        """Put a view among those of its canvas; as soon as these make a batch it starts.  See `start`."""
        group = self._waiting.setdefault(job.view.canvas, [])
        group.append(job)
        if len(group) < self._engine.batch:
            return []
        return self.start(self._waiting.pop(job.view.canvas))

    def start_fullest(self) -> list[Result]:
        """Start the canvas with the most views waiting, although they do not fill a batch.  See `start`."""
        return self.start(self._waiting.pop(max(self._waiting, key=lambda canvas: len(self._waiting[canvas]))))

    def start(self, jobs: Sequence[Job]) -> list[Result]:
        """Start a batch: at most B views of one canvas, slot by slot.  Returns the images that are done meanwhile."""
        canvases = np.zeros((self._engine.batch, *jobs[0].view.canvas, 3), np.uint8)
        windows = np.zeros((self._engine.batch, 4), np.int32)
        tags = np.full((self._engine.batch, 2), (-1, 0), np.int32)  # a number of each view, and whether it is readable

        def place(slot: int, job: Job) -> None:
            canvas = self._canvas_of(job)
            if canvas is not None:
                canvases[slot], tags[slot, 1] = canvas, 1

        batch = _Batch({}, (canvases, windows, tags), [])
        for slot, job in enumerate(jobs):
            batch.jobs[self._sent] = job
            tags[slot, 0] = self._sent
            self._sent = (self._sent + 1) % 2**31
            if slot in self._engine.own_slots:
                windows[slot] = job.view.window
                if self._prefetch or len(jobs) > 1:
                    batch.placing.append(self._pool.submit(place, slot, job))
                else:
                    place(slot, job)
        self._placing.append(batch)
        while len(self._placing) > self._prefetch and len(self._running) < IN_FLIGHT:
            self._run_oldest()
        return self.results() if len(self._placing) > self._prefetch else []

    def results(self) -> list[Result]:
        """Wait for the oldest batch; the images of which no view is missing any more.

        An image of several views is merged on the device and comes with the next batch, or the last call.
        """
        merged, self._merging = self._merging, []
        self._fill()
        done = self._arrive(self._running.popleft()) if self._running else []
        self._fill()
        return [(image, without_empty(jax.device_get(found), self._names)) for image, found in merged] + done

    def finish(self) -> Iterator[Result]:
        """Start what waits for others of its canvas, and yield all that is left."""
        while self._waiting:
            yield from self.start(self._waiting.pop(next(iter(self._waiting))))
        while self.busy:
            yield from self.results()
        if self._rows:
            raise RuntimeError(f"{len(self._rows)} images have views that were never started")

    def _fill(self) -> None:
        while self._placing and len(self._running) < IN_FLIGHT:
            self._run_oldest()

    def _run_oldest(self) -> None:
        """Wait until the oldest batch is placed, and start it on the device.

        The order never depends on what is ready first: hosts that run their programs in different orders deadlock.
        """
        batch = self._placing.popleft()
        for placed in batch.placing:
            placed.result()
        jobs = tuple(batch.jobs.values())
        more = self._more_inputs(jobs)
        if self._engine.cameras:
            more = {"cameras": cameras_of(jobs, self._engine.batch), **more}
        inputs, more = jax.tree.map(self._engine.shard, (batch.inputs, more))
        batch.outputs = self._engine.infer(self._variables, *inputs, **more)
        batch.inputs = ()
        for leaf in jax.tree.leaves(batch.outputs):
            leaf.copy_to_host_async()
        self._running.append(batch)

    def _in_image(self, rows: Any, slot: int, view: View) -> Any:
        found = rows_in_image(rows, slot, view)
        return move_ends(found, 1) if self._engine.inclusive else found

    def _arrive(self, batch: _Batch) -> list[Result]:
        """Move a batch's rows to their images' pixels, and check that each view comes back exactly once."""
        rows, tags = jax.device_get(batch.outputs)
        scales, merge = len(self._engine.scales), self._engine.merge
        done: list[Result] = []
        for slot, (number, readable) in enumerate(tags.tolist()):
            if number < 0:
                continue
            job = batch.jobs.pop(number, None)
            if job is None:
                raise RuntimeError(f"view {number} came back twice, or from a batch that it was not in")
            self.arrived += 1
            views = self._rows.setdefault(job.image, [])
            views.append((job.scale, self._in_image(rows, slot, job.view) if readable else None))
            if len(views) < scales:
                continue
            in_order = tuple(of_scale for _, of_scale in sorted(self._rows.pop(job.image), key=lambda pair: pair[0]))
            if any(of_scale is None for of_scale in in_order):
                done.append((job.image, None))
            elif merge is None:
                done.append((job.image, without_empty(in_order[0], self._names)))
            else:
                self._merging.append((job.image, merge(in_order)))
        if batch.jobs:
            raise RuntimeError(f"{len(batch.jobs)} views of a batch did not come back, first number {min(batch.jobs)}")
        return done


def cameras_of(jobs: Sequence[Job], batch: int) -> dict[str, np.ndarray]:
    """The argument `cameras` of the program of a detector of 3D boxes, (batch, ...) float32, see `make_infer`."""
    cameras = np.tile(np.eye(3, 4, dtype=np.float32), (batch, 1, 1))
    zooms, shifts = np.ones((batch, 2), np.float32), np.zeros((batch, 2), np.float32)
    for slot, job in enumerate(jobs):
        if job.camera is None:
            raise ValueError(f"image {job.image} has no camera, which 3D boxes need")
        cameras[slot] = job.camera
        zooms[slot], shifts[slot] = np.multiply(job.view.zoom, job.view.shrink), job.view.shift
    return {"camera": cameras, "zoom": zooms, "shift": shifts}


@dataclasses.dataclass
class _Batch:
    """jobs: by the tag that goes through the device with each.  placing: tasks that fill the inputs."""

    jobs: dict[int, Job]
    inputs: tuple[np.ndarray, ...]
    placing: list[Future[None]]
    outputs: Any = None


def rows_in_image(batch: Any, slot: int, view: View) -> Any:
    """Row `slot` of what the program returned, NumPy arrays, with all coordinates in the image's own pixels.

    Detections with an infinity or a NaN (of a network that diverged) get the score 0: JSON cannot hold them.
    """
    rows = jax.tree.map(lambda x: x[slot], batch)
    with np.errstate(over="ignore", invalid="ignore"):
        rows = view.to_image(rows)
    values = jax.tree.leaves(rows) if isinstance(rows, Detections) else [rows.boxes]
    finite = np.logical_and.reduce([np.isfinite(x).reshape(len(x), -1).all(1) for x in values])
    scores = np.where(finite, rows.scores, 0).astype(np.float32)
    return dataclasses.replace(rows, boxes=np.where(finite[:, None], rows.boxes, np.float32(0)), scores=scores)


def finished(views: tuple[Any, ...], merge: Merge | None, names: tuple[str, ...] = ()) -> Detections:
    """An image's rows of each scale, in its pixels -> its Detections, empty slots left out."""
    return without_empty(views[0] if merge is None else jax.device_get(merge(views)), names)


def without_empty(found: Detections, names: tuple[str, ...] = ()) -> Detections:
    """One image's Detections without the slots of score 0, as NumPy arrays."""
    return dataclasses.replace(select(found, np.asarray(found.scores) > 0), names=names)


def select(found: Detections, kept: np.ndarray) -> Detections:
    """One image's Detections (N) that are `kept`, (N,) bool, with every field they have, as NumPy arrays."""
    return jax.tree.map(lambda x: np.asarray(x)[kept], found)
