"""The joints of a person, as COCO's keypoint annotations have them."""

from __future__ import annotations

from kpjax.objects import PointSet

_SIDES = ("left", "right")
_PAIRS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
# Per joint constants of COCO's object keypoint similarity, https://cocodataset.org/#keypoints-eval
_SIGMAS = {
    "nose": 0.026,
    "eye": 0.025,
    "ear": 0.035,
    "shoulder": 0.079,
    "elbow": 0.072,
    "wrist": 0.062,
    "hip": 0.107,
    "knee": 0.087,
    "ankle": 0.089,
}

_NAMES = ("nose", *(f"{side}_{part}" for part in _PAIRS for side in _SIDES))
_LINES = (
    *((f"{side}_{a}", f"{side}_{b}") for a, b in (("ankle", "knee"), ("knee", "hip")) for side in _SIDES),
    ("left_hip", "right_hip"),
    *((f"{side}_shoulder", f"{side}_hip") for side in _SIDES),
    ("left_shoulder", "right_shoulder"),
    *((f"{side}_{a}", f"{side}_{b}") for a, b in (("shoulder", "elbow"), ("elbow", "wrist")) for side in _SIDES),
    ("left_eye", "right_eye"),
    *(("nose", f"{side}_eye") for side in _SIDES),
    *((f"{side}_{a}", f"{side}_{b}") for a, b in (("eye", "ear"), ("ear", "shoulder")) for side in _SIDES),
)

PERSON = PointSet(
    names=_NAMES,
    edges=tuple((_NAMES.index(a), _NAMES.index(b)) for a, b in _LINES),
    sigmas=tuple(_SIGMAS[name.removeprefix("left_").removeprefix("right_")] for name in _NAMES),
)
