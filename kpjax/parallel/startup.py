"""What a program settles before JAX and TensorFlow start."""

from __future__ import annotations

import glob
import importlib.metadata
import importlib.util
import io
import os
import pkgutil
import sys

from kpjax.config import Config
from kpjax.errors import ConfigError
from kpjax.parallel.jax_internals import devices_started


def quiet_tensorflow() -> None:
    """Keep TensorFlow's log off the terminal.

    oneDNN stays on, though it makes two lines more (see `kpjax.data.pipeline.import_tensorflow`): with it comes an
    allocator that keeps the batches' memory.  Without, the input pipeline has little more than half the speed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


def escape_unprintable() -> None:
    """Print what the terminal's encoding lacks, such as a file's name that is not UTF-8, as an escape: no error."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # stderr does so by itself
        sys.stdout.reconfigure(errors="backslashreplace")


def skip_absent_tpu() -> None:
    """Keep JAX from looking for a TPU where there is none, though libtpu is installed (the extra "plan").

    Else it would warn at every start.  Nothing changes where JAX has its devices or JAX_PLATFORMS is set, where
    something looks like a TPU, or where a plugin for another device than NVIDIA's is installed.
    """
    if os.environ.get("JAX_PLATFORMS"):
        return
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")) or _may_have_tpu():
        return
    import jax  # not before: where libtpu is not installed, a command that needs no JAX does not wait for it

    if jax.config.values["jax_platforms"] or devices_started():
        return
    plugins = {name.split(".")[-1] for name in _jax_plugins()}
    if any("cuda" not in name for name in plugins):
        return
    gpu = plugins and any(os.path.exists(path) for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))
    jax.config.update("jax_platforms", "cuda,cpu" if gpu else "cpu")


def _may_have_tpu() -> bool:
    """Whether this may be a TPU host: a device of Google's that is neither network nor disk, or a variable of its
    runtime."""
    if any(name in os.environ for name in ("TPU_NAME", "TPU_WORKER_ID", "TPU_ACCELERATOR_TYPE", "JAX_FORCE_TPU_INIT")):
        return True
    if glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*"):
        return True
    for device in glob.glob("/sys/bus/pci/devices/*"):
        try:
            with (
                open(f"{device}/vendor", encoding="ascii") as vendor,
                open(f"{device}/class", encoding="ascii") as kind,
            ):
                if vendor.read().strip() == "0x1ae0" and not kind.read().startswith(("0x01", "0x02")):
                    return True
        except OSError:
            continue
    return False


def _jax_plugins() -> list[str]:
    """The modules of JAX's device plugins that are installed."""
    names = [point.value for point in importlib.metadata.entry_points(group="jax_plugins")]
    spec = importlib.util.find_spec("jax_plugins")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return names + [module.name for module in pkgutil.iter_modules(folders)]


def use_atomic_sums() -> None:
    """Let a jaxlib before 0.11 add float32 to shared places of a GPU's memory by one instruction (jax#38806).

    Else it compares and swaps until nobody else has written there, which takes up to 2,000 times as long; what a
    deformable convolution's gradient does on an A100.  LLVM's reason for it is that the instruction takes numbers
    below 1.2e-38 for 0.  Has to come before the first array; nothing changes without a plugin for NVIDIA's GPUs.
    """
    import jax

    flag, given = "nvptx-allow-ftz-atomics", os.environ.get("XLA_FLAGS", "")
    if jax.__version_info__ >= (0, 11) or flag in given or devices_started():
        return
    if any("cuda" in name for name in _jax_plugins()) or "cuda:" in os.environ.get("PJRT_NAMES_AND_LIBRARY_PATHS", ""):
        os.environ["XLA_FLAGS"] = f"{given} --xla_backend_extra_options=-{flag}=true".strip()


def make_deterministic(config: Config) -> None:
    """With config.deterministic: XLA uses repeatable GPU operations only.  Has to come before the first array.

    Raises ConfigError where XLA_FLAGS asks for the opposite, and where JAX has read them already, on a GPU.
    """
    # It implies exclude_nondeterministic_ops, and also keeps autotuning from choosing another algorithm each run.
    flag, given = "--xla_gpu_deterministic_ops", os.environ.get("XLA_FLAGS", "")
    if not config.deterministic:
        return
    if f"{flag}=false" in given:
        raise ConfigError(f"config.deterministic is set, but the environment's XLA_FLAGS say {flag}=false; remove one")
    if flag not in given:
        if devices_started():
            import jax

            if jax.default_backend() != "gpu":
                return  # other devices repeat themselves in any case
            raise ConfigError(
                "config.deterministic is set, but JAX has started its GPUs without it; start Python with "
                f"XLA_FLAGS={flag}=true in the environment, or call kpjax before anything of JAX"
            )
        os.environ["XLA_FLAGS"] = f"{given} {flag}=true".strip()
