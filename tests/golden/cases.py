"""Finding the golden cases, and reading them with the reader that lies beside them.

    @each_case("fwd_res18_ctdet")
    def test_heads(case): ...      # runs once for every folder of that kind

The folder is KPJAX_GOLDEN (default: ../shared/golden, seen from the repository), images come
from KPJAX_DATA (default: ../shared/data).  A folder belongs to the longest kind that its name
begins with, so `fwd_res18_ctdet_odd` is a case of `fwd_res18_ctdet`; shapes, tags and settings
are read from the case, never written down here.  Without the folder the tests skip.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest

_REPOSITORY = pathlib.Path(__file__).resolve().parents[2]
_DEFAULT = _REPOSITORY.parent / "shared" / "golden"
GOLDEN = pathlib.Path(os.environ.get("KPJAX_GOLDEN") or _DEFAULT)
DATA = pathlib.Path(os.environ.get("KPJAX_DATA") or _REPOSITORY.parent / "shared" / "data")

TESTED = ""
NO_ISSUE = "no issue yet"
# Every kind there is -> TESTED, or why its cases are skipped.
KINDS = {
    "fwd_res18_ctdet": TESTED,
    "fwd_mmdet_centernet_r18": TESTED,
    "fn_ctnet_gaussian": TESTED,
    "gaussian_fixed": TESTED,
    "gaussian_original": TESTED,
    "fn_ctdet_targets": TESTED,
    "fn_ctnet_losses": TESTED,
    "fn_ctnet_decode": TESTED,
    "fn_ctnet_affine_preprocess": TESTED,
    "fn_mmdet_targets": TESTED,
    "fn_mmdet_losses": TESTED,
    "fn_mmdet_predict": TESTED,
    "fn_ctnet_bilinear_up": TESTED,
    "fn_ctnet_merge": TESTED,
    "fn_deform_conv": TESTED,
    "fn_mmcv_soft_nms": TESTED,
    "soft_nms": TESTED,
    "fwd_dla34_ctdet": TESTED,
    "fwd_dlav034_ctdet": TESTED,
    "fwd_hourglass_ctdet": TESTED,
    "fwd_resdcn18_ctdet": TESTED,
    "fwd_resdcn101_ctdet": TESTED,
    "fwd_mmdet_centernet_r18_dcnv2": TESTED,
    "fwd_mmdet_cornernet_hg104": TESTED,
    "pipe_dla34_ctdet": TESTED,
    "pipe_resdcn18_ctdet": TESTED,
    "pipe_mmdet_centernet_r18_dcnv2": TESTED,
    "pipe_mmdet_cornernet_hg104": TESTED,
    "pipe_synth_dla34_ctdet": TESTED,
    "pipe_synth_resdcn18_ctdet": TESTED,
    "pipe_synth_mmdet_centernet_r18_dcnv2": TESTED,
    "pipe_synth_mmdet_cornernet_hg104": TESTED,
    "cornernet_hourglass104": TESTED,
    "centernet_triplet_hourglass52": TESTED,
    "centernet_triplet_hourglass104": TESTED,
    "cascade_center_pool_modules": TESTED,
    "corner_pool_modules": TESTED,
    "corner_pool_ops": TESTED,
    "decode_cornernet": TESTED,
    "decode_centernet_triplet": TESTED,
    "loss_cornernet": TESTED,
    "loss_centernet_triplet": TESTED,
    "pipeline_cornernet": TESTED,
    "pipeline_centernet_triplet52": TESTED,
    "postprocess_cornernet": TESTED,
    "postprocess_centernet_triplet": TESTED,
    "targets_cornernet": TESTED,
    "targets_centernet_triplet": TESTED,
    "fwd_dla34_ddd": TESTED,
    "fwd_dla34_multi_pose": TESTED,
    "fwd_mmdet_centernet_update_r50_fpn": NO_ISSUE,
    "fwd_mmdet_centripetalnet_hg104": NO_ISSUE,
    "fn_ddd_targets": TESTED,
    "fn_exdet_targets": TESTED,
    "fn_multi_pose_targets": TESTED,
    "pipe_res18_multi_pose": TESTED,
    "pipe_res18_ddd": TESTED,
    "cornernet_lite_hourglass104": TESTED,
    "cornernet_saccade": TESTED,
    "cornernet_squeeze": TESTED,
    "decode_cornernet_lite": TESTED,
    "decode_extremenet": TESTED,
    "extremenet_hourglass104": TESTED,
    "loss_cornernet_lite_saccade": TESTED,
    "loss_cornernet_lite_squeeze": TESTED,
    "loss_extremenet": TESTED,
    "postprocess_cornernet_squeeze": TESTED,
    "postprocess_extremenet": TESTED,
    "pipe_extremenet": TESTED,
    "pipe_cornernet_saccade": TESTED,
    "pipe_cornernet_squeeze": TESTED,
    "saccade_functions": TESTED,
    "targets_cornernet_squeeze": TESTED,
    "targets_extremenet": TESTED,
    "fwd_ttfnet_r18": TESTED,
    "fwd_ttfnet_r34": TESTED,
    "fwd_ttfnet_d53": TESTED,
    "fn_ttfnet_targets": TESTED,
    "fn_ttfnet_losses": TESTED,
    "fn_ttfnet_decode": TESTED,
    "pipe_ttfnet_r18": TESTED,
    "pipe_synth_ttfnet_r18": TESTED,
}


def kind_of(name: str) -> str | None:
    """The longest kind that a folder's name begins with."""
    return max((kind for kind in KINDS if name.startswith(kind)), key=len, default=None)


