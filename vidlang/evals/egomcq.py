"""EgoMCQ: which of five clips does a sentence describe? SummaryMCQ is the same with clips of minutes.

The table has a row for each pair of a question and one of its clips (`datasets/egomcq.py`): `query` is the question's
number, `choice` the clip's place, `answer` the place of the right one, `texts` the sentence. The clip whose embedding
is closest to the sentence's is taken; a tie for the closest is wrong.

Results are named by the column `kind`: inter where the five clips are of different videos, intra where they are of
one, which is harder. EgoVLP's code, and others' that copy it, print the two names the wrong way round.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlang.evals._embed import embed_clips, embed_texts
from vidlang.evals._tables import need
from vidlang.evals.metrics import ranking

COLUMNS = ("query", "choice", "answer")


class Evaluator:
    """Share of questions answered right, over all and for each `kind`."""

    def __init__(self, predict: Any, data: Any) -> None:
        self.predict, self.data = predict, data
        predict.require("embed_video", "embed_text")

    def run(self, params: Any) -> dict[str, float]:
        """Metrics accuracy, chance (mean of 1 / choices), accuracy_<kind>, count_<kind>, count and missing.

        A question of which a clip could not be read is left out; `missing` counts those.
        """
        table = self.data.table
        questions = _questions(table)
        video_NE, present_N = embed_clips(self.predict, self.data, params)
        asked = [rows for rows in questions if present_N[rows].all()]
        if not asked:
            raise ValueError(f"nothing to evaluate: each of the {len(questions)} questions lacks a clip")
        texts_N = table.column("texts")
        text_QE = embed_texts(self.predict, self.data, params, [texts_N[rows[0]][0] for rows in asked])
        answer_Q = np.asarray(table.column("answer"))[[rows[0] for rows in asked]]
        counts = [len(rows) for rows in asked]
        right_Q = ranking.answered_right(text_QE, video_NE[np.concatenate(asked)], counts, answer_Q)
        result = {"accuracy": float(right_Q.mean()), "chance": float(np.mean(1 / np.array(counts)))}
        if "kind" in table.columns:
            kind_N = table.column("kind")
            kind_Q = np.array([str(kind_N[rows[0]]) for rows in asked])
            for kind in np.unique(kind_Q):
                result[f"accuracy_{kind}"] = float(right_Q[kind_Q == kind].mean())
                result[f"count_{kind}"] = float((kind_Q == kind).sum())
        return {**result, "count": float(len(asked)), "missing": float(len(questions) - len(asked))}


def _questions(table: Any) -> list[np.ndarray]:
    """The rows of each question, by the places of their clips."""
    need(table, COLUMNS, "EgoMCQ")
    query_N, choice_N, answer_N = (np.asarray(table.column(name)) for name in COLUMNS)
    texts_N = table.column("texts")
    order = np.lexsort((choice_N, query_N))
    starts = np.flatnonzero(np.diff(query_N[order], prepend=query_N[order[0]] - 1))
    questions = np.split(order, starts[1:])
    for rows in questions:
        answer, choices = answer_N[rows[0]], choice_N[rows].tolist()
        what = f"question {query_N[rows[0]]} of the table"
        if len(rows) < 2 or choices != list(range(len(rows))):
            raise ValueError(f"{what} has the choices {choices}; expected two or more, numbered from 0 on")
        if not (answer_N[rows] == answer).all() or not 0 <= answer < len(rows):
            raise ValueError(
                f"{what} has the answers {answer_N[rows].tolist()} in its rows; expected the place of one of its "
                f"{len(rows)} clips, the same in all"
            )
        if not texts_N[rows[0]] or any(texts_N[row] != texts_N[rows[0]] for row in rows):
            raise ValueError(f"{what} must have the same sentence in all its rows; found {texts_N[rows[0]]} and others")
    return questions
