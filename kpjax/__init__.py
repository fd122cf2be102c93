"""kpjax: keypoint object detection in JAX.

    detector = kpjax.build("centernet_r18", num_classes=80)
    predictor = kpjax.load("runs/coco")            # a work directory or an inference checkpoint
    detections = predictor("street.jpg")           # boxes, scores, labels, names

Everything here imports without TensorFlow; only the tf.data pipeline needs it.
"""

from __future__ import annotations

from typing import Any

from kpjax.detectors import build, list_models
from kpjax.detectors.base import Detector
from kpjax.objects import Detections

__version__ = "0.1.0"
__all__ = ["Detections", "Detector", "Predictor", "build", "import_torch", "list_models", "load"]


def __getattr__(name: str) -> Any:
    # Imported at first use, so that building a network does not wait for Orbax and OpenCV.
    if name in ("Predictor", "load"):
        from kpjax.inference import predict

        return getattr(predict, name)
    if name == "import_torch":
        from kpjax.convert import import_torch

        return import_torch
    raise AttributeError(f"module 'kpjax' has no attribute {name!r}")
