from __future__ import annotations

import contextlib
import dataclasses
import errno
import itertools
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from kpjax.data import files
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.data.pipeline import train_batches
from kpjax.errors import ConfigError, DataError
from kpjax.images.decode import decode, shrink

tf = pytest.importorskip("tensorflow")


def take(source, config, count, **options):
    options = {"batch": 4, "seed": 5} | options
    return list(itertools.islice(train_batches(source, config, **options), count))


def same(a, b):
    assert a.keys() == b.keys()
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=str(path))
        assert one.dtype == other.dtype, path


def test_a_batch_is_what_the_annotations_and_files_say(folder):
    config = folder()
    source = open_source(config, "train")
    batch = take(source, config, 1, batch=7, shuffle=False)[0]
    objects = batch.pop("objects")
    assert {k: (v.shape, str(v.dtype)) for k, v in batch.items()} == {
        "canvas": ((7, 64, 64, 3), "uint8"),
        "size": ((7, 2), "int32"),
        "counter": ((7,), "int32"),
        "index": ((7,), "int32"),
    }
    assert objects.boxes.shape == (7, 8, 4) and objects.boxes.dtype == np.float32
    assert (
        objects.labels.shape == objects.role.shape == (7, 8) and objects.labels.dtype == objects.role.dtype == np.int32
    )
    assert batch["index"].tolist() == list(range(7)) == batch["counter"].tolist()
    for n in range(7):
        pixels = decode(source.read(n), "")
        height, width = pixels.shape[:2]
        assert batch["size"][n].tolist() == [height, width]
        np.testing.assert_array_equal(batch["canvas"][n, :height, :width], pixels)
        assert not batch["canvas"][n, height:].any() and not batch["canvas"][n, :, width:].any()
        count = len(source.objects[n])
        assert objects.valid[n].sum() == count and objects.valid[n, :count].all()
        np.testing.assert_array_equal(objects.boxes[n, :count], source.objects[n].boxes)
        np.testing.assert_array_equal(objects.labels[n, :count], source.objects[n].labels)
        assert not objects.boxes[n, count:].any()


def test_each_epoch_is_tensorflows_permutation_of_all_records(folder):
    config = folder()
    source = open_source(config, "train")
    batches = take(source, config, 7)  # 28 examples: 4 epochs of 7
    order = np.concatenate([b["index"] for b in batches])
    assert np.concatenate([b["counter"] for b in batches]).tolist() == list(range(28))
    for epoch in range(4):
        part = order[7 * epoch : 7 * epoch + 7].tolist()
        assert sorted(part) == list(range(7))
        assert part == [int(tf.random.experimental.index_shuffle(i, [5, epoch], 6)) for i in range(7)]
    assert order[:7].tolist() != order[7:14].tolist()
    assert np.concatenate([b["index"] for b in take(source, config, 7, seed=6)]).tolist() != order.tolist()


def test_starting_at_a_step_equals_having_come_there(folder):
    config = folder()
    source = open_source(config, "train")
    whole = take(source, config, 6)
    for start in (1, 3, 5):
        for a, b in zip(whole[start:], take(source, config, 6 - start, start_step=start), strict=True):
            same(a, b)


def test_slices_of_processes_make_up_the_global_batch(folder):
    config = folder()
    source = open_source(config, "train")
    whole = take(source, config, 3)
    parts = [take(source, config, 3, process_index=p, process_count=2) for p in range(2)]
    for step in range(3):
        same(whole[step], jax.tree.map(lambda *x: np.concatenate(x), *(part[step] for part in parts)))


