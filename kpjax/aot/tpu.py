"""TPU chips and slices: published peaks, the shapes on offer, and libtpu, the compiler for them.

libtpu compiles for any of them on a machine without a TPU.  It is not imported: JAX loads the library from a path, so
that it may be installed in another environment.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import pathlib
import re
from typing import Any

from kpjax.errors import ConfigError, UserError

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    *("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16"),
    "16x16x16",
)


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of TPU.  Rates are a chip's published peaks; what programs reach is less.

    memory: bytes of HBM that a program can have, as libtpu 0.0.52's compiler says: the published 32, 16, 95 and 32 GiB
        less what the system keeps.  flops: bfloat16 operations a second, a multiply-add being two (float32
        convolutions run as bfloat16 products too, at JAX's default precision).  bandwidth: bytes a second from and to
        HBM.  link: bytes a second and direction of one link to a neighbour.  slices: the shapes on offer.
    options: what JAX's topology description needs beside the shape.
    """

    memory: int
    flops: float
    bandwidth: float
    link: float
    slices: tuple[str, ...]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


# Sources: cloud.google.com/tpu/docs/v4, /v5e, /v5p and /v6e, "key specifications" (read in November 2026).  They give
# the links' sum in both directions: 400, 1200 and 800 GB/s over 4, 6 and 4 links; v4's are six of 50 GB/s (arXiv
# 2304.01433, table 4).  JAX takes a v4 chip's two cores as one device.
CHIPS = {
    "v4": Chip(int(30.75 * 2**30), 275e12, 1200e9, 50e9, _CUBES, {"chip_config_name": "megacore"}),
    "v5e": Chip(int(15.75 * 2**30), 197e12, 819e9, 50e9, _FLAT),
    "v5p": Chip(int(95.73 * 2**30), 459e12, 2765e9, 100e9, _CUBES),
    "v6e": Chip(int(31.24 * 2**30), 918e12, 1640e9, 100e9, _FLAT),
}


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice: which chips, and how they are joined, e.g. ("v5e", (16, 16))."""

    kind: str
    shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """As it is written, e.g. "v5e:16x16"."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def chip(self) -> Chip:
        """What one of its chips can do."""
        return CHIPS[self.kind]

    @property
    def size(self) -> int:
        """How many chips."""
        return math.prod(self.shape)

    @property
    def egress(self) -> float:
        """Bytes a second that a chip can send to its neighbours: two links an axis, one where it has two chips."""
        return self.chip.link * sum(min(side - 1, 2) for side in self.shape)

    def devices(self) -> list[Any]:
        """JAX's devices to compile for; `prepare` has to come before.  None of them can run anything.

        Raises UserError where libtpu cannot be used.
        """
        import jax
        from jax.experimental import topologies

        try:
            return list(topologies.get_topology_desc(self.name, "tpu", **self.chip.options).devices)
        except jax.errors.JaxRuntimeError as error:
            raise UserError(f"libtpu cannot be used for {self.name}: {str(error).splitlines()[0][:300]}") from error


def parse_topology(text: str) -> Topology:
    """ "v5e:16x16" -> Topology.  Raises ConfigError, one line that lists what there is.

    Three axes may also have other multiples of 4 than the listed ones, e.g. v5p:4x4x12.
    """
    kind, _, rest = text.partition(":")
    if kind not in CHIPS:
        flat, cubes = (", ".join(k for k, c in CHIPS.items() if c.slices is s) for s in (_FLAT, _CUBES))
        raise ConfigError(
            f"--topology {text!r}: write KIND:SHAPE, e.g. v5e:16x16; {flat} come as {', '.join(_FLAT)}; "
            f"{cubes} as {', '.join(_CUBES)}"
        )
    slices = CHIPS[kind].slices
    shape = tuple(map(int, rest.split("x"))) if re.fullmatch(r"\d{1,3}(x\d{1,3})+", rest) else ()
    of_cubes = slices is _CUBES and len(shape) == 3 and min(shape) > 0 and all(side % 4 == 0 for side in shape)
    if rest not in slices and not (of_cubes and math.prod(shape) <= 6144):
        raise ConfigError(f"--topology {text!r}: {kind} comes as {', '.join(f'{kind}:{s}' for s in slices)}")
    return Topology(kind, shape)


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
