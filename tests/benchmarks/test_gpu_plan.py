"""benchmarks/gpu_plan.py: what its table says."""

from __future__ import annotations

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import gpu_plan

FIGURES = {"memory": 2**30, "fits": True, "launches": 1200, "in_loops": 0, "moved": 3 * 2**30, "odd": {}}


def test_a_cell_has_what_was_before_beside_what_is_now() -> None:
    assert gpu_plan.cell(8, FIGURES, {}) == "8: 1.00, 1,200, 3.0"
    before = FIGURES | {"launches": 9000, "in_loops": 7000, "odd": {"loop of many launches": 3, "large transpose": 5}}
    now = FIGURES | {"fits": False, "odd": {"sort of more than a million rows": 2}}
    assert gpu_plan.cell(8, now, before) == (
        "8: 1.00 › 1.00, 9,000 › 1,200, 3.0 › 3.0, 7,000 › 0 in loops, **too much**, 3 › 0 loop of many launches, "
        "0 › 2 large sort"
    )
    assert gpu_plan.cell(8, {"error": "it does not compile"}, {}) == "8: it does not compile"
