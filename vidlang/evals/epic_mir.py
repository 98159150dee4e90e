"""EPIC-KITCHENS-100 multi-instance retrieval: clips and sentences that fit each other more or less.

The table is `datasets/epic_kitchens.py` mir_test, or any whose rows have one class in `verbs` and those of their nouns
in `nouns`. Every clip is asked for a ranking of all sentences, and every sentence for one of all clips; how well they
fit is computed from the classes, and metrics/mir.py says what mAP and nDCG make of it.

The sentences: with `root`, the folder of the annotations, those of the official list, each with the classes of the
clip whose narration id it bears (column `id`). The list has a few sentences twice, for clips that call different
classes the same. Without `root`, each different text once, with the classes of the first row that has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import logging

from vidlang.datasets import epic_kitchens
from vidlang.evals._embed import embed_clips, embed_texts
from vidlang.evals._tables import need
from vidlang.evals.metrics import mir, ranking


class Evaluator:
    """mAP and nDCG (shares from 0 to 1), by cosine; `chunk` queries are scored at once."""

    def __init__(self, predict: Any, data: Any, *, root: str = "", split: str = "mir_test", chunk: int = 512) -> None:
        if chunk < 1:
            raise ValueError(f"chunk must be at least 1 query; found {chunk}")
        self.predict, self.data, self.chunk = predict, data, chunk
        predict.require("embed_video", "embed_text")
        self.official = epic_kitchens.sentences(root, split) if root else None

    def run(self, params: Any) -> dict[str, float]:
        """Metrics v2t_map, t2v_map, map (their mean), the same for ndcg, and videos, texts and missing.

        A clip that could not be read is no query and no candidate; its sentence stays. `unfit` counts the queries that
        are left out of a mean because nothing fits them: of mAP, wholly.
        """
        verb_N, nouns_N = _classes(self.data.table)
        texts, rows_S = self._sentences()
        video_NE, present_N = embed_clips(self.predict, self.data, params)
        rows_V = np.flatnonzero(present_N)
        video_VE, text_SE = video_NE[rows_V], embed_texts(self.predict, self.data, params, texts)
        nouns_V, nouns_S = [nouns_N[row] for row in rows_V], [nouns_N[row] for row in rows_S]
        relevancy_VS = mir.relevancy(verb_N[rows_V], nouns_V, verb_N[rows_S], nouns_S)
        ways = {
            "v2t": self._measure(video_VE, text_SE, relevancy_VS),
            "t2v": self._measure(text_SE, video_VE, relevancy_VS.T),
        }
        result = {}
        for place, name in enumerate(("map", "ndcg")):
            for way, found in ways.items():
                result[f"{way}_{name}"] = _mean(found[place], f"{way}_{name}")
            result[name] = (result[f"v2t_{name}"] + result[f"t2v_{name}"]) / 2
        unfit = sum(int(np.isnan(found[0]).sum()) for found in ways.values())
        counts = {"videos": len(rows_V), "texts": len(texts), "missing": len(present_N) - len(rows_V), "unfit": unfit}
        return {**result, **{name: float(count) for name, count in counts.items()}}

    def _sentences(self) -> tuple[list[str], np.ndarray]:
        """(the sentences, the row of the table whose classes each has)."""
        table = self.data.table
        if self.official is None:
            first: dict[str, int] = {}
            for row, texts in enumerate(table.column("texts")):
                if not texts:
                    raise ValueError(f"retrieval needs a sentence for every clip; row {row} of the table has none")
                first.setdefault(texts[0], row)
            return list(first), np.array(list(first.values()))
        need(table, ("id",), "MIR with the official sentences")
        row_of = {name: row for row, name in reversed(list(enumerate(table.column("id"))))}
        listed = list(zip(self.official.texts, self.official.ids, strict=True))
        found = [(text, row_of[name]) for text, name in listed if name in row_of]
        if not found:
            raise ValueError("no narration id of the official sentences is in the table's column id; is it that split?")
        if len(found) < len(listed):
            lacking = len(listed) - len(found)
            logging.warning("%d official sentences have no clip in the table and are left out", lacking)
        return [text for text, _ in found], np.array([row for _, row in found])

    def _measure(
        self, query_QE: np.ndarray, candidate_CE: np.ndarray, relevancy_QC: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """(average precision, nDCG) of each query."""
        candidate_EC = np.asarray(candidate_CE, np.float64).T
        precision, gain = [], []
        for start in range(0, len(query_QE), self.chunk):
            part = slice(start, start + self.chunk)
            score_QC = ranking.scores(query_QE[part], candidate_EC)
            ranked_QC = mir.ranked(score_QC, relevancy_QC[part])
            precision.append(mir.average_precision(ranked_QC))
            gain.append(mir.ndcg(ranked_QC))
        return np.concatenate(precision), np.concatenate(gain)


def _classes(table: Any) -> tuple[np.ndarray, list[list[int]]]:
    """(the verb class of each row, its noun classes)."""
    need(table, ("verbs", "nouns"), "multi-instance retrieval")
    verbs_N, nouns_N = table.column("verbs"), [ids or [] for ids in table.column("nouns")]
    for row, verbs in enumerate(verbs_N):
        if not verbs or len(verbs) != 1:
            raise ValueError(f"row {row} of the table has the verbs {verbs}; relevancy is known for one class a clip")
    return np.array([verbs[0] for verbs in verbs_N]), nouns_N


def _mean(value_Q: np.ndarray, what: str) -> float:
    if np.isnan(value_Q).all():
        raise ValueError(f"{what} has no value: nothing fits any of its {len(value_Q)} queries; check verbs and nouns")
    return float(np.nanmean(value_Q))
