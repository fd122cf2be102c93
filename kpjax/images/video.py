"""Reading and writing video files.

Through OpenCV, which resizing needs too, and whose wheels contain FFmpeg: they read what FFmpeg reads, and write MPEG-4
(not H.264: its encoder is left out of them because of its licence).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from kpjax.errors import DataError, UserError

SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".mts", ".m2ts")
_FASTEST = 240  # frames a second; a higher rate in a file is that of its time stamps
WHOLE = 0.9  # share of the announced frames below which a file is called cut off; many headers only estimate


def is_video(path: Any) -> bool:
    """Whether a path is that of a video, by its name."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path).lower().endswith(SUFFIXES)


class Video:
    """A video file, read once from its beginning.

        video = Video("clip.mp4")
        for found in predictor.stream(image for _, image in video): ...

    height, width: of the first frame, rotated as the file states.  fps: frames a second, on average; 25 where the file
    has no one rate, and then `steady` is false: screen and browser recordings come as 1,000 a second.
    count: frames that the header announces; 0 where it does not.  read: frames read so far.
    Raises DataError, one line, where the file is missing or has no frame that can be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        cv2 = _quiet_cv2()
        self.path = os.fspath(path)
        if not os.path.isfile(self.path):  # OpenCV would take URLs, cameras and patterns of file names, too
            raise DataError(
                f"{self.path}: {'not a file' if os.path.exists(self.path) else 'no such file or directory'}"
            )
        if not os.path.getsize(self.path):
            raise DataError(f"{self.path}: the video file is empty")
        self._capture = cv2.VideoCapture(self.path, cv2.CAP_FFMPEG)
        self.read = 0
        self._first = self._next() if self._capture.isOpened() else None
        if self._first is None:
            self._capture.release()
            raise DataError(f"{self.path}: no frame of it can be read; it is no video, or damaged")
        self.height, self.width = self._first.shape[:2]
        fps, count = (self._capture.get(key) for key in (cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT))
        self.steady = 0 < fps <= _FASTEST
        self.fps = float(fps) if self.steady else 25.0
        self.count = int(count) if 0 < count < 1 << 40 else 0
        self._time = max(0.0, self._seconds())

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        """Yield (seconds from the beginning, HWC uint8 RGB) of each frame.  A damaged frame ends it: see `cut_off`."""
        import cv2

        image, time = self._first, self._time
        self._first = None
        try:
            while image is not None:
                self.read += 1
                yield time, cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                image = self._next()
                # Some containers have no times, or damaged ones.
                now = self._seconds()
                time = now if now > time else time + 1 / self.fps
        finally:
            self._capture.release()

    def cut_off(self) -> str:
        """After the last frame: one line where far fewer came than the header announces, else nothing."""
        if self.read >= WHOLE * self.count - 2:
            return ""
        return f"{self.path}: damaged or cut off, {self.read} of about {self.count} frames could be read"

    def _next(self) -> np.ndarray | None:
        there, image = self._capture.read()
        return image if there else None

    def _seconds(self) -> float:
        import cv2

        return float(self._capture.get(cv2.CAP_PROP_POS_MSEC)) / 1000


class VideoWriter:
    """Writes an .mp4 (MPEG-4) of frames of one size; the file appears when it is whole.

        with VideoWriter("found.mp4", fps=25) as writer:
            writer.write(image)

    An odd side gets one more row or column: the format takes even ones.  A frame of another size than the first is
    resized.  Where the block ends in an error the unfinished file is removed.  Raises UserError, one line, where
    the file cannot be written.
    """

    def __init__(self, path: str, fps: float) -> None:
        self.path, self.part = path, part_of(path)
        # MPEG-4 counts time in at most 65,535 units a second, and OpenCV wants a decimal fraction of fps.
        self.fps = min(max(round(fps, 3 if fps < 65 else 2), 0.01), 600.0)
        self.written = 0
        self._size = (0, 0)
        self._writer: Any = None

    def write(self, image: np.ndarray, seconds: float | None = None) -> None:
        """Append a frame, (H, W, 3) uint8 RGB.

        seconds: when it is shown; it is repeated up to that time, and left out where that time has a frame already.
        """
        cv2 = _quiet_cv2()
        if self._writer is None:
            self._size = (image.shape[1], image.shape[0])
            even = (self._size[0] + self._size[0] % 2, self._size[1] + self._size[1] % 2)
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(self.part, cv2.CAP_FFMPEG, code, self.fps, even)
            if not self._writer.isOpened():
                raise UserError(f"{self.path}: a video of {even[0]}x{even[1]} pixels cannot be written there")
        if (image.shape[1], image.shape[0]) != self._size:
            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        odd = (self._size[1] % 2, self._size[0] % 2)
        if any(odd):
            image = np.pad(image, ((0, odd[0]), (0, odd[1]), (0, 0)), "edge")
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        until = self.written + 1 if seconds is None else round(seconds * self.fps) + 1
        while self.written < until:
            self._writer.write(image)
            self.written += 1

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._writer is None:
            return
        self._writer.release()  # writes the index, without which players refuse the file
        if kind is None and not self._whole():
            self._remove()
            raise UserError(f"{self.path}: the video could not be written whole; is the disk full?")
        if kind is not None:
            self._remove()
            return
        try:
            os.replace(self.part, self.path)
        except OSError as problem:
            self._remove()
            raise UserError(f"{self.path}: {problem.strerror}") from problem

    def _whole(self) -> bool:
        """Whether the file holds all frames written: OpenCV does not report failed writes."""
        cv2 = _quiet_cv2()
        capture = cv2.VideoCapture(self.part, cv2.CAP_FFMPEG)
        count = capture.get(cv2.CAP_PROP_FRAME_COUNT) if capture.isOpened() else 0
        capture.release()
        return round(count) == self.written

    def _remove(self) -> None:
        if os.path.exists(self.part):
            os.remove(self.part)


def part_of(path: str) -> str:
    """The name that a video has while it is written."""
    return os.path.splitext(path)[0] + ".part.mp4"


def _quiet_cv2() -> Any:
    """OpenCV without its own and FFmpeg's messages: errors are raised as one line."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
