"""benchmarks/latency.py: what it times is what `Predictor` does, on head maps that hold what they are said to hold."""

from __future__ import annotations

import json
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh

import kpjax
from tests.tiny import OPTIONS, random_variables

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import latency


def case_of(preset: str) -> tuple[latency.Case, np.ndarray]:
    detector = kpjax.build("centernet_r18", 3, **OPTIONS)
    variables = random_variables(detector.net, 32, 32)
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    mesh = Mesh(np.array(jax.local_devices()[:1]), ("data",))
    return latency.Case(detector, variables, preset, image, 2, 4, mesh), image


def test_steps_are_those_of_predictor() -> None:
    """The random network's detections, and the objects of the planted maps, come out at the end."""
    case, image = case_of("flip")
    found = dict(case.round())
    wanted = kpjax.Predictor(case.detector, case.variables, "flip")(image)
    assert isinstance(wanted, kpjax.Detections)
    np.testing.assert_allclose(found["random"].boxes, wanted.boxes, atol=1e-2)
    np.testing.assert_allclose(found["random"].scores, wanted.scores, atol=1e-5)
    planted = found["planted"]
    boxes, labels = latency.random_objects(4, 3, (90, 120))
    assert (planted.scores[:4] > 0.7).all()
    for box, label in zip(boxes, labels, strict=True):
        # offsets are averaged with nothing and sizes with the mirror image's: a cell is 4 pixels
        near = np.abs(planted.boxes[:4] - box).max(1) < 4
        assert (planted.labels[:4][near] == label).any()


def test_table_and_json(tmp_path: pathlib.Path, capsys) -> None:
    out = tmp_path / "latency.json"
    options = ["--options", json.dumps(OPTIONS), "--classes", "3", "--image", "60x40", "--rounds", "2"]
    assert latency.main(["--models", "centernet_r18", "--presets", "na", *options, "--json", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    for kind in latency.HEADS:
        of_kind = row[kind]
        assert of_kind["post"] == sum(of_kind[part] for part in latency.POST) > 0
        assert of_kind["total"] == row["place"] + row["network"] + of_kind["post"]
    assert len(row["rounds"]["network"]) == 2, "the round that compiles is left out"
    said = capsys.readouterr().out
    assert said.count("centernet_r18") == len(latency.HEADS) and "60x40" in said


def test_an_unknown_model_is_one_line(capsys) -> None:
    assert latency.main(["--models", "centernet_r17"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
