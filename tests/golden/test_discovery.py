"""Which cases there are, and that none is left out without a word."""

from __future__ import annotations

import pytest

from .cases import GOLDEN, KINDS, TESTED, case_names, kind_of, load_case


def test_longest_kind_wins() -> None:
    assert kind_of("fwd_mmdet_centernet_r18_odd_size") == "fwd_mmdet_centernet_r18"
    assert kind_of("fwd_mmdet_centernet_r18_dcnv2_odd_size") == "fwd_mmdet_centernet_r18_dcnv2"
    assert kind_of("fn_ctdet_targets_b") == "fn_ctdet_targets"
    assert kind_of("something_else") is None


@pytest.mark.parametrize("name", [name for name in case_names() if KINDS.get(kind_of(name) or "", "?") != TESTED])
def test_skipped_with_its_reason(name: str) -> None:
    """One line in pytest's report for each case that nothing compares yet."""
    kind = kind_of(name)
    pytest.skip(f"{name}: {KINDS[kind] if kind else 'unknown kind'}")


def test_parameters_are_rebuilt_as_the_reference_had_them() -> None:
    if not GOLDEN.is_dir():
        pytest.skip("the golden folder is not there")
    name = next((n for n in case_names() if (kind_of(n) or "").startswith("fwd_res18")), None)
    if name is None:
        pytest.skip("no fwd_res18 case there")
    case = load_case(name)
    assert "abs_sum_of_all_float_tensors" in case.info
    assert case.params  # load.py raises where the sum of all parameters is another
