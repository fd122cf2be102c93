"""NVIDIA's GPUs: published peaks, hosts of them, and the library that compiles for them on a machine without one.

The library is XLA's plugin for CUDA.  To compile it needs CUDA's assembler, ptxas, but no driver and no other library
of CUDA.  It stays out of the environment: where it is installed, every start of JAX looks for a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import importlib.util
import os
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

from kpjax.aot.topology import Chip, Topology
from kpjax.errors import ConfigError, UserError
from kpjax.parallel.startup import use_atomic_sums

_LIBRARY = "xla_cuda_plugin.so"
_ASSEMBLER = "nvidia-cuda-nvcc-cu12"  # the wheel with ptxas; XLA also finds that of an installed CUDA toolkit
# Of a card's memory JAX's allocator takes 75% (docs.jax.dev, "GPU memory allocation"); CUDA's context, NCCL's buffers
# and the libraries' code lie in the rest.  XLA's account of a program has no workspace of cuDNN, whose algorithm is
# chosen on the card by trying: XLA's limit for one is xla_gpu_redzone_scratch_max_megabytes, 4096 by default.
_POOL, _WORKSPACE = 0.75, 4 * 2**30


@dataclasses.dataclass(frozen=True)
class Card:
    """One kind of GPU, for the compiler and for the roofline.

    title: as CUDA calls it.  capability: of CUDA.  cores, lanes: its multiprocessors, and float32 lanes in one.
    shared: bytes of shared memory in one.  cache: bytes.  clock: GHz.  memory: bytes, as CUDA counts them.
    flops, tf32: operations a second of dense products in bfloat16 and in TF32, which float32 runs as by default.
    bandwidth: bytes a second from and to its memory.  nvlink: bytes a second and direction to all others of a host.
    network: the same to other hosts, of a host with one adapter a GPU.
    """

    title: str
    capability: tuple[int, int]
    cores: int
    lanes: int
    shared: int
    cache: int
    clock: float
    memory: int
    flops: float
    tf32: float
    bandwidth: float
    nvlink: float
    network: float

    @property
    def chip(self) -> Chip:
        """What one can do."""
        kept = f"of the card's {self.memory / 2**30:.1f} GiB: 75%, which JAX takes, less 4 GiB for cuDNN's workspaces"
        memory = int(_POOL * self.memory) - _WORKSPACE
        return Chip(memory, self.flops, self.tf32, self.bandwidth, self.nvlink, kept)

    @property
    def target(self) -> str:
        """XLA's GpuTargetConfig, as text: what its compiler has to know of a card that is not there."""
        major, minor = self.capability
        features = "feature_extension: ACCELERATED_FEATURES" if major >= 9 else ""
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.title}"
            gpu_device_info {{
              cuda_compute_capability {{ major: {major} minor: {minor} {features} }}
              core_count: {self.cores} fpus_per_core: {self.lanes} clock_rate_ghz: {self.clock}
              shared_memory_per_core: {self.shared} shared_memory_per_block: {48 * 2**10}
              shared_memory_per_block_optin: {self.shared - 2**10} l2_cache_size: {self.cache}
              device_memory_size: {self.memory} memory_bandwidth: {int(self.bandwidth)}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              registers_per_core_limit: {2**16} registers_per_block_limit: {2**16}
              block_dim_limit_x: {2**31 - 1} block_dim_limit_y: {2**16 - 1} block_dim_limit_z: {2**16 - 1}
            }}
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            runtime_version {{ major: 12 minor: 8 patch: 0 }}
        """


# Sources: NVIDIA's data sheets "H100 Tensor Core GPU" and "H200 Tensor Core GPU" (SXM; half of the printed rates, which
# are with sparsity; NVLink's 900 GB/s are both directions) and "A100 Tensor Core GPU" (SXM; NVLink 600 GB/s).  Network
# adapters: data sheets "DGX H100", "DGX H200" (8 of 400 Gb/s) and "DGX A100" (8 of 200 Gb/s).  Multiprocessors, memory
# in bytes and clock are as CUDA reports them; XLA has them in xla/backends/gpu/target_config/specs.
_HOPPER = Card(
    title="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    lanes=128,
    shared=228 * 2**10,
    cache=50 * 2**20,
    clock=1.98,
    memory=84_942_979_072,
    flops=989e12,
    tf32=495e12,
    bandwidth=3.35e12,
    nvlink=450e9,
    network=50e9,
)
_AMPERE = Card(
    title="NVIDIA A100-SXM4-80GB",
    capability=(8, 0),
    cores=108,
    lanes=64,
    shared=164 * 2**10,
    cache=40 * 2**20,
    clock=1.41,
    memory=85_100_068_864,
    flops=312e12,
    tf32=156e12,
    bandwidth=2.039e12,
    nvlink=300e9,
    network=25e9,
)
CARDS = {
    "h100": _HOPPER,
    "h200": dataclasses.replace(_HOPPER, title="NVIDIA H200", memory=151_397_597_184, bandwidth=4.8e12),
    "a100": _AMPERE,
    "a100-40": dataclasses.replace(_AMPERE, title="NVIDIA A100-SXM4-40GB", memory=42_331_013_120, bandwidth=1.555e12),
}
_OPTIONS = {
    # Its tiles are chosen on a card; without one, compilation ends with "Couldn't find output tile sizes".
    "xla_gpu_enable_triton_gemm": False,
    # The first drops the names by which collectives are sorted.  The second would compute again what does not fit 80%
    # of the card, without a word.
    "xla_disable_hlo_passes": "all-reduce-contiguous,rematerialization",
}


def parse_topology(text: str) -> Topology:
    """ "h100:8" or "h100:2x8", hosts and GPUs of each -> Topology.  Raises ConfigError, one line that says how to."""
    kind, _, rest = text.partition(":")
    shape = tuple(map(int, rest.split("x"))) if re.fullmatch(r"[1-9]\d{0,3}(x[1-9]\d?)?", rest) else ()
    hosts, each = (shape if len(shape) == 2 else (1, *shape)) if shape else (0, 0)
    if kind not in CARDS or not 1 <= each <= 8 or hosts > 1024:
        kinds = ", ".join(CARDS)
        raise ConfigError(
            f"--topology {text!r}: GPUs ({kinds}) are written KIND:GPUS for 1 to 8 on one host, e.g. h100:8, or "
            "KIND:HOSTSxGPUS, e.g. h100:2x8"
        )
    card = CARDS[kind]
    # A ring over several hosts leaves a host once for all of its GPUs, whose adapters share what is sent.
    egress = card.nvlink if hosts == 1 else min(card.nvlink, each * card.network)
    describe = functools.partial(_describe, kind, hosts, each)
    return Topology("cuda", kind, shape, card.chip, egress, describe, dict(_OPTIONS))


def _describe(kind: str, hosts: int, each: int) -> list[Any]:
    from jax.experimental import topologies

    try:
        shape = f"1x{hosts}x{each}"  # slices (of NVLink between hosts, which these have not), hosts, GPUs
        return list(topologies.get_topology_desc("", "cuda", target_config=CARDS[kind].target, topology=shape).devices)
    except (RuntimeError, NotImplementedError) as error:
        said = str(error).splitlines()[0][:300]
        raise UserError(f"the CUDA library cannot be used for {kind}: {said}; {_how_to_get_it()}") from error


def find_cuda_library(given: str = "") -> str:
    """The path of XLA's plugin for CUDA: in `given` or $KPJAX_CUDA_LIBRARY (the file; a folder that its wheel was
    unpacked or installed into; an environment).  Empty where this environment has it installed: JAX loads that one.

    Raises UserError, one line that says how to get it, where there is none, or one of another version.
    """
    given = given or os.environ.get("KPJAX_CUDA_LIBRARY", "")
    installed = _installed()
    if installed and given:
        raise UserError(
            f"this environment has {installed}, which JAX loads; leave out --cuda-library and KPJAX_CUDA_LIBRARY"
        )
    if installed:
        return ""
    if not given:
        raise UserError(
            "XLA's compiler for CUDA was not named: fetch it and name the folder with --cuda-library or "
            f"KPJAX_CUDA_LIBRARY; {_how_to_get_it()}"
        )
    place = pathlib.Path(given)
    inside = f"xla_cuda*/{_LIBRARY}"
    names = (_LIBRARY, inside, f"jax_plugins/{inside}", f"lib/python3*/site-packages/jax_plugins/{inside}")
    found = (
        [place]
        if place.is_file() and place.name == _LIBRARY
        else sorted(path for name in names for path in place.glob(name))
    )
    if not found:
        raise UserError(f"no {_LIBRARY} in {given}; {_how_to_get_it()}")
    path = str(found[0].absolute())
    if set(path) & set(":,;"):  # which JAX separates names and paths by
        raise UserError(f"the path of the CUDA library, {path}, must not contain ':', ',' or ';'; move it")
    _check_fit(found[0])
    return path


def _installed() -> str:
    """The module of a CUDA plugin in this environment; empty: there is none."""
    spec = importlib.util.find_spec("jax_plugins")
    folders = [pathlib.Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    modules = [path.parent.name for folder in folders for path in sorted(folder.glob("xla_cuda*/__init__.py"))]
    return f"jax_plugins.{modules[0]}" if modules else ""


def _check_fit(library: pathlib.Path) -> None:
    """Raise UserError where a file is no plugin, or of another version than jaxlib (by what lies beside it)."""
    import jaxlib

    try:
        with _without_stderr():  # once loaded, it is not loaded again
            ctypes.CDLL(str(library)).GetPjrtApi  # noqa: B018
    except (OSError, AttributeError) as error:
        raise UserError(f"{library} is no plugin of XLA for CUDA ({error}); {_how_to_get_it()}") from error
    # As a wheel is unpacked: jax_plugins/xla_cuda12/LIBRARY beside jax_cuda12_pjrt-VERSION.dist-info.
    metadata = [
        path.name for path in library.absolute().parents[2:3] for path in path.glob("jax_cuda*_pjrt-*.dist-info")
    ]
    versions = {name.removesuffix(".dist-info").split("-")[1] for name in metadata}
    if versions and jaxlib.__version__ not in versions:
        raise UserError(
            f"{library} is of version {', '.join(sorted(versions))}, jaxlib of {jaxlib.__version__}; {_how_to_get_it()}"
        )


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """As it is loaded the library says that there is no driver, whatever level of its log is asked for."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _how_to_get_it() -> str:
    import jaxlib

    wheels = f"jax-cuda12-pjrt=={jaxlib.__version__} {_ASSEMBLER}"
    return (
        f"to fetch it (for Linux): pip install --no-deps --target DIR {wheels}, or pip download --no-deps {wheels} "
        "and unzip both wheels into one folder"
    )


def assembler_missing(message: str) -> UserError | None:
    """What to say where compilation ended with `message` for want of CUDA's assembler; None: it was something else."""
    if "No PTX compilation provider" not in message and "libdevice not found" not in message:
        return None
    return UserError(
        "the CUDA library found no ptxas, CUDA's assembler, or no libdevice; put them beside the library with pip "
        f"install --no-deps --target DIR {_ASSEMBLER}, DIR being the folder with jax_plugins, or install CUDA"
    )


def prepare(library: str) -> None:
    """Let JAX compile with `library` (empty: the installed plugin) and start no GPU; before its first array."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    # Without a GPU its programs can be written to the persistent cache, but not read back.
    jax.config.update("jax_enable_compilation_cache", False)
    if library:
        others = [one for one in os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS", "").split(",") if one]
        kept = [one for one in others if not one.startswith("cuda:")]
        os.environ["PJRT_NAMES_AND_LIBRARY_PATHS"] = ",".join([*kept, f"cuda:{library}"])
    use_atomic_sums()  # as training does
