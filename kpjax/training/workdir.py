"""What a work directory says of the run that was there before: its configuration, and what was evaluated."""

from __future__ import annotations

from etils import epath

from kpjax import config as configs
from kpjax.checkpoint.orbax import write_text
from kpjax.checkpoint.scores import read_metrics
from kpjax.checkpoint.weights import is_inference
from kpjax.config import Config
from kpjax.errors import ConfigError

# Settings that may differ between the runs that share a work directory: they do not change
# what is learnt (the mesh only the order of sums, as the number of devices does).
_FREE = (
    "config.log_every",
    "config.checkpoint.",
    "config.eval.",
    "config.sharding.",
    "config.data.threads",
    "config.data.prefetch",
    "config.data.bad_images",
    "config.data.sigmas",
)


def check_workdir(root: epath.Path, config: Config) -> None:
    """Raise ConfigError where a run of another configuration has left weights here.

    A try that ended before its first checkpoint (out of memory, say) may be repeated with other settings.
    """
    file = root / "config.json"
    if not file.exists():
        return
    try:
        old = configs.from_json(file.read_text())
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); use another --workdir") from error
    if not holds_weights(root):
        return
    changed = [d for d in configs.differences(old, config) if not d.startswith(_FREE)]
    if changed:
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise ConfigError(
            f"{root} holds a run of another configuration: {changed[0]}{more}; use another --workdir, or that setting; "
            f"{start_from(root)}"
        )


def start_from(path: object) -> str:
    """The end of a message that refuses to go on from a checkpoint or work directory: how to begin with its weights."""
    return f"to begin a new run with its weights, use another --workdir and --config.init_from={path}"


def holds_weights(workdir: epath.PathLike) -> bool:
    """Whether a run has left weights in its work directory."""
    root = epath.Path(workdir)
    # While Orbax writes a step, its folder has a longer name than the step's number.
    folder = root / "checkpoints"
    steps = folder.iterdir() if folder.exists() else ()
    return any(step.name.isdigit() for step in steps) or is_inference(root / "model")


def write_config(root: epath.Path, config: Config) -> None:
    """Write config.json.  Called once all inputs are known to be good: a mistake leaves the directory as it was."""
    write_text(root / "config.json", configs.to_json(config))


def evaluated(workdir: str, step: int) -> bool:
    """Whether the evaluation after `step` is in the log."""
    return any(line["kind"] == "eval" and line["step"] == step for line in read_metrics(workdir))
