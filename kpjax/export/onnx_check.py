"""Whether an ONNX file finds in onnxruntime what the JAX program finds, on images made for it, at two batch sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError
from kpjax.export.stablehlo import inputs_of, one_program, outputs_of

PIXELS = 1e-3  # largest difference of boxes and keypoints; beyond the canvas, of so many pixels a canvas's side
SCORES = 1e-4  # largest difference of scores; detections so near the last one's score may be others, or none
NEAR, BITS = 8.0, 1e-6  # pixels and difference of scores: neighbours of a heatmap that count as equal
REST = 1e-3  # of 3D boxes and angles, a part of the value where that is above 1

Found = dict[str, np.ndarray]  # the outputs of one image, (N, ...)


def check_onnx(
    detector: Detector, tree: Any, leaves: list[Any], size: tuple[int, int], preset: str, top_k: int, path: str
) -> float:
    """The largest difference of a box's side, in pixels, between the file in onnxruntime and the program in JAX.

    Both run on the CPU: JAX on one image at a time, onnxruntime on one and on three.  Raises ConfigError, one line,
    where a detection is missing, has another label, or differs by more than the constants above.
    """
    import jax

    names = outputs_of(detector)
    images = test_inputs(detector, size)
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        program: Callable[..., Any] = jax.jit(one_program(detector, tree, size, preset, top_k))
        weights = jax.device_put(leaves)
        count = len(images[0])
        wanted = [[np.asarray(x)[0] for x in program(weights, *(x[i : i + 1] for x in images))] for i in range(count)]
    session = session_of(path)
    given = [name for name, *_ in inputs_of(detector, size)]
    largest = 0.0
    for first, number in ((0, 1), (1, 1), (0, count)):
        rows = slice(first, first + number)
        found = session.run(list(names), dict(zip(given, (x[rows] for x in images), strict=True)))
        for i in range(number):
            of_image = {name: x[i] for name, x in zip(names, found, strict=True)}
            one = dict(zip(names, wanted[first + i], strict=True))
            largest = max(largest, difference(one, of_image, size, f"batch of {number}, image {i + 1}"))
    return largest


def session_of(path: str) -> Any:
    """The file in onnxruntime, on the CPU.  Raises ConfigError, one line, where it cannot be loaded."""
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common class
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"onnxruntime {onnxruntime.__version__} does not load {path}: {reason}") from None


def test_inputs(detector: Detector, size: tuple[int, int]) -> list[np.ndarray]:
    """Three images to compare with, (3, H, W, 3) uint8: noise, drawn shapes, both; and cameras where they are needed.

    Nothing in them is flat: equal neighbours become equal scores, whose order is a matter of the last bit.
    """
    height, width = size
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    waves = [128 + 80 * np.sin(x / a + c) * np.cos(y / b) for a, b, c in ((17, 29, 0), (31, 13, 1), (23, 41, 2))]
    drawn = np.stack(waves, -1)
    for _ in range(12):
        top, left = rng.integers(0, height), rng.integers(0, width)
        bottom, right = top + rng.integers(4, max(5, height // 3)), left + rng.integers(4, max(5, width // 3))
        drawn[top:bottom, left:right] = 0.3 * drawn[top:bottom, left:right] + rng.integers(0, 180, 3)
    drawn = np.clip(drawn + rng.normal(0, 4, drawn.shape), 0, 255)
    images = np.stack([noise, drawn, (noise + 2 * drawn[:, ::-1]) / 3]).astype(np.uint8)
    if not detector.solid:
        return [images]
    camera = np.array([[width, 0, width / 2, 40], [0, width, height / 2, 0], [0, 0, 1, 0.005]], np.float32)
    return [images, np.stack([camera, camera * 1.1, camera])]


def difference(wanted: Found, found: Found, size: tuple[int, int], where: str) -> float:
    """The largest difference of the boxes of one image, in pixels.

    Detections are compared with the nearest of the same label and score, since the order of equal scores is free.
    where: names the image in messages.  Raises ConfigError as `check_onnx`.
    """
    left, largest = list(map(int, np.flatnonzero(found["scores"] > 0))), 0.0
    for i in map(int, np.flatnonzero(wanted["scores"] > 0)):
        score, label, box = (wanted[name][i] for name in ("scores", "labels", "boxes"))
        alike = [j for j in left if found["labels"][j] == label and abs(found["scores"][j] - score) <= SCORES]
        if not alike:
            if _last(found, score) or _level(wanted, i):
                continue
            raise ConfigError(f"ONNX: {where}: JAX finds label {label} with score {score:.4f}, onnxruntime does not")
        off = [float(np.abs(found["boxes"][j] - box).max()) for j in alike]
        nearest = alike[int(np.argmin(off))]
        allowed = PIXELS * max(1.0, float(np.abs(box).max()) / max(size))
        if min(off) > allowed:
            if _last(found, score) or _level(wanted, i):
                continue
            raise ConfigError(f"ONNX: {where}: a box of onnxruntime is {min(off):.3g} pixels away from that of JAX")
        _compare_rest(wanted, found, i, nearest, size, where)
        left.remove(nearest)
        largest = max(largest, min(off))
    for j in left:
        if not _last(wanted, found["scores"][j]) and not _level(found, j):
            score, label = found["scores"][j], found["labels"][j]
            raise ConfigError(f"ONNX: {where}: onnxruntime finds label {label} with score {score:.4f}, JAX does not")
    return largest


def _last(found: Found, score: float) -> bool:
    """Whether a score is so near that of the last detection that the first bits left out may decide."""
    last = found["scores"].min(initial=np.inf)
    return bool(score <= last + SCORES)


def _level(found: Found, i: int) -> bool:
    """Whether detection i is one of two of a label, side by side and equal but for the last bits.

    Where a heatmap has equal neighbours both are peaks; where one is a bit higher, that one alone.
    """
    centers = (found["boxes"][:, :2] + found["boxes"][:, 2:]) / 2
    near = np.abs(centers - centers[i]).max(-1) <= NEAR
    alike = (found["labels"] == found["labels"][i]) & (np.abs(found["scores"] - found["scores"][i]) <= BITS)
    return int((near & alike).sum()) > 1


def _compare_rest(wanted: Found, found: Found, i: int, j: int, size: tuple[int, int], where: str) -> None:
    """Raise ConfigError unless keypoints, 3D boxes and angles of detections i and j are equal."""
    for name in wanted.keys() - {"boxes", "scores", "labels"}:
        a, b = wanted[name][i].astype(np.float64), found[name][j].astype(np.float64)
        allowed = REST * np.maximum(1, np.abs(a))
        if name == "keypoints":
            allowed = np.broadcast_to([PIXELS, PIXELS, SCORES], a.shape) * np.maximum(1, np.abs(a) / max(size))
        if not (np.abs(a - b) <= allowed).all():
            off = np.abs(a - b).max()
            raise ConfigError(f"ONNX: {where}: {name} of onnxruntime differ by {off:.3g} from those of JAX")
