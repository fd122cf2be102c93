"""The report's page: one HTML file with all figures and pictures in it, which needs no network.

`page` turns a `Subject`, what is known of a detector and its run, into the text; `write_page` writes it.  The template,
its style sheet and its script are in `kpjax/show/templates`.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import importlib.metadata
import os
import platform
from typing import Any

import numpy as np

import kpjax.config as configs
from kpjax.config import Config
from kpjax.data.source import Source, all_objects, object_counts
from kpjax.errors import UserError
from kpjax.inference.outputs import Evaluation
from kpjax.metrics.findings import USUAL_SCORE, BoxErrors, Findings, box_errors, findings
from kpjax.show.advice import Facts, what_next
from kpjax.show.blocks import Maker, known, number
from kpjax.show.cases import CASE_KINDS, MOST_PICTURES, Cases, worst_cases
from kpjax.show.data_section import class_counts, data_section, run_section
from kpjax.show.gallery import case_rows, case_text, scenes
from kpjax.show.history import History, read_history
from kpjax.show.sections import (
    class_section,
    confusion_section,
    loss_section,
    number_sections,
    score_section,
)
from kpjax.show.subject import Subject
from kpjax.training.environment import environment

PAGE = "report.html"


def write_page(path: str, subject: Subject, most_pictures: int = MOST_PICTURES) -> str:
    """Write the page of a subject and return its path.  Raises UserError, one line, where that fails."""
    # names may hold what UTF-8 cannot: halves of surrogate pairs
    data = page(subject, most_pictures).encode("utf-8", "backslashreplace")
    unfinished = f"{path}.unfinished"
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(data)
        os.replace(unfinished, path)
    except OSError as error:
        if os.path.isfile(unfinished):
            os.remove(unfinished)
        raise UserError(f"{path}: {error.strerror or error}") from error
    return path


def page(subject: Subject, most_pictures: int = MOST_PICTURES) -> str:
    """The page as HTML.  most_pictures: of errors; each is some 10 kB of it."""
    import jinja2
    import markupsafe

    maker = Maker()
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("kpjax.show", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters["number"] = number
    script, style = (_text(templates, name) for name in ("report.js", "report.css"))
    history = read_history(subject.workdir) if subject.workdir else History(0, {}, {})
    missing = list(subject.missing)
    boxes = keypoints = errors = cases = None
    if subject.source is not None and subject.evaluation is not None:
        boxes, keypoints, errors, cases = _analysed(subject.source, subject.evaluation, most_pictures)
        if boxes is None:
            missing.append(
                f"{subject.source.name} has no annotations for these images: there are detections, and no AP, curves "
                "or errors"
            )
        elif not subject.evaluation.detections:
            missing.append("nothing was found in any image: there are no curves of scores and no wrong detections")
    sections = [
        *run_section(maker, history),
        *number_sections(maker, subject, boxes, keypoints),
        *class_section(maker, subject, boxes),
        *confusion_section(maker, subject, boxes, errors),
        *score_section(maker, boxes),
        *loss_section(maker, subject, boxes, errors),
    ]
    advice = what_next(_facts(subject, history, boxes, errors))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return templates.get_template("report.html").render(
        subject=subject,
        title=os.path.basename(os.path.normpath(subject.place)) or subject.place,
        date=datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        tiles=_tiles(subject, boxes),
        missing=missing,
        advice=advice,
        sections=sections,
        cases=case_rows(cases) if cases else [],
        case_kinds=[kind for kind in CASE_KINDS if cases and kind in {c.kind for c in cases.shown}],
        case_names=sorted({case.name for case in cases.shown}, key=str.casefold) if cases else [],
        case_text=case_text(cases, errors),
        scenes=scenes(subject, boxes.least_score if boxes is not None else USUAL_SCORE),
        data=data_section(maker, subject),
        changed=[d.partition(" -> ") for d in configs.differences(Config(), subject.config)],
        settings=configs.flat(subject.config),
        versions=_versions(),
        style=markupsafe.Markup(style),
        script=markupsafe.Markup(script),
        digest=digest,
    )


def _text(templates: Any, name: str) -> str:
    text: str = templates.loader.get_source(templates, name)[0]
    return text


def _analysed(
    source: Source, evaluation: Evaluation, most: int
) -> tuple[Findings | None, Findings | None, BoxErrors | None, Cases | None]:
    """Findings of boxes and of keypoints, the boxes' errors, and their pictures; None without annotations."""
    truth, rows = source.ground_truth(), evaluation.detections
    image_ids = [int(i) for i in source.image_ids[: evaluation.images]]
    there = set(image_ids)
    if not any(row["image_id"] in there for row in truth["annotations"]):
        return None, None, None, None
    classes = dict(zip(source.category_ids, source.classes, strict=True))
    boxes = findings(truth, rows, image_ids, classes)
    keypoints = findings(truth, rows, image_ids, classes, source.points) if evaluation.metric == "keypoints" else None
    errors = box_errors(truth, rows, image_ids, boxes)
    return boxes, keypoints, errors, worst_cases(truth, rows, source, boxes, errors, keypoints, most)


def _tiles(subject: Subject, boxes: Findings | None) -> list[tuple[str, str]]:
    """The few numbers at the head of the page: (name, value)."""
    evaluation = subject.evaluation
    if evaluation is None:
        return []
    stats, tiles = evaluation.stats, []
    if evaluation.metric == "kitti":
        tiles.append(("AP in 3D, moderate", number(known(stats.get("AP", -1.0)))))
    else:
        what = "keypoints " if evaluation.metric == "keypoints" else ""
        tiles += [(f"{what}{name}", number(known(stats[name]))) for name in ("AP", "AP50", "AP75") if name in stats]
        if "box_AP" in stats:
            tiles.append(("boxes AP", number(known(stats["box_AP"]))))
    if not np.isnan(subject.train_ap):
        tiles.append((f"AP on {subject.train_images} training images", number(subject.train_ap)))
    if boxes is not None and not np.isnan(boxes.threshold.score):
        best = boxes.threshold
        tiles += [("best F1", number(best.f1)), ("at a score from", number(best.score))]
    tiles.append(("images", f"{evaluation.images:,}"))
    tiles.append(("detections", f"{len(evaluation.detections):,}"))
    return tiles


def _facts(subject: Subject, history: History, boxes: Findings | None, errors: BoxErrors | None) -> Facts:
    config, train = subject.config, subject.train
    counts = sides = None
    if train is not None:
        counts = class_counts(train, len(train.classes))
        if counts.any():
            objects, image = all_objects(train)
            zoom = np.minimum(config.augment.height / train.heights, config.augment.width / train.widths)
            sides = np.sqrt(np.maximum((objects.boxes[:, 2:] - objects.boxes[:, :2]).prod(1), 0)) * zoom[image]
    own = object_counts(subject.source) if subject.source is not None else None
    ap = float("nan") if subject.evaluation is None else known(subject.evaluation.ap)
    names = subject.source.distinct_classes if subject.source is not None else subject.names
    return Facts(
        config=config,
        history=history,
        names=names,
        steps=subject.steps,
        ap=ap,
        train_ap=subject.train_ap,
        boxes=boxes,
        errors=errors,
        train_counts=counts,
        train_sides=sides,
        counts=own,
    )


def _versions() -> dict[str, str]:
    try:
        own = importlib.metadata.version("kpjax")
    except importlib.metadata.PackageNotFoundError:
        own = "not installed"
    return {
        "kpjax": own,
        "Python": platform.python_version(),
        **{name: str(value) for name, value in environment().items()},
    }
