"""The checkpoints that the authors and mmdetection released: where they are, and the AP that was published for them.

The figures are the published ones.  Most hosts need a browser; `python -m kpjax convert` reads the files.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Released:
    """model: the name for `convert --model`.

    ap: COCO's box AP, of a pose model its keypoint AP, of a 3D model KITTI's of cars, as published, with its split and
        test protocol.
    """

    model: str
    what: str
    ap: str
    source: str


_DRIVE = "https://drive.google.com/file/d/"
_OPENMMLAB = "https://download.openmmlab.com/mmdetection/v2.0/"
_VAL = "val2017 na / flip / ms"
_POSE = "val2017 keypoints flip"
_CARS = "KITTI val, cars easy / moderate / hard:"
RELEASED = (
    Released(
        "cornernet_hg104",
        "princeton-vl/CornerNet",
        "test-dev flip 40.5, ms 42.1",
        _DRIVE + "1UHjVzSG27Ms0VfSFeGYJ2h2AYZ6d4Le_",
    ),
    Released(
        "cornernet_hg104",
        "princeton-vl/CornerNet-Lite, CornerNet: the same network with other names",
        "test-dev flip 40.5, ms 42.1",
        _DRIVE + "1e8At_iZWyXQgLlMwHkB83kN-AN85Uff1",
    ),
    Released(
        "cornernet_squeeze",
        "princeton-vl/CornerNet-Lite, CornerNet_Squeeze_500000.pkl",
        "COCO na 34.4",
        _DRIVE + "1qM8BBYCLUBcZx_UmLT0qMXNTh-Yshp4X",
    ),
    Released(
        "cornernet_saccade",
        "princeton-vl/CornerNet-Lite, CornerNet_Saccade_500000.pkl",
        "test-dev na 43.2",
        _DRIVE + "1MQDyPRI0HgDHxHToudHqQ-2m8TVBciaa",
    ),
    Released(
        "triplet_hg52",
        "Duankaiwen/CenterNet, CenterNet-52",
        "test-dev flip 41.6, ms 43.5",
        "https://pan.baidu.com/s/1Ltig0csUPp4T5HA4BjHikA (code ed0y)",
    ),
    Released(
        "triplet_hg104",
        "Duankaiwen/CenterNet, CenterNet-104",
        "test-dev flip 44.9, ms 47.0",
        "https://pan.baidu.com/s/17RvbWaxrvW1kXRuk7XmIfw (code 2clj)",
    ),
    Released(
        "extremenet_hg104",
        "xingyizhou/ExtremeNet, ExtremeNet_250000.pkl",
        "val2017 flip 40.3, ms 43.3",
        _DRIVE + "1re-A74WRvuhE528X6sWsg1eEbMG8dmE4",
    ),
    Released(
        "extremenet_hg104",
        "xingyizhou/ExtremeNet, ExtremeNet_500000.pkl, trained from random weights",
        "val2017 ms 43.9",
        _DRIVE + "1omiOUjWCrFbTJREypuZaODu0bOlF_7Fg",
    ),
    Released(
        "centernet_hg104",
        "xingyizhou/CenterNet, ctdet_coco_hg",
        f"{_VAL} 40.3 / 42.2 / 45.1",
        _DRIVE + "13F904yXltGIqa_K3g3-FLleaNX0n7c9O",
    ),
    Released(
        "centernet_dla34",
        "xingyizhou/CenterNet, ctdet_coco_dla_2x",
        f"{_VAL} 37.4 / 39.2 / 41.7",
        _DRIVE + "18Q3fzzAsha_3Qid6mn4jcIFPeOGUaj1d",
    ),
    Released(
        "centernet_dla34",
        "xingyizhou/CenterNet, ctdet_coco_dla_1x",
        f"{_VAL} 36.3 / 38.2 / 40.7",
        _DRIVE + "1xqFsdA3DANMq1MfnXG8n7nQPe4AfXTHv",
    ),
    Released(
        "centernet_r101_dcn",
        "xingyizhou/CenterNet, ctdet_coco_resdcn101",
        f"{_VAL} 34.6 / 36.2 / 39.3",
        _DRIVE + "1tKkSyzC3iWmM6XTYNJrC4XLCIToDmnHz",
    ),
    Released(
        "centernet_r18_dcn",
        "xingyizhou/CenterNet, ctdet_coco_resdcn18",
        f"{_VAL} 28.1 / 30.0 / 33.2",
        _DRIVE + "1RtFps3kQAyLjQyzCao7pPDclOBQ64Vyp",
    ),
    Released(
        "centernet_hg104_pose",
        "xingyizhou/CenterNet, multi_pose_hg_3x",
        f"{_POSE} 64.0",
        _DRIVE + "17-YS11iguOQKwPPHUg8LzakLzrgKSLfA",
    ),
    Released(
        "centernet_hg104_pose",
        "xingyizhou/CenterNet, multi_pose_hg_1x",
        f"{_POSE} 58.7",
        _DRIVE + "1neg1zfVjRTS45FCdk5hgIV-TxJ0McAew",
    ),
    Released(
        "centernet_dla34_pose",
        "xingyizhou/CenterNet, multi_pose_dla_3x",
        f"{_POSE} 58.9",
        _DRIVE + "1mC2PAQT_RuHi_9ZMZgkt4rg7BSY2_Lkd",
    ),
    Released(
        "centernet_dla34_pose",
        "xingyizhou/CenterNet, multi_pose_dla_1x",
        f"{_POSE} 54.7",
        _DRIVE + "1WKqVdkIew43SxLTSxi81a-_f4Q9v2Fx5",
    ),
    Released(
        "centernet_dla34_3d",
        "xingyizhou/CenterNet, ddd_3dop",
        f"{_CARS} 2D 96.9 / 87.8 / 79.2, AOS 93.9 / 84.3 / 75.7, bird's-eye 34.0 / 30.5 / 26.8",
        _DRIVE + "1LrAzVJqlZECVuyr_NJI_4xd88mA1fL5b",
    ),
    Released(
        "centernet_dla34_3d",
        "xingyizhou/CenterNet, ddd_sub",
        f"{_CARS} 2D 89.6 / 79.8 / 70.3, AOS 85.7 / 75.2 / 65.9, bird's-eye 34.9 / 27.7 / 26.4",
        _DRIVE + "1ZUsUqrM_yTjxaJuDBxm0WTKXj1snVuvP",
    ),
    Released(
        "cornernet_hg104_mmdet",
        "mmdetection, cornernet_hourglass104_mstest_8x6_210e_coco",
        "val2017 na 40.9, flip 41.2",
        _OPENMMLAB
        + "cornernet/cornernet_hourglass104_mstest_8x6_210e_coco/"
        + "cornernet_hourglass104_mstest_8x6_210e_coco_20200825_150618-79b44c30.pth",
    ),
    Released(
        "cornernet_hg104_mmdet",
        "mmdetection, cornernet_hourglass104_mstest_10x5_210e_coco",
        "val2017 na 40.6, flip 41.2",
        _OPENMMLAB
        + "cornernet/cornernet_hourglass104_mstest_10x5_210e_coco/"
        + "cornernet_hourglass104_mstest_10x5_210e_coco_20200824_185720-5fefbf1c.pth",
    ),
    Released(
        "cornernet_hg104_mmdet",
        "mmdetection, cornernet_hourglass104_mstest_32x3_210e_coco",
        "val2017 na 39.6, flip 40.4",
        _OPENMMLAB
        + "cornernet/cornernet_hourglass104_mstest_32x3_210e_coco/"
        + "cornernet_hourglass104_mstest_32x3_210e_coco_20200819_203110-1efaea91.pth",
    ),
    Released(
        "centernet_r18_dcn_mmdet",
        "mmdetection, centernet_resnet18_dcnv2_140e_coco",
        "val2017 na 29.5, flip 30.9",
        _OPENMMLAB
        + "centernet/centernet_resnet18_dcnv2_140e_coco/"
        + "centernet_resnet18_dcnv2_140e_coco_20210702_155131-c8cd631f.pth",
    ),
    Released(
        "centernet_r18_mmdet",
        "mmdetection, centernet_resnet18_140e_coco",
        "val2017 na 25.9, flip 27.3",
        _OPENMMLAB
        + "centernet/centernet_resnet18_140e_coco/"
        + "centernet_resnet18_140e_coco_20210705_093630-bb5b3bf7.pth",
    ),
    *(
        Released(
            f"ttfnet_{trunk}",
            f"ZJULearning/ttfnet, ttfnet_{trunk}_{schedule}",
            f"val2017 na {ap}",
            "https://github.com/ZJULearning/ttfnet",
        )
        for trunk, schedule, ap in (
            ("r18", "1x", 25.9),
            ("r18", "2x", 28.1),
            ("r18", "aug_10x", 31.8),
            ("r34", "2x", 31.3),
            ("r34", "aug_10x", 35.3),
            ("d53", "1x", 32.9),
            ("d53", "2x", 35.1),
            ("d53", "aug_10x", 39.3),
        )
    ),
)


def table() -> str:
    """The list as text."""
    lines = ["released checkpoints; the APs are the published ones, none was measured here", ""]
    for entry in RELEASED:
        lines += [f"{entry.model:24s} {entry.what}", f"{'':24s} published AP {entry.ap}", f"{'':24s} {entry.source}"]
    lines += ["", "fetch one (a browser may be needed), then: python -m kpjax convert FILE --model NAME --out DIR"]
    return "\n".join(lines)
