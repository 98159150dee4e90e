"""The second look of retrieval: the best candidates by cosine, ranked again by a model that sees both sides at once.

A cosine compares two vectors that know nothing of each other. `match(tokens_BND, text_BL)` runs a text over the tokens
of a clip, which is far too dear for all pairs and affordable for the best few of each query (SViTT and Singularity
take 128). They come first, by their match; the others stay behind them, in the order of cosines.

The tokens of all clips are kept in the memory of every process, N x D numbers of two bytes (float16) a view: 270 tokens
of 768 make 0.4 GB for a thousand views. With Q queries in each direction and k candidates a query there are up to
2 Q k pairs to match, those that both directions choose once.

Of several views of a clip the matches are combined by `ensemble`: "lse" is the logarithm of the mean of their
exponentials, which for equally many views ranks as log-sum-exp does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from absl import logging

from vidlang.core.config import did_you_mean
from vidlang.evals._embed import Visit, predict_items
from vidlang.evals.metrics import ranking

ENSEMBLES = ("lse", "mean", "max")
# The largest number of each type that tokens may be kept in.
LARGEST = {name: float(np.finfo(name).max) for name in ("float16", "float32")}


@dataclass(frozen=True)
class Options:
    """count: candidates of each query to look at again, 0 for none. dtype: how tokens are kept until then."""

    count: int
    ensemble: str
    dtype: str

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError(f"rerank is the number of candidates to look at again, 0 for none; found {self.count}")
        wanted = (("ensemble", self.ensemble, ENSEMBLES), ("tokens_dtype", self.dtype, tuple(LARGEST)))
        for what, value, known in wanted:
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}{did_you_mean(value, known)}; there are: {', '.join(known)}")


@dataclass(frozen=True)
class Way:
    """A direction of retrieval: queries and candidates; those of one group are right for each other."""

    query_QE: np.ndarray
    candidate_CE: np.ndarray
    group_Q: np.ndarray
    group_C: np.ndarray

    def parts(self, chunk: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """(queries, their cosines [Q, C], which candidates are right) of so many queries at once."""
        candidate_EC = np.asarray(self.candidate_CE, np.float64).T
        for start in range(0, len(self.query_QE), chunk):
            part = slice(start, start + chunk)
            correct_QC = self.group_Q[part, None] == self.group_C[None, :]
            yield part, ranking.scores(self.query_QE[part], candidate_EC), correct_QC


class Reranker:
    """Keeps the tokens of clips while they pass, and then gives ranks."""

    def __init__(self, predict: Any, data: Any, params: Any, options: Options) -> None:
        self._predict, self._data, self._params = predict, data, params
        self._options = options
        self._tokens: dict[int, list[np.ndarray]] = {}

    def keep(self, visit: Visit) -> None:
        """Takes the tokens of a batch."""
        tokens_VND = self._predict("video_tokens", self._params, **visit.clips)[visit.valid_B]
        if np.abs(tokens_VND).max(initial=0) > LARGEST[self._options.dtype]:
            raise ValueError(
                f"tokens of clips are too large for {self._options.dtype}; set the option tokens_dtype to 'float32'"
            )
        for row, tokens_ND in zip(visit.index_V.tolist(), tokens_VND, strict=True):
            self._tokens.setdefault(row, []).append(tokens_ND.astype(self._options.dtype))

    def ranks(
        self,
        video_VE: np.ndarray,
        text_TE: np.ndarray,
        texts: list[str],
        rows_V: np.ndarray,
        group_V: np.ndarray,
        group_T: np.ndarray,
        chunk: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Ranks (text to video [T], video to text [V]); video i is row `rows_V[i]` of the table."""
        ways = Way(text_TE, video_VE, group_T, group_V), Way(video_VE, text_TE, group_V, group_T)
        chosen_t2v, chosen_v2t = (_choose(way, self._options.count, chunk) for way in ways)
        # Equal texts are one text to match with.
        number = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        number_T = np.array([number[text] for text in texts])
        pair_t2v = chosen_t2v * len(number) + number_T[:, None]
        pair_v2t = np.arange(len(rows_V))[:, None] * len(number) + number_T[chosen_v2t]
        pair_P = np.unique(np.concatenate([pair_t2v.ravel(), pair_v2t.ravel()]))
        match_P = self._match(pair_P, rows_V, list(number))
        second = (match_P[np.searchsorted(pair_P, pair)] for pair in (pair_t2v, pair_v2t))
        t2v, v2t = (
            _ranks(way, chosen, match_QK, chunk)
            for way, chosen, match_QK in zip(ways, (chosen_t2v, chosen_v2t), second, strict=True)
        )
        return t2v, v2t

    def _match(self, pair_P: np.ndarray, rows_V: np.ndarray, texts: list[str]) -> np.ndarray:
        """float64 [pairs]: how well clip and text belong together, over the clip's views."""
        video_P, text_P = np.divmod(pair_P, len(texts))
        views_P = np.array([len(self._tokens[row]) for row in rows_V[video_P].tolist()])
        pair_J = np.repeat(np.arange(len(pair_P)), views_P)
        view_J = np.arange(len(pair_J)) - np.repeat(np.cumsum(views_P) - views_P, views_P)
        held = sum(tokens.nbytes for views in self._tokens.values() for tokens in views)
        logging.info("re-ranking: %d pairs of a text and a view; tokens take %.3g GB", len(pair_J), held / 1e9)

        def arrays(items: np.ndarray) -> dict[str, np.ndarray]:
            jobs = zip(rows_V[video_P[pair_J[items]]].tolist(), view_J[items].tolist(), strict=True)
            tokens_BND = np.stack([self._tokens[row][view] for row, view in jobs]).astype(np.float32)
            return {
                "tokens_BND": tokens_BND,
                "text_BL": self._data.encode_texts([texts[i] for i in text_P[pair_J[items]]]),
            }

        score_J = predict_items(self._predict, "match", self._params, self._data.batch_size, len(pair_J), arrays)
        if score_J.ndim != 1:
            raise ValueError(f"the model's method match must give one score a pair; found the shape {score_J.shape}")
        if bad := int((~np.isfinite(score_J)).sum()):
            logging.warning("%d of %d match scores are not finite; they rank last", bad, len(score_J))
        return _combined(score_J.astype(np.float64), pair_J, views_P, self._options.ensemble)


def _choose(way: Way, count: int, chunk: int) -> np.ndarray:
    """The candidates of each query to look at again; of a tie for the last place the wrong ones."""
    return np.concatenate(
        [ranking.order(score_QC, correct_QC)[:, :count].copy() for _, score_QC, correct_QC in way.parts(chunk)]
    )


def _combined(score_J: np.ndarray, pair_J: np.ndarray, views_P: np.ndarray, ensemble: str) -> np.ndarray:
    """One score a pair from those of its views."""
    if ensemble == "mean":
        total_P = np.zeros(len(views_P))
        np.add.at(total_P, pair_J, score_J)
        return total_P / views_P
    found_P = np.full(len(views_P), -np.inf)
    if ensemble == "max":
        np.maximum.at(found_P, pair_J, score_J)
        return found_P
    np.logaddexp.at(found_P, pair_J, score_J)
    return found_P - np.log(views_P)


def _ranks(way: Way, chosen_QK: np.ndarray, match_QK: np.ndarray, chunk: int) -> np.ndarray:
    return np.concatenate(
        [
            ranking.reranked(score_QC, correct_QC, chosen_QK[part], match_QK[part], margin=ranking.ROUNDING)
            for part, score_QC, correct_QC in way.parts(chunk)
        ]
    )
