"""What to try next follows from the figures, and only from them."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import numpy as np

from kpjax.config import Config
from kpjax.metrics.findings import BoxErrors, Findings, box_errors, findings
from kpjax.show.advice import MOST, Facts, what_next
from kpjax.show.history import History, read_history
from tests.show.report_subjects import logged, rows_of, source_of

NAMES = ("cat", "dog", "crane")


def numbers(images: int = 100) -> tuple[Findings, BoxErrors]:
    source = source_of(images, NAMES)
    truth, rows, ids = source.ground_truth(), rows_of(source), source.image_ids.tolist()
    found = findings(truth, rows, ids, dict(zip(source.category_ids, NAMES, strict=True)))
    return found, box_errors(truth, rows, ids, found)


def said(**facts: Any) -> list[str]:
    given = {"config": Config(steps=100, init_from="x"), "history": History(0, {}, {}), "names": NAMES}
    return [f"{a.why} {a.what} {a.setting}" for a in what_next(Facts(**(given | facts)))]


def history(steps: int, scores: list[float], **train: float) -> History:
    at = np.linspace(steps / len(scores), steps, len(scores)) if scores else np.zeros(0)
    logged = {name: (np.array([1.0]), np.array([value])) for name, value in train.items()}
    return History(steps, logged, {"AP": (at, np.array(scores))} if scores else {})


def test_nothing_is_known() -> None:
    assert said() == []


def test_schedule() -> None:
    (line,) = said(history=history(40, [0.1]), steps=100)
    assert line.startswith("The run is at step 40 of 100, before its learning rate has dropped. Let it finish")
    (line,) = said(history=history(100, [0.1, 0.2, 0.3, 0.45]), steps=100)
    assert "still rose by 0.150" in line and line.endswith("--config.steps=150")
    assert said(history=history(100, [0.1, 0.3, 0.3, 0.301]), steps=100) == []
    (line,) = said(history=history(100, [0.1, 0.5, 0.4, 0.4]), steps=100)
    assert line.startswith("AP was 0.500 at step 50 and is 0.400 at the end.") and line.endswith(
        "config.optim.ema=0.999"
    )
    (line,) = said(history=history(100, []), steps=100)
    assert line.endswith("--config.eval.every=10")
    (line,) = said(history=history(100, [0.5], data_wait=0.6), steps=100)
    assert line.startswith("Training waited 60% of the time") and line.endswith("--config.data.prefetch=4")


def test_fit() -> None:
    (line,) = said(ap=0.4, train_ap=0.8)
    assert "AP is 0.800 on training images and 0.400 on the split" in line
    weak = Config(steps=1)
    weak.augment.kind, weak.augment.scale = "shift", 0.1
    assert said(config=weak, ap=0.4, train_ap=0.8)[0].endswith("--config.augment.scale=0.4")
    (line,) = said(config=Config(steps=1), ap=0.2, train_ap=0.22)
    assert line.startswith("AP is only 0.220") and line.endswith("--config.init_from=resnet18.pth")
    assert said(ap=0.7, train_ap=0.75) == []


def test_sizes() -> None:
    sides = np.array([2.0] * 10 + [30.0] * 90)
    (line,) = said(train_sides=sides)
    assert line.startswith("10% of the training boxes are smaller than 4 pixels") and "height=768" in line
    found, _ = numbers()
    rows = tuple(dataclasses.replace(r, by_size={"small": 0.1, "medium": 0.6, "large": np.nan}) for r in found.rows)
    assert any("small objects is 0.100" in line for line in said(boxes=dataclasses.replace(found, rows=rows)))
    assert not any("small objects" in line for line in said(boxes=found))


def test_kinds_and_classes() -> None:
    found, errors = numbers()
    lines = said(boxes=found, errors=errors)
    worst = max(errors.errors.cost, key=lambda kind: errors.errors.cost[kind])
    assert any(worst in line.lower() and f"{errors.errors.cost[worst]:.3f} higher" in line for line in lines)
    assert lines[-1].endswith(f"--score-thr {found.threshold.score:.2f} (detect.py)")
    low = tuple(dataclasses.replace(row, ap=0.1 if k == 2 else 0.6) for k, row in enumerate(found.rows))
    bad = dataclasses.replace(found, rows=low)
    (line,) = (x for x in said(boxes=bad, train_counts=np.array([90, 90, 7])) if x.startswith("crane"))
    assert "AP of 0.100, with 7 examples in training" in line and "Label more images" in line
    confusion = np.zeros((4, 4), np.int64)
    confusion[2] = [70, 0, 10, 0]
    mixed = dataclasses.replace(errors, confusion=confusion)
    (line,) = (x for x in said(boxes=bad, errors=mixed) if x.startswith("crane"))
    assert "70 of its objects are taken for cat" in line
    assert not any("objects, so that its AP" in line for line in lines)
    assert any("only 30 objects" in line for line in said(boxes=numbers(10)[0]))


def test_limits() -> None:
    (line,) = said(counts=np.array([3, 130]))
    assert line.startswith("An image has 130 objects") and line.endswith("--config.eval.top_k=130")
    everything = dict(zip(("boxes", "errors"), numbers(10), strict=True))
    many = said(
        history=history(100, [0.1, 0.5, 0.2], data_wait=0.9),
        ap=0.1,
        train_ap=0.9,
        train_sides=np.ones(9),
        counts=np.array([500]),
        **everything,
    )
    assert 5 <= len(many) <= MOST


def test_history(tmp_path: pathlib.Path) -> None:
    assert read_history(str(tmp_path)) == History(0, {}, {})
    found = read_history(logged(tmp_path, steps=400))
    assert found.step == 400 and found.losses == ["loss", "heatmap", "wh"] and found.averaged == 1
    assert found.best == (400, 0.5) and len(found.train["lr"][0]) == 40
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')  # cut off by a kill
    assert read_history(str(tmp_path)).step == 400
    long = read_history(logged(tmp_path, steps=10_000))
    assert long.averaged == 3 and len(long.train["loss"][0]) == 334
    steps, values = long.train["loss"]
    assert steps[0] == 20 and values[0] == np.mean([1.3, 1.15, 1.1]) and steps[-1] == 10_000
