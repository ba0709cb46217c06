"""Shaping of an information gain before it is paid."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Shaping:
    """How an information gain is shaped before it is paid.

    The paper names the three operations; its values are not known to us, these are our own.

    Args:
        dead_zone: Gains whose size is below this become 0, in nats.
        negative_scale: Factor on negative gains.
        clip: Scale of the soft clip ``sign(x) * clip * ln(1 + |x| / clip)``; None for no clip.

    >>> Shaping(dead_zone=0.1, negative_scale=0.5, clip=None)(-0.4)
    -0.2
    """

    dead_zone: float = 0.1
    negative_scale: float = 1.0
    clip: float | None = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.dead_zone < math.inf and 0 <= self.negative_scale < math.inf):
            raise ValueError(
                f"dead_zone and negative_scale must be finite and not negative, got {self}"
            )
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise ValueError(
                f"clip must be a finite number above 0, or None for no clip, got {self.clip}"
            )

    def __call__(self, gain: float) -> float:
        """Shape one gain, in nats."""
        if abs(gain) < self.dead_zone:
            return 0.0
        if gain < 0:
            gain *= self.negative_scale
        if self.clip is None:
            return gain
        return math.copysign(self.clip * math.log1p(abs(gain) / self.clip), gain)
