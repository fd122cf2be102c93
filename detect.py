"""Find objects in images: draw them, and write them as JSON.

    python detect.py --checkpoint runs/shapes --out found photo.jpg 'holiday/*.jpg' folder/

Exit codes: 0 all images done; 1 some could not be read (each is named, the rest is done); 2 nothing could run.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

from kpjax import flags, predict
from kpjax.config import ConfigError


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Find objects in images with a trained kpjax detector.")
    parser.add_argument("inputs", nargs="+", help="image files, folders, or quoted globs such as 'photos/*.jpg'")
    parser.add_argument("--checkpoint", required=True, help="work directory of train.py, or an inference checkpoint")
    parser.add_argument("--out", default="detections", help="folder for the pictures and detections.json")
    parser.add_argument("--score-thr", type=float, default=0.3, help="least score to draw and to write")
    parser.add_argument("--batch", type=int, default=1, help="images of one size that run together")
    parser.add_argument("--preset", default="na", help="test protocol: na (plain), flip or ms (several scales)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    return flags.guarded(lambda: detect(args))


def detect(args: argparse.Namespace) -> int:
    from PIL import Image
    from tqdm import tqdm

    from kpjax.draw import draw_detections, enlarge

    if not 0.0 <= args.score_thr <= 1.0:
        raise ConfigError(f"--score-thr is {args.score_thr:g}; give a score between 0 and 1")
    items = [str(item) for item in predict.list_inputs(args.inputs)[0]]
    pictures = picture_names(items)
    predict.spare_inputs((os.path.join(args.out, name) for name in pictures), items, "--out")
    predict.output_folder(args.out)
    predictor = predict.load(args.checkpoint, args.preset, batch=args.batch)
    rows: list[dict | None] = [None] * len(items)
    unreadable = []
    started = time.perf_counter()
    for found in tqdm(predictor.stream(items), total=len(items), unit="image", disable=None):
        if found.detections is None or found.image is None:
            unreadable.append({"file": found.name, "error": found.error})
            tqdm.write(f"error: {found.error}", file=sys.stderr)
            continue
        seen, names = found.detections, predictor.names
        picture, boxes = enlarge(found.image, seen.boxes)
        drawn = draw_detections(picture, boxes, seen.labels, seen.scores, names, args.score_thr)
        Image.fromarray(drawn).save(os.path.join(args.out, pictures[found.index]), quality=92)
        rows[found.index] = {
            "file": found.name,
            "picture": pictures[found.index],
            "height": found.image.shape[0],
            "width": found.image.shape[1],
            "detections": [
                {"box": [round(float(v), 2) for v in box], "score": round(float(score), 4), "label": int(label)}
                | ({"name": names[label]} if names else {})
                for box, score, label in zip(seen.boxes, seen.scores, seen.labels, strict=True)
                if score >= args.score_thr
            ],
        }
    images = [row for row in rows if row]
    with open(os.path.join(args.out, "detections.json"), "w", encoding="utf-8") as file:
        json.dump({"names": list(predictor.names), "images": images, "unreadable": unreadable}, file, indent=1)
    count = sum(len(row["detections"]) for row in images)
    seconds = time.perf_counter() - started
    print(
        f"{len(images)} images, {count} objects with a score of {args.score_thr:g} or more, {seconds:.1f} s: {args.out}"
    )
    if unreadable:
        print(f"error: {len(unreadable)} of {len(items)} images could not be read", file=sys.stderr)
    return 1 if unreadable else 0


def picture_names(paths: list[str]) -> list[str]:
    """A file name of its own for each input: its stem, numbered where two inputs share it."""
    used: set[str] = set()
    names = []
    for path in paths:
        stem = os.path.splitext(os.path.basename(path))[0]
        name, number = f"{stem}.jpg", 2
        while name.lower() in used:
            name, number = f"{stem}_{number}.jpg", number + 1
        used.add(name.lower())
        names.append(name)
    return names


if __name__ == "__main__":
    sys.exit(main())
