"""Text-to-video and video-to-text retrieval among all clips of a table.

Every text of the table is a query for its clip, and every clip for its texts, of which the best ranked counts. The
correct answer loses ties (see metrics/ranking.py), so a caption that two clips share verbatim finds neither first.

With shared=True, rows with the same `label` are right for each other's texts: a template of SSv2 asks for any of the
clips made from it.

With rerank=k the k best candidates of each query are ranked again by a model with a fusion encoder (see _rerank.py);
what cosines alone give is then called cosine_t2v_r1 and so on.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlang.evals import _rerank
from vidlang.evals._embed import embed_clips, embed_texts
from vidlang.evals._tables import need
from vidlang.evals.metrics import ranking


class Evaluator:
    """Recalls (shares from 0 to 1), median and mean ranks; `chunk` queries are scored at once.

    rerank: how many candidates to look at again, 0 for none. ensemble: how several views of a clip are combined then,
    "lse", "mean" or "max". tokens_dtype: how their tokens are kept until then, "float16" or "float32".
    """

    def __init__(
        self,
        predict: Any,
        data: Any,
        *,
        chunk: int = 256,
        shared: bool = False,
        rerank: int = 0,
        ensemble: str = "lse",
        tokens_dtype: str = "float16",
    ) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 query; found {chunk}")
        if shared:
            need(data.table, ("label",), "retrieval with shared texts")
        self.predict, self.data, self.chunk, self.shared = predict, data, chunk, shared
        self.rerank = _rerank.Options(rerank, ensemble, tokens_dtype)
        predict.require("embed_video", "embed_text", *(("video_tokens", "match") if rerank else ()))

    def run(self, params: Any) -> dict[str, float]:
        """Metrics as t2v_r1, ..., v2t_mean_rank, with the numbers of videos, texts and missing clips.

        A clip that could not be read is missing: it is no candidate and its texts are no queries.
        """
        texts_N = self.data.table.column("texts")
        without = [row for row, texts in enumerate(texts_N) if not texts]
        if without:
            raise ValueError(f"retrieval needs a text for every clip; row {without[0]} of the table has none")
        second = _rerank.Reranker(self.predict, self.data, params, self.rerank) if self.rerank.count else None
        also = None if second is None else second.keep
        video_NE, present_N = embed_clips(self.predict, self.data, params, also=also)
        rows = np.flatnonzero(present_N)
        texts = [text for row in rows for text in texts_N[row]]
        text_video = np.repeat(np.arange(len(rows)), [len(texts_N[row]) for row in rows])
        group_V = np.asarray(self.data.table.column("label"))[rows] if self.shared else np.arange(len(rows))
        video_VE, text_TE = video_NE[rows], embed_texts(self.predict, self.data, params, texts)
        result = _named(ranking.retrieval_ranks(video_VE, text_TE, text_video, group_V=group_V, chunk=self.chunk))
        if second is not None:
            again = second.ranks(video_VE, text_TE, texts, rows, group_V, group_V[text_video], self.chunk)
            result = {**_named(again), **{f"cosine_{name}": value for name, value in result.items()}}
        counts = {"videos": len(rows), "texts": len(texts), "missing": len(present_N) - len(rows)}
        return {**result, **{name: float(count) for name, count in counts.items()}}


def _named(ranks: tuple[np.ndarray, np.ndarray]) -> dict[str, float]:
    ways = zip(("t2v", "v2t"), ranks, strict=True)
    return {f"{way}_{name}": value for way, rank_Q in ways for name, value in ranking.summarize(rank_Q).items()}
