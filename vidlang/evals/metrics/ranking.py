"""Ranks and recalls for retrieval, in float64, under one pessimistic rule.

The rank of a query is 1 + the number of wrong candidates that score at least as high as its best correct one: the
correct candidate loses every tie, so a model that gives the same score to all candidates gets the worst rank, not the
best or a lucky one. A score that is NaN counts as minus infinity: a wrong candidate with it comes last, a correct one
with it comes behind every wrong one.

In names here T counts texts and V videos, Q queries and C candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Cosines of float32 embeddings differ by less than this only through the order of summation, which depends on how
# the matrix product is blocked. Such differences are ties.
ROUNDING = 1e-12


def ranks(score_QC: np.ndarray, correct_QC: np.ndarray, *, margin: float = 0.0) -> np.ndarray:
    """Rank (1 is best) of each query's best correct candidate; wrong ones within `margin` of it rank before it."""
    if score_QC.ndim != 2 or score_QC.shape != correct_QC.shape:
        raise ValueError(
            f"ranks needs scores and correct flags of one shape [queries, candidates]; found {score_QC.shape} and "
            f"{correct_QC.shape}"
        )
    correct_QC = correct_QC.astype(bool)
    without = np.flatnonzero(~correct_QC.any(axis=1))
    if len(without):
        raise ValueError(f"query {without[0]} has no correct candidate, so it has no rank; leave it out")
    score_QC = np.asarray(score_QC, np.float64)
    score_QC = np.where(np.isnan(score_QC), -np.inf, score_QC)
    best_Q1 = np.where(correct_QC, score_QC, -np.inf).max(axis=1, keepdims=True)
    return 1 + ((score_QC >= best_Q1 - margin) & ~correct_QC).sum(axis=1)


