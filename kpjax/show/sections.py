"""The report's sections on what was found: numbers, curves, classes, confusions, scores, and where AP is lost."""

from __future__ import annotations

import numpy as np

from kpjax.data.source import Source
from kpjax.inference.outputs import Evaluation, kitti_objects
from kpjax.metrics import kitti
from kpjax.metrics.analysis import PCK, keypoint_errors
from kpjax.metrics.calibration import Reliability, Threshold, f1_curve
from kpjax.metrics.errors_by_kind import KINDS
from kpjax.metrics.findings import BoxErrors, Findings
from kpjax.show import figures
from kpjax.show.blocks import Maker, Section, Table, known, number
from kpjax.show.data_section import class_counts
from kpjax.show.subject import Subject

_NAMED = 12  # curves that a legend names
_CONFUSIONS = 12  # rows of the table of confusions
_STATS = {  # what COCO's numbers are, by their names
    "AP": "AP, mean over IoU 0.50 to 0.95",
    "AP50": "AP at IoU 0.50",
    "AP75": "AP at IoU 0.75",
    "APs": "AP of small objects (area below 32² pixels)",
    "APm": "AP of medium objects (32² to 96²)",
    "APl": "AP of large objects (from 96²)",
    "AR": "recall, mean over IoU 0.50 to 0.95",
    "AR50": "recall at IoU 0.50",
    "AR75": "recall at IoU 0.75",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}


def number_sections(
    maker: Maker, subject: Subject, boxes: Findings | None, keypoints: Findings | None
) -> list[Section]:
    """COCO's or KITTI's numbers, precision against recall, and the false discovery rate."""
    evaluation, source = subject.evaluation, subject.source
    if evaluation is None or source is None or boxes is None:
        return []
    sections = []
    if evaluation.metric == "kitti":
        sections.append(_kitti(source, evaluation))
    else:
        main = "Object keypoint similarity (OKS) takes the place of IoU." if keypoints else ""
        sections.append(
            Section("numbers", "COCO's numbers", (main,) if main else (), (), tuple(_coco_tables(evaluation)))
        )
    for found, what, measure in ((keypoints, "keypoints", "OKS"), (boxes, "boxes", "IoU")):
        if found is None:
            continue
        sizes = {f"{name}, {measure} 0.50:0.95": curve for name, curve in found.curves.by_size.items()}
        lines = found.curves.by_threshold | sizes
        drawn = [
            maker.figure(
                figures.precision_recall(lines, page=True),
                f"Precision against recall of {what}, mean over the classes, by {measure} and size",
            ),
            maker.figure(
                figures.precision_recall(found.curves.by_class, named=_NAMED, page=True),
                f"Precision against recall of {what} by class, {measure} 0.50",
            ),
        ]
        text = "Each number in a legend is the mean of its curve: the AP."
        title = "Precision and recall" if keypoints is None else f"Precision and recall of {what}"
        sections.append(Section(f"precision-recall-{what}", title, (text,), tuple(drawn)))
    if keypoints is not None:
        sections.append(_joints(maker, source, evaluation))
    sections.append(_false_discovery(maker, boxes))
    return sections


def _coco_tables(evaluation: Evaluation) -> list[Table]:
    stats, tables = evaluation.stats, []
    for prefix, caption in (("", "keypoints" if "box_AP" in stats else "boxes"), ("box_", "boxes")):
        own = {k.removeprefix(prefix): v for k, v in stats.items() if k.startswith("box_") == bool(prefix)}
        rows = [
            (name, _stat_text(name, "OKS" if caption == "keypoints" else "IoU"), known(v)) for name, v in own.items()
        ]
        if rows:
            tables.append(Table(f"COCO's numbers of {caption}", ("name", "what it is", "value"), rows))
    return tables


def _stat_text(name: str, measure: str) -> str:
    if name in _STATS:
        return _STATS[name].replace("IoU", measure)
    most = name.removeprefix("AR")
    return f"recall with at most {most} detection{'s' * (most != '1')} an image"


def _kitti(source: Source, evaluation: Evaluation) -> Section:
    assert source.labels3d is not None
    ids = [int(i) for i in source.image_ids[: evaluation.images]]
    found = kitti_objects(evaluation.detections, ids, dict(zip(source.category_ids, source.classes, strict=True)))
    rows: list[tuple[str | float | int, ...]] = []
    for curve in kitti.evaluate_kitti(source.labels3d[: len(ids)], found, source.classes):
        levels = [100 * float(ap) for points in (40, 11) for ap in kitti.average_precision(curve.precision, points)]
        rows.append((curve.name, curve.metric, f"{curve.min_overlap:.2f}", *levels))
    head = (
        "class",
        "metric",
        "overlap",
        *(f"{level}, {points}" for points in ("R40", "R11") for level in kitti.DIFFICULTIES),
    )
    text = (
        "AP in percent, at KITTI's three difficulties, with 40 and with 11 points of recall. 2d: boxes in the image; "
        "aos: with their orientation; bev: boxes from above; 3d: boxes in space. Everything below is of the boxes in "
        "the image, at COCO's IoUs."
    )
    return Section("numbers", "KITTI's numbers", (text,), (), (Table("KITTI's AP, %", head, rows, digits=1),))


