"""What a model finds for a few sentences: the rows of a report's gallery."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vidlang.evals.metrics.ranking import ranks

SHOWN = 5


@dataclass(frozen=True)
class GalleryItem:
    """One video found: a few of its frames, its own caption, its score, and whether it is the right one."""

    frames_THWC: np.ndarray
    caption: str
    score: float
    correct: bool


@dataclass(frozen=True)
class GalleryRow:
    """A query, the best results first, and the place of the right video among all.

    `right` is the right video where it is not among the results.
    """

    query: str
    results: Sequence[GalleryItem]
    rank: int | None = None
    candidates: int | None = None
    right: GalleryItem | None = None


def gallery_rows(
    similarity_TV: np.ndarray,
    texts: Sequence[str],
    text_video: Sequence[int] | np.ndarray,
    captions: Sequence[str],
    thumbnails: Callable[[int], np.ndarray],
    *,
    count: int,
    seed: int,
) -> list[GalleryRow]:
    """Rows for `count` texts drawn at random, so that the gallery shows what is typical and not what is best.

    Here T counts texts and V videos: text i describes video `text_video[i]`, `captions[v]` is shown under video v and
    `thumbnails(v)` gives its frames, uint8 [T, H, W, 3]. As in the metrics, the right video comes after all that
    score the same.
    """
    text_video = np.asarray(text_video)
    expected = (len(texts), len(captions))
    if similarity_TV.shape != expected or text_video.shape != expected[:1] or not all(expected):
        raise ValueError(
            f"a gallery needs similarities [texts, videos], a video for each text and a caption for each video; found "
            f"{similarity_TV.shape}, {len(text_video)} text_video, {len(texts)} texts and {len(captions)} captions"
        )
    if text_video.min() < 0 or text_video.max() >= len(captions):
        raise ValueError(f"text_video must hold rows of the {len(captions)} videos; found {text_video.max()}")
    chosen = np.random.default_rng(seed).choice(len(texts), size=min(count, len(texts)), replace=False)

    def item(video: int, scores_V: np.ndarray, right: int) -> GalleryItem:
        return GalleryItem(thumbnails(video), captions[video], float(scores_V[video]), video == right)

    rows = []
    for text in np.sort(chosen).tolist():
        scores_V, right = similarity_TV[text].astype(np.float64), int(text_video[text])
        is_right_V = np.arange(len(captions)) == right
        # lexsort sorts by its last key first.
        order = np.lexsort((is_right_V, -np.nan_to_num(scores_V, nan=-np.inf)))
        best = order[:SHOWN].tolist()
        rows.append(
            GalleryRow(
                query=texts[text],
                results=[item(video, scores_V, right) for video in best],
                rank=int(ranks(scores_V[None], is_right_V[None])[0]),
                candidates=len(captions),
                right=None if right in best else item(right, scores_V, right),
            )
        )
    return rows


def film_strip(frames_THWC: np.ndarray, *, frames: int = 3, height: int = 112, gap: int = 2) -> np.ndarray:
    """A few frames from first to last, side by side in one picture [H, W, 3], shrunk to at most `height` or so."""
    if frames_THWC.ndim != 4 or frames_THWC.shape[3] != 3 or frames_THWC.dtype != np.uint8 or not frames_THWC.size:
        raise ValueError(f"a thumbnail is uint8 [T, H, W, 3]; found {frames_THWC.dtype} {frames_THWC.shape}")
    chosen = np.unique(np.linspace(0, len(frames_THWC) - 1, frames).round().astype(int))
    shrunk = [shrink(frames_THWC[t], height) for t in chosen]
    white = np.full((shrunk[0].shape[0], gap, 3), 255, np.uint8)
    return np.concatenate([part for frame in shrunk for part in (frame, white)][:-1], axis=1)


def shrink(frame_HWC: np.ndarray, height: int) -> np.ndarray:
    """Means of whole blocks of pixels; a remainder at the right and lower edge is cut."""
    block = max(1, round(frame_HWC.shape[0] / height))
    rows, columns = (max(1, size // block) for size in frame_HWC.shape[:2])
    if block == 1 or rows * block > frame_HWC.shape[0] or columns * block > frame_HWC.shape[1]:
        return frame_HWC
    blocks = frame_HWC[: rows * block, : columns * block].reshape(rows, block, columns, block, 3)
    return blocks.mean(axis=(1, 3)).round().astype(np.uint8)
