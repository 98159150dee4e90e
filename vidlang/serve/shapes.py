"""Shapes that programs are compiled for: as few as powers of two are. And rows as unit vectors."""

from __future__ import annotations

from typing import Any

import numpy as np

LEAST_TOKENS = 16


def batch_rows(count: int, most: int) -> int:
    """Rows of a batch: the least power of two that holds all, or `most`."""
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"batch_size is {most!r}; it is a whole number from 1 on")
    return min(most, power(count))


def power(count: int) -> int:
    """The least power of two from this number on."""
    return 1 << max(0, count - 1).bit_length()


def shortened(text_NL: np.ndarray) -> np.ndarray:
    """The texts without the places that none of them needs, down to a power of two: nothing attends to padding."""
    longest = int(np.flatnonzero(text_NL.any(axis=0)).max(initial=0)) + 1
    return text_NL[:, : max(LEAST_TOKENS, power(longest))]


def are_embeddings(x: Any) -> bool:
    """Whether somebody gave embeddings [N, E], and not what they are made of."""
    return isinstance(x, np.ndarray) and x.ndim == 2 and x.dtype.kind == "f"


def unit(x_NE: np.ndarray) -> np.ndarray:
    """Rows of length one."""
    return x_NE / np.maximum(np.linalg.norm(x_NE, axis=-1, keepdims=True), 1e-12)
