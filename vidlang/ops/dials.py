"""The dials: how much of the encoder runs. They change compute, never parameters, so one checkpoint serves them all."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Dials:
    """Hashable settings that a model takes with each call; every default means "off".

    mask: share of the video tokens dropped at random before the first layer, in [0, 1).
    """

    mask: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.mask, bool) or not isinstance(self.mask, int | float) or not 0.0 <= self.mask < 1.0:
            raise ValueError(
                f"the dial mask is {self.mask!r}; it is the share of video tokens to drop, a number in [0, 1)"
            )


# Everything off: the default of every model's `dials`.
OFF = Dials()
