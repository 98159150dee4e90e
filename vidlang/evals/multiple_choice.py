"""Multiple choice: which of a clip's sentences describes it?

Each row of the table has `choices` and the index of the right one, `answer`. The choice that scores highest against
the clip is taken; a tie for the highest is wrong. With two choices that differ only in the order of events, this
measures whether order was understood: a model blind to it is at chance, or below where it gives both the same score.

Choices that answer a question mean little without it: with_question=True puts the row's `question` and a space before
each. That is how a dual encoder takes EgoSchema and Perception Test; no paper says the words it used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlang.evals._embed import embed_clips, embed_texts
from vidlang.evals._tables import need
from vidlang.evals.metrics import ranking


class Evaluator:
    """Share of questions answered right, over all and for each `kind` of row where the table has that column."""

    def __init__(self, predict: Any, data: Any, *, with_question: bool = False) -> None:
        self.predict, self.data, self.with_question = predict, data, with_question
        predict.require("embed_video", "embed_text")

    def run(self, params: Any) -> dict[str, float]:
        """Metrics accuracy, chance (mean of 1 / choices), count, missing, and accuracy_<kind>, chance_<kind>."""
        choices_N, answer_N = questions(self.data.table)
        if self.with_question:
            choices_N = _with_question(self.data.table, choices_N)
        video_NE, present_N = embed_clips(self.predict, self.data, params)
        rows = np.flatnonzero(present_N)
        choices = [choices_N[row] for row in rows]
        flat_TE = embed_texts(self.predict, self.data, params, [text for texts in choices for text in texts])
        counts = [len(texts) for texts in choices]
        right = ranking.answered_right(video_NE[rows], flat_TE, counts, answer_N[rows])
        chance = 1 / np.array(counts)
        result = {"accuracy": float(right.mean()), "chance": float(chance.mean())}
        if "kind" in self.data.table.columns:
            kinds = np.array([str(kind) for kind in self.data.table.column("kind")])[rows]
            names = np.unique(kinds)
            for kind in names if len(names) > 1 else ():  # one kind says what the whole says
                result[f"accuracy_{kind}"] = float(right[kinds == kind].mean())
                result[f"chance_{kind}"] = float(chance[kinds == kind].mean())
        return {**result, "count": float(len(rows)), "missing": float(len(present_N) - len(rows))}


def questions(table: Any) -> tuple[list[list[str]], np.ndarray]:
    """(the choices of each row, the place of the right one), checked."""
    need(table, ("choices", "answer"), "multiple choice")
    choices_N, answer_N = table.column("choices"), np.asarray(table.column("answer"))
    for row, (choices, answer) in enumerate(zip(choices_N, answer_N.tolist(), strict=True)):
        if not choices or len(choices) < 2 or not 0 <= answer < len(choices):
            raise ValueError(
                f"row {row} of the table has {len(choices or ())} choices and answer {answer}; expected two choices "
                "or more and the index of one of them"
            )
    return choices_N, answer_N


def _with_question(table: Any, choices_N: list[list[str]]) -> list[list[str]]:
    need(table, ("question",), "multiple choice with_question")
    questions = zip(table.column("question"), choices_N, strict=True)
    return [[f"{question} {choice}" for choice in choices] for question, choices in questions]
