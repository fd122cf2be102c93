"""Reading a run's metrics.jsonl, and which of its checkpoints has the best AP."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

from etils import epath


def best_step(checkpoints: Sequence[Any], scores: dict[int, float]) -> tuple[int, float] | None:
    """(step, AP) of the highest AP, the later step where two are equal."""
    known = [(scores.get(c.step), c.step) for c in checkpoints]
    ap, step = max(((ap, step) for ap, step in known if ap is not None), default=(0.0, None))
    return None if step is None else (step, ap)


def logged_scores(workdir: Any) -> dict[int, float]:
    lines = read_metrics(os.fspath(workdir))
    return {line["step"]: line["AP"] for line in lines if line.get("kind") == "eval" and "AP" in line}


METRICS = "metrics.jsonl"


def read_metrics(workdir: str) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl.  A last line cut off by a kill is left out."""
    path = epath.Path(workdir) / METRICS
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines
