"""Whether every network's heads come out on this device as they do on a CPU: the parity part of accelerator.py.

Each model of `kpjax.list_models()` is built at full width, in float32 and at precision "highest", and reads one image
of 128x128 pixels (127x127 the corner methods).  Weights and image are drawn from the bits of NumPy's PCG64, seeded by
name and shape, so that they are the same on every machine and with every version.  Of each head 64 values at drawn
places are compared with those that a CPU gave, which lie in accelerator_heads.npz: for each model an array (heads, 64),
heads in the order of stack and name.

The figure is the largest difference of a head's values over the largest value of that head.  `TOLERANCE` lies between
what sums in another order change, some 3e-6, and what weights rounded to TensorFloat-32 do, some 1e-3.
"""

from __future__ import annotations

import concurrent.futures
import os
import pathlib
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kpjax
from kpjax.convert.rules import leaf_shapes, unflatten
from kpjax.detectors.base import Detector
from kpjax.errors import DataError
from kpjax.parallel.compiling import compiler_options
from kpjax.parallel.sharding import make_mesh

STORED = pathlib.Path(__file__).with_name("accelerator_heads.npz")
CLASSES = 80
SIDE = 128  # pixels
SAMPLES = 64  # values a head
TOLERANCE = 1e-4
_COMPILED_AT_ONCE = 8  # programs, where the machine has as many processors twice
# The last BatchNorm of a residual block, whose scale decides how far its sums grow from block to block.
_ENDS = ("bn2/scale", "bn3/scale", "second/bn/scale")