def case_names() -> list[str]:
    """The case folders there are, sorted."""
    return sorted(path.parent.name for path in GOLDEN.glob("*/case.json"))


def each_case(*kinds: str) -> pytest.MarkDecorator:
    """Parametrise `case` over every case of these kinds; one skipped test where there is none."""
    assert all(KINDS.get(kind) == TESTED for kind in kinds), kinds
    names = [name for name in case_names() if kind_of(name) in kinds]
    if names:
        return pytest.mark.parametrize("case", names, indirect=True)
    reason = (
        f"no case of {' or '.join(kinds)} in {GOLDEN.name}" if GOLDEN.is_dir() else "the golden folder is not there"
    )
    return pytest.mark.parametrize("case", [pytest.param("", marks=pytest.mark.skip(reason=reason), id="none")])


def load_case(name: str) -> Any:
    """One case, read by the folder's own `load.py` (or the default folder's, where it has none)."""
    return _module("load").load(name, GOLDEN)


def fill(tag: str, shape: Any, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """The float32 array that the references were given under this tag."""
    return _module("fill").fill_array(tag, shape, low, high)


def companion(case: Any, kind: str) -> Any:
    """The case of another kind that belongs to `case`: of the same suffix, else the plain one."""
    own = kind_of(case.path.name)
    assert own is not None
    for name in (kind + case.path.name.removeprefix(own), kind):
        for folder in (GOLDEN, _DEFAULT):
            if (folder / name / "case.json").is_file():
                return _module("load").load(name, folder)
    pytest.skip(f"{case.path.name} needs a case of {kind}")


def nhwc(array: np.ndarray) -> np.ndarray:
    """The references' NCHW as our NHWC."""
    return np.moveaxis(array, 1, -1)


def _module(name: str) -> Any:
    """`load.py` or `fill.py` of the golden folder: a fixture of the cases, not a copy."""
    folder = GOLDEN if (GOLDEN / "load.py").is_file() else _DEFAULT
    for part in ("fill", "load"):  # load.py imports fill by its bare name
        if part not in sys.modules:
            spec = importlib.util.spec_from_file_location(part, folder / f"{part}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[part] = module
            spec.loader.exec_module(module)
    return sys.modules[name]