def _joints(maker: Maker, source: Source, evaluation: Evaluation) -> Section:
    assert source.points is not None
    ids = [int(i) for i in source.image_ids[: evaluation.images]]
    errors = keypoint_errors(source.ground_truth(), evaluation.detections, ids, source.points)
    shares = dict(zip(source.points.names, errors.pck.tolist(), strict=True))
    text = (
        f"A keypoint is correct that lies at most {PCK:g} of the longer side of its object's box off (PCK). "
        f"{errors.objects - errors.missed:,} of {errors.objects:,} objects with a labelled keypoint were found."
    )
    drawn = figures.lying_bars({n: v for n, v in shares.items() if not np.isnan(v)}, "share of correct keypoints")
    rows = [(n, c, share) for (n, share), c in zip(shares.items(), errors.count.tolist(), strict=True)]
    table = Table("Keypoints by name", ("keypoint", "labelled", "correct"), rows)
    figure = maker.figure(drawn, f"Share of correct keypoints by name, PCK@{PCK:g}")
    return Section("joints", "Keypoints by name", (text,), (figure,), (table,))


def _false_discovery(maker: Maker, boxes: Findings) -> Section:
    rates = boxes.false_discovery
    meaning = {"FD": "all IoUs", "FD5": "IoU 0.05", "FD25": "IoU 0.25", "FD50": "IoU 0.50"} | {
        "FDs": "small objects",
        "FDm": "medium objects",
        "FDl": "large objects",
    }
    text = (
        "The rate of Keypoint Triplets: 1 − AP, with the mean of the IoUs 0.05 to 0.50. It says how much of what is "
        "found is of nothing, or finds an object twice, even where the place need hardly fit."
    )
    drawn = figures.lying_bars({f"{k} {meaning[k]}": v for k, v in rates.items() if not np.isnan(v)}, "1 − AP")
    return Section(
        "false-discovery",
        "False discovery rate",
        (text,),
        (maker.figure(drawn, "False discovery rate by IoU and size"),),
    )


def class_section(maker: Maker, subject: Subject, boxes: Findings | None) -> list[Section]:
    """The table of classes."""
    if boxes is None or subject.source is None:
        return []
    trained = None if subject.train is None else class_counts(subject.train, len(boxes.rows))
    sizes = list(boxes.rows[0].by_size) if boxes.rows else []
    head = ("class", *(("in training",) if trained is not None else ()), "objects", "AP", "AP50", "AP75", *sizes)
    head += ("threshold", "precision", "recall", "F1", "calibration error")
    rows = []
    for k, (row, best, calibration) in enumerate(zip(boxes.rows, boxes.thresholds, boxes.calibrations, strict=True)):
        counts = () if trained is None else (int(trained[k]),)
        numbers = (row.ap, row.ap50, row.ap75, *row.by_size.values(), *_threshold_cells(best), calibration.error)
        rows.append((subject.source.distinct_classes[k], *counts, row.objects, *numbers))
    text = (
        "Of boxes. AP of small, medium and large objects is that of a class over all IoUs. The threshold is the least "
        "score that gives the best F1 at an IoU of 0.5; precision, recall and F1 are those with it. The name of "
        "a column sorts by it."
    )
    return [Section("classes", "By class", (text,), (), (Table("Classes", head, rows),))]


def _threshold_cells(best: Threshold) -> tuple[float, float, float, float]:
    nothing = np.isnan(best.score)
    return (best.score, *((float("nan"),) * 3 if nothing else (best.precision, best.recall, best.f1)))


def confusion_section(
    maker: Maker, subject: Subject, boxes: Findings | None, errors: BoxErrors | None
) -> list[Section]:
    """The confusion matrix, and the most frequent confusions in words."""
    if boxes is None or errors is None or subject.source is None:
        return []
    names, counts = subject.source.distinct_classes, errors.confusion
    off = counts.copy()
    np.fill_diagonal(off, 0)
    off[-1] = off[:, -1] = 0
    order = np.argsort(-off, axis=None, kind="stable")[:_CONFUSIONS]
    rows = [
        (names[i], names[j], int(off[i, j]), off[i, j] / counts[i].sum())
        for i, j in zip(*np.unravel_index(order, off.shape), strict=True)
        if off[i, j]
    ]
    tables = (
        (Table("The most frequent confusions", ("annotated as", "detected as", "objects", "share"), rows),)
        if rows
        else ()
    )
    text = (
        f"Detections with a score from {errors.least_score:.3f} (the best F1), paired with objects from an IoU of 0.5 "
        "on, also across classes. A row is the objects of a class; shades are parts of it. The last column is missed "
        "objects, the last row detections of nothing."
    )
    label = f"Confusion matrix of {len(names)} classes"
    drawn = maker.figure(figures.matrix(counts, names, page=True), label)
    return [Section("confusion", "Confusion matrix", (text,), (drawn,), tables)]


