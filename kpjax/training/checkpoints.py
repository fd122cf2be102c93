"""Checkpoints through Orbax (API v1): training states to resume from, inference weights to hand on.

A work directory holds

    config.json            the run's configuration
    metrics.jsonl          the run's numbers (kpjax.training.log), each evaluation's AP among them
    checkpoints/STEP/      `weights` (params, batch_stats), `average` (EMA, if on) and `train` (the rest)
    model/                 an inference checkpoint, written when training ends

and an inference checkpoint is a plain tree {"params", "batch_stats"} that Orbax reads without
kpjax, with its own `config.json` (model, options, class names, normalisation, configuration) beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import importlib.metadata
import json
import logging
import os
import platform
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from kpjax import config as configs
from kpjax.config import Config
from kpjax.data import files
from kpjax.detectors import build
from kpjax.detectors.base import Detector
from kpjax.errors import ConfigError, UserError, origins
from kpjax.parallel import distributed
from kpjax.training.log import read_metrics
from kpjax.training.step import TrainState

# Orbax times its writing by the wall clock: a clock put right in the meantime would end a save after 20 minutes that
# nobody had waited.  (Its 10 minutes for making folders cannot be set; those are milliseconds.)
_PATIENCE = 10**9
INFO = "config.json"
_OLD_INFO = "kpjax.json"  # what 0.1.0 called it before its first release; still read


class CheckpointError(UserError):
    """A checkpoint that cannot be read or written.  Its text is one line."""


class DamagedCheckpoint(CheckpointError):
    """A step of a run that is on disk but not as it was written."""


def _ocp() -> Any:
    from orbax.checkpoint import v1 as ocp

    logging.getLogger("absl").addFilter(_worth_saying)
    _tell_failure_once()
    return ocp


def _worth_saying(record: logging.LogRecord) -> bool:
    if "orbax" not in record.pathname:
        return True
    # What fails in its threads it logs in full, several times over, and then raises: that is said in one line.
    raised = record.filename in ("future.py", "async_checkpointer.py", "checkpoint_manager.py")
    # That a save waited for the one before is told by kpjax.training.run, once.
    return not (record.exc_info and raised) and not str(record.msg).startswith("Waiting for previous save")


@functools.cache
def _tell_failure_once() -> None:
    """Keep the other arrays' failures off the terminal: Orbax writes many at once, and raises the first's alone.

    asyncio would report each in full, Python those that come after Orbax has ended its loop.
    """
    logging.getLogger("asyncio").addFilter(lambda record: not record.exc_info or "OCDBT" not in str(record.exc_info[1]))
    usual = sys.unraisablehook
    sys.unraisablehook = lambda said: None if str(said.exc_value) == "Event loop is closed" else usual(said)


def environment() -> dict[str, Any]:
    """What bitwise repetition depends on (docs/architecture.md, Resuming)."""
    import flax
    import jaxlib

    device = jax.devices()[0]
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "processes": jax.process_count(),
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": platform.machine(),
        "jax": jax.__version__,
        "jaxlib": jaxlib.__version__,
        "flax": flax.__version__,
        # Those of the input pipeline and the optimizer: looked up, not imported.
        "optax": _version("optax"),
        "tensorflow": _version("tensorflow", "tensorflow-cpu"),
        "opencv": _version("opencv-python-headless", "opencv-python"),
        "pillow": _version("pillow"),
    }


def _version(*distributions: str) -> str:
    """The version of the first of them that is installed, or "none"."""
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


def describe(detector: Detector, names: tuple[str, ...], config: Config | None) -> dict[str, Any]:
    """What a reader needs beside the arrays, as plain JSON values."""
    return {
        "format": 1,
        "model": detector.name,
        "num_classes": detector.num_classes,
        "options": detector.options,
        "classes": list(names),
        "input": dataclasses.asdict(detector.preprocess) | _input_rules(detector),
        "config": json.loads(configs.to_json(config)) if config else None,
    }


def _input_rules(detector: Detector) -> dict[str, Any]:
    """What `Preprocess` means, for a reader who has not got its docstring: config.json is read without kpjax."""
    preprocess = detector.preprocess
    canvas = f"(side | {preprocess.pad}) + 1" if preprocess.pad_plus_one else f"side | {preprocess.pad}"
    return {
        "layout": "NHWC",
        "dtype": "float32",
        "normalisation": "(pixel / 255 - mean) / std, channels in `order`",
        "canvas": f"{canvas} pixels for each side of an image, the rest filled with `border` before normalisation",
        "stride": detector.stride,
        "sides": f"multiples of {detector.multiple}" + (f" less {detector.less}" if detector.less else ""),
    }


class Checkpoints:
    """The training checkpoints of one work directory.

    keep: the newest so many stay; the one with the highest AP stays beside them.
    """

    def __init__(self, workdir: str, keep: int, info: dict[str, Any]):
        ocp = _ocp()
        policies = ocp.training.preservation_policies
        self.workdir = workdir
        self._directory = absolute(workdir) / "checkpoints"
        self._info = info
        self._scores: dict[int, float] = {}
        with _plain_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)

        def open_directory() -> Any:
            checkpointer = ocp.training.Checkpointer(
                self._directory,
                # Saving is decided by the training loop alone.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), _KeepBest(self._scores)]),
                cleanup_tmp_directories=True,
            )
            # With every save Orbax asks JAX whether a preemption was announced, by the step's number.  JAX keeps one
            # number a process, which is `StopSignal`'s: all have to ask for the same ones.
            checkpointer._manager.reached_preemption = lambda step: False
            wait = getattr(checkpointer._manager, "_wait_for_checkpointers", None)  # private: another Orbax may lack it
            if wait is not None and distributed.active():
                checkpointer._manager._wait_for_checkpointers = self._telling(wait)
            return checkpointer

        self._open = open_directory
        self._checkpointer = open_directory()
        # Log lines of later steps are of a run that was killed before it saved: those steps come again.
        newest = self.latest() or 0
        self._scores |= {step: ap for step, ap in _logged_scores(workdir).items() if step <= newest}

    def latest(self) -> int | None:
        """The newest complete step, or None."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def save(self, state: TrainState) -> None:
        """Start writing the state (asynchronously; donated buffers are copied first)."""
        step = int(state.step)
        trees = {
            "weights": {"params": state.params, "batch_stats": state.batch_stats},
            "train": {"step": state.step, "opt_state": state.opt_state, "first_bad_step": state.first_bad_step},
        }
        if state.ema is not None:
            trees["average"] = {"params": state.ema, "batch_stats": state.batch_stats}
        metadata = self._info | {"environment": environment(), "digest": digest(state)}
        ocp = _ocp()
        patient = ocp.Context()
        patient.asynchronous.timeout_secs = _PATIENCE
        with _plain_errors(self._directory), patient:
            self._checkpointer.save_checkpointables_async(
                step,
                trees,
                force=True,
                overwrite=True,
                custom_metadata=metadata,
            )

    def _telling(self, wait: Callable[[], None]) -> Callable[[], None]:
        """`wait`, which ends this process where its part of a checkpoint could not be written and others wait for it.

        Orbax calls it in a thread.  Raised there, the error would reach the main thread after 20 minutes: first Orbax
        meets the other processes at a barrier, to which they come after all have written.
        """

        def wait_and_tell() -> None:
            try:
                with _plain_errors(self._directory):
                    wait()
            except Exception as error:
                if isinstance(error, CheckpointError):
                    distributed.fail(str(error), 2)
                distributed.fail_with(error)

        return wait_and_tell

    def score(self, step: int, ap: float | None) -> None:
        """Tell the AP of a step that was saved.  The run's log keeps it; the checkpoint stays as it is."""
        if ap is not None:
            self._scores[step] = float(ap)

    def wait(self) -> None:
        """Until the last save is on disk.  Raises CheckpointError where it could not be written."""
        with _plain_errors(self._directory):
            self._checkpointer.wait()

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state of a step, laid out as `like` (arrays or ShapeDtypeStructs with shardings).

        Raises DamagedCheckpoint where it cannot be read, or is not what was written.
        """
        wanted = {
            "weights": {"params": like.params, "batch_stats": like.batch_stats},
            "train": {"step": like.step, "opt_state": like.opt_state, "first_bad_step": like.first_bad_step},
        }
        if like.ema is not None:
            wanted["average"] = {"params": like.ema, "batch_stats": like.batch_stats}
        try:
            found = self._checkpointer.load_checkpointables(step, wanted)
        except Exception as error:  # whatever a damaged file makes of Orbax's readers
            _refuse_passing(error, self._directory / str(step))
            raise DamagedCheckpoint(
                f"{self._directory / str(step)} cannot be restored ({_first_line(error)}); "
                "remove that folder to go on from the checkpoint before it"
            ) from error
        state = TrainState(
            step=found["train"]["step"],
            params=found["weights"]["params"],
            batch_stats=found["weights"]["batch_stats"],
            opt_state=found["train"]["opt_state"],
            ema=found["average"]["params"] if like.ema is not None else None,
            first_bad_step=found["train"]["first_bad_step"],
        )
        stored = self.metadata(step).get("digest")
        if (stored is not None and stored != digest(state)) or int(state.step) != step:
            raise DamagedCheckpoint(
                f"{self._directory / str(step)} cannot be restored (its values are not those that were written); "
                "remove that folder to go on from the checkpoint before it"
            )
        return state

    def restore_newest(
        self, like: TrainState, check: Callable[[dict[str, Any], str], None], say: Callable[[str], None]
    ) -> tuple[TrainState, int, dict[str, Any]] | None:
        """(state, step, what was stored beside it) of the newest step that can be restored; None where there is none.

        check: called with what is stored beside a step and its folder; what it raises ends the search.
        Damaged newer steps are told (`say`) and moved to WORKDIR/damaged-STEP.  Where all steps are damaged nothing is
        moved, and the newest one's DamagedCheckpoint is raised.
        """
        steps = sorted((c.step for c in self._checkpointer.checkpoints), reverse=True)
        damaged: list[tuple[int, str]] = []  # texts: an exception would hold its frames' arrays on the device
        for step in steps:
            state = stored = None
            error = ""
            try:
                stored = self.metadata(step)
                check(stored, str(self._directory / str(step)))
                state = self.restore(step, like)
            except DamagedCheckpoint as found:
                error = str(found)
            if all(distributed.gather(not error)):
                assert state is not None and stored is not None
                for number, reason in damaged:
                    self._set_aside(number, reason, step, say)
                if damaged:
                    self._checkpointer.close()
                    self._checkpointer = self._open()
                    for scored in [s for s in self._scores if s > step]:
                        del self._scores[scored]
                return state, step, stored
            state = None  # what another process could not restore makes room
            damaged.append((step, error or f"{self._directory / str(step)} could not be restored by another process"))
        if damaged:
            raise DamagedCheckpoint(damaged[0][1])
        return None

    def _set_aside(self, step: int, reason: str, good: int, say: Callable[[str], None]) -> None:
        place, again = self._directory.parent / f"damaged-{step}", 1
        while place.exists():
            again += 1
            place = self._directory.parent / f"damaged-{step}-{again}"
        say(f"{reason.partition('; remove')[0]}: going on from step {good}; the damaged one is now {place}")
        with _plain_errors(place):
            if jax.process_index() == 0:
                (self._directory / str(step)).rename(place)
        distributed.gather(None)  # nobody looks into the folder before it is moved

    def metadata(self, step: int) -> dict[str, Any]:
        """What was stored beside a step: model, classes, configuration, environment, digest.

        Raises DamagedCheckpoint where it is not there any more.
        """
        stored = _metadata(self._checkpointer, step, self._directory).custom_metadata
        if not stored:  # what Orbax makes of a damaged file
            raise DamagedCheckpoint(
                f"{self._directory / str(step)} cannot be read (nothing says what it holds); "
                "remove that folder to go on from the checkpoint before it"
            )
        return stored

    def best(self) -> tuple[int, float] | None:
        """The kept step with the highest AP, and that AP."""
        return _best(self._checkpointer.checkpoints, self._scores)

    def close(self) -> None:
        """Wait for writing and release the directory."""
        with _plain_errors(self._directory):
            self._checkpointer.close()


def digest(state: TrainState) -> int:
    """32 bits that depend on every bit of a state and not on how it lies on the devices.

    A change of any single number changes it: bits are summed with odd weights, modulo 2^32.
    """
    sums = [np.asarray(x) for x in _bit_sums(jax.tree.leaves(state))]
    return zlib.crc32(np.array(sums, np.uint32).tobytes())


@jax.jit
def _bit_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_bit_sum(x) for x in leaves]


@jax.jit  # traced once for arrays of one shape
def _bit_sum(x: jax.Array) -> jax.Array:
    if x.dtype == jnp.bool_ or x.dtype.itemsize > 4:
        bits = x.astype(jnp.uint32) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, jnp.uint32)
    else:
        unsigned = jnp.dtype(f"uint{8 * x.dtype.itemsize}")
        bits = jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)
    # Not a reshape: that would gather a sharded array.
    weight, stride = jnp.ones((), jnp.uint32), 2
    for axis in reversed(range(bits.ndim)):
        weight = weight + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride % 2**32)
        stride *= bits.shape[axis]
    return jnp.sum(bits * weight, dtype=jnp.uint32)


def _refuse_passing(error: Exception, path: epath.Path) -> None:
    """Raise where reading failed for want of memory (`error` itself), permission or connection (CheckpointError).

    The checkpoint may be whole then, and must not count as damaged.
    """
    if any(isinstance(one, MemoryError) or "RESOURCE_EXHAUSTED" in str(one) for one in origins(error)):
        raise error
    numbers = {getattr(one, "errno", None) for one in origins(error)}
    if numbers & _PASSING_NUMBERS or any(word in str(error) for word in _PASSING_WORDS):
        raise CheckpointError(
            f"{path} cannot be read now ({_first_line(error)}); it was left as it is, and the same command tries again"
        ) from error


@dataclasses.dataclass
class _KeepBest:
    """Orbax's BestN reads only what was saved with a step; an evaluation may come after the saving."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = _best(checkpoints, self.scores)
        return [best is not None and c.step == best[0] for c in checkpoints]


