"""Imports run downward only: every module is in one layer, and imports from the layers below it.

Imports inside functions count.  Folders of one layer do not import each other.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
# From the bottom to the top.  A module belongs to the longest entry that its name begins with.
LAYERS = (
    ("kpjax.errors",),
    ("kpjax.recipes", "kpjax.config_checks"),
    ("kpjax.config", "kpjax.objects"),
    ("kpjax.person", "kpjax.extreme_points"),
    ("kpjax.images", "kpjax.parallel", "kpjax.nn", "kpjax.ops"),
    ("kpjax.backbones",),
    ("kpjax.data", "kpjax.detectors"),
    ("kpjax.checkpoint", "kpjax.convert", "kpjax.datasets", "kpjax.metrics"),
    ("kpjax.inference",),
    ("kpjax.training", "kpjax.export"),
    ("kpjax.aot", "kpjax.show"),
    ("kpjax.commands",),
    ("kpjax",),
    ("kpjax.__main__",),
)


def modules() -> dict[str, pathlib.Path]:
    """Every module of kpjax by its name."""
    found = {}
    for path in sorted((ROOT / "kpjax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: pathlib.Path, known: dict[str, pathlib.Path]) -> Iterator[str]:
    """The modules of kpjax that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module in known:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in known else str(node.module)


def place(module: str) -> tuple[int, str]:
    """The layer's number, and the entry of it that the module belongs to."""
    fits = [(len(entry), number, entry) for number, layer in enumerate(LAYERS) for entry in layer]
    fits = [(n, i, e) for n, i, e in fits if module == e or (module.startswith(f"{e}.") and e != "kpjax")]
    assert fits, f"{module} is in no layer: name its folder in LAYERS"
    return max(fits)[1:]


def test_imports_run_downward() -> None:
    known = modules()
    assert len(known) > 80
    wrong = []
    for module, path in known.items():
        number, entry = place(module)
        for other in imported(path, known):
            below, its = place(other)
            if below > number or (below == number and its != entry):
                wrong.append(f"{module} (layer {number}) imports {other} (layer {below})")
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other() -> None:
    known = modules()
    graph = {module: {m for m in imported(path, known) if m != module} for module, path in known.items()}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"these import each other: {' -> '.join((*way[way.index(module) :], module))}"
        if module not in done:
            for other in sorted(graph[module]):
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_detectors_share_through_modules_of_their_own() -> None:
    """What two detectors need is in nn, ops, base or a module named after what they share; none imports a sibling."""
    names = ("centernet", "pose", "box3d", "cornernet", "triplet", "extreme", "ttf", "saccade")
    methods = {f"kpjax.detectors.{name}" for name in names}
    known = modules()
    for method in methods:
        assert not methods & set(imported(known[method], known)), method