def test_other_formats_and_large_images_equal_pillow(folder):
    config = folder(canvas=48)
    images = Path(config.train.images)
    grey = np.asarray(Image.open(images / "2.jpg").convert("L"))
    Image.fromarray(grey).save(images / "2.jpg")
    Image.open(images / "4.jpg").convert("CMYK").save(images / "4.jpg", "JPEG")
    picture = Image.open(images / "5.jpg")
    picture.putalpha(Image.new("L", picture.size, 77))
    picture.save(images / "5.jpg", "PNG")  # not what its name says
    source = open_source(config, "train")
    for shuffle in (False, True):
        for batch in take(source, config, 3, shuffle=shuffle):
            for slot, record in enumerate(batch["index"]):
                pixels = shrink(decode(source.read(record), ""), 48)
                height, width = pixels.shape[:2]
                assert max(height, width) <= 48 and batch["size"][slot].tolist() == [height, width]
                np.testing.assert_array_equal(batch["canvas"][slot, :height, :width], pixels)
                scale = np.array([width / source.widths[record], height / source.heights[record]] * 2, np.float32)
                boxes = source.objects[record].boxes
                np.testing.assert_allclose(batch["objects"].boxes[slot, : len(boxes)], boxes * scale, rtol=1e-6)


def test_memory_gives_the_same_batches(folder):
    config = folder(canvas=48, max_boxes=2)
    source = open_source(config, "train")
    in_memory = memory_batches(source, config, batch=4, seed=5, start_step=1, shuffle=False)
    for a, b in zip(take(source, config, 4, start_step=1, shuffle=False), in_memory, strict=False):
        same(a, b)
        assert a["objects"].valid.sum(1).max() <= 2


def damage(config, kind):
    path = Path(config.train.images, "3.jpg")
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "deleted":
        path.unlink()
    elif kind == "text":
        path.write_text("not found")
    elif kind == "empty":
        path.write_bytes(b"")
    else:
        Image.open(path).resize((64, 20)).save(path)


