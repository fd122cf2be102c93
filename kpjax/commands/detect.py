"""`kpjax detect` and detect.py: find objects in images and videos, draw them, and write them as JSON.

Exit codes: 0 all done; 1 some inputs could not be read or some results not written (each is named, the rest is done);
2 nothing could run.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kpjax.commands import flags
from kpjax.commands.arguments import Parser
from kpjax.data.kitti_files import read_calibration
from kpjax.errors import ConfigError, DataError, UserError
from kpjax.images import video
from kpjax.images.decode import SUFFIXES
from kpjax.inference import predict
from kpjax.inference.engine import select
from kpjax.inference.inputs import in_words, list_inputs
from kpjax.inference.outputs import (
    check_output_folder,
    check_outputs,
    output_folder,
    rounded_points,
    write_json,
    write_picture,
)
from kpjax.inference.predict import Predictor
from kpjax.objects import Detections, PointSet

EXAMPLES = (
    "kpjax detect --checkpoint runs/coco --out found photo.jpg 'holiday/*.jpg' folder/ clip.mp4",
    "kpjax detect --checkpoint runs/coco --classes person,dog --score-thr 0.4 street.jpg",
)
ORIENTATION = 0x0112  # EXIF's tag
NAMES_SHOWN = 8  # class names in the message about an unknown one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.description = "Find objects in images and videos with a trained kpjax detector."
    parser.add_argument("inputs", nargs="+", help="images, videos, folders of them, or quoted globs such as 'a/*.jpg'")
    parser.add_argument("--checkpoint", required=True, help="work directory of train.py, or an inference checkpoint")
    parser.add_argument("--out", default="detections", help="folder for pictures, videos and detections.json")
    parser.add_argument("--score-thr", type=float, default=0.3, help="least score to draw and to write")
    parser.add_argument("--classes", default="", metavar="NAME,...", help="only these classes (default: all)")
    parser.add_argument(
        "--max-dets",
        type=int,
        help="most detections of an image or a frame (default: the checkpoint's own, mostly 100)",
    )
    parser.add_argument("--batch", type=int, default=1, help="images of one size, or frames, that run together")
    parser.add_argument(
        "--preset",
        help="test protocol: na (plain), flip or ms (several scales); default: the checkpoint's own configuration's",
    )
    parser.add_argument(
        "--calib",
        metavar="PATH",
        help="for 3D boxes: the camera, as KITTI's calibration file or 3 lines of 4 numbers; or a folder with a file "
        "NAME.txt for each image NAME",
    )
    parser.add_argument("--nms", default="", help="soft-NMS: hard, linear, gaussian or none (default: the model's own)")


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The options of detect.py, parsed (None: sys.argv)."""
    parser = Parser()
    add_arguments(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """detect.py; returns its exit code."""
    return run(arguments(argv))


def run(args: argparse.Namespace) -> int:
    """Detect; returns the exit code, 2 after one line about what the user can fix."""
    return flags.guarded(lambda: detect(args))


def detect(args: argparse.Namespace) -> int:
    if not 0.0 <= args.score_thr <= 1.0:
        raise ConfigError(f"--score-thr is {args.score_thr:g}; give a score between 0 and 1")
    left_out = Counter[str]()
    items = [str(item) for item in list_inputs(args.inputs, (*SUFFIXES, *video.SUFFIXES), left_out)[0]]
    outputs = [os.path.join(args.out, name) for name in result_names(items)]
    report = os.path.join(args.out, "detections.json")
    parts = [video.part_of(path) for path in outputs if video.is_video(path)]
    check_outputs([*outputs, *parts, report], items, "--out")
    check_output_folder(args.out, items, "--out")
    if args.max_dets is not None and args.max_dets < 1:
        raise ConfigError(f"--max-dets is {args.max_dets}; it must be at least 1")
    options = {"nms": args.nms, "top_k": args.max_dets}
    chosen = {key: value for key, value in options.items() if value}
    predictor = predict.load(args.checkpoint, args.preset, batch=args.batch, **chosen)
    labels = class_labels(args.classes, predictor.names, predictor.detector.num_classes)
    cameras = cameras_of(args.calib, items, predictor)
    output_folder(args.out)
    side = f" ({' x '.join(map(str, predictor.size))})" if predictor.resolution == "fixed" else ""
    most = f", at most {predictor.max_side} pixels a side" if predictor.max_side else ""
    print(f"{predictor.detector.name}, preset {predictor.preset}, resolution {predictor.resolution}{side}{most}")
    if predictor.detector.solid and not args.calib:
        print("camera of KITTI's usual images: with another one boxes are elsewhere, and --calib names it")
    if left_out:
        print(in_words(left_out))
    started = time.perf_counter()
    shown = Shown(predictor.names, args.score_thr, labels, predictor.detector.points, args.max_dets)
    inputs = list(zip(items, outputs, cameras, strict=True))
    clips = [one for one in inputs if video.is_video(one[0])]
    results, done = Results(), False
    try:
        detect_images(predictor, [one for one in inputs if not video.is_video(one[0])], shown, results)
        for path, out, camera in clips:
            detect_video(predictor, path, out, shown, camera, results)
        done = True
    finally:  # what has been found is kept, whatever ends the run
        if done or results.images or results.videos:
            try:
                write_json(report, results.as_json(predictor.names, shown.points), indent=1)
            except UserError as error:
                results.unwritten.append(complain(report, str(error)))
    frames = [frame for row in results.videos for frame in row["frames"]]
    count = sum(len(row["detections"]) for row in (*results.rows, *frames))
    what = f"{len(results.rows)} images" + (f", {len(results.videos)} videos ({len(frames)} frames)" if clips else "")
    seconds = time.perf_counter() - started
    print(f"{what}, {count} objects with a score of {args.score_thr:g} or more, {seconds:.1f} s: {args.out}")
    if results.turned:
        what = "turned so: boxes are" if predictor.exif else "used as stored, as in training: boxes are not"
        seen = f"{results.turned} images are shown turned by their EXIF orientation"
        print(f"{seen} and were {what} those of the picture that viewers show")
    kind = "inputs" if clips else "images"
    full = sum(len(row["detections"]) >= predictor.top_k for row in (*results.rows, *frames))
    if full and args.max_dets is None:
        print(f"{full} of them have {predictor.top_k} objects, the most there can be; --max-dets raises that")
    if results.unreadable and len(items) > 1:
        print(f"error: {len(results.unreadable)} of {len(items)} {kind} could not be read", file=sys.stderr)
    if results.unwritten and len(items) > 1:
        print(f"error: {len(results.unwritten)} of {len(items) + 1} results could not be written", file=sys.stderr)
    return 1 if results.unreadable or results.unwritten else 0


class Results:
    """What detections.json holds: rows of images and videos, in the order of the inputs, and what went wrong.

    unreadable: inputs, with what is wrong with each.  unwritten: inputs whose picture or video could not be written;
    their rows have None in place of its name.
    """

    def __init__(self) -> None:
        self.images: dict[int, dict[str, Any]] = {}  # by the input's number
        self.videos: list[dict[str, Any]] = []
        self.unreadable: list[dict[str, str]] = []
        self.unwritten: list[dict[str, str]] = []
        self.turned = 0  # images that EXIF turns

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [self.images[index] for index in sorted(self.images)]

    def as_json(self, names: tuple[str, ...], points: PointSet | None) -> dict[str, Any]:
        keypoints = {} if points is None else {"keypoint_names": list(points.names)}
        found = {"images": self.rows, "videos": self.videos}
        return {"names": list(names)} | keypoints | found | {"unreadable": self.unreadable, "unwritten": self.unwritten}


class Shown:
    """Which detections are drawn and written, and how."""

    def __init__(
        self,
        names: tuple[str, ...],
        score_thr: float,
        labels: frozenset[int] | None,
        points: PointSet | None = None,
        most: int | None = None,
    ) -> None:
        self.names, self.score_thr, self.labels, self.points, self.most = names, score_thr, labels, points, most

    def kept(self, found: Detections) -> Detections:
        """Those that are shown."""
        keep = found.scores >= self.score_thr
        if self.labels is not None:
            keep &= np.isin(found.labels, list(self.labels))
        found = select(found, keep)
        # a pose model's several scales are merged uncut
        return found if self.most is None else select(found, np.arange(len(found)) < self.most)

    def rows(self, found: Detections) -> list[dict[str, Any]]:
        """As JSON; keypoints in the order of the file's "keypoint_names", x, y and score of each.

        "box3d" is x, y, z, h, w, l in metres and yaw in radians, see `kpjax.objects.Detections`.
        """
        found = self.kept(found)
        rows = [
            {"box": [round(float(v), 2) for v in box], "score": round(float(score), 4), "label": int(label)}
            | ({"name": self.names[label]} if self.names else {})
            for box, label, score in zip(found.boxes, found.labels, found.scores, strict=True)
        ]
        if found.keypoints is not None:
            for row, points in zip(rows, rounded_points(found.keypoints).tolist(), strict=True):
                row["keypoints"] = points
        if found.boxes3d is not None:
            for row, box, alpha in zip(rows, found.boxes3d.tolist(), found.alpha.tolist(), strict=True):
                row["box3d"] = [round(v, 3) for v in box[:6]] + [round(box[6], 4)]
                row["alpha"] = round(alpha, 4)
        return rows

    def picture(self, image: np.ndarray, found: Detections, camera: np.ndarray | None = None) -> np.ndarray:
        """The image with its boxes and points, enlarged where it is small; 3D boxes are shown from above, too.

        camera: (3, 4), which projects 3D boxes to the image; None: only their 2D boxes are drawn.
        """
        from kpjax.show.boxes3d import draw_scene
        from kpjax.show.drawing import draw_objects, enlarge

        if found.boxes3d is not None and camera is not None:
            return draw_scene(image, self.kept(found), camera, self.names)
        large, shown = enlarge(image, self.kept(found))
        return draw_objects(large, shown, self.names, points=self.points)


def detect_images(
    predictor: Predictor, images: list[tuple[str, str, np.ndarray | None]], shown: Shown, results: Results
) -> None:
    """Write the pictures of (input, output, camera), and put the rows, or what went wrong, into `results`."""
    from tqdm import tqdm

    cameras = [camera for _, _, camera in images] if predictor.detector.solid and images else None
    stream = predictor.stream([path for path, _, _ in images], cameras)
    for found in tqdm(stream, total=len(images), unit="image", disable=None if images else True):
        if found.detections is None or found.image is None:
            results.unreadable.append(complain(found.name, found.error))
            continue
        _, out, camera = images[found.index]
        picture: str | None = os.path.basename(out)
        try:
            write_picture(out, shown.picture(found.image, found.detections, camera))
        except UserError as error:
            results.unwritten.append(complain(found.name, str(error)))
            picture = None
        results.turned += found.orientation != 1
        results.images[found.index] = {
            "file": found.name,
            "picture": picture,
            "height": found.image.shape[0],
            "width": found.image.shape[1],
            **({"exif_orientation": found.orientation} if found.orientation != 1 else {}),
            "detections": shown.rows(found.detections),
        }


class Film:
    """A video that is written as long as that works: `error` says why it no longer does."""

    def __init__(self, out: str, fps: float) -> None:
        self.error = ""
        self._writer = video.VideoWriter(out, fps)

    def write(self, image: np.ndarray, seconds: float | None) -> None:
        self._noted(self._writer.write, image, seconds)

    def __enter__(self) -> Film:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._noted(self._writer.__exit__, UserError if self.error else kind, error, trace)

    def _noted(self, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(*arguments)
        except (UserError, OSError) as error:
            self.error = self.error or str(error)


def detect_video(
    predictor: Predictor, path: str, out: str, shown: Shown, camera: np.ndarray | None, results: Results
) -> None:
    """Write the video with boxes, and put its row, and what went wrong, into `results`."""
    from tqdm import tqdm

    try:
        clip = video.Video(path)
    except DataError as error:
        results.unreadable.append(complain(path, str(error)))
        return
    times: list[float] = []

    def images() -> Iterator[np.ndarray]:
        for seconds, image in clip:
            times.append(seconds)
            yield image

    size = {"height": clip.height, "width": clip.width, "fps": round(clip.fps, 3)}
    frames: list[dict[str, Any]] = []
    row: dict[str, Any] = {"file": path, "video": None, **size, "frames": frames}
    results.videos.append(row)
    waiting: dict[int, Any] = {}  # frames that came before one of a smaller number
    bar = tqdm(total=clip.count or None, unit="frame", desc=os.path.basename(path), disable=None)
    with bar, Film(out, clip.fps) as film:
        for found in predictor.stream(images(), camera):
            waiting[found.index] = found
            while len(frames) in waiting:
                ready = waiting.pop(len(frames))
                if not film.error:
                    seconds = None if clip.steady else times[ready.index]
                    film.write(shown.picture(ready.image, ready.detections, camera), seconds)
                frame = {"frame": ready.index, "time": round(times[ready.index], 3)}
                frames.append(frame | {"detections": shown.rows(ready.detections)})
                bar.update()
    if film.error:
        results.unwritten.append(complain(path, film.error))
    else:
        row["video"] = os.path.basename(out)
    if clip.cut_off():
        results.unreadable.append(complain(path, clip.cut_off()))


def cameras_of(path: str | None, items: list[str], predictor: Predictor) -> list[np.ndarray | None]:
    """--calib: the camera of each input; that of the released programs where 3D boxes are found and none is named.

    Raises ConfigError where the model finds no 3D boxes, DataError for a file that is missing or no calibration.
    """
    if not path:
        return [predictor.camera] * len(items)
    if not predictor.detector.solid:
        raise ConfigError(f"--calib is for models of 3D boxes, and {predictor.detector.name} finds none; leave it out")
    for item in items:
        if predictor.exif and not video.is_video(item) and turned_by_exif(item):
            raise ConfigError(
                f"{item} is turned by its EXIF orientation, and --calib fits its stored pixels; turn those"
            )
    if not os.path.isdir(path):
        return [read_calibration(path)] * len(items)
    stems = [os.path.splitext(os.path.basename(item))[0] for item in items]
    return [read_calibration(os.path.join(path, f"{stem}.txt")) for stem in stems]


def turned_by_exif(path: str) -> bool:
    """Whether an image file says that its pixels are shown turned or mirrored; False for one that cannot be read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.getexif().get(ORIENTATION, 1) != 1
    except (OSError, ValueError, SyntaxError):
        return False


def complain(path: str, error: str) -> dict[str, str]:
    """Say what is wrong with an input, and return it as JSON."""
    from tqdm import tqdm

    tqdm.write(f"error: {flags.on_one_line(error)}", file=sys.stderr)
    return {"file": path, "error": error}


def class_labels(text: str, names: tuple[str, ...], count: int) -> frozenset[int] | None:
    """--classes: the labels of all classes of these names, or of numbers where the checkpoint has no names.

    None for all of them.
    """
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    if text and not wanted:
        raise ConfigError(f"--classes is {text!r}, which names no class; give names with commas between them")
    if not wanted:
        return None
    known = names or tuple(map(str, range(count)))
    folded = [name.casefold() for name in known]
    labels: set[int] = set()
    for name in wanted:
        # Two classes may have one name: it means both.
        same = [k for k, other in enumerate(known) if other == name]
        same = same or [k for k, other in enumerate(folded) if other == name.casefold()]
        if not same:
            near = difflib.get_close_matches(name.casefold(), folded, n=1)
            meant = f"did you mean {known[folded.index(near[0])]!r}? " if near else ""
            some = ", ".join(known[:NAMES_SHOWN]) + (f" and {count - NAMES_SHOWN} more" if count > NAMES_SHOWN else "")
            raise ConfigError(f"--classes: the checkpoint knows no {name!r}; {meant}it has {some}")
        labels.update(same)
    return frozenset(labels)


def result_names(paths: list[str]) -> list[str]:
    """A file name of its own for each input: its stem, numbered where two inputs share it."""
    used: set[str] = set()
    names = []
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        suffix = ".mp4" if video.is_video(path) else ".jpg"
        name, number = f"{stem}{suffix}", 2
        while name.lower() in used:
            name, number = f"{stem}_{number}{suffix}", number + 1
        used.add(name.lower())
        names.append(name)
    return names
