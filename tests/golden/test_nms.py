"""Soft-NMS, its merging form and the cap on detections: Cython of CornerNet and xingyizhou's CenterNet, and mmcv's."""

from __future__ import annotations

import re
from typing import Any

import jax
import numpy as np

from kpjax.ops.nms import MMCV, SoftNms, keep_best, soft_nms, soft_nms_merge

from .cases import each_case

METHODS = {"0": "hard", "1": "linear", "2": "gaussian"}
run = jax.jit(soft_nms, static_argnames=("rules", "stale_rows"))
run_merge = jax.jit(soft_nms_merge, static_argnames=("rules", "exponent", "stale_rows"))


def variant(name: str) -> SoftNms:
    """`linear_nt0.3_thr0.05` -> its rules."""
    method, *changes = name.split("_")
    fields = {"nt": "overlap", "thr": "threshold", "sigma": "sigma"}
    values = {}
    for change in changes:
        key, value = re.fullmatch(r"([a-z]+)([\d.]+)", change).groups()  # type: ignore[union-attr]
        values[fields[key]] = float(value)
    return SoftNms(method, **values)


def one_class(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows[:, :4], rows[:, 4], np.zeros(len(rows), np.int32)


def sets_as_classes(case: Any, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all sets, and the number of its set as each row's class: one program, and sets must not touch."""
    rows = [case[f"{name}/input"] for name in names]
    return np.concatenate(rows), np.repeat(np.arange(len(rows), dtype=np.int32), [len(r) for r in rows])


@each_case("soft_nms")
def test_whole_arrays(case: Any) -> None:
    """Every row, the stale ones behind the kept rows too, and how many are kept."""
    exponent = float(re.search(r"weight_exp=([\d.]+)", case.info["arguments"]["common"]).group(1))  # type: ignore[union-attr]
    found_names = [re.fullmatch(r"(\w+)/(soft_nms|soft_nms_merge)/([^/]+)/out", n) for n in case.arrays]
    groups: dict[tuple[str, str], list[str]] = {}
    for match in filter(None, found_names):
        groups.setdefault((match[2], match[3]), []).append(match[1])
    assert groups
    for (function, kind), sets in groups.items():
        rows, labels = sets_as_classes(case, sets)
        options = {"rules": variant(kind), "stale_rows": True}
        if function == "soft_nms":
            found = run(rows[:, :4], rows[:, 4], labels, **options)
        else:
            found = run_merge(rows[:, :4], rows[:, 4], labels, rows[:, 5:7], exponent=exponent, **options)
        assert found.kept.all()
        for k, name in enumerate(sets):
            where, message = f"{name}/{function}/{kind}", f"{name} {function} {kind}"
            expected, part = case[f"{where}/out"], labels == k
            np.testing.assert_array_equal(
                found.stale[part], np.arange(len(expected)) >= case[f"{where}/n_keep"], err_msg=message
            )
            np.testing.assert_allclose(found.boxes[part], expected[:, :4], atol=1e-3, err_msg=message)
            np.testing.assert_allclose(found.scores[part], expected[:, 4], atol=1e-5, err_msg=message)


@each_case("soft_nms")
def test_hard_nms_keeps_the_same_rows(case: Any) -> None:
    sets = [n.split("/")[0] for n in case.arrays if n.endswith("/nms/keep")]
    assert sets
    rows, labels = sets_as_classes(case, sets)
    found = run(rows[:, :4], rows[:, 4], labels, rules=SoftNms("hard", inclusive=True))
    for k, name in enumerate(sets):
        index = np.asarray(found.index)[np.asarray(found.kept) & (labels == k)] - np.argmax(labels == k)
        np.testing.assert_array_equal(index, case[f"{name}/nms/keep"], err_msg=name)


@each_case("soft_nms")
def test_soft_nms_with_points(case: Any) -> None:
    """ExtremeNet's: rows x1, y1, x2, y2, score, four points; a dropped row becomes a copy of the last one."""
    matches = [re.fullmatch(r"(\w+)/soft_nms_with_points/([^/]+)/out", n) for n in case.arrays]
    groups: dict[str, list[str]] = {}
    for match in filter(None, matches):
        groups.setdefault(match[2], []).append(match[1])
    assert groups
    for kind, sets in groups.items():
        parts = [case[f"{name}/points_input"] for name in sets]
        rows, labels = np.concatenate(parts), np.repeat(np.arange(len(parts), dtype=np.int32), [len(p) for p in parts])
        found = run(rows[:, :4], rows[:, 4], labels, rules=variant(kind), stale_rows=True)
        points = rows[:, 5:13][np.asarray(found.index)]
        for k, name in enumerate(sets):
            where, part = f"{name}/soft_nms_with_points/{kind}", labels == k
            expected = case[f"{where}/out"]
            stale = np.arange(len(expected)) >= case[f"{where}/n_keep"]
            np.testing.assert_array_equal(found.stale[part], stale, err_msg=where)
            np.testing.assert_allclose(found.boxes[part], expected[:, :4], atol=1e-3, err_msg=where)
            np.testing.assert_allclose(points[part], expected[:, 5:13], atol=1e-3, err_msg=where)
            np.testing.assert_allclose(found.scores[part], expected[:, 4], atol=1e-5, err_msg=where)


@each_case("fn_ctnet_merge")
def test_soft_nms_of_one_class(case: Any) -> None:
    names = [n for n in case.arrays if re.fullmatch(r"soft_nms_m\d_Nt[\d.]+", n)]
    assert names
    rows = case["in/boxes"]
    for name in names:
        method, overlap = re.fullmatch(r"soft_nms_m(\d)_Nt([\d.]+)", name).groups()  # type: ignore[union-attr]
        rules = SoftNms(METHODS[method], overlap=float(overlap))
        found = run(*one_class(rows), rules=rules, stale_rows=True)
        np.testing.assert_allclose(found.boxes, case[name][:, :4], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(found.scores, case[name][:, 4], atol=1e-5, err_msg=name)
        assert len(rows) - found.stale.sum() == case[f"{name}_n"][0], name


@each_case("fn_ctnet_merge")
def test_hard_nms_of_one_class(case: Any) -> None:
    names = [n for n in case.arrays if n.startswith("hard_nms_")]
    assert names
    for name in names:
        overlap = float(name.removeprefix("hard_nms_"))
        found = run(*one_class(case["in/boxes"]), rules=SoftNms("hard", overlap=overlap, inclusive=True))
        np.testing.assert_array_equal(np.asarray(found.index)[np.asarray(found.kept)], case[name], err_msg=name)


@each_case("fn_ctnet_merge")
def test_scales_of_a_detector(case: Any) -> None:
    """Rows 1-based class, x1, y1, x2, y2, score; several scales go through soft-NMS, one alone does not."""
    scales = sorted({int(n.split("/")[2]) for n in case.arrays if n.startswith("in/ms/")})
    classes = sorted({int(n.split("/")[3]) for n in case.arrays if n.startswith("in/ms/")})
    names = {"merge/multi_scale": scales, "merge/multi_scale_cap12": scales, "merge/single": scales[:1]}
    names["merge/single_nms"] = scales[:1]
    for name, used in names.items():
        expected = case[name]
        rows = [(k, case[f"in/ms/{s}/{k}"]) for k in classes for s in used]
        labels = np.concatenate([np.full(len(r), k, np.int32) for k, r in rows])
        boxes = np.concatenate([r for _, r in rows])
        scores = boxes[:, 4]
        cap = 12 if name.endswith("cap12") else 30
        if name == "merge/single":
            kept = np.asarray(keep_best(scores, np.ones(len(scores), bool), cap))
            found = np.concatenate([labels[:, None], boxes], 1)[kept]
        else:
            seen = run(boxes[:, :4], scores, labels, stale_rows=True)
            kept = np.asarray(keep_best(seen.scores, seen.kept, cap))
            found = np.concatenate([np.asarray(a).reshape(len(labels), -1) for a in (seen.labels, seen.boxes)], 1)
            found = np.concatenate([found, np.asarray(seen.scores)[:, None]], 1)[kept]
        np.testing.assert_allclose(found, expected, atol=1e-5, err_msg=name)


@each_case("fn_mmcv_soft_nms")
def test_mmcv(case: Any) -> None:
    boxes, scores, labels = case["in/boxes"], case["in/scores"], case["in/labels"].astype(np.int32)
    alone = np.zeros_like(labels)
    runs = {
        "soft_nms_naive": (alone, SoftNms("hard", pixel=0.0, inclusive=True, drop_isolated=True)),
        "soft_nms_linear": (alone, SoftNms("linear", pixel=0.0, inclusive=True, drop_isolated=True)),
        "soft_nms_gaussian": (alone, MMCV),
    }
    for name, (classes, rules) in runs.items():
        by_score(case, name, run(boxes, scores, classes, rules=rules))
    # Classes apart: soft-NMS as mmdetection's CornerHead is configured (Gaussian), and plain NMS at 0.5.
    by_score(case, "batched_soft", run(boxes, scores, labels, rules=MMCV))
    by_score(case, "batched_nms", run(boxes, scores, labels, rules=runs["soft_nms_naive"][1]))


def by_score(case: Any, name: str, found: Any) -> None:
    kept = np.asarray(found.kept)
    index, boxes, values = (np.asarray(a)[kept] for a in (found.index, found.boxes, found.scores))
    order = np.argsort(-values, kind="stable")
    np.testing.assert_array_equal(index[order], case[f"{name}/inds"], err_msg=name)
    np.testing.assert_allclose(boxes[order], case[f"{name}/dets"][:, :4], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(values[order], case[f"{name}/dets"][:, 4], atol=1e-6, err_msg=name)