def _best(checkpoints: Sequence[Any], scores: dict[int, float]) -> tuple[int, float] | None:
    """(step, AP) of the highest AP, the later step where two are equal."""
    known = [(scores.get(c.step), c.step) for c in checkpoints]
    ap, step = max(((ap, step) for ap, step in known if ap is not None), default=(0.0, None))
    return None if step is None else (step, ap)


def _logged_scores(workdir: Any) -> dict[int, float]:
    lines = read_metrics(os.fspath(workdir))
    return {line["step"]: line["AP"] for line in lines if line.get("kind") == "eval" and "AP" in line}


def _metadata(checkpointer: Any, step: int, folder: Any) -> Any:
    try:
        return checkpointer.checkpointables_metadata(step)
    except Exception as error:  # whatever a damaged file makes of Orbax's readers
        _refuse_passing(error, folder / str(step))
        raise DamagedCheckpoint(
            f"{folder / str(step)} cannot be read ({_first_line(error)}); "
            "remove that folder to go on from the checkpoint before it"
        ) from error


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights ready for inference.  variables: {"params", "batch_stats"} as NumPy arrays."""

    detector: Detector
    variables: dict[str, Any]
    names: tuple[str, ...]
    config: Config | None
    step: int | None


def save_inference(
    path: str, detector: Detector, variables: Any, names: tuple[str, ...], config: Config | None = None
) -> None:
    """Write an inference checkpoint, in place of an older one at the same path.

    All of it is written to PATH.part first and then renamed, so that the older one stays until the
    new one is whole.  Raises CheckpointError, before writing, where something else is at the path.
    """
    target = absolute(path)
    if target.exists() and not is_inference(target) and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{path} is there and is no inference checkpoint; name another path, or remove it")
    part, old = (target.parent / (target.name + end) for end in (".part", ".old"))
    first = jax.process_index() == 0
    with _plain_errors(target):
        if first:
            # Where no folder can be made, Orbax leaves a thread behind that keeps the program from ending: try it here.
            part.mkdir(parents=True, exist_ok=True)
            part.rmtree(missing_ok=True)  # and what a killed run left there
        try:
            _ocp().save(part, {"params": variables["params"], "batch_stats": variables["batch_stats"]})
            if not first:
                return
            write_text(part / INFO, json.dumps(describe(detector, names, config), indent=1))
            if target.exists():
                if old.exists():
                    old.rmtree()
                target.rename(old)
        except Exception:
            if first:
                _remove_unfinished(part)
            raise
        part.rename(target)
        if old.exists():
            old.rmtree()


def _remove_unfinished(part: epath.Path) -> None:
    """Remove what a failed save left, as far as that can be done: why it failed matters more."""
    gone = 0
    for _ in range(100):  # what is still being written comes again, folders and all
        with contextlib.suppress(OSError):
            left = [
                path for path in part.parent.iterdir() if path.name.partition(".orbax-checkpoint-tmp")[0] == part.name
            ]
            gone = 0 if left else gone + 1
            for path in left:
                path.rmtree(missing_ok=True)
        if gone == 3:
            return
        time.sleep(0.1)


def is_inference(folder: epath.Path) -> bool:
    """Whether a folder is an inference checkpoint: its config.json says so, which a work directory's does not."""
    if not (folder / INFO).exists():
        return (folder / _OLD_INFO).exists()
    try:
        info = json.loads((folder / INFO).read_text())
    except (OSError, ValueError):
        return (folder / "state").exists()  # Orbax's arrays are there: a damaged one, and reading says what is wrong
    return isinstance(info, dict) and {"format", "model"} <= set(info)


