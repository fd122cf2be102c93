"""KITTI's text files: read as written, and every bad line named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kpjax.data.kitti_files import (
    check_projection,
    lines_of,
    objects_of_rows,
    read_calibration,
    read_objects,
    write_objects,
)
from kpjax.errors import INCOMPLETE, DataError

# A line of the benchmark's own form: every field another number.
CAR = "Car 0.25 1 -1.57 10.5 20 30.75 44 1.5 1.6 3.9 -2.5 1.7 12.25 -1.75"
CARE = "DontCare -1 -1 -10 1 2 3 4 -1 -1 -1 -1000 -1000 -1000 -10"
P2 = [700.0, 0, 600, 45, 0, 700, 180, -0.3, 0, 0, 1, 0.005]


def test_every_field_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "0.txt"
    path.write_text(f"{CAR}\n\n{CARE}\n")
    found = read_objects(str(path))
    assert found.types == ("Car", "DontCare") and len(found) == 2 and found.scores is None
    assert found.truncation.tolist() == [0.25, -1] and found.occlusion.tolist() == [1, -1]
    assert found.alpha.tolist() == [-1.57, -10] and found.yaw.tolist() == [-1.75, -10]
    assert found.boxes.tolist() == [[10.5, 20, 30.75, 44], [1, 2, 3, 4]]
    assert found.size[0].tolist() == [1.5, 1.6, 3.9] and found.location[0].tolist() == [-2.5, 1.7, 12.25]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = rng.uniform(0, 50, (5, 15)).round(2)
    rows[:, 1], rows[:, 5:7] = rng.integers(0, 4, 5), rows[:, 3:5] + 60
    rows[:, 14] = rng.uniform(0, 1, 5).round(4)
    label, result = str(tmp_path / "label.txt"), str(tmp_path / "result.txt")
    types = ("Car", "Van", "Cyclist", "Car", "Tram")
    for path, given in ((label, objects_of_rows(types, rows[:, :14])), (result, objects_of_rows(types, rows))):
        write_objects(path, given)
        again = read_objects(path, results=path == result)
        assert again.types == given.types
        for name in ("truncation", "occlusion", "alpha", "boxes", "size", "location", "yaw", "scores"):
            one, other = getattr(given, name), getattr(again, name)
            assert (one is None and other is None) or np.array_equal(one, other), name
    assert lines_of(objects_of_rows(types, rows))[0].startswith(f"Car {rows[0, 0]:.2f} {int(rows[0, 1])} ")


def test_files_without_a_line_have_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "0.txt"
    path.write_text("")
    assert len(read_objects(str(path))) == 0 and read_objects(str(path)).scores is None
    found = read_objects(str(path), results=True)
    assert len(found) == 0 and found.scores is not None and found.scores.shape == (0,) and found.boxes.shape == (0, 4)
    write_objects(str(path), found)
    assert path.read_text() == "" and lines_of(objects_of_rows((), np.array([]))) == []


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (CAR.rsplit(" ", 1)[0], "line 2: 14 fields where a label line of KITTI has 15"),
        (f"{CAR} 0.9", "line 2: 16 fields where a label line of KITTI has 15"),
        (CAR.replace("12.25", "far"), "line 2: z is 'far'; give a number"),
        (CAR.replace("3.9", "nan"), "line 2: length is 'nan'"),
        (CAR.replace("-1.57", "inf"), "line 2: alpha is 'inf'"),
        (CAR.replace("44", "1e30"), "line 2: bottom is '1e30'; give a number that is finite and at most 1e+09"),
        (CAR.replace("10.5", "31"), "line 2: the box 31 20 30.75 44 has its sides swapped"),
    ],
)
def test_bad_label_lines(tmp_path: Path, line: str, text: str) -> None:
    path = tmp_path / "0.txt"
    path.write_text(f"{CARE}\n{line}\n{CAR}\n")
    with pytest.raises(DataError) as caught:
        read_objects(str(path))
    assert str(caught.value).startswith(f"{path}, ") and text in str(caught.value) and "\n" not in str(caught.value)
    mistakes: list[DataError] = []
    assert read_objects(str(path), mistake=mistakes.append).types == ("DontCare", "Car")
    assert [str(m) for m in mistakes] == [str(caught.value)]


def test_results_need_scores(tmp_path: Path) -> None:
    (tmp_path / "0.txt").write_text(f"{CAR}\n")
    with pytest.raises(DataError, match="15 fields where a result line of KITTI has 16"):
        read_objects(str(tmp_path / "0.txt"), results=True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt: no such label file") as caught:
        read_objects(str(tmp_path / "nothing.txt"))
    assert caught.value.kind == INCOMPLETE
    with pytest.raises(DataError, match=r"nothing\.txt: no such calibration file"):
        read_calibration(str(tmp_path / "nothing.txt"))
    (tmp_path / "0.txt").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match=r"0\.txt: cannot be read as a label file"):
        read_objects(str(tmp_path / "0.txt"))


def numbers(values: list[float]) -> str:
    return " ".join(f"{value:.12e}" for value in values)


def test_calibrations(tmp_path: Path) -> None:
    path = tmp_path / "0.txt"
    wanted = np.array(P2).reshape(3, 4)
    other = [900.0, *P2[1:]]
    rows = "\n".join(numbers(P2[4 * i : 4 * i + 4]) for i in range(3))
    for text in (f"P1: {numbers(other)}\nP2: {numbers(P2)}\nR0_rect: 1 0 0\n\n", f"P2:{numbers(P2)}\n", f"{rows}\n"):
        path.write_text(text)
        found = read_calibration(str(path))
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == np.float64
    path.write_text(f"P2: {numbers(P2)}\nP3: {numbers(other)}\n")
    assert read_calibration(str(path), "P3")[0, 0] == 900


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"P2: {numbers(P2[:11])}\n", "P2 has 11 numbers; a projection matrix of 3 x 4 has 12"),
        (f"P0: {numbers(P2)}\nP3: {numbers(P2)}\n", "no line P2:, the projection matrix of the left colour camera"),
        (f"P2: {numbers(P2[:11])} nan\n", "a number of P2 is 'nan'"),
        (f"P2: {numbers(P2[:11])} x\n", "a number of P2 is 'x'"),
        ("700 0 600\n0 700 180\n0 0 1\n", "3 lines of 3, 3, 3 numbers; give KITTI's calibration file, or a 3x4"),
        ("", "0 lines of no numbers"),
        ("700 0 600 0\n0 -700 180 0\n0 0 1 0\n", "focal lengths 700 and -700 pixels"),
        ("700 0 600 0\n0 700 180 0\n0 0 2 0\n", "last row is 0 0 2 0; it begins with 0 0 1"),
    ],
)
def test_bad_calibrations(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "0.txt"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_calibration(str(path))
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_matrices_that_are_no_projection() -> None:
    with pytest.raises(DataError, match=r"mine: the calibration has the shape \(3, 3\)"):
        check_projection(np.eye(3), "mine")
    with pytest.raises(DataError, match="mine: the calibration has a value that is not finite"):
        check_projection(np.full((3, 4), np.nan), "mine")
