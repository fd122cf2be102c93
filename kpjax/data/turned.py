"""Which images of a split are turned as their EXIF orientation says, and what a user should know of it.

Cameras store a picture as the sensor sees it and note how to show it.  Tools that annotate do or do not follow that
note, and the width and height that they write tell which, unless the picture is square, upside down or mirrored.
"""

from __future__ import annotations

import dataclasses
import io
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from kpjax.data import files
from kpjax.data.source import Source
from kpjax.errors import WRONG_SIZE, DataError
from kpjax.images.decode import APPLY, IGNORE_EXIF, Header, decode_stored, read_header, turned, turns

_LOOKED_AT = 512  # images whose headers are read before a run: few where a data set is large, and enough to see a habit


def pixels_of(source: Source, record: int) -> np.ndarray:
    """An image (H, W, 3) uint8 RGB as its annotations see it, turned as `source.exif` says.

    Raises DataError where it cannot be decoded or has another size than its annotations state.
    """
    name = source.files[record]
    pixels, orientation = decode_stored(source.read(record), name)
    stated = int(source.heights[record]), int(source.widths[record])
    if turns(orientation, pixels.shape[:2], stated, source.exif):
        pixels = turned(pixels, orientation)
    if pixels.shape[:2] != stated:
        raise DataError(_another_size(name, pixels.shape, stated, orientation, source.exif), WRONG_SIZE)
    return pixels


def _another_size(name: str, got: tuple[int, ...], stated: tuple[int, int], orientation: int, exif: str) -> str:
    text = f"{name}: the file is {got[1]}x{got[0]} pixels, the annotations say {stated[1]}x{stated[0]}"
    if orientation >= 5 and got[1::-1] == stated:
        did = "turned by its EXIF orientation" if exif == APPLY else "not turned by its EXIF orientation"
        return f"{text}; it was {did}, as config.data.exif={exif!r} says: set 'size', or correct the annotations"
    return f"{text}; correct one of them"


def header_of(source: Source, record: int) -> Header:
    """The header of an image.  Raises DataError where it is no image, and OSError or DataError where it is not read."""
    name = source.files[record]
    if source.on_disk:
        with files.opened(name) as file:
            return read_header(file, name)
    return read_header(io.BytesIO(source.read(record)), name)


@dataclasses.dataclass(frozen=True)
class Turns:
    """How many images have an EXIF orientation that turns or mirrors them, by what their annotations say.

    looked_at: images.  as_shown: annotated with the size of the turned image.  as_stored: with that of the stored one.
    unclear: both have the same size: square, upside down or mirrored.
    """

    looked_at: int
    as_shown: int
    as_stored: int
    unclear: int


def judged(header: Header, stated: tuple[int, int]) -> str:
    """The field of `Turns` that an image belongs to, or "".  stated: (height, width) of its annotations."""
    if header.orientation == 1:
        return ""
    if header.orientation < 5 or header.height == header.width:
        return "unclear"
    return "as_shown" if stated == (header.width, header.height) else "as_stored"


def count_turns(source: Source, most: int = _LOOKED_AT) -> Turns:
    """Read the headers of up to `most` images, evenly spread over the split.  One that cannot be read is left out."""
    records = np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)).tolist()

    def look(record: int) -> str | None:
        try:
            return judged(header_of(source, record), (int(source.heights[record]), int(source.widths[record])))
        except (OSError, DataError):
            return None

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        found = list(pool.map(look, records))
    counts = {name: found.count(name) for name in ("as_shown", "as_stored", "unclear")}
    return Turns(looked_at=len(found) - found.count(None), **counts)


def notice(source: Source) -> str:
    """What is done with the images that EXIF turns, as a line for a run's report; "" where none was seen."""
    found = count_turns(source)
    number = found.as_shown + found.as_stored + found.unclear
    if not number:
        return ""
    of = f"{found.looked_at}" if found.looked_at == len(source) else f"{found.looked_at} looked at"
    text = f"{number} of {of} images are shown turned by their EXIF orientation: "
    if source.exif == APPLY:
        return f"{text}turned, as config.data.exif='apply' says"
    if source.exif == IGNORE_EXIF:
        return f"{text}used as stored, as config.data.exif='ignore' says"
    done = []
    if found.as_shown:
        done.append(f"{found.as_shown} turned, as their annotated size says")
    if found.as_stored:
        done.append(f"{found.as_stored} used as stored, as their annotated size says")
    if found.unclear:
        # where all others are annotated as stored, so are these
        advice = "" if found.as_stored and not found.as_shown else "; if their boxes fit the turned images, set "
        setting = "config.data.exif='apply'" if advice else ""
        done.append(f"{found.unclear} used as stored, as their size is that of the turned image too{advice}{setting}")
    return text + ", ".join(done)