def answered_right(
    query_QE: np.ndarray, candidate_RE: np.ndarray, counts: Sequence[int], answer_Q: np.ndarray
) -> np.ndarray:
    """Which queries have the right one of their own candidates alone on top, by dot product.

    The candidates of query 0 come first, `counts[0]` of them, then those of 1; `answer_Q` are places among a query's.
    """
    query_R = np.repeat(np.arange(len(counts)), counts)
    place_R = np.concatenate([np.arange(count) for count in counts])
    # Queries with fewer candidates are filled with NaN, which is never better than the answer.
    score_QC = np.full((len(counts), max(counts)), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        score_QC[query_R, place_R] = np.einsum(
            "RE,RE->R", query_QE[query_R], candidate_RE, dtype=np.float64, casting="safe"
        )
    correct_QC = np.arange(max(counts))[None, :] == answer_Q[:, None]
    return ranks(score_QC, correct_QC, margin=ROUNDING) == 1


def order(score_QC: np.ndarray, last_QC: np.ndarray, *, margin: float = ROUNDING) -> np.ndarray:
    """Candidates of each query from the highest score to the lowest; of a tie, those with the least `last` first.

    Scores tie that are equal after rounding to multiples of `margin`: unlike "within margin", that is an order.
    """
    score_QC = np.asarray(score_QC, np.float64)
    with np.errstate(invalid="ignore"):
        score_QC = np.where(np.isnan(score_QC), -np.inf, np.round(score_QC / margin) if margin else score_QC)
    return np.lexsort((last_QC, -score_QC), axis=1)


def reranked(
    score_QC: np.ndarray, correct_QC: np.ndarray, chosen_QK: np.ndarray, second_QK: np.ndarray, *, margin: float = 0.0
) -> np.ndarray:
    """Ranks where the `chosen_QK` candidates come first, by their second score, and the others behind by the first."""
    correct_QK = np.take_along_axis(correct_QC.astype(bool), chosen_QK, axis=1)
    rank_Q = np.zeros(len(score_QC), np.int64)
    inside_Q = correct_QK.any(axis=1)
    if inside_Q.any():
        rank_Q[inside_Q] = ranks(second_QK[inside_Q], correct_QK[inside_Q])
    outside_Q = ~inside_Q
    if outside_Q.any():
        others_QC = np.ones(score_QC.shape, bool)
        np.put_along_axis(others_QC, chosen_QK, False, axis=1)
        # All chosen ones are wrong here and stand before; what is no candidate any more must not be counted again.
        score_QC = np.where(np.isnan(score_QC), -np.inf, score_QC)
        best_Q1 = np.where(correct_QC, score_QC, -np.inf).max(axis=1, keepdims=True)
        ahead_QC = (score_QC >= best_Q1 - margin) & ~correct_QC.astype(bool) & others_QC
        rank_Q[outside_Q] = 1 + chosen_QK.shape[1] + ahead_QC.sum(axis=1)[outside_Q]
    return rank_Q


def retrieval_ranks(
    video_VE: np.ndarray,
    text_TE: np.ndarray,
    text_video: np.ndarray,
    *,
    group_V: np.ndarray | None = None,
    chunk: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (text to video [T], video to text [V]) by dot product; text i describes video `text_video[i]`.

    Every text is a query of its own. A video's rank is that of its best-ranked text; its other texts are not wrong
    answers. Videos of one group share their texts: any of them is right. `chunk` queries are scored at once, so the
    whole matrix is never held.
    """
    if len(text_video) != len(text_TE):
        raise ValueError(f"{len(text_TE)} texts but {len(text_video)} entries that say which video each describes")
    if not len(video_VE) or not len(text_TE):
        raise ValueError(f"nothing to rank: {len(video_VE)} videos and {len(text_TE)} texts")
    if text_video.min() < 0 or text_video.max() >= len(video_VE):
        raise ValueError(
            f"text_video must hold rows of the {len(video_VE)} videos; found {text_video.min()} to {text_video.max()}"
        )
    without = np.setdiff1d(np.arange(len(video_VE)), text_video)
    if len(without):
        raise ValueError(f"video {without[0]} has no text, so it has no rank; leave it out")
    group_V = np.arange(len(video_VE)) if group_V is None else group_V
    t2v = _ranks_in_chunks(text_TE, video_VE, group_V[text_video], group_V, chunk)
    v2t = _ranks_in_chunks(video_VE, text_TE, group_V, group_V[text_video], chunk)
    return t2v, v2t


def _ranks_in_chunks(
    query_QE: np.ndarray, candidate_CE: np.ndarray, group_Q: np.ndarray, group_C: np.ndarray, chunk: int
) -> np.ndarray:
    """Ranks where a candidate is correct if it is of the query's group."""
    candidate_EC = np.asarray(candidate_CE, np.float64).T
    parts = []
    for start in range(0, len(query_QE), chunk):
        part = slice(start, start + chunk)
        correct_QC = group_Q[part, None] == group_C[None, :]
        parts.append(ranks(scores(query_QE[part], candidate_EC), correct_QC, margin=ROUNDING))
    return np.concatenate(parts)


def scores(query_QE: np.ndarray, candidate_EC: np.ndarray) -> np.ndarray:
    """Dot products in float64; an embedding that is not finite gives NaN, which `ranks` puts last."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(query_QE, np.float64) @ np.asarray(candidate_EC, np.float64)


def summarize(rank_Q: np.ndarray, *, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """Recall at each of `at` as a share from 0 to 1, and the median and mean rank."""
    if not len(rank_Q):
        raise ValueError("no ranks to summarize: the set of queries is empty")
    recalls = {f"r{k}": float(np.mean(rank_Q <= k)) for k in at}
    return {**recalls, "median_rank": float(np.median(rank_Q)), "mean_rank": float(np.mean(rank_Q))}


def chance(candidates: int, *, correct: int = 1, at: Sequence[int] = (1, 5, 10)) -> dict[str, float]:
    """What `summarize` gives on average where `correct` of the candidates are right and their order is random."""
    if not 1 <= correct <= candidates:
        raise ValueError(f"chance needs 1 to {candidates} correct candidates among {candidates}; found {correct}")
    places = np.arange(candidates - correct + 1)
    # cdf[r - 1] is the probability of rank <= r: not all of the first r draws, without replacement, are wrong.
    cdf = (1 - np.cumprod(1 - correct / (candidates - places))).round(12)
    recalls = {f"r{k}": float(cdf[min(k, len(cdf)) - 1]) for k in at}
    median = 1 + (np.searchsorted(cdf, 0.5, "left") + np.searchsorted(cdf, 0.5, "right")) / 2
    return {
        **recalls,
        "median_rank": float(median),
        "mean_rank": 1 + (candidates - correct) / (correct + 1),
    }
