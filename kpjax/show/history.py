"""How did a run go?  Its metrics.jsonl as curves."""

from __future__ import annotations

import dataclasses

import numpy as np

from kpjax.checkpoint.scores import read_metrics

MOST_POINTS = 400  # of a curve; more lines are averaged, so that the page stays small
_NO_LOSS = ("kind", "step", "grad_norm", "lr", "images_per_s", "data_wait")


@dataclasses.dataclass(frozen=True)
class History:
    """The numbers that a run has logged.

    step: the last one, 0 where nothing is logged.  train, evaluations: name -> (steps, values), both (n,) float64, in
    the order of the steps.  averaged: how many logged lines a point of `train` is the mean of.
    """

    step: int
    train: dict[str, tuple[np.ndarray, np.ndarray]]
    evaluations: dict[str, tuple[np.ndarray, np.ndarray]]
    averaged: int = 1

    @property
    def losses(self) -> list[str]:
        """The loss and its parts."""
        return [name for name in self.train if name not in _NO_LOSS]

    @property
    def best(self) -> tuple[int, float] | None:
        """(step, AP) of the best evaluation, the later one of two."""
        steps, scores = self.evaluations.get("AP", (np.zeros(0), np.zeros(0)))
        if not len(scores):
            return None
        at = int(np.flatnonzero(scores == scores.max())[-1])
        return int(steps[at]), float(scores[at])


def read_history(workdir: str) -> History:
    """The history of a work directory; one without anything where it has no metrics.jsonl."""
    lines = [line for line in read_metrics(workdir) if isinstance(line, dict) and {"kind", "step"} <= set(line)]
    series: dict[str, dict[str, tuple[list[float], list[float]]]] = {"train": {}, "eval": {}}
    for line in sorted(lines, key=lambda line: line["step"]):
        for name, value in line.items():
            if line["kind"] in series and name not in ("kind", "step") and isinstance(value, int | float):
                steps, values = series[line["kind"]].setdefault(name, ([], []))
                steps.append(line["step"])
                values.append(value)
    arrays = {kind: {n: (np.array(s), np.array(v)) for n, (s, v) in of.items()} for kind, of in series.items()}
    most = max((len(steps) for steps, _ in arrays["train"].values()), default=0)
    averaged = max(1, -(-most // MOST_POINTS))
    train = {
        name: (_means(steps, averaged), _means(values, averaged)) for name, (steps, values) in arrays["train"].items()
    }
    return History(int(max((line["step"] for line in lines), default=0)), train, arrays["eval"], averaged)


def _means(values: np.ndarray, count: int) -> np.ndarray:
    """The means of each `count` values (of fewer at the end)."""
    return np.array([values[i : i + count].mean() for i in range(0, len(values), count)])
