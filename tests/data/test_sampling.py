"""Images of rare classes are shown more often, as often as LVIS's repeat factors say, in an order without a state."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from kpjax.config import DataConfig
from kpjax.data.memory import memory_batches
from kpjax.data.opening import open_source
from kpjax.data.sampling import images_at, part_ends, repeat_factors
from kpjax.data.source import Source

Folder = Callable[..., DataConfig]


def repeated(folder: Folder, threshold: float) -> tuple[Source, DataConfig]:
    config = dataclasses.replace(folder(), repeat_threshold=threshold)
    return open_source(config, "train"), config


def order_of(source: Source, ends: np.ndarray, epoch: int) -> np.ndarray:
    places = np.arange(int(ends[-1]))
    return images_at(ends, places, np.full_like(places, epoch))


def test_factors_are_lvis_s(folder: Folder) -> None:
    source, _ = repeated(folder, 0)
    of_image = [set(objects.labels[objects.valid].tolist()) for objects in source.objects]
    share = {c: sum(c in labels for labels in of_image) / len(source) for c in range(len(source.classes))}
    assert sorted(share.values()) == pytest.approx([0, 3 / 7, 5 / 7])  # a class without objects counts nothing
    for threshold in (1.0, 0.5, 0.1):
        expected = [max([1.0, *((threshold / share[c]) ** 0.5 for c in labels)]) for labels in of_image]
        np.testing.assert_allclose(repeat_factors(source, threshold), expected)
    assert (repeat_factors(source, 0.1) == 1).all(), "no class is rare"


def test_each_image_is_shown_as_often_as_its_factor(folder: Folder) -> None:
    source, _ = repeated(folder, 0)
    factors = repeat_factors(source, 1.0)
    ends = part_ends(source, 1.0)
    assert ends is not None and ends[-1] == np.ceil(factors.sum()) == 9
    parts = np.diff(ends, prepend=0)
    np.testing.assert_allclose(parts / parts[0], factors / factors[0])
    epochs = 200
    counts = np.stack([np.bincount(order_of(source, ends, e), minlength=7) for e in range(epochs)])
    assert (counts >= np.floor(parts)).all() and (counts <= np.ceil(parts)).all() and (counts.sum(1) == 9).all()
    np.testing.assert_allclose(counts.sum(0) / epochs, parts, atol=0.02)  # chance alone would leave 0.03 to 0.1


def test_without_rare_classes_the_order_stays(folder: Folder) -> None:
    source, config = repeated(folder, 0.1)
    assert part_ends(source, 0) is None
    ends = part_ends(source, 0.1)
    assert ends is not None
    for epoch in (0, 1, 10**6):
        assert order_of(source, ends, epoch).tolist() == list(range(7))
    assert records(memory_batches, source, config) == records(
        memory_batches, source, dataclasses.replace(config, repeat_threshold=0)
    )


def records(feed: Callable[..., Any], source: Source, config: DataConfig, steps: int = 9, **options: Any) -> list[int]:
    stream = itertools.islice(feed(source, config, batch=4, seed=5, **options), steps)
    return np.concatenate([batch["index"] for batch in stream]).tolist()


@pytest.mark.parametrize("host", ["TensorFlow", "memory"])
def test_the_order_follows_from_the_step(folder: Folder, host: str) -> None:
    """36 examples, four epochs of 9 places: resumed anywhere, and in slices of two processes, the same."""
    if host == "TensorFlow":
        pytest.importorskip("tensorflow")
        from kpjax.data.pipeline import train_batches as feed
    else:
        feed = memory_batches  # type: ignore[assignment]
    source, config = repeated(folder, 1.0)
    whole = records(feed, source, config)
    ends = part_ends(source, 1.0)
    assert ends is not None
    for epoch in range(4):
        part = whole[9 * epoch : 9 * epoch + 9]
        assert sorted(part) == order_of(source, ends, epoch).tolist()
        assert part != sorted(part)
    assert records(feed, source, config, steps=4, start_step=5) == whole[20:]
    halves = [records(feed, source, config, process_index=p, process_count=2) for p in range(2)]
    both = np.concatenate([np.reshape(half, (9, 2)) for half in halves], axis=1)
    assert both.reshape(-1).tolist() == whole


def test_both_feeds_agree_in_the_files_order(folder: Folder) -> None:
    pytest.importorskip("tensorflow")
    from kpjax.data.pipeline import train_batches

    source, config = repeated(folder, 1.0)
    feeds = [records(feed, source, config, shuffle=False) for feed in (train_batches, memory_batches)]
    assert feeds[0] == feeds[1]
