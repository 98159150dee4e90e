"""Batches for training and evaluation, through one Grain graph.

Training:
    rows of the table -> shuffle, repeat (-> anchors and partners) -> plan -> this process's share -> fetch -> batch

Everything random happens in the plan, before the stream is shared out. So the batch of step s is a pure function of
(seed, s): resuming is starting at another s, and worker processes only decide who does the work. Process p of P takes
the p-th block of B/P rows of every batch. `put_batch` lays the rows out process after process, so the global batch has
the same rows in the same places whatever P is, and what the model draws by place, like masks, is the same too.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import grain
import numpy as np
from absl import flags

from vidlang.data.broken import BrokenClips
from vidlang.data.checks import check_memory, check_setup
from vidlang.data.clips import ClipTable
from vidlang.data.fetch import EvalFetch, TrainFetch
from vidlang.data.plan import ClipSpec, EvalPlanner, TrainPlanner
from vidlang.data.processes import end_with_parent
from vidlang.data.tokenizer import Tokenizer

__all__ = ["Batches", "ClipSpec", "EvalData", "eval_batches", "train_stream"]

Batch = dict[str, np.ndarray]


class Batches:
    """An iterator over the batches of a Grain dataset that also ends its threads and worker processes.

    Up to `prefetch` batches wait ready, made by one thread or by `workers` processes; each makes whole batches.
    """

    def __init__(self, batches: grain.MapDataset, *, workers: int, prefetch: int) -> None:
        if workers:
            # Grain hands its flags to the processes it starts, and flags cannot be read before they were parsed.
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()
            in_worker = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
            options = grain.MultiprocessingOptions(workers, per_worker_buffer_size=_each(prefetch, workers))
            dataset = batches.to_iter_dataset(in_worker).mp_prefetch(options, worker_init_fn=_in_worker)
        else:
            threads = grain.ReadOptions(num_threads=min(1, prefetch), prefetch_buffer_size=prefetch)
            dataset = batches.to_iter_dataset(threads)
        # In a list that `close` empties: batches that were made and never taken are freed with Grain's iterator.
        self._held = [iter(dataset)]
        # At the latest when this object or the program ends, for shared memory outlives those who forget it.
        self._end = weakref.finalize(self, _end, self._held)
        # Work begins now, while the caller still compiles the model. Grain makes what start_prefetch starts only when
        # it is asked for the state.
        self._held[0].get_state()
        self._held[0].start_prefetch()

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        if not self._held:
            raise ValueError("These batches were closed; open a new stream at the step where it should go on.")
        return next(self._held[0])

    def close(self) -> None:
        """Ends the processes and frees shared memory; a thread ends by itself after the clips of its last batch."""
        self._end()

    def __enter__(self) -> Batches:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(held: list[grain.DatasetIterator]) -> None:
    held.pop().close()


class _Pairs:
    """The stream of anchors with room for a partner after each: item i is the row of anchor i // 2."""

    def __init__(self, anchors: grain.MapDataset) -> None:
        self._anchors = anchors

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, index: int) -> int:
        return self._anchors[index // 2]


class _Share:
    """One process's rows of every batch of `batch_size`: its block, from `start_step` on."""

    def __init__(self, plans: grain.MapDataset, batch_size: int, process: int, processes: int, start_step: int) -> None:
        self._plans, self._batch_size, self._local = plans, batch_size, batch_size // processes
        self._first = start_step * batch_size + process * self._local
        self._length = min(len(plans) // processes, sys.maxsize)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Any:
        step, row = divmod(index, self._local)
        return self._plans[self._first + step * self._batch_size + row]


def train_stream(
    table: ClipTable,
    tokenizer: Tokenizer,
    spec: ClipSpec,
    *,
    seed: int,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> Batches:
    """The endless stream of this process's share of the batches of `batch_size`, from `start_step` on.

    A batch holds video_BTHWC uint8, text_BL int32, index_B (row of the table), broken_B (row that could not be decoded
    and was replaced, else -1) and the columns of `spec.fields`. Close it, or use it as a context manager.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"The seed of the data must be in 0 to 2**32 - 1, found {seed}.")
    if start_step < 0:
        raise ValueError(f"The first step must be at least 0, found {start_step}.")
    store = check_setup(table, tokenizer, spec, batch_size, process_index, process_count, workers, prefetch)
    if silent := int((table.lengths("texts") == 0).sum()):
        raise ValueError(f"{silent} of {len(table)} clips have no text to train on; leave them out of the table.")
    if spec.pairs == "group" and batch_size % 2:
        raise ValueError(f"With clip.pairs='group' the batch size must be even, found {batch_size}.")
    local = batch_size // process_count
    check_memory(spec, local, workers, _each(prefetch, workers))
    planner = TrainPlanner(table, store, spec, seed)
    # Given explicitly: Grain's own default depends on how many transformations come before.
    rows = grain.MapDataset.source(range(len(table))).shuffle(seed=_shuffle_seed(seed)).repeat()
    if spec.pairs == "group":
        rows = grain.MapDataset.source(_Pairs(rows))
    planner.again(planner(0, rows[0]))  # a wrong option of times or crop shows here and not in a worker
    plans = _Share(rows.map_with_index(planner), batch_size, process_index, process_count, start_step)
    batches = grain.MapDataset.source(plans).map(TrainFetch(planner, tokenizer)).batch(local, drop_remainder=True)
    return Batches(batches, workers=workers, prefetch=prefetch)


def eval_batches(
    table: ClipTable,
    tokenizer: Tokenizer,
    spec: ClipSpec,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    broken: BrokenClips | None = None,
) -> Iterator[Batch]:
    """One pass over the table in order: this process's share of each batch of `batch_size`.

    Besides the arrays of `train_stream` there is valid_B. It is false for the padding of the last batch (index_B -1),
    which gives every process the same number of full batches, and for a clip that could not be decoded. Such clips are
    counted in `broken`, and too many of them end the pass with an error.
    """
    store = check_setup(table, tokenizer, spec, batch_size, process_index, process_count, workers, prefetch)
    if spec.pairs != "none":
        raise ValueError(f"Evaluation takes every clip once: set clip.pairs='none', found {spec.pairs!r}.")
    local = batch_size // process_count
    check_memory(spec, local, workers, _each(prefetch, workers))
    planner = EvalPlanner(table, store, spec)
    planner(0)  # a wrong option of times or crop shows here and not in a worker
    rounded = -(-len(table) // batch_size) * batch_size
    plans = _Share(grain.MapDataset.source(range(rounded)).map(planner), batch_size, process_index, process_count, 0)
    batches = grain.MapDataset.source(plans).map(EvalFetch(planner, tokenizer)).batch(local, drop_remainder=True)
    return _counted(batches, workers, prefetch, BrokenClips(table) if broken is None else broken)


def _counted(batches: grain.MapDataset, workers: int, prefetch: int, broken: BrokenClips) -> Iterator[Batch]:
    with Batches(batches, workers=workers, prefetch=prefetch) as stream:
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
        tokenizer: Tokenizer,
        spec: ClipSpec,
        *,
        batch_size: int,
        process_index: int = 0,
        process_count: int = 1,
        workers: int = 0,
        max_broken_share: float = 0.05,
    ) -> None:
        self.table = table
        self._tokenizer = tokenizer
        self._spec = spec
        self._options: dict[str, Any] = dict(
            batch_size=batch_size, process_index=process_index, process_count=process_count, workers=workers
        )
        # A clip that is broken in every evaluation is named in the first.
        self._broken = BrokenClips(table, max_broken_share)
        check_setup(table, tokenizer, spec, batch_size, process_index, process_count, workers, 1)
        self.batch_size = batch_size // process_count

    def batches(self) -> Iterator[Batch]:
        """This process's share of all batches, as `eval_batches` gives them."""
        return eval_batches(self.table, self._tokenizer, self._spec, **self._options, broken=self._broken)

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids int32 [n, L] of any texts."""
        return self._tokenizer.encode(texts)


def _each(prefetch: int, workers: int) -> int:
    """Batches that each worker keeps ready, so that all of them together keep at least `prefetch`."""
    return max(1, -(-prefetch // max(workers, 1)))


def _shuffle_seed(seed: int) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _in_worker(index: int, count: int) -> None:
    end_with_parent()
