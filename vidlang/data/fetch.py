"""From a plan to an example: decode, tokenize, and stand in for what cannot be decoded. Runs in the workers."""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlang.data.broken import describe
from vidlang.data.failures import BrokenVideo
from vidlang.data.plan import EvalPlanner, Plan, Planner, TrainPlanner
from vidlang.data.tokenizer import Tokenizer

ATTEMPTS = 8
# Only what a damaged file or a failing disk can cause; a mistake in the code must not look like a broken clip.
BROKEN = (BrokenVideo, OSError)


class Fetch:
    """Fills in plans; what the train and the eval fetch share."""

    def __init__(self, planner: Planner, tokenizer: Tokenizer) -> None:
        self._table, self._store, self._spec = planner.table, planner.store, planner.spec
        self._tokenizer = tokenizer
        self._dtypes = {name: planner.table.dtype(name) for name in planner.spec.fields}

    def _video(self, plan: Plan) -> np.ndarray:
        size = (self._spec.size, self._spec.size)
        return self._store.decode(plan.video, plan.times_T, plan.crop, size)

    def _example(self, plan: Plan, video_THWC: np.ndarray, broken: int) -> dict[str, Any]:
        # Keys are named for the batch that the examples are stacked into.
        example = {
            "video_BTHWC": video_THWC,
            "text_BL": self._tokenizer.encode([plan.text])[0],
            "index_B": np.int64(plan.row),
            "broken_B": np.int64(broken),
        }
        for name, dtype in self._dtypes.items():
            value = 0 if plan.row < 0 else self._table.cell(plan.row, name)
            example[f"{name}_B"] = dtype.type(value)
        return example


class TrainFetch(Fetch):
    """An example for every plan: the planned clip, or the first of its replacements that can be decoded."""

    def __init__(self, planner: TrainPlanner, tokenizer: Tokenizer) -> None:
        super().__init__(planner, tokenizer)
        self._planner = planner

    def __call__(self, plan: Plan) -> dict[str, Any]:
        failed: list[int] = []
        while True:
            try:
                video_THWC = self._video(plan)
            except BROKEN as error:
                failed.append(plan.row)
                if len(failed) > ATTEMPTS:
                    clips = ", ".join(describe(self._table, row) for row in failed)
                    raise ValueError(
                        f"Neither the planned clip nor {ATTEMPTS} replacements could be decoded: {clips}. "
                        f"The last one: {error}. Is the chunk store {self._table.store} complete?"
                    ) from error
                plan = self._planner.again(plan)
            else:
                return self._example(plan, video_THWC, failed[0] if failed else -1)


class EvalFetch(Fetch):
    """An example for every row, in order: a broken clip stays in its place, black and not valid."""

    def __init__(self, planner: EvalPlanner, tokenizer: Tokenizer) -> None:
        super().__init__(planner, tokenizer)

    def __call__(self, plan: Plan) -> dict[str, Any]:
        spec, broken, valid = self._spec, -1, plan.row >= 0
        video_THWC = np.zeros((spec.frames, spec.size, spec.size, 3), np.uint8)
        if valid:
            try:
                video_THWC = self._video(plan)
            except BROKEN:
                broken, valid = plan.row, False
        return self._example(plan, video_THWC, broken) | {"valid_B": np.bool_(valid)}
