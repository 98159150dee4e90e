"""Features in place of frames: what a clip table's rows have in a feature store, for the input pipeline.

    clip.features = {"store": FOLDER, "variants": ("d-768", "d-384"), "segments": 16, "width": 256}

A row is found by its video and seconds, to the microsecond, so the table may be any part of the one that was extracted.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc

from vidlang.data.clips import ClipTable
from vidlang.data.failures import BrokenVideo
from vidlang.data.features.cuts import keys
from vidlang.data.features.store import FeatureStore


@dataclass(frozen=True)
class FeatureSpec:
    """Which features a clip has: of each of `segments` segments, `width` numbers.

    Training draws one of the variants for each item, an evaluation takes the first.
    """

    store: str
    variants: Sequence[str]
    segments: int
    width: int

    def __post_init__(self) -> None:
        if not self.variants:
            raise ValueError(f"clip.features.variants is a list of names, as in ('d-768',); found {self.variants!r}")
        object.__setattr__(self, "variants", tuple(self.variants))
        for name in ("segments", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"clip.features.{name} must be at least 1, found {getattr(self, name)}.")


class RowFeatures:
    """The features of a table's rows."""

    def __init__(self, table: ClipTable, spec: FeatureSpec) -> None:
        self._store, self._spec = FeatureStore(spec.store), spec
        for variant in spec.variants:
            self._store.check_complete(variant)
            if (width := self._store.width(variant)) != spec.width:
                raise ValueError(
                    f"the features {variant!r} of {spec.store} have width {width}, and clip.features.width is "
                    f"{spec.width}; set it to that"
                )
        self._row_N = _match(table, self._store)
        count_N = self._store.index["count"].to_numpy()[self._row_N]
        if wrong := np.unique(count_N[count_N != spec.segments]).tolist():
            raise ValueError(
                f"clip.features.segments is {spec.segments}, and {spec.store} has clips of {wrong[0]} segments; set it "
                "to that, or extract the features anew"
            )

    def choose(self, rng: np.random.Generator | None) -> int:
        """Which variant an item has: drawn in training, the first in testing."""
        return 0 if rng is None else int(rng.integers(len(self._spec.variants)))

    def read(self, row: int, variant: int, out_SD: np.ndarray) -> None:
        """Writes the features of a row of the table; BrokenVideo where the clip could not be read to make them."""
        out_SD[:] = self._store.read(int(self._row_N[row]), self._spec.variants[variant])
        if np.isnan(out_SD).any():
            raise BrokenVideo(f"row {row} could not be read when its features were extracted", "missing")


def identity(spec: FeatureSpec) -> dict[str, object]:
    """What tells these features from others, wherever they lie."""
    store = FeatureStore(spec.store)
    return {**store.settings, "variants": {name: store.note(name) for name in spec.variants}}


def _match(table: ClipTable, store: FeatureStore) -> np.ndarray:
    """The row of the store's index for each row of the table."""
    index = store.index
    names = pc.unique(index["video"])
    known = keys(index["video"], index["start"].to_numpy(), index["end"].to_numpy(), names)
    asked = keys(table.arrow("video"), table.column("start"), table.column("end"), names)
    _, number = np.unique(np.concatenate([known, asked]), axis=0, return_inverse=True)
    number = number.reshape(-1)
    row_U = np.full(int(number.max()) + 1, -1, np.int64)
    # The first of equal clips, whose features are the same: written last.
    row_U[number[: len(known)][::-1]] = np.arange(len(known))[::-1]
    row_N = row_U[number[len(known) :]]
    if (absent := np.flatnonzero(row_N < 0)).size:
        row = int(absent[0])
        video, start, end = (table.cell(row, name) for name in ("video", "start", "end"))
        raise ValueError(
            f"{len(absent)} of {len(table)} clips of the table have no features in {os.fspath(store.path)}, the first "
            f"is row {row} ({video}, {start} to {end}); extract them, or leave these clips out"
        )
    return row_N
