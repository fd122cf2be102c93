"""Converting YOLO labels (a text file an image: class cx cy w h, as fractions) to a COCO instances dictionary.

Lines of three formats begin alike: a box of 5 numbers, a box with keypoints behind it, and an outline of x y pairs.  A
data.yaml says which by `kpt_shape` or `task`; without it the lines of the whole set have to leave one reading.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn

from kpjax.data.spellings import Spellings, plain
from kpjax.datasets.voc import Converted
from kpjax.errors import DataError
from kpjax.images.decode import SUFFIXES, size_of

_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_NAME_FILES = (*_YAML_FILES, "classes.txt", "obj.names")
_TASKS = {"detect": "outline", "segment": "outline", "obb": "outline", "pose": "pose"}  # what lines of > 5 numbers are
_ROUNDING = 0.05  # of coordinates, which are fractions


@dataclasses.dataclass(frozen=True)
class _Line:
    """A line of a label file.  where: its file and number.  numbers: 5 or more, the class first, all finite."""

    where: str
    text: str
    numbers: tuple[float, ...]


def convert_yolo(root: str, split: str | None = None, *, names: str | None = None, exif: str = "apply") -> Converted:
    """Convert a folder in one of the usual layouts.

    images/SPLIT with labels/SPLIT, SPLIT/images with SPLIT/labels, or without a split images with labels.
    names: file of the class names, a YAML with a `names` entry or one name a line; None: data.yaml,
        classes.txt or the like in root. Class k gets the id k + 1.
    A line with more than five numbers is a box with keypoints, which are left out, or an outline, whose bounding box
    is taken: as `kpt_shape` or `task` of the YAML says, else as all lines allow. An image without a label file has no
    objects. Sizes are read from the images' headers.
    exif: "apply": the fractions are of the image as its EXIF orientation shows it, as browsers and ultralytics have it;
        "ignore": of the image as it is stored.
    Raises DataError, one line, on what cannot be read.
    """
    images, labels = _folders(root, split)
    return convert_yolo_folders(root, images, labels, names=names, exif=exif)


def convert_yolo_folders(
    root: str,
    images: str,
    labels: str,
    *,
    names: str | None = None,
    only: Sequence[str] | None = None,
    keypoints: bool = False,
    exif: str = "apply",
) -> Converted:
    """Convert a folder of images and the folder of their labels, which may be the same one; see `convert_yolo`.

    root: the folder of the YAML or of the class names.  only: the images to take, as paths in `images`; None: all.
    keypoints: keep the keypoints that the YAML declares (`kpt_shape`), as COCO's; they are called as `kpt_names` says,
    else by their numbers from 0.
    """
    classes = _names(root, names)
    found = sorted(images_below(images) if only is None else only)
    if not found:
        raise DataError(f"{images}: no image with one of the suffixes {', '.join(SUFFIXES)}")
    notes: Counter[str] = Counter()
    shape, point_names = _keypoints_of_yaml(root, names) if keypoints else (0, ())
    for name, count in Counter(classes).items():
        if count > 1:
            notes[f"classes named {name!r}, each kept as a class of its own"] = count
    entries: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    lines = [_lines(path) for path in _label_files(labels, found, notes)]
    longer = [line for of_image in lines for line in of_image if len(line.numbers) > 5]
    kind, length = _declared(root, names)
    for line in longer if length else ():
        if len(line.numbers) != length and not keypoints:
            notes[f"lines of other than the {length} numbers that kpt_shape says: their boxes taken"] += 1
        elif len(line.numbers) != length:
            raise DataError(
                f"{line.where} is {line.text[:60]!r}, {len(line.numbers)} numbers; kpt_shape of the YAML says "
                f"{length}, class cx cy w h and the keypoints; correct one of them"
            )
    kind = kind or _kind_of(longer, root)
    _note_alone(labels, found, notes)
    for image_id, (file_name, of_image) in enumerate(zip(found, lines, strict=True), 1):
        height, width = _size(os.path.join(images, file_name), exif, notes)
        entries.append({"id": image_id, "file_name": file_name.replace(os.sep, "/"), "width": width, "height": height})
        for category, box, numbers in _boxes(of_image, kind, classes, notes, bool(shape)):
            x, y, w, h = box[0] * width, box[1] * height, box[2] * width, box[3] * height
            points = _points(numbers, len(point_names), shape, width, height) if shape else {}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    **points,
                }
            )
    named = {"keypoints": list(point_names), "skeleton": []} if shape else {}
    return Converted(
        instances={
            "info": {"description": "converted from YOLO labels"},
            "licenses": [],
            "images": entries,
            "annotations": annotations,
            "categories": [{"id": k + 1, "name": name, **named} for k, name in enumerate(classes)],
        },
        images=images,
        notes=tuple(f"{count} x {text}" for text, count in notes.items()),
    )


def images_below(folder: str) -> list[str]:
    """The images in a folder and in those within it, as paths relative to it."""
    return [
        os.path.relpath(os.path.join(parent, name), folder)
        for parent, _, files in os.walk(folder)
        for name in files
        if name.lower().endswith(SUFFIXES)
    ]


def read_yaml(path: str) -> dict[str, Any]:
    """A YAML file's entries, all values as text.  Raises DataError, one line."""
    return _yaml(_text(path), path)


