"""KITTI's text files: label files, result files and calibration files.

A label file has a line an object: type, truncation, occlusion, alpha, the box (left, top, right, bottom in pixels),
height, width and length in metres, the location (x, y, z in metres, of the middle of the bottom) and rotation_y.
A line of a result file has the score as its 16th field.  See the development kit of KITTI's object benchmark.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np

from kpjax.data import files
from kpjax.errors import INCOMPLETE, DataError, one_line

FIELDS = 15  # of a label line; a result line has the score behind them
DONT_CARE = "DontCare"
_LARGEST = 1e9  # results computed from a number have to fit in float32
# What each number of a line is, for messages.
_NUMBERS = (
    "truncation",
    "occlusion",
    "alpha",
    "left",
    "top",
    "right",
    "bottom",
    "height",
    "width",
    "length",
    "x",
    "y",
    "z",
    "rotation_y",
    "score",
)


@dataclasses.dataclass(frozen=True)
class KittiObjects:
    """The n objects of a label or result file, in its order, float64.

    types: n names, e.g. "Car".  truncation: (n,) 0..1, the fraction outside the image; -1 unknown.  occlusion: (n,) 0
    visible, 1 partly, 2 largely occluded, 3 unknown; -1 for DontCare.  alpha: (n,) radians, the angle at which the
    object is seen; -10 unknown.  boxes: (n, 4) x1 y1 x2 y2 in pixels.  size: (n, 3) height, width, length in metres.
    location: (n, 3) x right, y down, z forward in metres, the middle of the bottom, in the frame of the reference
    camera (`P2` projects it to the left colour image).  yaw: (n,) rotation_y, radians around y; 0: the length lies
    along x.  scores: (n,) of results; None of labels.
    """

    types: tuple[str, ...]
    truncation: np.ndarray
    occlusion: np.ndarray
    alpha: np.ndarray
    boxes: np.ndarray
    size: np.ndarray
    location: np.ndarray
    yaw: np.ndarray
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.types)


def objects_of_rows(types: Sequence[str], rows: np.ndarray) -> KittiObjects:
    """The objects of `types` whose numbers are `rows`, (n, 14) in the order of a label line, or (n, 15) with scores."""
    rows = np.asarray(rows, np.float64)
    rows = rows if rows.ndim == 2 else rows.reshape(len(types), FIELDS - 1)
    return KittiObjects(
        types=tuple(types),
        truncation=rows[:, 0],
        occlusion=rows[:, 1],
        alpha=rows[:, 2],
        boxes=rows[:, 3:7],
        size=rows[:, 7:10],
        location=rows[:, 10:13],
        yaw=rows[:, 13],
        scores=rows[:, 14] if rows.shape[1] == FIELDS else None,
    )


def read_objects(
    path: str, *, results: bool = False, mistake: Callable[[DataError], object] | None = None
) -> KittiObjects:
    """Read a label file, or a result file with scores.

    mistake: what to do about a line that cannot be used: it is called, and the line left out; None: raise.
    Raises DataError, one line that names file and line: another number of fields, a value that is no finite number or
    beyond 1e9, a box whose sides are swapped.
    """
    kind = "result" if results else "label"
    types: list[str] = []
    rows: list[list[float]] = []
    for number, line in enumerate(_lines(path, kind), 1):
        parts = line.split()
        if not parts:
            continue
        try:
            rows.append(_row(parts[1:], f"{path}, line {number}", kind))
        except DataError as error:
            if mistake is None:
                raise
            mistake(error)
            continue
        types.append(parts[0])
    return objects_of_rows(types, np.array(rows, np.float64).reshape(-1, FIELDS - 1 + results))


def _row(texts: list[str], where: str, kind: str) -> list[float]:
    """The numbers of a line, what follows its type."""
    wanted = FIELDS + (kind == "result")
    if 1 + len(texts) != wanted:
        raise DataError(f"{where}: {1 + len(texts)} fields where a {kind} line of KITTI has {wanted}")
    values = [_number(text, where, name) for name, text in zip(_NUMBERS, texts, strict=False)]
    left, top, right, bottom = values[3:7]
    if kind == "label" and (right < left or bottom < top):  # a network may find such boxes
        raise DataError(
            f"{where}: the box {left:g} {top:g} {right:g} {bottom:g} has its sides swapped; "
            "give left, top, right, bottom"
        )
    return values


def write_objects(path: str, objects: KittiObjects) -> None:
    """Write a label file, or with scores a result file, numbers with two decimals (scores with four)."""
    files.write_bytes(path, "".join(f"{line}\n" for line in lines_of(objects)).encode())


def lines_of(objects: KittiObjects) -> list[str]:
    """The lines of a label or result file."""
    columns = [objects.truncation, objects.occlusion, objects.alpha, objects.boxes, objects.size]
    columns += [objects.location, objects.yaw]
    rows = np.column_stack(columns) if len(objects) else np.zeros((0, FIELDS - 1))
    lines = []
    for i, (name, row) in enumerate(zip(objects.types, rows, strict=True)):
        score = "" if objects.scores is None else f" {objects.scores[i]:.4f}"
        lines.append(f"{name} {row[0]:.2f} {int(row[1])} " + " ".join(f"{value:.2f}" for value in row[2:]) + score)
    return lines


def read_calibration(path: str, key: str = "P2") -> np.ndarray:
    """Read a camera's projection matrix, (3, 4) float64: metres in the reference camera's frame -> pixels.

    A calibration file of KITTI (lines `P2: ` and 12 numbers), or a text file of three lines of four numbers.
    Raises DataError, one line: no such matrix, another number of values, values that are not finite, and what
    `check_projection` refuses.
    """
    lines = [line.replace(":", ": ", 1).split() for line in _lines(path, "calibration") if line.strip()]
    named = [parts[1:] for parts in lines if parts[0] == f"{key}:"]
    if named:
        texts = named[0]
        if len(texts) != 12:
            raise DataError(f"{path}: {key} has {len(texts)} numbers; a projection matrix of 3 x 4 has 12")
    elif any(parts[0].endswith(":") for parts in lines):
        raise DataError(f"{path}: no line {key}:, the projection matrix of the left colour camera")
    else:
        shape = [len(parts) for parts in lines]
        if shape != [4, 4, 4]:
            raise DataError(
                f"{path}: {len(shape)} lines of {', '.join(map(str, shape)) or 'no'} numbers; give KITTI's calibration "
                "file, or a 3x4 projection matrix as three lines of four numbers"
            )
        texts = [text for parts in lines for text in parts]
    values = [_number(text, path, f"a number of {key}" if named else "a number of the matrix") for text in texts]
    return check_projection(np.array(values).reshape(3, 4), path)


def check_projection(matrix: np.ndarray, name: str) -> np.ndarray:
    """The matrix as (3, 4) float64, or DataError, one line that begins with `name`."""
    matrix = np.asarray(matrix, np.float64)
    if matrix.shape != (3, 4):
        raise DataError(f"{name}: the calibration has the shape {matrix.shape}; give a 3x4 projection matrix")
    if not np.isfinite(matrix).all():
        raise DataError(f"{name}: the calibration has a value that is not finite; give a 3x4 projection matrix")
    if not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise DataError(
            f"{name}: the calibration has the focal lengths {matrix[0, 0]:g} and {matrix[1, 1]:g} pixels; "
            "they are at [0, 0] and [1, 1] of the matrix and positive"
        )
    if not np.allclose(matrix[2, :3], (0, 0, 1), rtol=0, atol=1e-6):
        row = " ".join(f"{value:g}" for value in matrix[2])
        raise DataError(
            f"{name}: the calibration's last row is {row}; it begins with 0 0 1 where the matrix projects from the "
            "camera's own frame, in metres"
        )
    return matrix


def _lines(path: str, kind: str) -> list[str]:
    try:
        return files.read_bytes(path).decode("utf-8-sig").splitlines()
    except FileNotFoundError:
        raise DataError(f"{path}: no such {kind} file", INCOMPLETE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a {kind} file ({one_line(error)})") from None


def _number(text: str, where: str, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not abs(value) <= _LARGEST:
        raise DataError(f"{where}: {name} is {text!r}; give a number that is finite and at most {_LARGEST:g}")
    return value
