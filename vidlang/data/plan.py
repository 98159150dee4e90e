"""What one item of the stream will be, decided before anything is decoded.

A plan is a pure function of (seed, index, attempt): the row of the table, which of its texts, which moments and which
crop. Nothing else in the data path is random, so a batch does not depend on the number of processes, workers or
restarts, and a clip that cannot be decoded is replaced by one that the same three numbers give.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from absl import logging

from vidlang.core.config import did_you_mean
from vidlang.data.chunks import ChunkStore
from vidlang.data.clips import ClipTable
from vidlang.data.crops import CropBox, choose_crop
from vidlang.data.frames import choose_times

PAIRS = ("none", "group")
# What an error asks for, here and where a config is read.
TIMES_SECTION = "a section such as {'name': 'segments'}"
CROP_SECTION = "a section such as {'name': 'center'}"


@dataclass(frozen=True)
class ClipSpec:
    """What an example looks like: frames of size x size pixels, a text of `text_length` tokens.

    `times` and `crop` name a rule and its options. With pairs="group" every second row of a batch is a partner, drawn
    from the other clips of the same `group` as the row before it. `fields` are columns of numbers to carry into the
    batch; column label arrives as label_B.
    """

    frames: int
    size: int
    times: Annotated[Mapping[str, Any], TIMES_SECTION]
    crop: Annotated[Mapping[str, Any], CROP_SECTION]
    text_length: int
    pairs: str = "none"
    fields: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("frames", "size", "text_length"):
            if getattr(self, name) <= 0:
                raise ValueError(f"clip.{name} must be at least 1, found {getattr(self, name)}.")
        if self.pairs not in PAIRS:
            hint = did_you_mean(self.pairs, PAIRS)
            raise ValueError(f"unknown clip.pairs {self.pairs!r}{hint}; there are: {', '.join(PAIRS)}.")
        for name, words in (("times", TIMES_SECTION), ("crop", CROP_SECTION)):
            if not isinstance(getattr(self, name), Mapping):
                raise ValueError(f"clip.{name} must be {words}; found {getattr(self, name)!r}")
            options = dict(getattr(self, name))
            if "name" not in options:
                raise ValueError(f"clip.{name} must name its rule, as in {name}=dict(name=...), found {options}.")
            object.__setattr__(self, name, options)
        object.__setattr__(self, "fields", tuple(self.fields))


@dataclass(frozen=True)
class Plan:
    """One item of the stream: `row` is -1 where the last batch of an evaluation is only padding."""

    index: int
    attempt: int
    row: int
    video: str
    text: str
    times_T: np.ndarray
    crop: CropBox


class Planner:
    """Makes plans from one table; what the train and the eval planner share."""

    def __init__(self, table: ClipTable, store: ChunkStore, spec: ClipSpec) -> None:
        self.table, self.store, self.spec = table, store, spec

    def _plan(self, index: int, attempt: int, row: int, rng: np.random.Generator | None) -> Plan:
        texts = self.table.cell(row, "texts")
        text = "" if not texts else texts[0 if rng is None else int(rng.integers(len(texts)))]
        video, start, end = (self.table.cell(row, name) for name in ("video", "start", "end"))
        info = self.store.info(video)
        # Annotations may run past the end of a video; a clip that starts there is left for the decoder to refuse.
        end = min(end, info.duration) if start < info.duration else end
        times_T = choose_times(rng, start, end, self.spec.frames, **self.spec.times)
        crop = choose_crop(rng, info.height, info.width, **self.spec.crop)
        return Plan(index, attempt, row, video, text, times_T, crop)


class TrainPlanner(Planner):
    """Draws the plan of item `index`; `row` is what the shuffled stream has there (the anchor's, for a partner)."""

    def __init__(self, table: ClipTable, store: ChunkStore, spec: ClipSpec, seed: int) -> None:
        super().__init__(table, store, spec)
        self.seed = seed
        if spec.pairs == "group":
            self._groups.check()

    def __call__(self, index: int, row: int) -> Plan:
        rng = self._rng(index, 0)
        if self.spec.pairs == "group" and index % 2:
            row = self._groups.partner(int(row), rng)
        return self._plan(index, 0, int(row), rng)

    def again(self, plan: Plan) -> Plan:
        """The replacement of a plan that could not be decoded: any row of the table, for a partner too."""
        attempt = plan.attempt + 1
        rng = self._rng(plan.index, attempt)
        return self._plan(plan.index, attempt, int(rng.integers(len(self.table))), rng)

    def _rng(self, index: int, attempt: int) -> np.random.Generator:
        # The index comes last: it is the only number that may need more than one 32-bit word of the seed.
        return np.random.default_rng((self.seed, attempt, index))

    @functools.cached_property
    def _groups(self) -> Groups:
        return Groups(self.table.column("group"))

    def __getstate__(self) -> dict[str, Any]:
        # Each worker sorts the groups itself: three numbers a row are not worth sending.
        return {name: value for name, value in self.__dict__.items() if name != "_groups"}


class EvalPlanner(Planner):
    """The one plan of a row, drawn from nothing: first text, fixed moments and crop."""

    def __call__(self, index: int) -> Plan:
        if index >= len(self.table):
            return dataclasses.replace(self._plan(index, 0, 0, None), row=-1, text="")
        return self._plan(index, 0, index, None)


class Groups:
    """Finds another member of a row's group in constant time."""

    def __init__(self, group_R: np.ndarray) -> None:
        self._order_R = np.argsort(group_R, kind="stable")
        sorted_R = group_R[self._order_R]
        self._first_R = np.searchsorted(sorted_R, group_R, side="left")
        self._size_R = np.searchsorted(sorted_R, group_R, side="right") - self._first_R
        self._place_R = np.empty_like(self._order_R)
        self._place_R[self._order_R] = np.arange(len(group_R))

    def check(self) -> None:
        """Raises when no row has a partner; says how many have none."""
        alone = int((self._size_R == 1).sum())
        if alone == len(self._size_R):
            raise ValueError(
                f"clip.pairs='group' needs groups of two clips or more, each of {alone} clips is alone in its group."
            )
        if alone:
            logging.warning(
                "%d of %d clips are alone in their group: their partner is drawn from the whole table.",
                alone,
                len(self._size_R),
            )

    def partner(self, row: int, rng: np.random.Generator) -> int:
        """Another row of the same group, or of the whole table where the row is alone in its group."""
        first, size, place = self._first_R[row], self._size_R[row], self._place_R[row]
        if size == 1:
            first, size = 0, len(self._order_R)
        # One draw among the others: those behind this row move up by one place.
        drawn = first + int(rng.integers(size - 1))
        return int(self._order_R[drawn + (drawn >= place)])
