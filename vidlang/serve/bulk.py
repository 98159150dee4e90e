"""A model over all clips and sentences of a table of any size, and their embeddings as Parquet (`data.bulk_store`).

One pass decodes each clip once; how the work is cut up is `bulk_work`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.data.broken import BrokenClips
from vidlang.data.bulk_store import DTYPES, EMBEDDING, EMBEDDINGS, PLACE, TEXT, BulkStore
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import ClipSpec, eval_batches, identity
from vidlang.evals._embed import VIDEO_FIELDS, predict_items
from vidlang.serve.bulk_model import METHODS, BulkModel, plain, read_model
from vidlang.serve.bulk_work import BulkWork, Progress, kept_columns
from vidlang.train.evaluate import EVERY_DEVICE
from vidlang.train.extract import Part
from vidlang.train.predict import Predict

TEXTS_AT_A_TIME = 64
# Texts without a single sentence have no embedding that would say how long one is.
_NO_TEXT = "a"


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
    kept = kept_columns(table, columns, EMBEDDINGS)
    if not what or any(kind not in METHODS for kind in what):
        raise ValueError(f"what is {', '.join(what)!r}; it is videos, texts or both")
    if look.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}; found {look.dtype!r}")
    mesh = make_mesh(EVERY_DEVICE)
    model = read_model(run, mesh, step=step, family=family)
    model.check(what)
    with use_mesh(mesh):
        header = {"table": identity(table), "rows": len(table), "shard_rows": shard_rows, "columns": kept}
        store = BulkStore(out, EMBEDDINGS, header, {kind: _note(model, kind, look) for kind in what})
        predict = Predict(model.module, mesh, dials=model.dials(look.dials))
        work = BulkWork(store, table, kept, progress)
        job = _Job(model, table, look, predict, work)
        mine = {kind: work.lacking(kind, part) for kind in what}
        work.told.total = sum(len(store.rows_of(shard)) for shard in mine.get("videos", ()))
        for kind, shards in mine.items():
            for found in job.videos(shards) if kind == "videos" else map(job.texts, shards):
                job.write(kind, *found)
        return work.finish()


def _note(model: BulkModel, kind: str, look: Look) -> dict[str, Any]:
    """What decides the numbers of one kind."""
    note = {**model.note, "method": METHODS[kind], "dials": plain(model.dials(look.dials)), "dtype": look.dtype}
    return note | ({"clip": plain(model.spec(look.clip))} if kind == "videos" else {})


class _Job:
    """What all files of one call have in common."""

    def __init__(self, model: BulkModel, table: ClipTable, look: Look, predict: Predict, work: BulkWork) -> None:
        self._model, self._table, self._look, self._predict, self._work = model, table, look, predict, work

    def videos(self, shards: Sequence[int]) -> Iterator[tuple[int, dict[str, Any], np.ndarray, int]]:
        """(file, its columns, embeddings, how many of its clips could not be read), in order."""
        batch_size, spec = self._look.batch_size, self._model.spec(self._look.clip)
        told, rows_of = self._work.told, self._work.store.rows_of
        for some, rows_N in self._work.passes(shards, batch_size):
            with contextlib.closing(self._batches(self._table.select(rows_N), spec)) as batches:
                for shard in some:
                    rows = rows_of(shard)
                    found = [self._clips(next(batches)) for _ in range(-(-len(rows) // batch_size))]
                    embedding_VE = np.concatenate(found)[: len(rows)]
                    broken = int(np.isnan(embedding_VE[:, 0]).sum())
                    told.done, told.broken = told.done + len(rows), told.broken + broken
                    yield shard, self._work.columns(np.arange(rows.start, rows.stop)), embedding_VE, broken
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

    def texts(self, shard: int) -> tuple[int, dict[str, Any], np.ndarray, int]:
        """The same of the sentences of a file, none of which is unreadable."""
        rows = self._work.store.rows_of(shard)
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
        self._work.told.sentences += len(texts)
        return shard, {**self._work.columns(row_V), **own}, _finite(found_VE, "texts"), 0

    def write(self, kind: str, shard: int, columns: dict[str, Any], embedding_VE: np.ndarray, broken: int) -> None:
        """A file, with an embedding for each line in the type that it is kept as."""
        with np.errstate(over="ignore"):  # told of here
            kept_VE = embedding_VE.astype(self._look.dtype)
        if np.isinf(kept_VE).any():
            raise ValueError(f"embeddings of {kind} are too large for {self._look.dtype}; keep them as float32")
        values = pa.FixedSizeListArray.from_arrays(pa.array(kept_VE.reshape(-1)), kept_VE.shape[1])
        self._work.write(kind, shard, {**columns, EMBEDDING: values}, broken)


def _finite(found_VE: np.ndarray, what: str) -> np.ndarray:
    if not np.isfinite(found_VE).all():
        raise ValueError(f"the model's embeddings of {what} are not finite; take a checkpoint from before it diverged")
    return found_VE
