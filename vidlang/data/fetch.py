"""From a plan to an example: decode, tokenize, and stand in for what cannot be decoded. Runs in the workers.

An example is written straight into its row of the batch, which may lie in shared memory, so no frame is copied.

What fails for good, like a damaged record, fails again for the same plan, and its replacement is a function of (seed,
index, attempt). What fails for a while, like a store on a network, is waited for; a run that was luckier, or more
patient, may then see the clip where another saw its replacement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np

from vidlang.data.broken import describe
from vidlang.data.failures import BrokenVideo, StoreAway
from vidlang.data.features.rows import RowFeatures
from vidlang.data.fields import read_fields
from vidlang.data.plan import EvalPlanner, Plan, Planner, TrainPlanner
from vidlang.data.tokenizer import Tokenizer
from vidlang.data.workers.patience import Patience

ATTEMPTS = 8
# A disk that stutters answers again at once; for a store that is away there is `Patience`.
QUICK_WAITS = (0.05, 0.2, 0.8)

Batch = dict[str, np.ndarray]
# Shape and type of every array of a batch.
Layout = dict[str, tuple[tuple[int, ...], np.dtype]]
# Told which attempt of an item is about to be decoded; answers with the kind of failure if it must not be.
Watch = Callable[[int], str | None]


def _unwatched(attempt: int) -> str | None:
    return None


class Fetch:
    """Fills in plans; what the train and the eval fetch share."""

    def __init__(self, planner: Planner, tokenizer: Tokenizer | None, patience: Patience) -> None:
        self._table, self._store, self._spec = planner.table, planner.store, planner.spec
        self._tokenizer, self._patience = tokenizer, patience
        self._fields = read_fields(planner.table, planner.spec.fields)
        self._away_since: float | None = None

    def layout(self, rows: int) -> Layout:
        """The arrays of a batch of so many rows."""
        spec = self._spec
        fields: Layout = {
            "index_B": ((rows,), np.dtype(np.int64)),
            "broken_B": ((rows,), np.dtype(np.int64)),
            "broken_kind_B": ((rows,), np.dtype(np.int8)),
        }
        if not spec.text_only:
            fields = {spec.video_field: ((rows, *spec.video_shape), spec.video_dtype), **fields}
        if self._tokenizer is not None:
            fields["text_BL"] = ((rows, spec.text_length), np.dtype(np.int32))
        if spec.prompted:
            fields["prompt_B"] = ((rows,), np.dtype(np.int32))
        return fields | {field.name: ((rows, *field.shape), field.dtype) for field in self._fields}

    def _frames(self, batch: Batch, place: int) -> np.ndarray | None:
        """Where the frames of a row go; None where there are texts alone."""
        return None if self._spec.text_only else batch[self._spec.video_field][place]

    def _decode(self, plan: Plan, video: np.ndarray | None, watch: Watch) -> None:
        """Writes the frames or features of a plan, or raises BrokenVideo; waits for a store that is away."""
        if (kind := watch(plan.attempt)) is not None:
            raise BrokenVideo(f"video {plan.video!r} ended or stopped the worker that decoded it", kind)
        if self._store is None or video is None:
            return
        quick, slow = iter(QUICK_WAITS), self._patience.waits()
        while True:
            try:
                self._decode_once(plan, video)
            except BrokenVideo:
                self._away_since = None
                raise
            except StoreAway as error:
                self._wait(slow, error)
            except OSError as error:
                if (wait := next(quick, None)) is None:
                    raise BrokenVideo(f"video {plan.video!r} cannot be read: {error}", kind="unreadable") from error
                time.sleep(wait)
            else:
                self._away_since = None
                return

    def _decode_once(self, plan: Plan, video: np.ndarray) -> None:
        assert self._store is not None
        if isinstance(self._store, RowFeatures):
            self._store.read(plan.row, plan.variant, video)
            return
        size, deadline = (self._spec.size, self._spec.size), time.monotonic() + self._patience.decode_timeout
        self._store.decode(
            plan.video, plan.times_T, plan.crop, size, pixels=self._spec.pixels, out=video, deadline=deadline
        )

    def _wait(self, waits: Iterator[float], error: Exception) -> None:
        """Sleeps before the next try. Patience is for one absence, not for each clip in it: it ends for all of them."""
        now = time.monotonic()
        self._away_since = now if self._away_since is None else self._away_since
        left = self._away_since + self._patience.store_patience - now
        if left <= 0:
            raise BrokenVideo(
                f"the store was away for {now - self._away_since:.0f} s: {error}", "unreadable"
            ) from error
        time.sleep(min(next(waits), left))

    def _write(self, plan: Plan, batch: Batch, place: int, broken: int, kind: int) -> None:
        """All of an example but its frames."""
        if self._tokenizer is not None and self._spec.prompted:
            batch["text_BL"][place : place + 1], batch["prompt_B"][place : place + 1] = self._tokenizer.encode_prompted(
                [plan.prompt], [plan.text]
            )
        elif self._tokenizer is not None:
            batch["text_BL"][place] = self._tokenizer.encode([plan.text])[0]
        batch["index_B"][place], batch["broken_B"][place], batch["broken_kind_B"][place] = plan.row, broken, kind
        for field in self._fields:
            batch[field.name][place] = field.value(self._table, plan.row, plan.choice)


class TrainFetch(Fetch):
    """An example for every plan: the planned clip, or the first of its replacements that can be decoded."""

    def __init__(self, planner: TrainPlanner, tokenizer: Tokenizer | None, patience: Patience) -> None:
        super().__init__(planner, tokenizer, patience)
        self._planner = planner

    def __call__(self, plan: Plan, batch: Batch, place: int, watch: Watch = _unwatched) -> None:
        """Fills row `place` of the batch."""
        failed: list[int] = []
        kind = -1
        while True:
            try:
                self._decode(plan, self._frames(batch, place), watch)
            except BrokenVideo as error:
                failed.append(plan.row)
                kind = error.code if kind < 0 else kind
                if len(failed) > ATTEMPTS:
                    clips = ", ".join(describe(self._table, row) for row in failed)
                    raise ValueError(
                        f"Neither the planned clip nor {ATTEMPTS} replacements could be decoded: {clips}. "
                        f"The last one: {error}. Is the chunk store {self._table.store} complete?"
                    ) from error
                plan = self._planner.again(plan)
            else:
                self._write(plan, batch, place, failed[0] if failed else -1, kind)
                return


class EvalFetch(Fetch):
    """An example for every row, in order: a broken clip stays in its place, black and not valid."""

    def __init__(self, planner: EvalPlanner, tokenizer: Tokenizer | None, patience: Patience) -> None:
        super().__init__(planner, tokenizer, patience)
        self._several = planner.spec.views * planner.spec.crops > 1

    def layout(self, rows: int) -> Layout:
        """The arrays of a batch of so many rows."""
        more: Layout = {"valid_B": ((rows,), np.dtype(np.bool_))}
        if self._several:
            more["view_B"] = ((rows,), np.dtype(np.int32))
        return super().layout(rows) | more

    def __call__(self, plan: Plan, batch: Batch, place: int, watch: Watch = _unwatched) -> None:
        """Fills row `place` of the batch."""
        video, broken, kind, valid = self._frames(batch, place), -1, -1, plan.row >= 0
        if valid:
            try:
                self._decode(plan, video, watch)
            except BrokenVideo as error:
                broken, kind, valid = plan.row, error.code, False
        if not valid and video is not None:
            self._blacken(video)
        self._write(plan, batch, place, broken, kind)
        batch["valid_B"][place] = valid
        if self._several:
            batch["view_B"][place] = plan.view

    def _blacken(self, video: np.ndarray) -> None:
        if self._spec.pixels == "yuv420":
            # Black is 16, and no colour 128, in limited range.
            video[:, : self._spec.size] = 16
            video[:, self._spec.size :] = 128
        else:
            video[:] = 0
