"""Video files, read and written; and detect.py and `Predictor` on them, with the detector of tests/fakes.py."""

from __future__ import annotations

import json
import os
import pathlib
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kpjax.commands import detect
from kpjax.errors import DataError, UserError
from kpjax.images.video import Video, VideoWriter, _quiet_cv2, is_video
from kpjax.inference import predict
from kpjax.inference.predict import Predictor
from tests import fakes

FRAMES = 7
cv2 = _quiet_cv2()  # FFmpeg's messages are turned off when it is first used, or not at all


def lossless(path: pathlib.Path, frames: list[np.ndarray], fps: float = 10.0) -> pathlib.Path:
    """A video whose pixels come back as they were: what the marker detector needs."""
    height, width = frames[0].shape[:2]
    code = cv2.VideoWriter.fourcc(*"FFV1")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, fps, (width, height))
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def moving(count: int = FRAMES) -> list[np.ndarray]:
    """A red object that goes right by two pixels a frame, and a green one that stays."""
    return [fakes.picture(32, 48, [(8 + 2 * (i % 15), 9, 4, 0), (30, 22, 5, 1)]) for i in range(count)]


def smooth(height: int, width: int, count: int) -> list[np.ndarray]:
    y, x = np.mgrid[:height, :width]
    return [np.stack([x + 4 * i, y, 0 * x + 20 * i], -1).astype(np.uint8) for i in range(count)]


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(fakes.marker_detector(), fakes.variables(), names=fakes.CLASSES, batch=3)


@pytest.fixture
def run(predictor: Predictor, monkeypatch: Any) -> Any:
    monkeypatch.setattr(predict, "load", lambda path, preset, **options: predictor)
    return lambda *arguments: detect.main([*map(str, arguments), "--checkpoint", "x"])


@pytest.mark.parametrize("suffix", [".avi", ".mkv"])
def test_frames_and_times(tmp_path: pathlib.Path, suffix: str) -> None:
    video = Video(lossless(tmp_path / f"clip{suffix}", moving()))
    assert (video.height, video.width, video.count) == (32, 48, FRAMES) and abs(video.fps - 10) < 0.01
    times, frames = zip(*video, strict=True)
    np.testing.assert_allclose(times, np.arange(FRAMES) / 10, atol=0.002)
    for frame, wanted in zip(frames, moving(), strict=True):
        np.testing.assert_array_equal(frame, wanted)
    assert video.read == FRAMES and not video.cut_off()


@pytest.mark.parametrize("size", [(48, 64), (47, 63), (1, 2)])
@pytest.mark.parametrize("fps", [29.97, 66.667, 0.5, 240.0])
def test_what_is_written_can_be_read(tmp_path: pathlib.Path, size: tuple[int, int], fps: float) -> None:
    path, frames = tmp_path / "out.mp4", smooth(*size, 5)
    with VideoWriter(str(path), fps) as writer:
        for frame in frames:
            writer.write(frame)
    video = Video(path)
    assert (video.height, video.width) == tuple(side + side % 2 for side in size)
    assert abs(video.fps - fps) < 0.01 and video.count == 5
    for (_, found), wanted in zip(video, frames, strict=True):
        assert np.abs(found[: size[0], : size[1]].astype(int) - wanted).mean() < 8  # MPEG-4 loses a little
    assert [p.name for p in tmp_path.iterdir()] == ["out.mp4"]


def test_an_unfinished_video_is_not_left_there(tmp_path: pathlib.Path, monkeypatch: Any) -> None:
    (tmp_path / "out.mp4").write_bytes(b"an older one")
    with pytest.raises(KeyboardInterrupt), VideoWriter(str(tmp_path / "out.mp4"), 25) as writer:
        writer.write(smooth(32, 32, 1)[0])
        raise KeyboardInterrupt
    monkeypatch.setattr(VideoWriter, "_whole", lambda self: False)
    with pytest.raises(UserError, match="disk full"), VideoWriter(str(tmp_path / "out.mp4"), 25) as writer:
        writer.write(smooth(32, 32, 1)[0])
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("out.mp4", b"an older one")]
    with pytest.raises(UserError, match="cannot be written"), VideoWriter(str(tmp_path / "no" / "out.mp4"), 25) as w:
        w.write(smooth(32, 32, 1)[0])


