"""kpjax: keypoint object detection in JAX.

    detector = kpjax.build("centernet_r18", num_classes=80)
    predictor = kpjax.load("runs/coco")            # a work directory or an inference checkpoint
    detections = predictor("street.jpg")           # boxes, scores, labels, names

    variables = kpjax.import_torch(detector, kpjax.read_torch_file("released.pth"))
    kpjax.save_inference("model", detector, variables, names=())

Everything here imports without TensorFlow; only the tf.data pipeline needs it.
"""

from __future__ import annotations

import importlib
from typing import Any

from kpjax.detectors import build, list_models
from kpjax.detectors.base import Detector
from kpjax.objects import Detections, Objects, Placed, PointSet

__version__ = "0.1.0"
__all__ = [
    "Detections",
    "Detector",
    "Objects",
    "Placed",
    "PointSet",
    "Predictor",
    "build",
    "import_torch",
    "list_models",
    "load",
    "load_inference",
    "read_torch_file",
    "save_inference",
]

# Imported at first use, so that building a network does not wait for Orbax and OpenCV.
_LATER = {
    "Predictor": "kpjax.inference.predict",
    "load": "kpjax.inference.predict",
    "import_torch": "kpjax.convert",
    "read_torch_file": "kpjax.convert.torch_file",
    "load_inference": "kpjax.checkpoint.weights",
    "save_inference": "kpjax.checkpoint.weights",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'kpjax' has no attribute {name!r}")
