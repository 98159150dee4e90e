"""Batches for training and evaluation, through one Grain graph.

    steps -> this process's items of each -> source, row (shuffled, repeated) -> plan -> decode into the batch

Everything random happens in the plan, which knows nothing of processes. So the batch of step s is a pure function of
(seed, s): resuming is starting at another s, and worker processes only decide who does the work. Process p of P takes
the p-th block of B/P rows of every batch. `put_batch` lays the rows out process after process, so the global batch has
the same rows in the same places whatever P is, and what the model draws by place, like masks, is the same too.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vidlang.data.broken import BrokenClips
from vidlang.data.checks import check_setup
from vidlang.data.clips import ClipTable
from vidlang.data.fetch import Batch, EvalFetch, Layout
from vidlang.data.identity import identity
from vidlang.data.mixture import Source, mixture_stream, open_stream
from vidlang.data.plan import ClipSpec, EvalPlanner, Share
from vidlang.data.tokenizer import Tokenizer
from vidlang.data.workers.count import batch_bytes, settle_workers
from vidlang.data.workers.crew import ItemWatch
from vidlang.data.workers.patience import DEFAULT, Patience
from vidlang.data.workers.spill import Spill
from vidlang.data.workers.stream import Batches, StreamOptions

__all__ = [
    "Batches",
    "ClipSpec",
    "EvalData",
    "Patience",
    "Source",
    "eval_batches",
    "identity",
    "mixture_stream",
    "train_stream",
]


def train_stream(
    table: ClipTable,
    tokenizer: Tokenizer | None,
    spec: ClipSpec,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    patience: Patience = DEFAULT,
) -> Batches:
    """The endless stream of this process's share of the batches of `batch_size`, from `start_step` on.

    A batch holds video_BTHWC uint8 (or yuv_BTXW, or features_BSD float32), text_BL int32, index_B (row of the table),
    broken_B (row that could not be decoded and was replaced, else -1), broken_kind_B (why, by its place in
    failures.KINDS, else -1) and the columns of `spec.fields`; without a tokenizer there is no text. With workers=-1
    their number is chosen. Close it, or use it as a context manager.
    """
    share = Share(batch_size, process_index, process_count)
    options = StreamOptions(seed, start_step, workers, prefetch, patience)
    return open_stream([Source(table, spec)], tokenizer, share, "items", options, marked=False)


class _EvalBatches:
    """The batches of one pass over a table, by step."""

    def __init__(self, planner: EvalPlanner, fetch: EvalFetch, share: Share) -> None:
        self._planner, self._fetch, self._share = planner, fetch, share

    def layout(self, step: int) -> Layout:
        """The arrays of every batch."""
        return self._fetch.layout(self._share.local)

    def fill(self, step: int, batch: Batch, watch: ItemWatch) -> None:
        """Makes this process's rows of the batch of this step."""
        for place, item in enumerate(self._share.items(step)):
            self._fetch(self._planner(item), batch, place, functools.partial(watch, item))


def eval_batches(
    table: ClipTable,
    tokenizer: Tokenizer | None,
    spec: ClipSpec,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    broken: BrokenClips | None = None,
    patience: Patience = DEFAULT,
) -> Iterator[Batch]:
    """One pass over the table in order: this process's share of each batch of `batch_size`.

    Besides the arrays of `train_stream` there is valid_B. It is false for the padding of the last batch (index_B -1),
    which gives every process the same number of full batches, and for a clip that could not be decoded. Such clips are
    counted in `broken`, and too many of them end the pass with an error. Where a row is seen as several views and crops
    these follow one another, with the same index_B and with view_B = 0, 1, ...
    """
    share = Share(batch_size, process_index, process_count)
    store = check_setup(table, tokenizer, spec)
    if spec.pairs != "none":
        raise ValueError(f"Evaluation takes every clip once: set clip.pairs='none', found {spec.pairs!r}.")
    workers = settle_workers(workers, prefetch, batch_bytes(spec, share.local))
    planner = EvalPlanner(table, store, spec)
    planner(0)  # a wrong option of times or crop shows here and not in a worker
    broken = BrokenClips(table) if broken is None else broken
    return _eval_pass(planner, tokenizer, share, workers, prefetch, patience, broken)


def _eval_pass(
    planner: EvalPlanner,
    tokenizer: Tokenizer | None,
    share: Share,
    workers: int,
    prefetch: int,
    patience: Patience,
    broken: BrokenClips,
) -> Iterator[Batch]:
    # Nothing is opened before the first batch is asked for, for nobody closes a pass that was never begun.
    with Spill() as spill:
        if workers:
            planner = EvalPlanner(spill.table(planner.table), planner.store, planner.spec)
        maker = _EvalBatches(planner, EvalFetch(planner, tokenizer, patience), share)
        count = -(-planner.items // share.batch_size)
        with Batches(maker, first=0, count=count, workers=workers, prefetch=prefetch, patience=patience) as stream:
            for batch in stream:
                broken.count(batch)
                yield batch
    # Judged at the end: the clips of one broken video stand next to each other in a table.
    broken.check(complete=True)


class EvalData:
    """All an evaluator sees of the data: the table, its batches (anew at each call) and the tokenizer."""

    def __init__(
        self,
        table: ClipTable,
        tokenizer: Tokenizer | None,
        spec: ClipSpec,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        workers: int = 0,
        max_broken_share: float = 0.05,
        patience: Patience = DEFAULT,
    ) -> None:
        self.table = table
        self._tokenizer = tokenizer
        self._spec = spec
        share = Share(batch_size, process_index, process_count)
        check_setup(table, tokenizer, spec)
        self._options: dict[str, Any] = dict(
            batch_size=batch_size,
            process_index=process_index,
            process_count=process_count,
            workers=settle_workers(workers, 2, batch_bytes(spec, share.local)),
            patience=patience,
        )
        # A clip that is broken in every evaluation is named in the first.
        self._broken = BrokenClips(table, max_broken_share)
        self.batch_size = share.local

    def batches(self) -> Iterator[Batch]:
        """This process's share of all batches, as `eval_batches` gives them."""
        return eval_batches(self.table, self._tokenizer, self._spec, **self._options, broken=self._broken)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int32 [n, L] of any texts."""
        if self._tokenizer is None:
            raise ValueError(
                "this evaluation compares clips with texts, and its stage has no tokenizer; name one, or leave it out"
            )
        return self._tokenizer.encode(texts)

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the stage's texts."""
        if self._tokenizer is None:
            raise ValueError(
                "this evaluation makes texts, and its stage has no tokenizer; name one, or leave the evaluation out"
            )
        return self._tokenizer
