"""The report's page: its numbers are the evaluation's, it holds all it needs, and no name can hurt it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import pathlib
import re
import time
from typing import Any

import numpy as np
import pytest

from kpjax.data.kitti_files import KittiObjects
from kpjax.data.opening import open_source
from kpjax.data.source import Source
from kpjax.errors import UserError
from kpjax.inference.evaluate import measured
from kpjax.inference.outputs import Evaluation, kitti_objects
from kpjax.metrics import kitti
from kpjax.metrics.findings import Findings, findings
from kpjax.objects import PointSet
from kpjax.show.blocks import Maker
from kpjax.show.report import page, write_page
from kpjax.show.sections import number_sections
from kpjax.show.subject import Subject
from tests import fakes
from tests.kitti_folder import write_kitti
from tests.show.report_subjects import HOSTILE, cells, logged, rows_of, source_of, subject_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Subject, str]:
    """A subject of which everything is known, and its page."""
    workdir = logged(tmp_path_factory.mktemp("run"))
    more = {"oracle": {"": 0.25, "wh": 0.5}, "train_ap": 0.875, "train_images": 9}
    subject = subject_of(source_of(40), workdir=workdir, **more)
    return subject, page(subject, most_pictures=30)


def test_numbers_are_the_evaluations(whole: tuple[Subject, str]) -> None:
    subject, text = whole
    evaluation = subject.evaluation
    assert evaluation is not None and 0 < evaluation.ap < 1
    for name, value in evaluation.stats.items():
        assert cells(text, name)[-1] == ("–" if value < 0 else f"{value:.3f}")
    for name in HOSTILE:
        assert cells(text, name)[2] == f"{evaluation.per_class[name]:.3f}"
    assert "best: 0.500 at step 400" in text and cells(text, "wh") == ["0.500", "0.250"]
    assert "AP on 9 training images" in text and ">0.875</dd>" in text
    for name in ("next", "run", "numbers", "precision-recall-boxes", "classes", "confusion", "scores", "losses"):
        assert f'<section id="{name}"' in text, name
    for name in ("false-discovery", "errors", "data", "settings"):
        assert f'<section id="{name}"' in text and f'href="#{name}"' in text, name
    assert cells(text, "config.steps") == ["400"] and cells(text, "jax")


def test_nothing_is_fetched_and_no_name_is_markup(whole: tuple[Subject, str]) -> None:
    _, text = whole
    assert "<script>window" not in text and "<b>at random" not in text and "&lt;script&gt;window" in text
    assert set(re.findall(r'https?://[^"<\s]*', text)) <= {"http://www.w3.org/1999/xlink"}
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources and all(s.startswith(("#", "data:image/")) for s in sources)
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text and "default-src 'none'" in text
    ids = re.findall(r'\sid="([^"]*)"', text)
    assert len(ids) == len(set(ids))


def test_pictures_are_bounded_and_named(whole: tuple[Subject, str]) -> None:
    _, text = whole
    assert text.count('src="data:image/jpeg') == 30 and re.search(r"Shown: [^.]*\d of \d", text)
    alts = re.findall(r'<img alt="([^"]*)"', text)
    assert all(re.match(r"[a-z ]+: .+, in \d+&lt;i&gt;\.png$", alt) for alt in alts)
    kinds = re.findall(r'data-kind="([^"]*)"', text)
    assert len(set(kinds)) > 3, "each kind gets its turn"


def test_a_split_without_annotations() -> None:
    source = source_of(4, annotated=False)
    rows = [{"image_id": 1, "category_id": 1, "bbox": [1.0, 2.0, 9.0, 9.0], "score": 0.5}]
    text = page(subject_of(source, rows))
    assert "has no annotations for these images" in text and '<section id="numbers"' not in text


@pytest.mark.parametrize("classes", [1, 80])
def test_nothing_found(classes: int) -> None:
    source = source_of(4, tuple(f"class {k}" for k in range(classes)))
    text = page(subject_of(source, []))
    assert "nothing was found in any image" in text and '<section id="scores"' not in text
    assert cells(text, "missed")[1:] == ["12", "1.000"]
    assert text.count('data-kind="missed"') == 12


def test_a_run_without_data() -> None:
    subject = subject_of(source_of(1), [], missing=("the split val: gone",))
    text = page(dataclasses.replace(subject, source=None, evaluation=None, train=None))
    assert "the split val: gone" in text and '<section id="errors"' not in text and '<section id="data"' not in text
    assert '<section id="settings"' in text


@pytest.mark.slow
def test_many_images() -> None:
    source = source_of(2000, tuple(f"class {k}" for k in range(80)))
    began = time.process_time()
    text = page(subject_of(source))
    assert time.process_time() - began < 240 and len(text) < 5e6 and text.count("<img") == 120


def test_many_classes() -> None:
    text = page(subject_of(source_of(10, tuple(f"class {k}" for k in range(80)))), most_pictures=0)
    assert len(text) < 3e6 and "<img" not in text and cells(text, "class 79")


def test_keypoints() -> None:
    points = PointSet(("top", "left_hand", "right_hand", "<i>foot"), edges=((0, 3), (1, 2)))
    subject = subject_of(source_of(points=points))
    text = page(subject)
    evaluation = subject.evaluation
    assert evaluation is not None and evaluation.metric == "keypoints" and 0 < evaluation.ap < 1
    assert cells(text, "AP")[-1] == f"{evaluation.ap:.3f}" and '<section id="joints"' in text
    boxes = text[text.index("COCO&#39;s numbers of boxes") :]
    assert cells(boxes, "AP")[-1] == f"{evaluation.stats['box_AP']:.3f}"
    labelled, share = cells(text, "<i>foot")
    assert int(labelled) > 0 and 0 < float(share) < 1
    assert 'data-kind="keypoints"' in text


def test_a_page_is_whole_or_not_there(tmp_path: pathlib.Path) -> None:
    subject = subject_of(source_of(3, ("gr\udcfcn",)))
    path = write_page(str(tmp_path / "new" / "report.html"), subject)
    assert "gr\\udcfcn" in pathlib.Path(path).read_text(encoding="utf-8")
    (tmp_path / "full" / "report.html").mkdir(parents=True)
    with pytest.raises(UserError, match=r"report\.html: "):
        write_page(str(tmp_path / "full" / "report.html"), subject)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["report.html"]


def test_the_marker_detectors_page() -> None:
    """Perfect detections: no error to show."""
    source = fakes.marker_source([(40, 50, [(20, 20, 9, 0), (35, 30, 4, 1)])])
    rows = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.9}
        for a in source.ground_truth()["annotations"]
    ]
    text = page(subject_of(source, rows))
    assert "There is no error to show." in text and cells(text, "AP")[-1] == "1.000"


def test_all_detections_wrong() -> None:
    source = source_of(3)
    rows = [row | {"bbox": [90.0, 90.0, 5.0, 5.0]} for row in rows_of(source)]
    text = page(subject_of(source, rows), most_pictures=0)
    assert "no detection is right" in text and cells(text, "AP")[-1] == "0.000" and "<img" not in text


def test_kitti_table(tmp_path: pathlib.Path) -> None:
    """Perfect detections of n objects have an AP of (n - 1) / 40, as KITTI's program has it for fewer than 41."""
    data, _ = write_kitti(tmp_path, frames=8, size=(192, 640))
    source = open_source(data, "train", solid=True)
    assert source.labels3d is not None
    kinds = dict(zip(source.classes, source.category_ids, strict=True))
    rows = [
        {
            **{"image_id": int(image), "category_id": kinds[kind], "score": 0.9},
            "bbox": [*labels.boxes[k][:2].tolist(), *(labels.boxes[k][2:] - labels.boxes[k][:2]).tolist()],
            "box3d": [*labels.location[k].tolist(), *labels.size[k].tolist(), float(labels.yaw[k])],
            "alpha": float(labels.alpha[k]),
        }
        for image, labels in zip(source.image_ids, source.labels3d, strict=True)
        for k, kind in enumerate(labels.types)
        if kind in kinds
    ]
    found = Evaluation({}, "", {}, rows, images=len(source), skipped=0, seconds=1.0, metric="kitti")
    section = number_sections(Maker(), subject_of(source, evaluation=measured(found, source)), *_boxes(source, rows))[0]
    (table,) = section.tables
    objects = {c.name: c.objects for c in kitti.evaluate_kitti(source.labels3d, _found(source, rows), source.classes)}
    for row in table.rows:
        wanted = [100 * (n - 1) / 40 if n else np.nan for n in objects[str(row[0])]]
        np.testing.assert_allclose(row[3:6], wanted)
    assert any(float(row[5]) > 0 for row in table.rows)


def _boxes(source: Source, rows: list[dict[str, Any]]) -> tuple[Findings, None]:
    classes = dict(zip(source.category_ids, source.classes, strict=True))
    return findings(source.ground_truth(), rows, source.image_ids.tolist(), classes), None


def _found(source: Source, rows: list[dict[str, Any]]) -> list[KittiObjects]:
    return kitti_objects(rows, source.image_ids.tolist(), dict(zip(source.category_ids, source.classes, strict=True)))