def drawn(name: str, shape: Sequence[int]) -> np.ndarray:
    """Numbers between -1 and 1, float32, that depend on name and shape alone."""
    size = int(np.prod(shape, dtype=np.int64))
    bits = np.random.PCG64(zlib.crc32(f"{name} {tuple(shape)}".encode())).random_raw((size + 1) // 2)
    small = np.asarray(bits, "<u8").view("<u4")[:size].astype(np.float32)
    return (small * np.float32(2.0**-31) - np.float32(1)).reshape(shape)


def weight(path: str, shape: Sequence[int]) -> np.ndarray:
    """The value of a leaf of a network's variables, such that maps keep their size from layer to layer."""
    values, layer = drawn(path, shape), path.rsplit("/", 2)[-2]
    if path.endswith("/var"):
        return 1 + values / 2
    if path.endswith("/scale"):
        return np.float32(0.2 if path.endswith(_ENDS) else 1.0) * (1 + values / 4)
    if not path.endswith("/kernel"):  # means and biases
        return values / 10
    if layer.startswith("up_"):  # upsampling of each channel by itself, (2 f, 2 f, C)
        return (1 + values) * np.float32(4 / shape[0] ** 2)
    inputs = int(np.prod(shape[:-1], dtype=np.int64))
    gain = 2.0
    if layer.startswith("deconv"):
        inputs //= 4  # of the 4x4 taps each output sees 2x2
    elif layer == "offset":
        gain = 0.06  # offsets of about a cell
    elif layer.endswith("_out"):
        gain = 1.0  # no ReLU follows
    return values * np.float32((3 * gain / inputs) ** 0.5)


def variables_of(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """All of a network's variables, {"params", "batch_stats"} of float32 arrays.  shapes: path -> shape of each."""
    return unflatten({path: weight(path, shape) for path, shape in shapes.items()})


def image_of(detector: Detector) -> np.ndarray:
    """The image that a network reads, (1, H, W, 3) float32, as normalised."""
    side = SIDE - detector.less
    return 2 * drawn("image", (1, side, side, 3))


def sampled(outputs: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Values of each head, (SAMPLES,) float32, in the order of stack and name."""
    values = {}
    for stack, maps in enumerate(outputs):
        for name, head in sorted(maps.items()):
            flat = np.asarray(head, np.float32).ravel()
            places = (drawn(f"places {stack} {name}", (SAMPLES,)) + 1) / 2 * flat.size
            values[f"stack {stack} {name}"] = flat[places.astype(np.int64).clip(0, flat.size - 1)]
    return values


def compiled(detector: Detector, shapes: Mapping[str, Sequence[int]]) -> Any:
    """The network compiled for the first device: (variables, image) -> outputs."""
    variables = unflatten({path: jax.ShapeDtypeStruct(shape, jnp.float32) for path, shape in shapes.items()})
    image = jax.ShapeDtypeStruct(image_of(detector).shape, jnp.float32)
    options = compiler_options(make_mesh(devices=jax.devices()[:1]))
    apply = jax.jit(lambda variables, x: detector.net.apply(variables, x, train=False), compiler_options=options)
    return apply.lower(variables, image).compile()


def build(name: str) -> Detector:
    """The model as it is compared."""
    return kpjax.build(name, CLASSES, precision="highest")


def difference(found: np.ndarray, stored: np.ndarray) -> np.ndarray:
    """Of each head the largest difference over its largest stored value, (heads,); infinite where one is no number."""
    relative = np.abs(found - stored).max(1) / np.abs(stored).max(1)
    return np.where(np.isfinite(relative), relative, np.inf)


def read_stored(path: pathlib.Path = STORED) -> dict[str, np.ndarray]:
    """Model -> (heads, SAMPLES).  Raises DataError where the file is missing."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; python benchmarks/accelerator.py --write-heads makes it, on a CPU")
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def each_model(
    names: Sequence[str], in_time: Callable[[], bool] = lambda: True
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(model, `sampled` of its heads) in the order of `names`; ends early where there is no time left.

    Programs are compiled side by side where the machine has the processors.
    """
    workers = max(1, min(_COMPILED_AT_ONCE, (os.cpu_count() or 1) // 2))

    def prepared(name: str) -> tuple[Any, Any, Any] | None:
        if not in_time():
            return None
        detector = build(name)
        shapes = leaf_shapes(detector)
        return compiled(detector, shapes), shapes, image_of(detector)

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for name, found in zip(names, pool.map(prepared, names), strict=True):
            if found is None:
                return
            program, shapes, image = found
            yield name, sampled(program(variables_of(shapes), image))


def compare(
    names: Sequence[str],
    stored: Mapping[str, np.ndarray],
    in_time: Callable[[], bool] = lambda: True,
    report: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """A row for each model, printed: the largest relative difference, its head, whether it is within `TOLERANCE`.

    report: is given each row as it comes.
    """
    rows: list[dict[str, Any]] = []
    print(f"heads at precision highest against a CPU's, tolerance {TOLERANCE:.0e}", flush=True)
    for name, heads in each_model(names, in_time):
        values = np.stack(list(heads.values()))
        if name not in stored or stored[name].shape != values.shape:
            row = {"model": name, "difference": None, "passed": False}
            print(f"  {name:24} nothing to compare with; write the values again on a CPU (--write-heads)", flush=True)
        else:
            relative = difference(values, stored[name])
            worst = int(relative.argmax())
            passed = bool(relative[worst] <= TOLERANCE)
            head = list(heads)[worst]
            row = {"model": name, "difference": float(relative[worst]), "head": head, "passed": passed}
            print(f"  {name:24} {relative[worst]:9.1e}  {'pass' if passed else 'FAIL'}  worst: {head}", flush=True)
        rows.append(row)
        report(row)
    if left := [name for name in names if name not in {row["model"] for row in rows}]:
        print(f"  no time for {', '.join(left)}", flush=True)
    return rows


def write(path: pathlib.Path = STORED) -> None:
    """Compute every model's values on this machine's CPU, and store them.  Raises DataError on another device."""
    if jax.devices()[0].platform != "cpu":
        raise DataError(f"{path}: the values are a CPU's; set JAX_PLATFORMS=cpu to write them")
    values: dict[str, np.ndarray] = {}
    began = time.perf_counter()
    for name, heads in each_model(kpjax.list_models()):
        found = values[name] = np.stack(list(heads.values()))
        spread = found.std(1)
        print(
            f"{name:24} {len(found):3} heads; largest {np.abs(found).max():.3g}, standard deviation of a head "
            f"{spread.min():.2g} to {spread.max():.2g}; {time.perf_counter() - began:.0f} s",
            flush=True,
        )
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **values)
    print(f"{path}: {path.stat().st_size} bytes", file=sys.stderr)
