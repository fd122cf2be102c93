"""How fast a program can be at a chip's published peaks, and the largest batch that fits its memory."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from kpjax.aot.hlo import Collective
from kpjax.aot.topology import Topology


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Seconds that each part of a chip would take alone at its published peak; no step is faster than the largest.

    Only `memory` can be too high: the compiler counts all inputs and outputs of operations, on the chip or not.
    """

    compute: float
    memory: float
    interconnect: float

    @property
    def seconds(self) -> float:
        """The time of a step."""
        return max(self.compute, self.memory, self.interconnect)

    @property
    def bottleneck(self) -> str:
        """The part that takes longest."""
        return max(("compute", "memory", "interconnect"), key=lambda part: getattr(self, part))


def roofline(
    topology: Topology, flops: float, moved: float, collectives: Iterable[Collective], float32: float = 0.0
) -> Roofline:
    """The roofline of a program: `flops`, of them `float32` in float32 products, and `moved` bytes of one chip a step,
    and the collectives' bytes sent."""
    chip = topology.chip
    sent = sum(one.times * one.sent for one in collectives)
    return Roofline(chip.seconds(flops, float32), moved / chip.bandwidth, sent / topology.egress if sent else 0.0)


def largest_fitting(points: Sequence[tuple[int, int]], available: int) -> int:
    """The largest x whose memory, on the line through the least and greatest (x, bytes), is within `available`.

    0: none.  Raises ValueError where memory does not grow with x.
    """
    (x0, y0), (x1, y1) = sorted(points)[0], sorted(points)[-1]
    if x1 == x0 or y1 <= y0:
        raise ValueError(f"memory does not grow from {x0} to {x1}")
    slope = (y1 - y0) / (x1 - x0)
    return max(math.floor(x0 + (available - y0) / slope), 0)