def mirror_pairs(path: str) -> str:
    """What `config.data.mirror_pairs` is by a YAML's `flip_idx`; "" where it has none.  Raises DataError, one line."""
    order, (_, names) = read_yaml(path).get("flip_idx"), _keypoints_of_yaml(os.path.dirname(path), path)
    if not order or not names:
        return ""
    if not isinstance(order, list) or sorted(order) != sorted(map(str, range(len(names)))):
        raise DataError(f"{path}: flip_idx is {order}; give the numbers 0 to {len(names) - 1}, each once")
    pairs = [(k, int(other)) for k, other in enumerate(order) if k < int(other)]
    return ",".join(f"{names[a]}:{names[b]}" for a, b in pairs) or "none"


def _folders(root: str, split: str | None) -> tuple[str, str]:
    layouts = (
        [("images", "labels")]
        if split is None
        else [(f"images/{split}", f"labels/{split}"), (f"{split}/images", f"{split}/labels")]
    )
    for images, labels in layouts:
        pair = os.path.join(root, images), os.path.join(root, labels)
        if all(os.path.isdir(folder) for folder in pair):
            return pair
    tried = " or ".join(f"{images} and {labels}" for images, labels in layouts)
    raise DataError(f"{root}: no folders {tried}; name the split with --split, or the folder above with --root")


def _names(root: str, names: str | None) -> list[str]:
    paths = [names] if names else [os.path.join(root, name) for name in _NAME_FILES]
    path = next((p for p in paths if os.path.isfile(p)), None)
    if path is None:
        raise DataError(f"{names or root}: no file of class names; give one with --names (a data.yaml or a text file)")
    text = _text(path)
    if path.endswith((".yaml", ".yml")):
        listed = _from_yaml(text, path)
    else:
        listed = [_unquoted(line.strip()) for line in text.splitlines() if line.strip()]
    if not listed:
        raise DataError(f"{path}: no class names")
    if not all(listed):
        raise DataError(f"{path}: class {listed.index('')} has no name")
    return listed


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8-sig") as file:  # Windows' editors begin a file with a byte order mark
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _unquoted(name: str) -> str:
    return name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] and name[0] in "\"'" else name


def _yaml(text: str, path: str) -> dict[str, Any]:
    """A YAML file's entries, all values as they are written: `no`, `1.0` and `2024-01-01` are names, too."""
    import yaml

    try:
        data = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not a YAML file ({' '.join(str(error).split())[:120]})") from error
    return data if isinstance(data, dict) else {}


