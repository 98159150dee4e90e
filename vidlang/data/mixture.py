"""Several tables in one stream, each with its share of the items, still a pure function of (seed, item).

The stream is dealt out to the sources in blocks. In each block every source gets its exact share, spread evenly and
shuffled by (seed, block), so that which source has item i, and which of its own items that is, is found without
looking at any other block. A source's own items come in an order of its own seed: they are those it would give alone,
whatever it is mixed with, as long as the sources before it stay.

    mixing="items"     every batch is mixed; all sources give examples of one shape
    mixing="batches"   every batch is of one source, and each source may have a shape of its own
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grain
import numpy as np

from vidlang.core.config import did_you_mean
from vidlang.data.checks import check_training
from vidlang.data.clips import ClipTable
from vidlang.data.fetch import Batch, Layout, TrainFetch, Watch
from vidlang.data.plan import ClipSpec, Share, TrainPlanner
from vidlang.data.tokenizer import Tokenizer
from vidlang.data.workers.count import batch_bytes, settle_workers
from vidlang.data.workers.patience import DEFAULT, Patience
from vidlang.data.workers.spill import Spill
from vidlang.data.workers.stream import Batches, StreamOptions

MIXING = ("items", "batches")
# What clips of one batch must have in common.
SHARED = ("frames", "size", "text_length", "prompted", "pixels", "fields", "feature_shape")
# A smaller share would need blocks of more items than are worth laying out at once.
SMALLEST_SHARE = 1e-5
# Blocks are laid out whole, and one is in use at a time, but for the first items after a change.
_SMALLEST_BLOCK, _BLOCKS_KEPT = 256, 4


@dataclass(frozen=True)
class Source:
    """One table of a mixture: how its clips look, its share of the items, and what its examples weigh in the loss."""

    table: ClipTable
    spec: ClipSpec
    weight: float = 1.0
    loss_weight: float = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        if not (np.isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"The weight of a source must be above 0, found {self.weight}; leave it out for none.")
        if not (np.isfinite(self.loss_weight) and self.loss_weight >= 0):
            raise ValueError(f"The loss weight of a source must be at least 0, found {self.loss_weight}.")


class Quotas:
    """Deals units 0, 1, 2, ... out to sources by weight, exactly, with random access."""

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        self._weights = [float(weight) for weight in weights]
        shares_S = np.asarray(self._weights) / np.sum(self._weights)
        if shares_S.min() < SMALLEST_SHARE:
            raise ValueError(f"The smallest share of a source is {SMALLEST_SHARE}, found {shares_S.min():.2g}.")
        self._seed = seed
        # Ends of the sources' parts of one, exactly one at the end whatever was rounded.
        self._ends_S = np.append(np.cumsum(shares_S)[:-1], 1.0)
        # With a unit for each source in every block, no rounding below can give a source less than none.
        self._block = max(_SMALLEST_BLOCK, int(np.ceil(1 / shares_S.min())))
        self._laid_out = functools.lru_cache(_BLOCKS_KEPT)(self._lay_out)

    def __reduce__(self) -> tuple[object, ...]:
        return Quotas, (self._weights, self._seed)

    def __call__(self, unit: int) -> tuple[int, int]:
        """(source of this unit, which of the source's own units it is)."""
        block, place = divmod(unit, self._block)
        source_U, rank_U = self._laid_out(block)
        return int(source_U[place]), int(rank_U[place])

    def _before(self, block: int) -> np.ndarray:
        """How many units each source has before this block: within one of its share of all of them."""
        return np.diff(np.floor(block * self._block * self._ends_S + 0.5).astype(np.int64), prepend=0)

    def _lay_out(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        if len(self._ends_S) == 1:
            return np.zeros(self._block, np.int16), np.arange(self._block) + block * self._block
        rng = np.random.default_rng((self._seed, block))
        before_S = self._before(block)
        count_S = self._before(block + 1) - before_S
        # One unit at a random place in each of `count` equal parts of the block: even, and not in step with the others.
        places = [(np.arange(count) + rng.random(count)) / count for count in count_S.tolist()]
        sources_U = np.repeat(np.arange(len(count_S)), count_S)
        ranks_U = np.concatenate([first + np.arange(n) for first, n in zip(before_S, count_S, strict=True)])
        order_U = np.argsort(np.concatenate(places), kind="stable")
        return sources_U[order_U], ranks_U[order_U]


class SourceItems:
    """The endless items of one source: shuffled rows, anchors with their partners, plans, examples."""

    def __init__(self, planner: TrainPlanner, tokenizer: Tokenizer | None, patience: Patience) -> None:
        self._planner, self._pairs = planner, planner.spec.pairs == "group"
        # The seed is given explicitly: Grain's own default depends on how many transformations come before.
        shuffle_seed = int(np.random.SeedSequence(planner.seed).generate_state(1)[0])
        self._rows = grain.MapDataset.source(range(len(planner.table))).shuffle(seed=shuffle_seed).repeat()
        self._fetch = TrainFetch(planner, tokenizer, patience)
        # A wrong option of times or crop shows here and not in a worker.
        planner.again(planner(0, self._row(0)))

    def layout(self, rows: int) -> Layout:
        """The arrays of a batch of so many rows."""
        return self._fetch.layout(rows)

    def fill(self, item: int, batch: Batch, place: int, watch: Watch) -> None:
        """Writes item number `item` of this source into row `place`."""
        self._fetch(self._planner(item, self._row(item)), batch, place, watch)

    def _row(self, item: int) -> int:
        return int(self._rows[item // 2 if self._pairs else item])


class TrainBatches:
    """The batches of a mixture, by step."""

    def __init__(
        self,
        items: Sequence[SourceItems],
        sources: Sequence[Source],
        share: Share,
        mixing: str,
        seed: int,
        marked: bool,
    ) -> None:
        self._items, self._share, self._marked = items, share, marked
        self._by_batch = mixing == "batches"
        # Where one source has pairs, all are dealt out two by two, so that anchors stand at even places.
        self._unit = 2 if any(source.spec.pairs == "group" for source in sources) else 1
        self._weights = [source.loss_weight for source in sources]
        self._quotas = Quotas([source.weight for source in sources], seed)

    def layout(self, step: int) -> Layout:
        """The arrays of the batch of this step."""
        rows = self._share.local
        marks: Layout = {
            "source_B": ((rows,), np.dtype(np.int32)),
            "weight_B": ((rows,), np.dtype(np.float32)),
        }
        source = self._quotas(step)[0] if self._by_batch else 0
        return self._items[source].layout(rows) | (marks if self._marked else {})

    def fill(self, step: int, batch: Batch, watch: Callable[[int, int], str | None]) -> None:
        """Makes this process's rows of the batch of this step."""
        for place, item in enumerate(self._share.items(step)):
            source, own = self._deal(item)
            self._items[source].fill(own, batch, place, functools.partial(watch, item))
            if self._marked:
                batch["source_B"][place], batch["weight_B"][place] = source, self._weights[source]

    def _deal(self, item: int) -> tuple[int, int]:
        """(source, its own item) of an item of the whole stream."""
        size = self._share.batch_size if self._by_batch else self._unit
        unit, place = divmod(item, size)
        source, rank = self._quotas(unit)
        return source, rank * size + place


def mixture_stream(
    sources: Sequence[Source],
    tokenizer: Tokenizer | None | Sequence[Tokenizer | None],
    *,
    seed: int,
    batch_size: int,
    mixing: str = "items",
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    patience: Patience = DEFAULT,
) -> Batches:
    """The endless stream of this process's share of the batches of `batch_size`, from `start_step` on.

    Besides the arrays of `pipeline.train_stream` there are source_B, the source that each row is of, and weight_B, its
    `loss_weight`; index_B and broken_B are rows of that source's table. One tokenizer serves all sources, or each has
    its own; None is for clips without text. With workers=-1 their number is chosen. Close it, or use it as a context
    manager.
    """
    share = Share(batch_size, process_index, process_count)
    options = StreamOptions(seed, start_step, workers, prefetch, patience)
    return open_stream(sources, tokenizer, share, mixing, options, marked=True)


def open_stream(
    sources: Sequence[Source],
    tokenizer: Tokenizer | None | Sequence[Tokenizer | None],
    share: Share,
    mixing: str,
    options: StreamOptions,
    *,
    marked: bool,
) -> Batches:
    """A mixture's stream after all that can be wrong was looked at; `marked` says whether rows name their source."""
    tokenizers = list(tokenizer) if isinstance(tokenizer, Sequence) else [tokenizer] * len(sources)
    _check_sources(sources, tokenizers, share, mixing)
    stores = [
        check_training(source.table, words, source.spec) for source, words in zip(sources, tokenizers, strict=True)
    ]
    largest = max(batch_bytes(source.spec, share.local) for source in sources)
    workers = settle_workers(options.workers, options.prefetch, largest)
    with contextlib.ExitStack() as stack:
        spill = stack.enter_context(Spill())
        items = []
        for k, (source, store, words) in enumerate(zip(sources, stores, tokenizers, strict=True)):
            table = spill.table(source.table) if workers else source.table
            groups = spill.groups(table) if source.spec.pairs == "group" else None
            planner = TrainPlanner(table, store, source.spec, source_seed(options.seed, k), groups)
            items.append(SourceItems(planner, words, options.patience))
        batches = TrainBatches(items, sources, share, mixing, options.seed, marked)
        return Batches(
            batches,
            first=options.start_step,
            workers=workers,
            prefetch=options.prefetch,
            patience=options.patience,
            release=stack.pop_all().close,
        )


def source_seed(seed: int, source: int) -> int:
    """The seed of a source's own order; the first has the stream's, so that alone it gives what it gives in front."""
    return seed if source == 0 else int(np.random.SeedSequence((seed, source)).generate_state(1)[0])


def _check_sources(sources: Sequence[Source], tokenizers: Sequence[Any], share: Share, mixing: str) -> None:
    if not sources:
        raise ValueError("A mixture needs at least one source, found none.")
    if len(tokenizers) != len(sources):
        raise ValueError(
            f"A mixture of {len(sources)} sources takes one tokenizer or one each, found {len(tokenizers)}."
        )
    if mixing not in MIXING:
        raise ValueError(f"unknown mixing {mixing!r}{did_you_mean(mixing, MIXING)}; there are: {', '.join(MIXING)}.")
    for source in sources:
        if source.spec.views * source.spec.crops > 1:
            raise ValueError("clip.views and clip.crops are for evaluation; a training sees one of each.")
        if source.spec.pairs == "group" and share.batch_size % 2:
            raise ValueError(f"With clip.pairs='group' the batch size must be even, found {share.batch_size}.")
    first = sources[0]
    for k, source in enumerate(sources[1:], start=1):
        for name in SHARED if mixing == "items" else ():
            one, other = getattr(first.spec, name), getattr(source.spec, name)
            if one != other:
                raise ValueError(
                    f"Sources {first.name or 0} and {source.name or k} are mixed in one batch, and clip.{name} is "
                    f"{one} and {other}; give both the same, or set mixing='batches'."
                )
