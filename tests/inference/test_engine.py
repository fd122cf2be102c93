"""The queue of views: what overlaps, what it holds, and what ends it; with the detector of tests/fakes.py."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kpjax.errors import DataError
from kpjax.images.views import fixed_view
from kpjax.inference import predict
from kpjax.inference.engine import IN_FLIGHT, rows_in_image, select
from kpjax.inference.inputs import ReadAhead
from kpjax.inference.predict import Predictor
from kpjax.objects import Detections
from tests import fakes

PATIENCE = 20.0  # seconds until a thread that waits for another one gives up


def predictor(batch: int = 1, **options: Any) -> Predictor:
    return Predictor(fakes.marker_detector(), fakes.variables(), batch=batch, **options)


def image(number: int, side: int = 20) -> np.ndarray:
    return fakes.picture(side, side, [(number % 15 + 2, 9, 2, 0)])


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("kpjax-")]


class Late:
    """An array on a device that is not done before `done` is set."""

    def __init__(self, array: Any, done: threading.Event, waited: list[bool]) -> None:
        self.array, self.done, self.waited = array, done, waited

    def copy_to_host_async(self) -> None:
        pass

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        self.waited.append(self.done.wait(PATIENCE))
        return np.asarray(self.array)


def test_reading_goes_on_while_the_device_works(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first batch is done only once an image two batches later has been read."""
    pred, read, waited = predictor(batch=2), threading.Event(), list[bool]()

    def read_image(path: str, *_: Any) -> tuple[np.ndarray, int]:
        if path == "5":
            read.set()
        return image(int(path)), 1

    monkeypatch.setattr(predict, "read_image", read_image)
    inner = pred.engine.infer
    pred.engine.infer = lambda *a: jax.tree.map(lambda x: Late(x, read, waited), inner(*a))
    found = [found.index for found in pred.stream([str(i) for i in range(8)])]
    assert found == list(range(8)) and waited and all(waited)


def test_the_next_batch_is_on_the_device_before_the_first_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, second, waited, calls = predictor(batch=2), threading.Event(), list[bool](), list[int]()
    inner = pred.engine.infer

    def infer(*arguments: Any) -> Any:
        calls.append(len(calls))
        if len(calls) == 2:
            second.set()
        return jax.tree.map(lambda x: Late(x, second, waited), inner(*arguments))

    pred.engine.infer = infer
    take = ReadAhead.take
    monkeypatch.setattr(ReadAhead, "take", lambda self, wait=True: take(self))  # as if reading were always ahead
    assert len(list(pred.stream([image(i) for i in range(6)]))) == 6 and len(calls) == 3
    assert waited and all(waited)


def test_an_input_that_waits_for_the_last_result_gets_it() -> None:
    """A camera or a server gives the next image when the one before is answered."""
    pred, answered, waited = predictor(), threading.Semaphore(1), list[bool]()

    def images() -> Iterator[np.ndarray]:
        for i in range(4):
            waited.append(answered.acquire(timeout=PATIENCE))
            yield image(i)

    for count, found in enumerate(pred.stream(images())):
        assert found.index == count
        answered.release()
    assert waited == [True] * 4


@pytest.mark.parametrize("endless", [False, True])
def test_a_stream_that_is_closed_ends_its_threads(endless: bool) -> None:
    ended = threading.Event()

    def images() -> Iterator[np.ndarray]:
        try:
            number = 0
            while endless or number < 50:
                yield image(number)
                number += 1
        finally:
            ended.set()

    stream = predictor(batch=2).stream(images())
    assert next(stream).index == 0 and own_threads()
    stream.close()
    assert not own_threads() and ended.wait(PATIENCE)
    assert [found.index for found in predictor().stream([image(0)])] == [0] and not own_threads()


def test_what_a_waiting_iterable_holds_up_is_not_the_end_of_a_stream() -> None:
    """A stream is closed while its input hangs: soon, and the thread ends with the input."""
    given: queue.Queue[np.ndarray | None] = queue.Queue()
    given.put(image(0))

    def images() -> Iterator[np.ndarray]:
        while (one := given.get()) is not None:
            yield one

    stream = predictor().stream(images())
    assert next(stream).index == 0
    before = time.monotonic()
    stream.close()
    assert time.monotonic() - before < 10
    given.put(None)
    deadline = time.monotonic() + PATIENCE
    while own_threads() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not own_threads()


@pytest.mark.parametrize("sides", [(20,), (20, 40, 70, 100)])
def test_images_in_memory_are_few(sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "MAX_WAITING", 8)
    pred, given, most = predictor(batch=3), 0, 0

    def images() -> Iterator[np.ndarray]:
        nonlocal given
        for i in range(100):
            given += 1
            yield image(i, sides[i % len(sides)])

    monkeypatch.setattr("os.cpu_count", lambda: 2)
    seen = []
    for count, found in enumerate(pred.stream(images())):
        time.sleep(0.002)  # as if it were drawn: reading may run ahead meanwhile
        most = max(most, given - count)
        seen.append(found.index)
    assert sorted(seen) == list(range(100))
    ahead, waiting = 3 + 2 + 1, 4 * 3
    assert most <= ahead + waiting + (IN_FLIGHT + 1) * 3 + 1, most


