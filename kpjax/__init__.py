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

TYPE_CHECKING = False  # as typing has it; importing that would take longer than all else here
if TYPE_CHECKING:
    from kpjax import detectors as detectors
    from kpjax import objects as objects
    from kpjax.checkpoint.weights import load_inference, save_inference
    from kpjax.convert import import_torch
    from kpjax.convert.torch_file import read_torch_file
    from kpjax.detectors import build, list_models
    from kpjax.detectors.base import Detector
    from kpjax.inference.predict import Predictor, load
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

# Imported at first use: `kpjax --help` does not wait for JAX, nor building a network for Orbax and OpenCV.
_LATER = {
    "Detections": "kpjax.objects",
    "Detector": "kpjax.detectors.base",
    "Objects": "kpjax.objects",
    "Placed": "kpjax.objects",
    "PointSet": "kpjax.objects",
    "Predictor": "kpjax.inference.predict",
    "build": "kpjax.detectors",
    "import_torch": "kpjax.convert",
    "list_models": "kpjax.detectors",
    "load": "kpjax.inference.predict",
    "load_inference": "kpjax.checkpoint.weights",
    "read_torch_file": "kpjax.convert.torch_file",
    "save_inference": "kpjax.checkpoint.weights",
}
_MODULES = ("detectors", "objects")  # `kpjax.objects` needs no import of its own


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return importlib.import_module(f"kpjax.{name}")
    if name in _LATER:
        return getattr(importlib.import_module(_LATER[name]), name)
    raise AttributeError(f"module 'kpjax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})
