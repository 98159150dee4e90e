"""Embeddings of a whole table, on every process: what all protocols that compare clips with texts begin with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import logging

# What a batch calls its clips, by the pixels they come in.
VIDEO_FIELDS = ("video_BTHWC", "yuv_BTXW")


def embed_clips(predict: Any, data: Any, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings [rows of the table, E] in table order, and which rows have one.

    Rows that pad a batch are dropped. A row that never came valid, because its clip is broken, has none. Of a row that
    is seen as several views the mean counts, with which similarities are the means of its views' similarities.
    """
    video_NE: np.ndarray | None = None
    views_N = np.zeros(len(data.table), np.int64)
    seen: set[tuple[int, int]] = set()
    for batch in data.batches():
        clips = {name: batch[name] for name in VIDEO_FIELDS if name in batch}
        video_BE = predict("embed_video", params, **clips)
        valid_B = predict.gather(batch["valid_B"]).astype(bool)
        index_B = predict.gather(batch["index_B"])[valid_B]
        view_B = predict.gather(batch["view_B"])[valid_B] if "view_B" in batch else np.zeros_like(index_B)
        found = set(zip(index_B.tolist(), view_B.tolist(), strict=True))
        if len(found) < len(index_B) or found & seen:
            raise ValueError("an evaluation batch repeats a row of the table that is marked valid; each must come once")
        seen |= found
        if video_NE is None:
            video_NE = np.zeros((len(data.table), video_BE.shape[1]), np.float32)
        np.add.at(video_NE, index_B, video_BE[valid_B])
        np.add.at(views_N, index_B, 1)
    present_N = views_N > 0
    if video_NE is None or not present_N.any():
        raise ValueError(
            f"nothing to evaluate: none of the {len(data.table)} clips could be read; check the store and the table"
        )
    video_NE[present_N] /= views_N[present_N, None]
    _warn_if_not_finite("clips", video_NE[present_N])
    return video_NE, present_N


def embed_texts(predict: Any, data: Any, params: Any, texts: Sequence[str]) -> np.ndarray:
    """Embeddings [len(texts), E]. Equal texts are embedded once, so they tie exactly.

    All processes call this with the same texts; each encodes and feeds its share of every batch.
    """
    if not texts:
        raise ValueError("nothing to evaluate: there are no texts")
    row = {text: i for i, text in enumerate(dict.fromkeys(texts))}
    unique, local = list(row), data.batch_size
    process, processes = process_of_all()
    parts = []
    for start in range(0, len(unique), local * processes):
        batch = unique[start : start + local * processes]
        padded = batch + [batch[-1]] * (local * processes - len(batch))
        text_BL = data.encode_texts(padded[process * local : (process + 1) * local])
        parts.append(predict("embed_text", params, text_BL=text_BL)[: len(batch)])
    text_UE = np.concatenate(parts)
    _warn_if_not_finite("texts", text_UE)
    return text_UE[[row[text] for text in texts]]


def process_of_all() -> tuple[int, int]:
    """This process's number and how many there are."""
    return jax.process_index(), jax.process_count()


def _warn_if_not_finite(what: str, x_NE: np.ndarray) -> None:
    bad = int((~np.isfinite(x_NE).all(axis=1)).sum())
    if bad:
        logging.warning("%d of %d embeddings of %s are not finite; they rank last", bad, len(x_NE), what)