def test_batches_come_in_the_order_in_which_they_were_full() -> None:
    sides = [20, 40, 20, 40, 40, 20, 70]  # full: 20 at image 2, 40 at 3; then the left ones in the order they came
    found = [found.index for found in predictor(batch=2).stream([image(i, side) for i, side in enumerate(sides)])]
    assert found == [0, 2, 1, 3, 4, 5, 6] or found == [0, 2, 1, 3, 5, 4, 6]
    again = [found.index for found in predictor(batch=2).stream([image(i, side) for i, side in enumerate(sides)])]
    assert again == found


def test_what_cannot_be_read_holds_up_nothing(tmp_path: Any) -> None:
    names = []
    for i in range(7):
        path = tmp_path / f"{i}.png"
        path.write_bytes(fakes.png(image(i)) if i % 3 else b"no image")
        names.append(str(path))
    found = {found.index: found for found in predictor(batch=2).stream(names)}
    assert sorted(found) == list(range(7))
    for index, one in found.items():
        assert (one.detections is None) == (index % 3 == 0) == bool(one.error)
        assert one.name == names[index]


def test_a_call_that_fails_ends_its_threads() -> None:
    with pytest.raises(DataError, match="nowhere") as caught:
        predictor()([image(0), "nowhere", *map(image, range(50))])
    assert not own_threads() and caught


def test_an_error_of_the_iterable_is_the_stream_s() -> None:
    def images() -> Iterator[np.ndarray]:
        yield image(0)
        raise OSError("the camera is gone")

    with pytest.raises(OSError, match="the camera is gone"):
        list(predictor().stream(images()))
    assert not own_threads()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda tags: tags.at[1].set(tags[0]), "came back twice"),
        (lambda tags: tags.at[1].set(-1), "1 views of a batch did not come back, first number 1"),
        (lambda tags: tags.at[0, 0].set(9), "came back twice, or from a batch that it was not in"),
    ],
)
def test_every_view_comes_back_exactly_once(change: Any, match: str) -> None:
    pred = predictor(batch=2)
    inner = pred.engine.infer

    def infer(*arguments: Any) -> Any:
        rows, tags = inner(*arguments)
        return rows, change(tags)

    pred.engine.infer = infer
    with pytest.raises(RuntimeError, match=match):
        pred([image(0), image(1)])


def test_every_field_of_a_detection_comes_through() -> None:
    """A detector of points: they come in the image's pixels, without the empty slots."""
    detector = fakes.marker_detector()

    def decode(heads: Any, placed: Any = None, top_k: int = 100) -> Detections:
        found = detector.decode(heads, placed, top_k)
        corners = found.boxes.reshape(*found.boxes.shape[:2], 2, 2)
        scores = jnp.full((*corners.shape[:3], 1), 0.5)
        return dataclasses.replace(found, keypoints=jnp.concatenate([corners, scores], axis=-1))

    pred = Predictor(dataclasses.replace(detector, decode=decode), fakes.variables(), names=fakes.CLASSES)
    found = pred(fakes.picture(33, 45, [(11, 7, 5, 0), (30, 20, 9, 1)]))
    assert isinstance(found, Detections) and len(found) == 2 and found.names == fakes.CLASSES
    np.testing.assert_array_equal(found.keypoints[..., :2].reshape(2, 4), found.boxes)
    assert (found.keypoints[..., 2] == 0.5).all() and isinstance(found.keypoints, np.ndarray)
    best = select(found, found.labels == 1)
    assert best.keypoints.shape == (1, 2, 3) and best.labels.tolist() == [1] and best.names == fakes.CLASSES


def test_what_is_not_finite_is_no_detection() -> None:
    boxes = np.tile(np.array([8, 8, 16, 16], np.float32), (1, 3, 1))
    boxes[0, 1, 2] = np.nan
    points = np.concatenate([boxes.reshape(1, 3, 2, 2), np.full((1, 3, 2, 1), 0.5, np.float32)], axis=-1)
    points[0, 1] = 0
    points[0, 2, 1, 0] = np.inf
    batch = Detections(boxes, np.full((1, 3), 0.5, np.float32), np.zeros((1, 3), np.int32), keypoints=points)
    found = rows_in_image(batch, 0, fixed_view((32, 32), (64, 64)))
    assert found.scores.tolist() == [0.5, 0.0, 0.0] and np.isfinite(found.boxes).all()
    np.testing.assert_allclose(found.boxes[0], [4, 4, 8, 8])
    np.testing.assert_allclose(found.keypoints[0], [[4, 4, 0.5], [8, 8, 0.5]])
