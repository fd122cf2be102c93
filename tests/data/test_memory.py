from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys

import jax
import numpy as np
import pytest

from kpjax.config import DataConfig
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.errors import DataError


def records(count=5):
    rng = np.random.default_rng(0)
    return [
        (
            rng.integers(0, 256, (20 + n, 30, 3), np.uint8),
            np.array([[1.0, 2, 9, 9 + k] for k in range(n)]),
            [k % 2 for k in range(n)],
        )
        for n in range(count)
    ]


def test_arrays_are_shuffled_padded_and_resumed():
    config = DataConfig(canvas=32, max_boxes=3)
    given = records()
    batches = list(itertools.islice(memory_batches(given, config, batch=2, seed=1), 10))
    order = np.concatenate([b["index"] for b in batches])
    assert all(sorted(order[k : k + 5]) == list(range(5)) for k in range(0, 20, 5))
    assert order[:5].tolist() != order[5:10].tolist()
    for batch in batches:
        for slot, n in enumerate(batch["index"]):
            image, boxes, labels = given[n]
            np.testing.assert_array_equal(batch["canvas"][slot, : 20 + n, :30], image)
            kept = min(n, 3)
            assert batch["objects"].valid[slot].tolist() == [k < kept for k in range(3)]
            np.testing.assert_array_equal(batch["objects"].boxes[slot, :kept], np.reshape(boxes, (-1, 4))[:kept])
            assert batch["objects"].labels[slot, :kept].tolist() == labels[:kept]
    for a, b in zip(batches[7:], memory_batches(given, config, batch=2, seed=1, start_step=7), strict=False):
        jax.tree.map(np.testing.assert_array_equal, a, b)


def test_slices_of_processes_make_up_the_global_batch():
    config = DataConfig(canvas=32)
    whole = next(memory_batches(records(), config, batch=4, seed=1))
    parts = [next(memory_batches(records(), config, batch=4, seed=1, process_index=p, process_count=2)) for p in (0, 1)]
    joined = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    jax.tree.map(np.testing.assert_array_equal, whole, joined)


def test_bad_arrays_are_named():
    good = records()
    for broken, pattern in (
        ((good[0][0].astype(np.float32), [], []), r"record 1.*uint8"),
        ((good[0][0][:0], [], []), r"record 1.*\(0, "),
        ((good[0][0], [[0, 0, 1e30, 1]], [0]), r"record 1.*finite"),
        ((good[0][0], [[0, 0, 1, 1]], [np.nan]), r"record 1.*label"),
        ((good[0][0], [[0, 0, 1, 1]], []), r"record 1.*1 boxes and 0 labels"),
        ((good[0][0], [[0, 0, np.nan, 1]], [0]), r"record 1.*finite"),
        ((good[0][0], [[0, 0, 1, 1]], [-1]), r"record 1.*label"),
    ):
        with pytest.raises(DataError, match=pattern):
            memory_batches([good[0], broken], DataConfig(canvas=32), batch=1, seed=0)
    with pytest.raises(DataError, match="no records"):
        memory_batches([], DataConfig(canvas=32), batch=1, seed=0)


def test_where_no_image_can_be_read_nothing_is_skipped(folder):
    config = folder(bad_images="skip")
    source = dataclasses.replace(open_source(config, "train"), read=lambda i: b"")
    with pytest.raises(DataError, match=r"6\.jpg: the last of 7 images in a row"):
        memory_batches(source, config, batch=2, seed=0)


def test_it_needs_no_tensorflow(folder):
    config = folder()
    program = f"""
import sys
sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None  # import now fails
from kpjax.config import DataConfig, SplitConfig
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
config = DataConfig(train=SplitConfig({config.train.images!r}, {config.train.annotations!r}), canvas=64)
print(next(memory_batches(open_source(config, "train"), config, batch=3, seed=0))["canvas"].shape)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "(3, 64, 64, 3)", done.stderr
    assert len(open_source(config, "train")) == 7
