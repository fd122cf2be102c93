"""The machines that a program is compiled for: what a device can do, how many there are, and how they are joined."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of device.  Rates are its published peaks; what programs reach is less.

    memory: bytes that a program can have.  flops: bfloat16 operations a second, a multiply-add being two.  float32:
    those of float32 convolutions and products at JAX's default precision.  bandwidth: bytes a second from and to its
    memory.  link: bytes a second and direction, of one link to a neighbour (TPU) or of all NVLinks together (GPU).
    kept: what of the published memory is not in `memory`, for the report; empty where the compiler counts it.
    """

    memory: int
    flops: float
    float32: float
    bandwidth: float
    link: float
    kept: str = ""

    def seconds(self, flops: float, float32: float = 0.0) -> float:
        """The time of `flops` operations, of which `float32` are float32 products."""
        return (flops - float32) / self.flops + float32 / self.float32


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices that run one program, e.g. a TPU slice v5e:16x16 or two hosts of eight GPUs, h100:2x8.

    platform: JAX's name of it, "tpu" or "cuda".  egress: bytes a second that a device can send to the others.
    describe: makes JAX's devices to compile for.  options: the compiler's, for a machine that lacks the devices.
    """

    platform: str
    kind: str
    shape: tuple[int, ...]
    chip: Chip
    egress: float
    describe: Callable[[], list[Any]]
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """As it is written, e.g. "v5e:16x16"."""
        return f"{self.kind}:{'x'.join(map(str, self.shape))}"

    @property
    def size(self) -> int:
        """How many devices."""
        return math.prod(self.shape)

    @property
    def unit(self) -> str:
        """What one device is called."""
        return "GPU" if self.platform == "cuda" else "chip"

    def devices(self) -> list[Any]:
        """JAX's devices to compile for; the platform's `prepare` has to come before.  None of them can run anything.

        Raises UserError where the compiler's library cannot be used.
        """
        return self.describe()
