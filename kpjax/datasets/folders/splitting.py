"""Which images are kept for validation where a data set does not say?  Those that a hash of their name chooses."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence

SHARE = 0.2  # of the images, where there are fewer than LARGE
LARGE, SHARE_OF_LARGE = 10_000, 0.05


def in_validation(names: Sequence[str]) -> list[bool]:
    """Whether each image is kept for validation, decided by its file name alone: (N,) in the order of the names.

    Another image, folder or order changes nothing for the others.  Copies of one image that Roboflow has augmented
    (NAME.rf.HASH.jpg) stay together.  Of two images or more at least one is on each side; a set of LARGE images or more
    keeps fewer of them, which the smaller set has kept too.
    """
    places = [_place(name) for name in names]
    share = SHARE if len(names) < LARGE else SHARE_OF_LARGE
    chosen = [place < share for place in places]
    if len(set(places)) > 1 and not any(chosen):
        chosen = [place == min(places) for place in places]
    if len(set(places)) > 1 and all(chosen):
        chosen = [place != max(places) for place in places]
    return chosen


def _place(name: str) -> float:
    """A number from 0 to 1 that follows from the name without folder and suffix."""
    stem = os.path.splitext(os.path.basename(name.replace("\\", "/")))[0]
    stem = re.sub(r"\.rf\.[0-9a-zA-Z]+$", "", stem)
    return int.from_bytes(hashlib.sha256(stem.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48
