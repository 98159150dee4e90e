"""Multiple choice: which of a clip's sentences describes it?

Each row of the table has `choices` and the index of the right one, `answer`. The choice that scores highest against
the clip is taken; a tie for the highest is wrong. With two choices that differ only in the order of events, this
measures whether order was understood: a model blind to it is at chance, or below where it gives both the same score.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlang.evals._embed import embed_clips, embed_texts
from vidlang.evals.metrics import ranking


class Evaluator:
    """Share of questions answered right, over all and for each `kind` of row where the table has that column."""

    def __init__(self, predict: Any, data: Any) -> None:
        self.predict, self.data = predict, data

    def run(self, params: Any) -> dict[str, float]:
        """Metrics accuracy, chance (mean of 1 / choices), count, missing, and accuracy_<kind>, chance_<kind>."""
        choices_N, answer_N = _questions(self.data.table)
        video_NE, present_N = embed_clips(self.predict, self.data, params)
        rows = np.flatnonzero(present_N)
        choices = [choices_N[row] for row in rows]
        flat_TE = embed_texts(self.predict, self.data, params, [text for texts in choices for text in texts])
        right = _answered_right(video_NE[rows], flat_TE, [len(texts) for texts in choices], answer_N[rows])
        chance = np.array([1 / len(texts) for texts in choices])
        result = {"accuracy": float(right.mean()), "chance": float(chance.mean())}
        if "kind" in self.data.table.columns:
            kinds = np.array([str(kind) for kind in self.data.table.column("kind")])[rows]
            names = np.unique(kinds)
            for kind in names if len(names) > 1 else ():  # one kind says what the whole says
                result[f"accuracy_{kind}"] = float(right[kinds == kind].mean())
                result[f"chance_{kind}"] = float(chance[kinds == kind].mean())
        return {**result, "count": float(len(rows)), "missing": float(len(present_N) - len(rows))}


def _questions(table: Any) -> tuple[list[list[str]], np.ndarray]:
    lacking = [name for name in ("choices", "answer") if name not in table.columns]
    if lacking:
        raise ValueError(
            f"multiple choice needs the columns choices and answer; the table lacks {' and '.join(lacking)} and has "
            f"{', '.join(table.columns)}"
        )
    choices_N, answer_N = table.column("choices"), np.asarray(table.column("answer"))
    for row, (choices, answer) in enumerate(zip(choices_N, answer_N.tolist(), strict=True)):
        if not choices or len(choices) < 2 or not 0 <= answer < len(choices):
            raise ValueError(
                f"row {row} of the table has {len(choices or ())} choices and answer {answer}; expected two choices "
                "or more and the index of one of them"
            )
    return choices_N, answer_N


def _answered_right(video_NE: np.ndarray, text_TE: np.ndarray, counts: list[int], answer_N: np.ndarray) -> np.ndarray:
    """Which questions have their answer alone on top; the texts of question 0 come first, then those of 1."""
    question_T = np.repeat(np.arange(len(counts)), counts)
    place_T = np.concatenate([np.arange(count) for count in counts])
    # Questions with fewer choices are filled with NaN, which is never better than the answer.
    score_NQ = np.full((len(counts), max(counts)), np.nan)
    with np.errstate(invalid="ignore", over="ignore"):
        score_NQ[question_T, place_T] = np.einsum(
            "TE,TE->T", video_NE[question_T], text_TE, dtype=np.float64, casting="safe"
        )
    correct_NQ = np.arange(max(counts))[None, :] == answer_N[:, None]
    return ranking.ranks(score_NQ, correct_NQ, margin=ranking.ROUNDING) == 1