def load_inference(path: str, best: bool = False) -> Loaded:
    """Weights from an inference checkpoint, or from a work directory's newest (or best) step.

    best: of the steps with an AP the one with the highest; without any, CheckpointError.
    Of a run with a moving average it is the average that is loaded.  Raises CheckpointError.
    """
    root = absolute(path)
    if not root.exists():
        raise CheckpointError(f"{path}: no such checkpoint or work directory")
    if not root.is_dir():
        raise CheckpointError(
            f"{path} is a file, and a checkpoint is a folder; one of PyTorch becomes one with "
            f"python -m kpjax convert {path} --model NAME --out DIR"
        )
    ocp = _ocp()
    if is_inference(root):
        place = root / (INFO if (root / INFO).exists() else _OLD_INFO)
        info = _read_json(place)
        read, step = (lambda: ocp.load(root, _on_host(ocp.metadata(root).metadata))), None
    else:
        folder = root / "checkpoints"
        if not folder.exists() and root.name.isdigit():
            folder, wanted_step = root.parent, int(root.name)
        else:
            wanted_step = None
        if not folder.exists():
            raise CheckpointError(f"{path} is neither an inference checkpoint (no {INFO} of one) nor a work directory")
        checkpointer = ocp.training.Checkpointer(folder)
        steps = [c for c in checkpointer.checkpoints if wanted_step in (None, c.step)]
        if not steps:
            raise CheckpointError(f"{folder} holds no complete checkpoint; train first, or name another directory")
        step = max(c.step for c in steps)
        if best:
            scored = _best(steps, _logged_scores(folder.parent))
            if scored is None:
                raise CheckpointError(
                    f"{folder}: no checkpoint has an AP (newest step: {step}), so there is no best one; leave --best "
                    "out, or train with validation data and config.eval.every"
                )
            step = scored[0]
        found = _metadata(checkpointer, step, folder)
        info, place = found.custom_metadata or {}, folder / str(step)
        item = "average" if "average" in found.metadata else "weights"
        tree = _on_host(found.metadata[item])
        read = lambda: checkpointer.load_checkpointables(step, {item: tree})[item]  # noqa: E731
    if not {"model", "num_classes", "options", "classes"} <= set(info):
        raise CheckpointError(f"{path} was not written by kpjax: it does not say which model it holds")
    for key, fits, wanted in (
        ("model", lambda x: isinstance(x, str), "a name"),
        ("num_classes", lambda x: type(x) is int, "a whole number"),
        ("options", lambda x: isinstance(x, dict), "an object of options"),
        ("classes", lambda x: isinstance(x, list) and all(isinstance(name, str) for name in x), "a list of names"),
    ):
        if not fits(info[key]):
            raise CheckpointError(f"{place}: {key} is {info[key]!r}; it must be {wanted}"[:500])
    try:
        detector = build(info["model"], info["num_classes"], **info["options"])
        config = configs.from_json(json.dumps(info["config"])) if info.get("config") else None
    except ConfigError as error:
        raise CheckpointError(f"{place}: {error}") from error
    try:
        variables = read()
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}") from error
    check_shapes(detector, variables, path)
    return Loaded(detector, variables, tuple(info["classes"]), config, step)


