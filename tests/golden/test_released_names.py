"""The names and shapes that our tests give to synthetic checkpoints are those of the authors' own programs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.convert import released

from .cases import each_case, kind_of

MODELS = {
    "fwd_res18_ctdet": "centernet_r18",
    "fwd_resdcn18_ctdet": "centernet_r18_dcn",
    "fwd_resdcn101_ctdet": "centernet_r101_dcn",
    "fwd_dla34_ctdet": "centernet_dla34",
    "fwd_dla34_multi_pose": "centernet_dla34_pose",
    "pipe_res18_multi_pose": "centernet_r18_pose",
    "fwd_dlav034_ctdet": "centernet_dla34_nodcn",
    "fwd_hourglass_ctdet": "centernet_hg104",
    "fwd_mmdet_centernet_r18": "centernet_r18_mmdet",
    "fwd_mmdet_centernet_r18_dcnv2": "centernet_r18_dcn_mmdet",
    "fwd_mmdet_cornernet_hg104": "cornernet_hg104_mmdet",
    "cornernet_hourglass104": "cornernet_hg104",
    "cornernet_lite_hourglass104": "cornernet_hg104_lite",
    "cornernet_squeeze": "cornernet_squeeze",
    "pipe_cornernet_squeeze": "cornernet_squeeze",
    "cornernet_saccade": "cornernet_saccade",
    "pipe_cornernet_saccade": "cornernet_saccade",
    "centernet_triplet_hourglass52": "triplet_hg52",
    "centernet_triplet_hourglass104": "triplet_hg104",
    "fwd_ttfnet_r18": "ttfnet_r18",
    "fwd_ttfnet_r34": "ttfnet_r34",
    "fwd_ttfnet_d53": "ttfnet_d53",
    "pipe_ttfnet_r18": "ttfnet_r18",
    "extremenet_hourglass104": "extremenet_hg104",
    "pipe_extremenet": "extremenet_hg104",
}


@each_case(*MODELS)
def test_names_and_shapes(case: Any) -> None:
    kind = kind_of(case.path.name)
    assert kind is not None
    model = MODELS[kind]
    theirs = {key: tuple(shape) for key, shape in json.loads((case.path / "state_dict.json").read_text())}
    heat = "bbox_head.tl_heat.0.1.conv.weight" if model == "cornernet_hg104_mmdet" else None
    heads = ("hm.2.weight", "hm.0.1.weight", "tl_heats.0.1.weight", "t_heats.0.1.weight", "bbox_head.hm.2.weight")
    heat = heat or next((k for k in heads if k in theirs), None)
    classes = theirs[heat or "bbox_head.heatmap_head.2.weight"][0]
    ours = dict(released.keys(model, classes))
    if set(ours) != set(theirs) or ours != theirs:
        missing, more = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
        other = [key for key in ours if key in theirs and ours[key] != theirs[key]]
        pytest.fail(f"{model}: missing {missing[:5]}, not the original's {more[:5]}, other shapes {other[:5]}")
