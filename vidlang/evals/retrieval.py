"""Text-to-video and video-to-text retrieval among all clips of a table.

Every text of the table is a query for its clip, and every clip for its texts, of which the best ranked counts. The
correct answer loses ties (see metrics/ranking.py), so a caption that two clips share verbatim finds neither first.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlang.evals._embed import embed_clips, embed_texts
from vidlang.evals.metrics import ranking


class Evaluator:
    """Recalls (shares from 0 to 1), median and mean ranks; `chunk` queries are scored at once."""

    def __init__(self, predict: Any, data: Any, *, chunk: int = 256) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 query; found {chunk}")
        self.predict, self.data, self.chunk = predict, data, chunk

    def run(self, params: Any) -> dict[str, float]:
        """Metrics as t2v_r1, ..., v2t_mean_rank, with the numbers of videos, texts and missing clips.

        A clip that could not be read is missing: it is no candidate and its texts are no queries.
        """
        texts_N = self.data.table.column("texts")
        without = [row for row, texts in enumerate(texts_N) if not texts]
        if without:
            raise ValueError(f"retrieval needs a text for every clip; row {without[0]} of the table has none")
        video_NE, present_N = embed_clips(self.predict, self.data, params)
        rows = np.flatnonzero(present_N)
        texts = [text for row in rows for text in texts_N[row]]
        text_video = np.repeat(np.arange(len(rows)), [len(texts_N[row]) for row in rows])
        text_TE = embed_texts(self.predict, self.data, params, texts)
        t2v, v2t = ranking.retrieval_ranks(video_NE[rows], text_TE, text_video, chunk=self.chunk)
        return {
            **{f"t2v_{name}": value for name, value in ranking.summarize(t2v).items()},
            **{f"v2t_{name}": value for name, value in ranking.summarize(v2t).items()},
            "videos": float(len(rows)),
            "texts": float(len(texts)),
            "missing": float(len(present_N) - len(rows)),
        }