def _from_yaml(text: str, path: str) -> list[str]:
    data = _yaml(text, path)
    names, count = data.get("names"), data.get("nc")
    if isinstance(names, dict):
        numbers = {int(key): name for key, name in names.items() if key.isdecimal()}
        if len(numbers) < len(names) or sorted(numbers) != list(range(len(names))):
            raise DataError(f"{path}: 'names' has the keys {', '.join(names)}; number the classes 0, 1, 2, ...")
        names = [numbers[k] for k in range(len(numbers))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{path}: no list of class names under 'names'")
    if isinstance(count, str) and count.strip() != str(len(names)):
        raise DataError(f"{path}: nc is {count}, and 'names' has {len(names)} classes; correct one of them")
    return [name.strip() for name in names]


def _yaml_path(root: str, names: str | None) -> str | None:
    given = [names] if names and names.endswith((".yaml", ".yml")) else []
    return next(filter(os.path.isfile, [*given, *(os.path.join(root, name) for name in _YAML_FILES)]), None)


def _declared(root: str, names: str | None) -> tuple[str, int]:
    """What a YAML file says of lines of more than five numbers: ("pose", how many numbers), ("outline", 0), ("", 0)."""
    path = _yaml_path(root, names)
    data = _yaml(_text(path), path) if path else {}
    shape, task = data.get("kpt_shape"), data.get("task")
    if task is not None and task not in _TASKS:
        raise DataError(f"{path}: task is {task!r}; give one of {', '.join(_TASKS)}")
    if shape is None:
        return _TASKS.get(task or "", ""), 0
    numbers = shape if isinstance(shape, list) and all(isinstance(n, str) and n.isdecimal() for n in shape) else []
    if len(numbers) != 2 or not int(numbers[0]) or int(numbers[1]) not in (2, 3):
        raise DataError(f"{path}: kpt_shape is {shape}; give the number of keypoints, and 2 or 3 numbers of each")
    if task not in (None, "pose"):
        raise DataError(f"{path}: task is {task!r}, and kpt_shape belongs to task 'pose'; remove one of them")
    return "pose", 5 + int(numbers[0]) * int(numbers[1])


def _keypoints_of_yaml(root: str, names: str | None) -> tuple[int, tuple[str, ...]]:
    """Numbers a keypoint (2 or 3) and the keypoints' names, as a YAML declares them; 0 and () where it does not."""
    path = _yaml_path(root, names)
    data = _yaml(_text(path), path) if path and _declared(root, names)[0] == "pose" else {}
    if "kpt_shape" not in data:
        return 0, ()
    count, numbers = map(int, data["kpt_shape"])
    called = data.get("kpt_names")
    called = next(iter(called.values()), None) if isinstance(called, dict) else called  # by class; all are alike
    fits = isinstance(called, list) and len(called) == count == len({str(name) for name in called})
    return numbers, tuple(map(str, called)) if fits and called else tuple(map(str, range(count)))


def _points(numbers: Sequence[float], count: int, each: int, width: int, height: int) -> dict[str, Any]:
    """A line's keypoints as COCO's.  numbers: those behind the box.  each: numbers a keypoint."""
    if len(numbers) != count * each:
        return {"keypoints": [], "num_keypoints": 0}
    found: list[float] = []
    for k in range(count):
        x, y, seen = (*numbers[k * each : k * each + each], 2.0)[:3]
        # Two numbers a keypoint leave no other way to say that it is not there.
        found += [x * width, y * height, int(seen)] if seen and (x or y) else [0, 0, 0]
    return {"keypoints": found, "num_keypoints": sum(seen > 0 for seen in found[2::3])}


def _kind_of(longer: Sequence[_Line], root: str) -> str:
    """What lines of more than five numbers are, of all their set: "pose" or "outline".  DataError where both can be."""
    odd = next((line for line in longer if not _may_be_outline(line)), None)
    if odd is None:
        first = longer[0] if longer else None
        one_length = len({len(line.numbers) for line in longer}) == 1
        if first is None or not one_length or not all(map(_may_be_pose, longer)):
            return "outline"
        raise DataError(
            f"{first.where} is {first.text[:60]!r}, an outline or a box with keypoints; say which in "
            f"{os.path.join(root, _YAML_FILES[0])}: `task: segment`, or `kpt_shape: [NUMBER, 2 or 3]`"
        )
    wrong = next((line for line in longer if not _may_be_pose(line)), None)
    if wrong is None:
        return "pose"
    _refuse(wrong if _may_be_pose(odd) else odd)


def _may_be_outline(line: _Line) -> bool:
    numbers = line.numbers[1:]
    return len(numbers) % 2 == 0 and len(numbers) >= 6 and _fractions(numbers)


def _may_be_pose(line: _Line) -> bool:
    """Whether a box within the image comes first, and keypoints of x y, or x y visibility, behind it."""
    (cx, cy, w, h), rest = line.numbers[1:5], line.numbers[5:]
    corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    if not (w > 0 and h > 0 and min(corners) >= -0.01 and max(corners) <= 1.01):
        return False
    seen = len(rest) % 3 == 0 and set(rest[2::3]) <= {0, 1, 2} and _fractions(rest[::3]) and _fractions(rest[1::3])
    return seen or (len(rest) % 2 == 0 and _fractions(rest))


def _fractions(numbers: Sequence[float]) -> bool:
    return all(-_ROUNDING <= number <= 1 + _ROUNDING for number in numbers)


def _size(path: str, exif: str, notes: Counter[str]) -> tuple[int, int]:
    try:
        with open(path, "rb") as file:
            height, width, orientation = size_of(file.read(), path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if orientation != 1:
        how = "turned as EXIF says" if exif == "apply" else "as they are stored"
        note = f"images with an EXIF rotation, whose labels are read as of the images {how}: check them, and train with"
        notes[f"{note} config.data.exif={exif!r}"] += 1
    return (width, height) if orientation >= 5 and exif == "apply" else (height, width)


def _label_files(folder: str, images: Sequence[str], notes: Counter[str]) -> list[str]:
    """The label file of each image, as the disk spells it; "" where there is none."""
    names = [os.path.splitext(name)[0].replace(os.sep, "/") + ".txt" for name in images]
    missing = [name for name in names if not os.path.exists(os.path.join(folder, name))]
    meant = Spellings(folder).meant(names, missing)
    if len(missing) > len(meant):
        notes["images without a label file: no objects"] = sum(name not in meant for name in missing)
    if meant:
        notes["label files whose names are spelt otherwise than their images'"] = len(meant)
    gone = set(missing) - set(meant)
    return ["" if name in gone else os.path.join(folder, meant.get(name, name)) for name in names]


def _note_alone(folder: str, images: Sequence[str], notes: Counter[str]) -> None:
    """Count the label files that belong to no image."""
    stems = {plain(os.path.splitext(name)[0]) for name in images}
    alone = sorted(
        name
        for parent, _, files in os.walk(folder)
        for name in (os.path.relpath(os.path.join(parent, file), folder) for file in files)
        if name.endswith(".txt") and plain(name[:-4]) not in stems and os.path.basename(name) not in _NAME_FILES
    )
    if alone:
        notes[f"label files without an image that can be read, e.g. {alone[0]}: left out"] = len(alone)


def _lines(path: str) -> list[_Line]:
    if not path:
        return []
    found = []
    for n, text in enumerate(_text(path).splitlines(), 1):
        if not text.strip():
            continue
        try:
            numbers = tuple(float(word) for word in text.split())
        except ValueError:
            numbers = (math.nan,)
        line = _Line(f"{path}:{n}", text, numbers)
        if not all(map(math.isfinite, numbers)) or len(numbers) < 5 or len(numbers) == 6:
            _refuse(line)
        found.append(line)
    return found


def _refuse(line: _Line) -> NoReturn:
    if len(line.numbers) > 6 and max(map(abs, line.numbers[1:])) > 2:
        raise DataError(f"{line.where} is {line.text[:60]!r}; coordinates are fractions of the image, between 0 and 1")
    raise DataError(
        f"{line.where} is {line.text[:60]!r}; give class cx cy w h, with keypoints behind them where the YAML has "
        "kpt_shape, or class x1 y1 x2 y2 x3 y3 ..."
    )


def _boxes(
    lines: Sequence[_Line], kind: str, classes: list[str], notes: Counter[str], keypoints: bool
) -> list[tuple[int, list[float], tuple[float, ...]]]:
    """(class, [x, y, w, h] as fractions, inside the image, further numbers) of each line.

    kind: of lines of more than five numbers.  keypoints: whether the further numbers are kept.
    """
    boxes = []
    for line in lines:
        numbers, count = line.numbers, len(line.numbers)
        category = int(numbers[0])
        if category != numbers[0] or not 0 <= category < len(classes):
            raise DataError(
                f"{line.where} has the class {line.text.split()[0]}; the names give 0 to {len(classes) - 1}"
            )
        if count == 5 or kind == "pose":
            if (count - 5) % 2 and (count - 5) % 3:
                _refuse(line)
            if count > 5 and not keypoints:
                notes["boxes with keypoints, which are left out"] += 1
            cx, cy, w, h = numbers[1:5]
            corners = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]
        else:
            if count % 2 == 0:
                _refuse(line)
            notes["outlines turned into their bounding boxes"] += 1
            corners = [f(numbers[k::2]) for f in (min, max) for k in (1, 2)]
        if max(map(abs, corners)) > 2:
            raise DataError(
                f"{line.where} is {line.text[:60]!r}; coordinates are fractions of the image, between 0 and 1"
            )
        inside = [min(max(c, 0.0), 1.0) for c in corners]
        if inside[0] >= inside[2] or inside[1] >= inside[3]:
            notes["boxes dropped: no area inside the image"] += 1
            continue
        if max(abs(a - b) for a, b in zip(inside, corners, strict=True)) > 1e-5:
            notes["boxes clipped to their image"] += 1
        box = [inside[0], inside[1], inside[2] - inside[0], inside[3] - inside[1]]
        boxes.append((category, box, numbers[5:] if kind == "pose" else ()))
    return boxes
