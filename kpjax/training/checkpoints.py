"""Checkpoints through Orbax (API v1): training states to resume from, inference weights to hand on.

A work directory holds

    run.lock               which process is training here (kpjax.training.lock)
    config.json            the run's configuration
    metrics.jsonl          the run's numbers (kpjax.training.log), each evaluation's AP among them
    checkpoints/STEP/      `weights` (params, batch_stats), `average` (EMA, if on) and `train` (the rest)
    model/                 an inference checkpoint, written when training ends

and an inference checkpoint is a plain tree {"params", "batch_stats"} that Orbax reads without
kpjax, with its own `config.json` (model, options, class names, normalisation, configuration) beside it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax

from kpjax.checkpoint.orbax import (
    WRITE_TIMEOUT,
    CheckpointError,
    DamagedCheckpoint,
    absolute,
    call_on_failure,
    first_line,
    load_orbax,
    plain_error,
    plain_errors,
    quiet_writing,
    refuse_passing,
    step_metadata,
)
from kpjax.checkpoint.scores import best_step, logged_scores
from kpjax.checkpoint.weights import describe
from kpjax.detectors.base import COMPUTATION, Detector
from kpjax.parallel import distributed
from kpjax.training.digest import digest
from kpjax.training.environment import environment
from kpjax.training.step import TrainState
from kpjax.training.workdir import start_from


class Checkpoints:
    """The training checkpoints of one work directory.

    keep: the newest so many stay; the one with the highest AP stays beside them.
    """

    def __init__(self, workdir: str, keep: int, info: dict[str, Any]):
        ocp = load_orbax()
        quiet_writing()
        policies = ocp.training.preservation_policies
        self.workdir = workdir
        self._directory = absolute(workdir) / "checkpoints"
        self._info = info
        self._scores: dict[int, float] = {}
        with plain_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)

        def open_directory() -> Any:
            checkpointer = ocp.training.Checkpointer(
                self._directory,
                # Saving is decided by the training loop alone.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=policies.AnyPreservationPolicy([policies.LatestN(keep), _KeepBest(self._scores)]),
                cleanup_tmp_directories=True,
            )
            if distributed.active():
                call_on_failure(checkpointer, self._end_all)
            return checkpointer

        self._open = open_directory
        self._checkpointer = open_directory()
        # Log lines of later steps are of a run that was killed before it saved: those steps come again.
        newest = self.latest() or 0
        self._scores |= {step: ap for step, ap in logged_scores(workdir).items() if step <= newest}

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
        ocp = load_orbax()
        patient = ocp.Context()
        patient.asynchronous.timeout_secs = WRITE_TIMEOUT
        with plain_errors(self._directory), patient:
            self._checkpointer.save_checkpointables_async(
                step,
                trees,
                force=True,
                overwrite=True,
                custom_metadata=metadata,
            )

    def _end_all(self, error: Exception) -> None:
        """End this process, and with it the others, which wait for its part of a checkpoint."""
        refused = plain_error(error, self._directory)
        if refused is not None:
            distributed.fail(str(refused), 2)
        distributed.fail_with(error)

    def score(self, step: int, ap: float | None) -> None:
        """Note the AP of a step that was saved.  The run's log keeps it; the checkpoint stays as it is."""
        if ap is not None:
            self._scores[step] = float(ap)

    def wait(self) -> None:
        """Until the last save is on disk.  Raises CheckpointError where it could not be written."""
        with plain_errors(self._directory):
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
            refuse_passing(error, self._directory / str(step))
            raise DamagedCheckpoint(
                f"{self._directory / str(step)} cannot be restored ({first_line(error)}); "
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
        Damaged newer steps are named (`say`) and moved to WORKDIR/damaged-STEP.  Where all steps are damaged nothing is
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
        with plain_errors(place):
            if jax.process_index() == 0:
                (self._directory / str(step)).rename(place)
        distributed.gather(None)  # nobody looks into the folder before it is moved

    def metadata(self, step: int) -> dict[str, Any]:
        """What was stored beside a step: model, classes, configuration, environment, digest.

        Raises DamagedCheckpoint where it is not there any more.
        """
        stored = step_metadata(self._checkpointer, step, self._directory).custom_metadata
        if not stored:  # what Orbax makes of a damaged file
            raise DamagedCheckpoint(
                f"{self._directory / str(step)} cannot be read (nothing says what it holds); "
                "remove that folder to go on from the checkpoint before it"
            )
        return stored

    def best(self) -> tuple[int, float] | None:
        """The kept step with the highest AP, and that AP."""
        return best_step(self._checkpointer.checkpoints, self._scores)

    def close(self) -> None:
        """Wait for writing and release the directory."""
        with plain_errors(self._directory):
            self._checkpointer.close()


@dataclasses.dataclass
class _KeepBest:
    """Orbax's BestN reads only what was saved with a step; an evaluation may come after the saving."""

    scores: dict[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        best = best_step(checkpoints, self.scores)
        return [best is not None and c.step == best[0] for c in checkpoints]


def _differing(stored: dict[str, Any], wanted: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that differ, but for those that say how the network computes and what pictures and AP look like."""

    def learnt(options: dict[str, Any]) -> dict[str, Any]:
        points = options.get("points", {})
        of_points = {f"points.{key}": points[key] for key in ("names", "mirror") if key in points}
        return {k: v for k, v in options.items() if k not in COMPUTATION | {"points"}} | of_points

    ours, theirs = learnt(wanted), learnt(stored)
    odd = [key for key in (theirs | ours) if theirs.get(key) != ours.get(key)]
    return {k: theirs[k] for k in odd if k in theirs}, {k: ours[k] for k in odd if k in ours}


def check_same_model(info: dict[str, Any], detector: Detector, path: str) -> None:
    """Raise CheckpointError where what was stored beside a checkpoint (`info`) is not this detector's.

    Options that say how the network computes (`COMPUTATION`) may differ, and so may the skeleton and the sigmas of
    points.
    """
    ours = describe(detector, (), None)
    for key in ("model", "num_classes", "options"):
        stored, wanted = info.get(key), json.loads(json.dumps(ours[key]))
        if key == "options" and isinstance(stored, dict):
            stored, wanted = _differing(stored, wanted)
        if stored != wanted:
            raise CheckpointError(
                f"{path} is a checkpoint of another model: its {key} is {stored!r}, this run's {wanted!r}; "
                f"use another --workdir; {start_from(path)}"
            )
