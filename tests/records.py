"""Records of objects, as tests write them down."""

from __future__ import annotations

from typing import Any

import numpy as np

from kpjax.objects import OBJECT, Objects


def objects_of(boxes: Any, labels: Any, valid: Any = True) -> Objects:
    """Objects (..., M) of boxes (..., M, 4) and labels (..., M); those that are not valid are empty slots."""
    role = np.int32(OBJECT) * valid if isinstance(valid, bool) else valid.astype(np.int32)
    return Objects(boxes=boxes, labels=labels, role=role + 0 * labels)
