"""Kinds of TPU, the names of their slices, and where libtpu is."""

from __future__ import annotations

import pathlib

import pytest

from kpjax.aot import tpu
from kpjax.errors import ConfigError, UserError


@pytest.mark.parametrize(
    "text, kind, shape, chips, links",
    [
        ("v5e:16x16", "v5e", (16, 16), 256, 4),
        ("v5e:2x4", "v5e", (2, 4), 8, 3),
        ("v6e:1x1", "v6e", (1, 1), 1, 0),
        ("v4:2x2x1", "v4", (2, 2, 1), 4, 2),
        ("v5p:4x4x4", "v5p", (4, 4, 4), 64, 6),
        ("v5p:4x4x12", "v5p", (4, 4, 12), 192, 6),
    ],
)
def test_a_slice(text: str, kind: str, shape: tuple[int, ...], chips: int, links: int) -> None:
    topology = tpu.parse_topology(text)
    assert (topology.kind, topology.shape, topology.size, topology.name) == (kind, shape, chips, text)
    assert topology.egress == links * topology.chip.link


@pytest.mark.parametrize("kind", tpu.CHIPS)
def test_every_listed_slice_is_one(kind: str) -> None:
    for shape in tpu.SLICES[kind]:
        assert tpu.parse_topology(f"{kind}:{shape}").chip is tpu.CHIPS[kind]


@pytest.mark.parametrize(
    "text, kinds",
    [
        ("v5e:3x3", ("v5e",)),
        ("v5e", ("v5e",)),
        ("v5e:0x4", ("v5e",)),
        ("v5e:2x2x1", ("v5e",)),
        ("v4:2x2", ("v4",)),
        ("v4:4x4x6", ("v4",)),
        ("v5p:400x400x400", ("v5p",)),
        ("v3:2x2", tuple(tpu.CHIPS)),
        ("", tuple(tpu.CHIPS)),
    ],
)
def test_what_is_no_slice_is_told_in_one_line_that_lists_them(text: str, kinds: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        tpu.parse_topology(text)
    said = str(caught.value)
    assert "\n" not in said and repr(text) in said
    assert all(shape in said for kind in kinds for shape in tpu.SLICES[kind])


def test_where_libtpu_is(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KPJAX_LIBTPU", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'kpjax\[plan\]'.*--libtpu or KPJAX_LIBTPU$"):
        tpu.find_libtpu()
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "libtpu"
    package.mkdir(parents=True)
    with pytest.raises(UserError, match=r"no libtpu\.so in "):
        tpu.find_libtpu(str(tmp_path))
    library = package / "libtpu.so"
    library.write_bytes(b"")
    assert [tpu.find_libtpu(str(place)) for place in (tmp_path, package, library)] == [str(library)] * 3
    monkeypatch.setenv("KPJAX_LIBTPU", str(tmp_path))
    assert tpu.find_libtpu() == str(library)