def score_section(maker: Maker, boxes: Findings | None) -> list[Section]:
    """Calibration, and precision and recall by threshold."""
    if boxes is None or not len(boxes.matches.score):
        return []
    pairs, best = boxes.matches, boxes.threshold
    thresholds, precision, recall = _thinned(*f1_curve(pairs.score, pairs.correct, len(pairs.object_id)))
    text = (
        "A detection is right that finds an object of its class at an IoU of 0.5. Scores are well calibrated where the "
        f"share of right ones is the score; on average the two are {number(boxes.calibration.error)} apart."
    )
    said = (
        f"F1, precision and recall by the least score; best F1 {best.f1:.3f} from a score of {best.score:.3f}"
        if not np.isnan(best.score)
        else "F1, precision and recall by the least score; no detection is right"
    )
    drawn = (
        maker.figure(
            figures.reliability(boxes.calibration),
            "Share of right detections by score; numbers above the bars are detections",
        ),
        maker.figure(figures.by_threshold(thresholds, precision, recall, best.score), said),
    )
    return [Section("scores", "Scores and thresholds", (text,), drawn, (_calibration_table(boxes.calibration),))]


def _calibration_table(found: Reliability) -> Table:
    rows = [
        (f"{k / len(found.count):.1f} to {(k + 1) / len(found.count):.1f}", int(c), float(s), float(r))
        for k, (c, s, r) in enumerate(zip(found.count, found.score, found.correct, strict=True))
        if c
    ]
    return Table("Calibration", ("score", "detections", "mean score", "right"), rows)


def _thinned(*lines: np.ndarray, most: int = 500) -> tuple[np.ndarray, ...]:
    """Every n-th value of curves, and the last one, so that a page stays small."""
    step = -(-len(lines[0]) // most)
    keep = np.unique(np.append(np.arange(0, len(lines[0]), max(step, 1)), len(lines[0]) - 1))
    return tuple(line[keep] for line in lines)


def loss_section(maker: Maker, subject: Subject, boxes: Findings | None, errors: BoxErrors | None) -> list[Section]:
    """Where AP is lost: by kind of error, and by head."""
    if boxes is None or errors is None:
        return []
    cost, meaning = (
        errors.errors.cost,
        {
            "classification": "of an object of another class, IoU from 0.5",
            "localisation": "of an object of its class, IoU 0.1 to 0.5",
            "both": "of an object of another class, IoU 0.1 to 0.5",
            "duplicate": "of an object that another detection found",
            "background": "of nothing: IoU with every object up to 0.1",
            "missed": "objects of which there is no detection, not even a badly placed one or one of another class",
        },
    )
    rows = [(kind, meaning[kind], errors.counts[kind], cost[kind]) for kind in KINDS]
    drawn = [maker.figure(figures.lying_bars(cost, "AP50 that mending it would add"), "What each kind of error costs")]
    text = [
        f"AP at an IoU of 0.5 is {number(errors.errors.ap50)}. Each cost is what it would gain if this kind of error "
        "alone were mended, at all scores (TIDE); they do not add up. Errors are counted from a score of "
        f"{errors.least_score:.3f} on."
    ]
    tables = [Table("Errors by kind", ("kind", "what it is", "count", "cost in AP50"), rows)]
    if subject.oracle and subject.evaluation is not None:
        plain = subject.oracle.get("", subject.evaluation.ap)
        heads = {name: ap for name, ap in subject.oracle.items() if name}
        text.append(
            f"With the ground truth in place of a head's output, all else as it is, AP of {plain:.3f} becomes what the "
            "second figure says (Objects as Points, error analysis)."
        )
        drawn.append(
            maker.figure(figures.lying_bars({"none": plain} | heads, "AP"), "AP with heads replaced by the truth")
        )
        rows_of_heads = [(name, ap, ap - plain) for name, ap in heads.items()]
        tables.append(Table("Oracle", ("heads replaced", "AP", "gain"), rows_of_heads))
    return [Section("losses", "Where AP is lost", tuple(text), tuple(drawn), tuple(tables))]
