"""What all protocols begin with: the clips of a table through the model, on every process, each row exactly once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from absl import logging

# What a batch calls its clips, by the pixels or features they come in.
VIDEO_FIELDS = ("video_BTHWC", "yuv_BTXW", "features_BSD")


@dataclass(frozen=True)
class Visit:
    """One batch of an evaluation: `clips` are this process's arrays to predict from, in the order of `batch`.

    valid_B: which rows of a prediction, which has those of all processes, count; the others pad the batch or are
    broken. index_V, view_V: for each that counts, its row of the table and which view of it this is.
    """

    clips: dict[str, np.ndarray]
    batch: Mapping[str, np.ndarray]
    valid_B: np.ndarray
    index_V: np.ndarray
    view_V: np.ndarray


def visits(predict: Any, data: Any) -> Iterator[Visit]:
    """All batches of the data, once."""
    seen: set[tuple[int, int]] = set()
    for batch in data.batches():
        clips = {name: batch[name] for name in VIDEO_FIELDS if name in batch}
        if not clips:
            raise ValueError(f"an evaluation's batch has no clips: expected one of {', '.join(VIDEO_FIELDS)}")
        valid_B = predict.gather(batch["valid_B"]).astype(bool)
        index_V = predict.gather(batch["index_B"])[valid_B]
        view_V = predict.gather(batch["view_B"])[valid_B] if "view_B" in batch else np.zeros_like(index_V)
        found = set(zip(index_V.tolist(), view_V.tolist(), strict=True))
        if len(found) < len(index_V) or found & seen:
            raise ValueError("an evaluation batch repeats a row of the table that is marked valid; each must come once")
        seen |= found
        yield Visit(clips, batch, valid_B, index_V, view_V)


class Means:
    """The mean over a row's views of something that each view has: an embedding, or scores of classes."""

    def __init__(self, rows: int, dtype: type = np.float32) -> None:
        self._dtype = dtype
        self._sum_NX: np.ndarray | None = None
        self._views_N = np.zeros(rows, np.int64)

    def add(self, index_V: np.ndarray, value_VX: np.ndarray) -> None:
        """Counts these views in."""
        if self._sum_NX is None:
            self._sum_NX = np.zeros((len(self._views_N), value_VX.shape[1]), self._dtype)
        np.add.at(self._sum_NX, index_V, value_VX)
        np.add.at(self._views_N, index_V, 1)

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """(means [rows, X], which rows have one); a row without a view that counts, because it is broken, has none."""
        present_N = self._views_N > 0
        if self._sum_NX is None or not present_N.any():
            raise ValueError(
                f"nothing to evaluate: none of the {len(present_N)} clips could be read; check the store and the table"
            )
        self._sum_NX[present_N] /= self._views_N[present_N, None]
        return self._sum_NX, present_N


def embed_clips(
    predict: Any, data: Any, params: Any, *, also: Callable[[Visit], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [rows of the table, E] in table order, and which rows have one.

    Of a row that is seen as several views the mean counts, with which similarities are the means of its views'
    similarities. `also` sees every batch, for what else is to be had from a clip while it is decoded.
    """
    means = Means(len(data.table))
    for visit in visits(predict, data):
        means.add(visit.index_V, predict("embed_video", params, **visit.clips)[visit.valid_B])
        if also is not None:
            also(visit)
    video_NE, present_N = means.result()
    _warn_if_not_finite("clips", video_NE[present_N])
    return video_NE, present_N


def embed_texts(predict: Any, data: Any, params: Any, texts: Sequence[str]) -> np.ndarray:
    """Embeddings [len(texts), E]. Equal texts are embedded once, so they tie exactly."""
    if not texts:
        raise ValueError("nothing to evaluate: there are no texts")
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    unique = list(row)

    def arrays(items: np.ndarray) -> dict[str, np.ndarray]:
        return {"text_BL": data.encode_texts([unique[i] for i in items])}

    text_UE = predict_items(predict, "embed_text", params, data.batch_size, len(unique), arrays)
    _warn_if_not_finite("texts", text_UE)
    return text_UE[[row[text] for text in texts]]


def predict_items(
    predict: Any,
    method: str,
    params: Any,
    batch_size: int,
    count: int,
    arrays: Callable[[np.ndarray], dict[str, np.ndarray]],
    *settings: Hashable,
) -> Any:
    """What a method gives for `count` items [count, ...], in batches of one shape; `arrays` makes the input of some.

    Where it gives a tree, so does this. `settings` is what `predict` hands on to the method, if anything. All processes
    call this for the same items; each makes and feeds its share, `batch_size` rows, of every batch.
    """
    process, processes = process_of_all()
    parts = []
    for start in range(0, count, batch_size * processes):
        # The last batch is filled up with the last item.
        items = np.minimum(np.arange(start, start + batch_size * processes), count - 1)
        share = items[process * batch_size : (process + 1) * batch_size]
        found = predict(method, params, *settings, **arrays(share))
        parts.append(jax.tree.map(lambda x, left=count - start: np.asarray(x)[:left], found))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def process_of_all() -> tuple[int, int]:
    """This process's number and how many there are."""
    return jax.process_index(), jax.process_count()


def _warn_if_not_finite(what: str, x_NE: np.ndarray) -> None:
    bad = int((~np.isfinite(x_NE).all(axis=1)).sum())
    if bad:
        logging.warning("%d of %d embeddings of %s are not finite; they rank last", bad, len(x_NE), what)