DAMAGE = {
    "truncated": "truncated",
    "deleted": "cannot be read",
    "text": "not an image",
    "empty": "empty",
    "other size": "64x20 pixels, the annotations say 64x57",
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("maker", [train_batches, memory_batches])
def test_a_bad_image_stops_with_its_name_or_is_skipped_and_counted(folder, kind, maker):
    config = folder()
    source = open_source(config, "train")
    options = {"batch": 2, "seed": 0, "shuffle": False}
    good = list(itertools.islice(maker(source, config, **options), 5))
    damage(config, kind)

    with pytest.raises(DataError, match=rf"3\.jpg: .*{DAMAGE[kind]}.*bad_images='skip'") as bad:
        list(itertools.islice(maker(source, config, **options), 5))
    assert "\n" not in str(bad.value)

    config.bad_images = "skip"
    stream = maker(source, config, **options)
    for expected, got in zip(good, itertools.islice(stream, 5), strict=True):
        for slot in np.flatnonzero(expected["index"] == 3):
            expected["canvas"] = expected["canvas"].copy()
            for array in (expected["canvas"], *jax.tree.leaves(expected["objects"])):
                array[slot] = 0
        same(expected, got)
    assert len(stream.bad_files) == 1 and "3.jpg" in stream.bad_files[0]


LOUD = """
import os, sys
import jax  # sets the level of TensorFlow's log, where nobody has
level = os.environ["TF_CPP_MIN_LOG_LEVEL"]
from kpjax.config import DataConfig, SplitConfig
from kpjax.data.pipeline import train_batches
from kpjax.data.opening import open_source
config = DataConfig(train=SplitConfig(*sys.argv[1:]), canvas=64, bad_images="skip", prefetch=64)
stream = train_batches(open_source(config, "train"), config, batch=7, seed=0)
next(stream)
print(stream.bad_files, os.environ["TF_CPP_MIN_LOG_LEVEL"] == level)
"""


def test_a_broken_jpeg_leaves_the_terminal_clean_and_python_ends(folder):
    config = folder()
    damage(config, "truncated")
    command = [sys.executable, "-c", LOUD, config.train.images, config.train.annotations]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TF_")}
    # Python ends while images are read ahead, some of them by Python: TensorFlow's threads must not wait for it.
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stderr == "" and "3.jpg" in done.stdout and done.stdout.endswith("] True\n")


def test_images_that_vanish_end_training_though_bad_ones_are_skipped(folder):
    config = folder(bad_images="skip")
    config.prefetch = config.threads = 1
    source = open_source(config, "train")
    for index in (3, 5):
        Path(source.files[index]).unlink()
    stream = train_batches(source, config, batch=4, seed=0, shuffle=False)
    assert [int(i) for _ in range(20) for i in next(stream)["index"]] == [n % 7 for n in range(80)]
    for name in source.files:
        Path(name).unlink(missing_ok=True)
    empty = []
    with pytest.raises(DataError, match=r"\.jpg: the last of 32 images in a row.*seem gone") as bad:
        for _ in range(30):
            empty.append(not next(stream)["canvas"].any())
    assert "\n" not in str(bad.value) and sum(empty) == 7 and all(empty[-7:])


@pytest.mark.parametrize("maker", [train_batches, memory_batches])
def test_an_image_that_cannot_be_read_at_the_moment_is_never_skipped(folder, maker, monkeypatch):
    """Which step becomes empty would depend on the moment: a run that is resumed would differ."""
    monkeypatch.setattr(files, "PAUSES", (0.0,))
    config = folder(bad_images="skip")
    source = dataclasses.replace(open_source(config, "train"), on_disk=False)
    whole = list(itertools.islice(maker(source, config, batch=2, seed=0), 4))
    usual, failures = files.opened, []

    @contextlib.contextmanager
    def opened(path):
        if path.endswith("3.jpg") and len(failures) < most:
            failures.append(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        with usual(path) as file:
            yield file

    monkeypatch.setattr(files, "opened", opened)
    most = 1
    stream = maker(source, config, batch=2, seed=0)
    for expected, got in zip(whole, itertools.islice(stream, 4), strict=True):
        same(expected, got)
    assert failures and not stream.bad_files
    most = 10**6
    with pytest.raises(
        DataError, match=r"3\.jpg: cannot be read \(Input/output error\); several tries failed.*goes on"
    ):
        list(itertools.islice(maker(source, config, batch=2, seed=0), 4))


IMPORT = """
import os, sys
from kpjax.data.tensorflow import import_tensorflow
sys.path.insert(0, sys.argv[1])
import_tensorflow()
"""
GREETING = b"2026-01-01 00:00:00: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on. You may see ..."


@pytest.mark.parametrize("end", ["os._exit(3)", "os.abort()", "raise ImportError('no libtensorflow')", ""])
def test_a_reason_given_while_tensorflow_is_loaded_reaches_the_terminal(tmp_path, end):
    (tmp_path / "tensorflow.py").write_text(
        f"import os, sys\nos.write(2, {GREETING!r} + b'\\n')\nos.write(2, b'error: the reason\\n')\n"
        f"print('and another', file=sys.stderr)\n{end}\n"
        "class config:\n    set_visible_devices = staticmethod(lambda *_: None)\n"
    )
    command = [sys.executable, "-c", IMPORT, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert "error: the reason" in done.stderr and "and another" in done.stderr, done.stderr
    assert "oneDNN" not in done.stderr


def test_all_images_before_a_bad_one_are_delivered(folder):
    config = folder()
    source = open_source(config, "train")
    damage(config, "truncated")
    stream = train_batches(source, config, batch=1, seed=0, shuffle=False)
    assert [int(next(stream)["index"][0]) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(DataError, match=r"3\.jpg"):
        next(stream)


def test_batches_that_cannot_be_dealt_out(folder):
    config = folder()
    source = open_source(config, "train")
    with pytest.raises(ConfigError, match=r"config\.batch is 5.*2 processes"):
        train_batches(source, config, batch=5, seed=0, process_count=2)
    with pytest.raises(ConfigError, match="process 2 of 2"):
        train_batches(source, config, batch=4, seed=0, process_index=2, process_count=2)