def broken(folder: pathlib.Path) -> dict[str, str]:
    """Files that are no videos -> what is said of them."""
    whole = lossless(folder / "whole.avi", moving()).read_bytes()
    contents = {
        "empty.mp4": (b"", "is empty"),
        "text.mp4": (b"no video\n" * 50, "no frame"),
        "head.avi": (whole[:300], "no frame"),
        "list.mp4": (b"#EXTM3U\n#EXTINF:1,\nwhole.avi\n", "no frame"),  # playlists lead elsewhere
        "noise.mkv": (np.random.default_rng(0).bytes(5000), "no frame"),
    }
    (folder / "whole.avi").unlink()
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    return {name: words for name, (_, words) in contents.items()} | {"missing.mp4": "no such file"}


def test_broken_files_are_one_line(tmp_path: pathlib.Path, run: Any, capfd: Any, predictor: Predictor) -> None:
    for name, words in broken(tmp_path).items():
        with pytest.raises(DataError, match=words) as error:
            Video(tmp_path / name)
        assert name in str(error.value) and "\n" not in str(error.value)
        with pytest.raises(DataError):
            predictor(str(tmp_path / name))
        capfd.readouterr()
        assert run(tmp_path / name, "--out", tmp_path / "out") == 1
        text = capfd.readouterr().err  # of the process: OpenCV and FFmpeg are silent too
        assert text.startswith("error: ") and text.count("\n") == 1 and words in text
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["detections.json"]
    with pytest.raises(DataError, match="not a file"):
        Video(tmp_path)


def test_a_video_that_is_cut_off(tmp_path: pathlib.Path, run: Any, capfd: Any) -> None:
    path = lossless(tmp_path / "clip.avi", moving(40))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert run(path, "--out", tmp_path / "out") == 1
    assert "of about 40 frames could be read" in (text := capfd.readouterr().err) and text.count("error") == 1
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    read = len(written["videos"][0]["frames"])
    assert 10 < read < 38 and Video(tmp_path / "out" / "clip.mp4").count == read  # what there was is there


def test_detect_draws_and_writes_a_video(tmp_path: pathlib.Path, run: Any, predictor: Predictor, capfd: Any) -> None:
    sizes: list[int] = []
    inner = predictor.engine.infer
    predictor.engine.infer = lambda *a: sizes.append(len(a[1])) or inner(*a)  # type: ignore[func-returns-value]
    folder = tmp_path / "in"
    folder.mkdir()
    lossless(folder / "clip.AVI", moving())
    Image.fromarray(moving()[0]).save(folder / "clip.png")
    out = tmp_path / "out"
    assert run(folder, "--out", out, "--batch", 3) == 0
    assert inner._cache_size() == 1  # type: ignore[attr-defined]
    assert sizes == [3] + [3] * 3  # one image; seven frames, three at a time; all of one shape
    written = json.loads((out / "detections.json").read_text())
    assert sorted(p.name for p in out.iterdir()) == ["clip.jpg", "clip.mp4", "detections.json"]
    assert [row["picture"] for row in written["images"]] == ["clip.jpg"]
    (clip,) = written["videos"]
    assert (clip["file"], clip["video"]) == (str(folder / "clip.AVI"), "clip.mp4")
    assert (clip["width"], clip["height"], clip["fps"]) == (48, 32, 10.0)
    assert [(row["frame"], row["time"]) for row in clip["frames"]] == [(i, i / 10) for i in range(FRAMES)]
    for i, row in enumerate(clip["frames"]):
        boxes = {tuple(d["box"]): d["name"] for d in row["detections"]}
        assert boxes == {(4 + 2 * i, 5, 12 + 2 * i, 13): "red", (25, 17, 35, 27): "green"}
    assert "1 images, 1 videos (7 frames), 16 objects" in capfd.readouterr().out
    drawn = Video(out / "clip.mp4")
    assert (drawn.height, drawn.width, drawn.count) == (8 * 32, 8 * 48, FRAMES)  # small frames are enlarged
    frames = [image for _, image in drawn]
    for i, frame in enumerate(frames):  # the left edge of the red object's box moves with it
        column = frame[9 * 8, :, 0].astype(int)
        assert column[(4 + 2 * i) * 8 : (4 + 2 * i) * 8 + 2].max() > 120, i


