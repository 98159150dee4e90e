"""How long to wait for what is slow, and how often to try again: the numbers of a run's survival in one place."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0


@dataclass(frozen=True)
class Patience:
    """Seconds that a clip may take to decode, a store may be away, a stream may give no batch; and how many restarts of
    the workers may follow one another without a batch between them."""

    decode_timeout: float = 30.0
    store_patience: float = 120.0
    stall_timeout: float = 600.0
    restarts: int = 3

    def __post_init__(self) -> None:
        for name in ("decode_timeout", "store_patience", "stall_timeout", "restarts"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"patience.{name} must be a number from 0 on, found {value}.")
        if not 0 < self.decode_timeout:
            raise ValueError("patience.decode_timeout must be above 0: no clip decodes in no time.")
        if self.stall_timeout <= self.store_patience + self.decode_timeout:
            raise ValueError(
                f"patience.stall_timeout ({self.stall_timeout} s) must exceed store_patience + decode_timeout "
                f"({self.store_patience} + {self.decode_timeout} s), or a worker that waits is taken for a hanging one."
            )

    def waits(self) -> Iterator[float]:
        """Seconds to wait before each further try: doubling, the same every time."""
        return (min(_FIRST_WAIT * 2**k, _LONGEST_WAIT) for k in itertools.count())


DEFAULT = Patience()