def check_same_model(info: dict[str, Any], detector: Detector, path: str) -> None:
    """Raise CheckpointError where what was stored beside a checkpoint (`info`) is not this detector's."""
    ours = describe(detector, (), None)
    for key in ("model", "num_classes", "options"):
        stored, wanted = info.get(key), json.loads(json.dumps(ours[key]))
        if stored != wanted:
            raise CheckpointError(
                f"{path} is a checkpoint of another model: its {key} is {stored!r}, this run's {wanted!r}; "
                "use another --workdir"
            )


def check_shapes(detector: Detector, variables: Any, path: str) -> None:
    """Raise CheckpointError where the arrays are not those of the detector."""
    wanted = jax.eval_shape(
        lambda key: detector.net.init(key, np.zeros((1, 64, 64, 3), np.float32), train=False), jax.random.key(0)
    )
    flat = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(dict(wanted))}
    found = {jax.tree_util.keystr(k): v.shape for k, v in jax.tree_util.tree_leaves_with_path(dict(variables))}
    for key in sorted(flat.keys() | found.keys()):
        if flat.get(key) != found.get(key):
            raise CheckpointError(
                f"{path} is a checkpoint of another model than {detector.name}: "
                f"{key} is {found.get(key, 'missing')}, expected {flat.get(key, 'nothing')}"
            )