def test_a_video_that_cannot_be_written_keeps_its_detections(tmp_path: pathlib.Path, run: Any, capfd: Any) -> None:
    """Its name is too long with .part; the other inputs are done, and detections.json has the frames of all."""
    long = lossless(tmp_path / f"{'v' * 251}.avi", moving(4))
    other = lossless(tmp_path / "w.avi", moving(3))
    (tmp_path / "0.png").write_bytes(fakes.png(moving(1)[0]))
    out = tmp_path / "out"
    assert run(long, other, tmp_path / "0.png", "--out", out) == 1
    errors = capfd.readouterr().err
    assert f"{'v' * 251}.mp4: a video of 384x256 pixels cannot be written there" in errors and "Traceback" not in errors
    assert sorted(p.name for p in out.iterdir()) == ["0.jpg", "detections.json", "w.mp4"]
    written = json.loads((out / "detections.json").read_text())
    assert [(row["video"], len(row["frames"])) for row in written["videos"]] == [(None, 4), ("w.mp4", 3)]
    assert all(len(frame["detections"]) == 2 for row in written["videos"] for frame in row["frames"])
    assert [row["file"] for row in written["unwritten"]] == [str(long)] and len(written["images"]) == 1


@pytest.mark.parametrize("broken", ["_whole", "os.replace"])
def test_a_video_that_fails_at_its_end_keeps_its_detections(
    tmp_path: pathlib.Path, run: Any, monkeypatch: Any, broken: str
) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    if broken == "_whole":
        monkeypatch.setattr(VideoWriter, "_whole", lambda self: False)
    else:
        real = os.replace
        monkeypatch.setattr(os, "replace", lambda a, b: refuse() if str(b).endswith(".mp4") else real(a, b))
    out = tmp_path / "out"
    assert run(lossless(tmp_path / "w.avi", moving(3)), "--out", out) == 1
    assert [p.name for p in out.iterdir()] == ["detections.json"]
    (row,) = json.loads((out / "detections.json").read_text())["videos"]
    assert row["video"] is None and len(row["frames"]) == 3


def test_predictor_gives_the_frames_of_a_video(tmp_path: pathlib.Path, predictor: Predictor) -> None:
    path = lossless(tmp_path / "clip.mkv", moving())
    assert is_video(path) and not is_video(np.zeros(3)) and not is_video("a.jpg")
    for given in (path, str(path)):
        found = predictor(given)
        assert len(found) == FRAMES and all(f.names == fakes.CLASSES for f in found)
        assert [sorted(map(float, f.boxes[:, 0])) for f in found] == [[4 + 2 * i, 25.0] for i in range(FRAMES)]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.part.mp4"])
def test_an_input_is_never_overwritten(tmp_path: pathlib.Path, run: Any, capsys: Any, name: str) -> None:
    path = tmp_path / name
    with VideoWriter(str(tmp_path / "x.mp4"), 10) as writer:
        writer.write(smooth(32, 48, 1)[0])
    (tmp_path / "x.mp4").rename(path)
    inputs = [path] if name == "clip.mp4" else [path, lossless(tmp_path / "clip.avi", moving(1))]
    before = path.read_bytes()
    assert run(*inputs, "--out", tmp_path) == 2
    error = capsys.readouterr().err
    assert f"{name} is one of the inputs" in error and error.count("\n") == 1 and path.read_bytes() == before


def test_a_rotated_video_is_upright(tmp_path: pathlib.Path) -> None:
    """A phone's portrait video: the header's matrix says a quarter turn."""
    path = tmp_path / "phone.mp4"
    with VideoWriter(str(path), 10) as writer:
        for frame in smooth(32, 64, 3):
            writer.write(frame)
    content = path.read_bytes()
    one = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    at = content.index(one, content.index(b"tkhd"))
    path.write_bytes(content[:at] + turned + content[at + len(one) :])
    video = Video(path)
    assert (video.height, video.width) == (64, 32) and next(iter(video))[1].shape == (64, 32, 3)


def test_frames_are_shown_when_they_were(tmp_path: pathlib.Path) -> None:
    """Without one rate, a frame is repeated up to the next one's time, and left out where that has passed."""
    path = str(tmp_path / "out.mp4")
    image = np.zeros((32, 48, 3), np.uint8)
    with VideoWriter(path, 10) as writer:
        for seconds, written in ((0.0, 1), (0.1, 2), (0.5, 6), (0.51, 6), (0.62, 7)):
            writer.write(image, seconds)
            assert writer.written == written
    assert len(list(Video(path))) == 7
