"""What can be wrong with a video: one error class, and a short list of kinds that are counted."""

from __future__ import annotations

import time

# What a batch carries of a clip that could not be read, and what the metrics count, is a place in this list.
KINDS = (
    "damaged",  # the bytes are not what was written, or do not decode
    "truncated",  # the file or the record ends too early
    "empty",  # no byte or no frame
    "missing",  # no such file, record or chunk, though the store is there
    "unsupported",  # a container, codec or property that is not read
    "timeout",  # decoding took longer than allowed
    "unreadable",  # the disk or the network failed, again and again
    "beyond",  # the clip lies past the end of its video
)


class StoreAway(OSError):
    """A whole store cannot be reached, rather than one record of it: worth waiting for."""


class BrokenVideo(ValueError):
    """A video that cannot be decoded as asked; the message says what is wrong with it, `kind` sorts it."""

    def __init__(self, message: str, kind: str = "damaged") -> None:
        if kind not in KINDS:
            raise ValueError(f"unknown kind of failure {kind!r}; there are: {', '.join(KINDS)}")
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[object, ...]:
        return BrokenVideo, (str(self), self.kind)

    @property
    def code(self) -> int:
        """The kind as a number, for batches."""
        return KINDS.index(self.kind)


def check_deadline(deadline: float | None) -> None:
    """Raises once time.monotonic() has passed `deadline`; None never passes."""
    if deadline is not None and time.monotonic() > deadline:
        raise BrokenVideo("decoding it takes longer than allowed", "timeout")