def absolute(path: str) -> epath.Path:
    """Orbax refuses relative paths."""
    return epath.Path(files.absolute(path))


def write_text(path: epath.Path, text: str) -> None:
    """Write a file so that a reader sees the old text or the new one, never a part."""
    part = path.parent / (path.name + ".part")  # through epath as Orbax does it, so that a bucket needs no TensorFlow
    with _plain_errors(path):
        part.write_text(text)
        part.replace(path)


def _on_host(tree: Any) -> Any:
    # NumPy leaves ask Orbax for host arrays: no device layout of the writer is needed.
    return jax.tree.map(lambda m: np.empty(m.shape, m.dtype), tree)


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class _plain_errors:
    """Turn a refusal to write into one line; the checkpoints before stay as they are."""

    def __init__(self, path: Any):
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, CheckpointError):
            return
        texts = "\n".join(str(one) for one in origins(error))
        if distributed.of_peers(error) and "DEADLINE_EXCEEDED" not in texts:
            return
        if isinstance(error, TimeoutError) and not error.errno:
            raise CheckpointError(
                f"{self.path} was not written in time (a slow disk, or a clock that was put forward); earlier "
                "checkpoints are intact, the same command goes on from there"
            ) from error
        # Orbax wraps the system's error, and TensorStore's errors are texts.
        numbers = [one.errno for one in origins(error) if isinstance(one, OSError) and one.errno]
        refused = [text for text in _REFUSALS if text.lower() in texts.lower()]
        reasons = [os.strerror(number) for number in numbers] or refused
        if reasons:
            text = f"{self.path} cannot be written: {reasons[0]}; earlier checkpoints are intact"
            raise CheckpointError(text) from error


_PASSING_NUMBERS = {errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENOMEM}
_PASSING_WORDS = ("PERMISSION_DENIED", "Permission denied", "UNAVAILABLE", "DEADLINE_EXCEEDED")
_REFUSALS = tuple(
    os.strerror(e) for e in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO)
)
