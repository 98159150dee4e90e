"""Retrieval where candidates are right by degrees (EPIC-KITCHENS-100 MIR): mAP and nDCG of a relevancy from 0 to 1.

Both are what the challenge's own code computes, which is not what their names mean elsewhere:

- average precision adds up *fractional* relevancy: with c_k the sum of the relevancies at ranks 1 to k, a query has
  sum over the ranks k whose candidate has relevancy exactly 1 of c_k / k, divided by the number of such candidates.
- nDCG looks at the first K ranks, K the number of candidates that are relevant at all: DCG is the sum of relevancy at
  rank k / log2(k + 1), divided by that of the best order.

Of candidates with the same score the less relevant come first, so a model that gives all the same score is at the
bottom. The official code leaves ties to numpy's unstable sort, in opposite directions for the two metrics; where
scores differ, results are the same. A query without the relevancy that a metric needs has no value: NaN here, for the
mean to leave out, where the official mean would be NaN as a whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vidlang.evals.metrics.ranking import order


def ranked(score_QC: np.ndarray, relevancy_QC: np.ndarray) -> np.ndarray:
    """The relevancies of each query's candidates, float64, in the order of their scores."""
    relevancy_QC = np.asarray(relevancy_QC, np.float64)
    if score_QC.ndim != 2 or score_QC.shape != relevancy_QC.shape:
        raise ValueError(
            f"scores and relevancies have one shape [queries, candidates]; found {score_QC.shape} and "
            f"{relevancy_QC.shape}"
        )
    if not ((relevancy_QC >= 0) & (relevancy_QC <= 1)).all():
        raise ValueError("a relevancy must lie between 0 and 1, and some do not; is it the mean of two shares?")
    return np.take_along_axis(relevancy_QC, order(score_QC, relevancy_QC), axis=1)


def average_precision(ranked_QC: np.ndarray) -> np.ndarray:
    """float64 [queries] of relevancies in ranked order; NaN for a query with no candidate of relevancy 1."""
    whole_QC = ranked_QC == 1
    precision_QC = ranked_QC.cumsum(axis=1) / np.arange(1, ranked_QC.shape[1] + 1)[None]
    return _ratio(np.where(whole_QC, precision_QC, 0.0).sum(axis=1), whole_QC.sum(axis=1))


def ndcg(ranked_QC: np.ndarray) -> np.ndarray:
    """float64 [queries] of relevancies in ranked order; NaN for a query with no candidate of relevancy above 0."""
    ideal_QC = -np.sort(-ranked_QC, axis=1)
    place_C = np.arange(1, ideal_QC.shape[1] + 1)
    counted_QC = place_C[None] <= (ideal_QC > 0).sum(axis=1)[:, None]
    weight_QC = counted_QC / np.log2(place_C + 1)[None]
    return _ratio((ranked_QC * weight_QC).sum(axis=1), (ideal_QC * weight_QC).sum(axis=1))


def relevancy(
    verb_V: np.ndarray, nouns_V: Sequence[Sequence[int]], verb_S: np.ndarray, nouns_S: Sequence[Sequence[int]]
) -> np.ndarray:
    """How well each sentence fits each clip, float64 [V, S]: the mean of "same verb" and the overlap of their nouns.

    The overlap is the share of noun classes that both have among those that either has; 0 where neither has any.
    """
    nouns = sorted({noun for ids in (*nouns_V, *nouns_S) for noun in ids})
    place = {noun: i for i, noun in enumerate(nouns)}
    # Sums of ones: exact in float32 far beyond any number of classes.
    has_VN, has_SN = (_has(ids, place) for ids in (nouns_V, nouns_S))
    common_VS = (has_VN @ has_SN.T).astype(np.float64)
    either_VS = has_VN.sum(axis=1)[:, None] + has_SN.sum(axis=1)[None] - common_VS
    same_VS = np.asarray(verb_V)[:, None] == np.asarray(verb_S)[None]
    return (same_VS + common_VS / np.maximum(either_VS, 1)) / 2


def _has(ids_N: Sequence[Sequence[int]], place: dict[int, int]) -> np.ndarray:
    has_NK = np.zeros((len(ids_N), len(place)), np.float32)
    for row, ids in enumerate(ids_N):
        has_NK[row, [place[noun] for noun in ids]] = 1
    return has_NK


def _ratio(sum_Q: np.ndarray, by_Q: np.ndarray) -> np.ndarray:
    return np.divide(sum_Q, by_Q, out=np.full(len(sum_Q), np.nan), where=by_Q > 0)
