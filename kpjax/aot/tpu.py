"""TPU chips and slices: published peaks, the shapes on offer, and libtpu, the compiler for them.

libtpu compiles for any of them on a machine without a TPU.  It is not imported: JAX loads the library from a path, so
that it may be installed in another environment.
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

from kpjax.aot import gpu
from kpjax.aot.topology import Chip, Topology
from kpjax.errors import ConfigError, UserError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
    "16x16x16",
)


# The shapes on offer.
SLICES = {"v4": _CUBES, "v5e": _FLAT, "v5p": _CUBES, "v6e": _FLAT}


def _chip(gib: float, flops: float, bandwidth: float, link: float) -> Chip:
    """gib: memory that a program can have, as libtpu 0.0.52's compiler says: the published 32, 16, 95 and 32 GiB less
    what the system keeps.  float32 convolutions run as bfloat16 products, at JAX's default precision."""
    return Chip(int(gib * 2**30), flops, flops, bandwidth, link)


# Sources: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, "key specifications" (read in November 2026).  They give
# the links' sum in both directions: 400, 1200 and 800 GB/s over 4, 6 and 4 links; v4's are six of 50 GB/s (arXiv
# 2304.01433, table 4).
CHIPS = {
    "v4": _chip(30.75, 275e12, 1200e9, 50e9),
    "v5e": _chip(15.75, 197e12, 819e9, 50e9),
    "v5p": _chip(95.73, 459e12, 2765e9, 100e9),
    "v6e": _chip(31.24, 918e12, 1640e9, 100e9),
}
# What JAX's topology description needs beside the shape: it takes a v4 chip's two cores as one device.
_DESCRIPTIONS: dict[str, dict[str, Any]] = {"v4": {"chip_config_name": "megacore"}}


def parse_topology(text: str) -> Topology:
    """ "v5e:16x16" -> Topology of a slice.  Raises ConfigError, one line that lists what there is.

    Three axes may also have other multiples of 4 than the listed ones, e.g. v5p:4x4x12.
    """
    kind, _, rest = text.partition(":")
    if kind not in CHIPS:
        flat, cubes = (", ".join(k for k, of_kind in SLICES.items() if of_kind is s) for s in (_FLAT, _CUBES))
        raise ConfigError(
            f"--topology {text!r}: write KIND:SHAPE, e.g. v5e:16x16; {flat} come as {', '.join(_FLAT)}; "
            f"{cubes} as {', '.join(_CUBES)}; GPUs ({', '.join(gpu.CARDS)}) as their number or HOSTSxGPUS, e.g. h100:8"
        )
    slices = SLICES[kind]
    shape = tuple(map(int, rest.split("x"))) if re.fullmatch(r"\d{1,3}(x\d{1,3})+", rest) else ()
    of_cubes = slices is _CUBES and len(shape) == 3 and min(shape) > 0 and all(side % 4 == 0 for side in shape)
    if rest not in slices and not (of_cubes and math.prod(shape) <= 6144):
        raise ConfigError(f"--topology {text!r}: {kind} comes as {', '.join(f'{kind}:{s}' for s in slices)}")
    chip = CHIPS[kind]
    # Two links an axis, one where it has two chips.
    egress = chip.link * sum(min(side - 1, 2) for side in shape)
    return Topology("tpu", kind, shape, chip, egress, functools.partial(_describe, kind, f"{kind}:{rest}"))


def _describe(kind: str, name: str) -> list[Any]:
    import jax
    from jax.experimental import topologies

    try:
        return list(topologies.get_topology_desc(name, "tpu", **_DESCRIPTIONS.get(kind, {})).devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"libtpu cannot be used for {name}: {str(error).splitlines()[0][:300]}") from error


def find_libtpu(given: str = "") -> str:
    """The path of libtpu.so: in `given` or $KPJAX_LIBTPU (the file, or an environment's folder), or as installed.

    Raises UserError, one line that says how to get it.
    """
    given = given or os.environ.get("KPJAX_LIBTPU", "")
    if given:
        place = pathlib.Path(given)
        inside = ("libtpu.so", "libtpu/libtpu.so", "lib/python3*/site-packages/libtpu/libtpu.so")
        found = [place] if place.is_file() else sorted(path for name in inside for path in place.glob(name))
        if not found:
            raise UserError(f"no libtpu.so in {given}; name the file, or the environment that libtpu is installed in")
        return str(found[0])
    spec = importlib.util.find_spec("libtpu")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (path := pathlib.Path(folder) / "libtpu.so").is_file():
            return str(path)
    raise UserError(
        "libtpu, the compiler for TPUs, is not installed: pip install 'kpjax[plan]' (Linux on x86-64), or install "
        "libtpu in another environment and name its folder with --libtpu or KPJAX_LIBTPU"
    )


def prepare(library: str) -> None:
    """Let JAX compile with `library` and compute nothing on a TPU; before its first array."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    # Without a TPU its programs can be written to the persistent cache, but not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    os.environ["TPU_LIBRARY_PATH"] = library
    # Nothing here is a TPU host: libtpu asks no metadata server, writes no log files, and does not say that it found
    # neither a kind of TPU nor hosts.  Two plans may run at once.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }.items():
        os.environ[name] = value
