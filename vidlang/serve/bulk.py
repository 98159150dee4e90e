"""A model over all clips and sentences of a table of any size, and their embeddings kept as Parquet (`bulk_store`).

One pass decodes each clip once. The clips of each file are filled into whole batches by themselves, so that its numbers
do not depend on which files are still to be made, or on who makes the others: a run that was killed, or shared out over
parts, leaves the same bytes as one that was not. Several JAX processes walk through the same files together: each
decodes its rows of every batch, and they take turns in writing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jax.experimental import multihost_utils

from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.data.broken import BrokenClips
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import ClipSpec, eval_batches, identity
from vidlang.evals._embed import VIDEO_FIELDS, predict_items
from vidlang.serve.bulk_model import METHODS, BulkModel, plain, read_model
from vidlang.serve.bulk_store import DTYPES, KINDS, OWN_COLUMNS, PLACE, ROW, TEXT, BulkStore
from vidlang.train.evaluate import EVERY_DEVICE
from vidlang.train.extract import Part
from vidlang.train.predict import Predict

# Columns that are kept of every table, where it has them.
NAMES = ("video", "start", "end", "id")
TEXTS_AT_A_TIME = 64
# Clips of one pass: their rows of the table are copied for the processes that decode.
PASS_ROWS = 1 << 20
# Texts without a single sentence have no embedding that would say how long one is.
_NO_TEXT = "a"


@dataclass
class Progress:
    """Clips and sentences that were embedded here, of how many clips; those of them that could not be read.

    standing: in the end, which files are there, whoever made them.
    """

    total: int = 0
    done: int = 0
    sentences: int = 0
    broken: int = 0
    standing: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since the model was ready."""
        return max(time.monotonic() - self.began, 1e-9)

    def __str__(self) -> str:
        broken = f", {self.broken} of which could not be read and are NaN" if self.broken else ""
        texts = f", {self.sentences} sentences" if self.sentences else ""
        rate = f"{self.done / self.seconds:.3g} clips/s" if self.done else "no clips"
        return f"{self.done} clips{broken}{texts} in {self.seconds:.1f} s, {rate}"


@dataclass(frozen=True)
class Look:
    """How everything is embedded: as in `embed`."""

    clip: Mapping[str, Any] = field(default_factory=dict)
    dials: Mapping[str, Any] = field(default_factory=dict)
    dtype: str = "float16"
    batch_size: int = 32
    workers: int = 0
    max_broken_share: float = 0.05


