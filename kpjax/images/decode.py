"""Decoding image files to uint8 RGB, reading their headers, and their size on a canvas.

Pixels are those of libjpeg's accurate integer transform, which Pillow uses and OpenCV uses too, so that
training and prediction see what the originals saw.
"""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from PIL import Image

from kpjax.errors import TRUNCATED, UNREADABLE, DataError

# Suffixes by which images are found in a folder.
JPEG_SUFFIXES = (".jpg", ".jpeg")
OTHER_SUFFIXES = (".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
SUFFIXES = JPEG_SUFFIXES + OTHER_SUFFIXES
_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N", "I")
_ORIENTATION = 0x0112  # EXIF's tag

# What `config.data.exif` may be; see `turns`.
APPLY, IGNORE_EXIF = "apply", "ignore"  # and "size"


def decode(data: bytes, name: str, exif: bool = False) -> np.ndarray:
    """Decode any still image to (H, W, 3) uint8 RGB.

    name: what an error calls the image.  exif: turn the image as its EXIF orientation says.
    Grey, CMYK, palette and 1-bit images are converted, transparency is dropped, 16-bit grey keeps its
    upper 8 bits.  Raises DataError where the data is no image, is cut off or has no 8-bit form.
    """
    pixels, orientation = decode_stored(data, name)
    return turned(pixels, orientation) if exif else pixels


def decode_stored(data: bytes, name: str) -> tuple[np.ndarray, int]:
    """As `decode`: the pixels as they are stored, and the EXIF orientation, 1..8."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                return _rgb(image, name), orientation_of(image)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{name}: the image is too large to decode ({error})", UNREADABLE) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        raise _refusal(data, error, name) from error


def from_pillow(image: Image.Image, name: str) -> tuple[np.ndarray, int]:
    """An image of Pillow's, of any mode, as `decode_stored` gives the file that it came from.  It is not changed.

    Raises DataError where its file cannot be read or it has no 8-bit form.
    """
    try:
        image.load()  # of an image that was opened, and not read yet
        return _rgb(image, name), orientation_of(image)
    except DataError:
        raise
    except Exception as error:
        raise _refusal(b"?", error, name) from error


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image, 1..8; 1 where it states none that exists."""
    try:
        # Not the method of PngImageFile, which decodes all pixels first in case EXIF data follows them.
        orientation = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise many kinds, and viewers show the stored pixels then
        return 1
    return orientation if orientation in range(1, 9) else 1


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (H, W, C) as an EXIF orientation 1..8 has them shown; from 5 on sides change places."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def turns(orientation: int, stored: Sequence[int], stated: Sequence[int], exif: str) -> bool:
    """Whether training and evaluation turn an image whose EXIF orientation is 2..8.

    stored, stated: (height, width) of the file and of its annotations.  exif: `config.data.exif`: "size": where only
    the turned image has the annotated size; "apply": always; "ignore": never.
    """
    if orientation == 1 or exif == IGNORE_EXIF:
        return False
    swapped = orientation >= 5 and tuple(stored) != tuple(stated) == tuple(stored)[::-1]
    return exif == APPLY or swapped


def size_of(data: bytes, name: str) -> tuple[int, int, int]:
    """(height, width, EXIF orientation 1..8) from the header alone.  Raises DataError where it has none."""
    header = read_header(io.BytesIO(data), name)
    return header.height, header.width, header.orientation


@dataclasses.dataclass(frozen=True)
class Header:
    """What an image file's header and end state.

    kind, mode: Pillow's names, e.g. "JPEG" and "CMYK".  height, width: pixels as stored.  orientation: EXIF's, 1..8.
    ended: whether the file has its format's end marker; False for formats without one.  deep: whether a value has 16
    bits, of which 8 are kept; Pillow's mode does not say it of colour images.  animated: whether it has several frames
    or pages; a JPEG's second picture is a preview or the other eye's and no frame.
    """

    kind: str
    mode: str
    height: int
    width: int
    orientation: int
    ended: bool
    deep: bool = False
    animated: bool = False


_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}


def read_header(file: IO[bytes], name: str) -> Header:
    """Read the beginning of an image file, and its last bytes.  Raises DataError where it is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", "Corrupt EXIF data", UserWarning)
            image = Image.open(file)
            orientation = orientation_of(image)
        deep = image.mode.startswith("I") or any(";16" in str(tile[3]) for tile in image.tile)
        end = _ENDS.get(image.format or "", b"")
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        file.seek(0, 2)
        file.seek(max(0, file.tell() - len(end)))
        return Header(
            kind=image.format or "",
            mode=image.mode,
            height=image.height,
            width=image.width,
            orientation=orientation,
            ended=bool(end) and file.read(len(end)) == end,
            deep=deep,
            animated=animated,
        )
    except Exception as error:
        file.seek(0)
        raise _refusal(file.read(1), error, name) from error


def fitted_size(height: Any, width: Any, canvas: int) -> tuple[Any, Any]:
    """The size of an image on a square canvas: its own, or shrunk to fit.  Numbers or integer arrays."""
    height, width = np.asarray(height, np.int32), np.asarray(width, np.int32)
    scale = np.minimum(1.0, canvas / np.maximum(height, width))
    fitted = [np.clip(np.rint(side * scale), 1, canvas).astype(np.int32) for side in (height, width)]
    return fitted[0], fitted[1]


def shrink(image: np.ndarray, canvas: int) -> np.ndarray:
    """An image (H, W, 3) uint8 at its size on the canvas; averages areas, so that nothing aliases."""
    height, width = fitted_size(image.shape[0], image.shape[1], canvas)
    if (height, width) == image.shape[:2]:
        return image
    import cv2

    return cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_AREA)


def _rgb(image: Image.Image, name: str) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT:
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise DataError(f"{name}: a 32-bit image; convert it to 8 bits", UNREADABLE)
        return np.repeat((grey >> 8).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise DataError(f"{name}: a floating-point image; convert it to 8 bits", UNREADABLE)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _refusal(data: bytes, error: BaseException, name: str) -> DataError:
    text = " ".join(str(error).split())
    if not data:
        return DataError(f"{name}: the image file is empty", TRUNCATED)
    if isinstance(error, Image.UnidentifiedImageError):
        return DataError(f"{name}: not an image in a format that can be read", UNREADABLE)
    if "truncated" in text.lower():
        return DataError(f"{name}: the image file is truncated ({text})", TRUNCATED)
    return DataError(f"{name}: the image cannot be decoded ({text[:120] or type(error).__name__})", UNREADABLE)