def embed(
    run: str | Path,
    table: ClipTable,
    out: str | Path,
    *,
    what: Sequence[str] = ("videos",),
    look: Look = Look(),  # noqa: B008, it is frozen
    columns: Sequence[str] = (),
    shard_rows: int = 16384,
    part: Part = Part(),  # noqa: B008, it is frozen
    step: int | None = None,
    family: str | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Progress:
    """Makes what the folder `out` still lacks of this part, and says what was made here.

    what: "videos", "texts" or both. look: clip and dials, on top of what the model is evaluated at; batch_size, clips
    at a time in all processes together; the rest as in an extraction. columns: of the table, to keep beside those that
    name a clip. step, family: as `vidlang.load` has them.
    """
    kept = kept_columns(table, columns)
    if not what or any(kind not in KINDS for kind in what):
        raise ValueError(f"what is {', '.join(what)!r}; it is videos, texts or both")
    if look.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; found {look.dtype!r}")
    mesh = make_mesh(EVERY_DEVICE)
    model = read_model(run, mesh, step=step, family=family)
    model.check(what)
    with use_mesh(mesh):
        header = {"table": identity(table), "rows": len(table), "shard_rows": shard_rows, "columns": kept}
        store = BulkStore(out, header, {kind: _note(model, kind, look) for kind in what})
        predict = Predict(model.module, mesh, dials=model.dials(look.dials))
        job = _Job(model, table, store, kept, look, predict, progress)
        mine = {kind: _lacking(store, kind, part) for kind in what}
        job.told.total = sum(len(store.rows_of(shard)) for shard in mine.get("videos", ()))
        for kind, shards in mine.items():
            job.make(kind, shards)
    _together("embeddings are written")
    if jax.process_index() == 0:
        store.sweep()
    job.told.standing = store.standing()
    return job.told


def kept_columns(table: ClipTable, more: Sequence[str]) -> list[str]:
    """The columns of the table that stand beside each embedding."""
    kept = list(dict.fromkeys([*(name for name in NAMES if name in table.columns), *more]))
    if missing := [name for name in kept if name not in table.columns]:
        raise ValueError(f"the table has no column {missing[0]!r}; it has {', '.join(table.columns)}")
    if taken := [name for name in kept if name in OWN_COLUMNS]:
        raise ValueError(f"the column {taken[0]!r} has a name that embeddings have for their own; leave it out")
    return kept


def _note(model: BulkModel, kind: str, look: Look) -> dict[str, Any]:
    """What decides the numbers of one kind."""
    note = {**model.note, "method": METHODS[kind], "dials": plain(model.dials(look.dials)), "dtype": look.dtype}
    return note | ({"clip": plain(model.spec(look.clip))} if kind == "videos" else {})


def _lacking(store: BulkStore, kind: str, part: Part) -> list[int]:
    """The files of this part that are to be made; process 0 looks, for others may see them later."""
    shards = range(part.number, store.shards, part.count)
    lacks_S = np.array([not store.has(kind, shard) for shard in shards], np.int32)
    if jax.process_count() > 1 and len(lacks_S):
        lacks_S = np.asarray(multihost_utils.broadcast_one_to_all(lacks_S))
    return [shard for shard, lacks in zip(shards, lacks_S.tolist(), strict=True) if lacks]


def _together(where: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(where)


class _Job:
    """What all files of one call have in common."""

    def __init__(
        self,
        model: BulkModel,
        table: ClipTable,
        store: BulkStore,
        kept: Sequence[str],
        look: Look,
        predict: Predict,
        progress: Callable[[Progress], None] | None,
    ) -> None:
        self._model, self._table, self._store, self._kept = model, table, store, kept
        self._look, self._predict, self._progress = look, predict, progress
        self._begun, self._turn = False, 0
        self.told = Progress()

    def make(self, kind: str, shards: Sequence[int]) -> None:
        """Makes and writes these files."""
        size = max(1, PASS_ROWS // self._store.shard_rows)
        for first in range(0, len(shards), size):
            some = shards[first : first + size]
            for found in self._videos(some) if kind == "videos" else map(self._texts, some):
                self._write(kind, *found)

    def _videos(self, shards: Sequence[int]) -> Iterator[tuple[int, dict[str, Any], np.ndarray, int]]:
        """(file, its columns, embeddings, how many of its clips could not be read), in order."""
        batch_size, spec = self._look.batch_size, self._model.spec(self._look.clip)
        table = self._table.select(np.concatenate([filled_up(self._store.rows_of(s), batch_size) for s in shards]))
        with contextlib.closing(self._batches(table, spec)) as batches:
            for shard in shards:
                rows = self._store.rows_of(shard)
                found = [self._clips(next(batches)) for _ in range(-(-len(rows) // batch_size))]
                embedding_VE = np.concatenate(found)[: len(rows)]
                broken = int(np.isnan(embedding_VE[:, 0]).sum())
                self.told.done, self.told.broken = self.told.done + len(rows), self.told.broken + broken
                yield shard, self._columns(np.arange(rows.start, rows.stop)), embedding_VE, broken
            next(batches, None)  # the end of the pass, which says whether too many were broken

    def _batches(self, table: ClipTable, spec: ClipSpec) -> Any:
        how: dict[str, Any] = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        broken = BrokenClips(table, self._look.max_broken_share)
        how |= {"batch_size": self._look.batch_size, "workers": self._look.workers, "broken": broken}
        return eval_batches(table, None, spec, **how)

    def _clips(self, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """The embeddings of a batch of all processes; NaN for a clip that could not be read."""
        clips = {name: batch[name] for name in VIDEO_FIELDS if name in batch}
        found_BE = self._predict("embed_video", self._model.params, **clips)
        valid_B = self._predict.gather(batch["valid_B"]).astype(bool)
        return np.where(valid_B[:, None], _finite(found_BE, "clips"), np.nan)

    def _texts(self, shard: int) -> tuple[int, dict[str, Any], np.ndarray, int]:
        rows = self._store.rows_of(shard)
        texts_R = self._table.arrow("texts").slice(rows.start, len(rows)).to_pylist()
        texts = [text for each in texts_R for text in each]
        row_V = np.repeat(np.arange(rows.start, rows.stop), [len(each) for each in texts_R])
        asked, encode = texts or [_NO_TEXT], self._model.tokenizer.encode  # type: ignore[union-attr]
        found_VE = predict_items(
            self._predict,
            "embed_text",
            self._model.params,
            TEXTS_AT_A_TIME,
            len(asked),
            lambda items: {"text_BL": encode([asked[i] for i in items])},
        )[: len(texts)]
        places = [place for each in texts_R for place in range(len(each))]
        own = {PLACE: pa.array(places, pa.int32()), TEXT: pa.array(texts, pa.string())}
        self.told.sentences += len(texts)
        return shard, {**self._columns(row_V), **own}, _finite(found_VE, "texts"), 0

    def _columns(self, row_V: np.ndarray) -> dict[str, Any]:
        """What names the clip of each line."""
        chosen = self._table.select(row_V) if len(row_V) else None
        found: dict[str, Any] = {ROW: pa.array(row_V, pa.int64())}
        for name in self._kept:
            whole = self._table.arrow(name)
            found[name] = chosen.arrow(name) if chosen is not None else whole.slice(0, 0)
        return found

    def _write(self, kind: str, shard: int, columns: dict[str, Any], embedding_VE: np.ndarray, broken: int) -> None:
        with np.errstate(over="ignore"):  # told of here
            kept_VE = embedding_VE.astype(self._look.dtype)
        if np.isinf(kept_VE).any():
            raise ValueError(f"embeddings of {kind} are too large for {self._look.dtype}; keep them as float32")
        if not self._begun:
            self._begun = True
            if jax.process_index() == 0:
                self._store.begin()
            _together("embeddings have begun")
        if self._turn % jax.process_count() == jax.process_index():
            self._store.write(kind, shard, columns, kept_VE, broken)
        self._turn += 1
        if self._progress is not None:
            self._progress(self.told)


def filled_up(rows: range, batch_size: int) -> np.ndarray:
    """These rows in whole batches, the last of which is filled up with the last row."""
    batches = -(-len(rows) // batch_size)
    return rows.start + np.minimum(np.arange(batches * batch_size), len(rows) - 1)


def _finite(found_VE: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(found_VE).all():
        raise ValueError(f"the model's embeddings of {what} are not finite; take a checkpoint from before it diverged")
    return found_VE
