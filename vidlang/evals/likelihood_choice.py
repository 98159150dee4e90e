"""Multiple choice by likelihood: which of a clip's answers does the language model find most likely after the question?

Each row has `choices` and the index of the right one, `answer`; `prompt` is a template with the table's columns, as
"question: {question} answer:". That is how EgoSchema and Perception Test are put to a captioner. A tie is wrong.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vidlang.data.prompts import Prompt
from vidlang.evals._embed import predict_items
from vidlang.evals._tables import parts
from vidlang.evals.captioning import see_all
from vidlang.evals.multiple_choice import questions

PER = ("token", "text")


class Evaluator:
    """Share of questions answered right, over all and for each `kind` of row where the table has that column.

    per: log p of a choice is compared by "token", its mean over them, which does not favour short answers, or by
    "text", their sum.
    """

    def __init__(self, predict: Any, data: Any, *, prompt: str = "", per: str = "token") -> None:
        if per not in PER:
            raise ValueError(f"per is {per!r}; likelihoods are compared by one of {', '.join(PER)}")
        self.predict, self.data, self.per = predict, data, per
        self.prompt = Prompt(prompt)
        self.prompt.check(data.table)
        data.tokenizer  # noqa: B018  # asked for now, as it raises where there is none
        predict.require("see", "likelihood")

    def run(self, params: Any) -> dict[str, float]:
        """Metrics accuracy, chance, count, missing, and accuracy_<kind>, chance_<kind>."""
        table = self.data.table
        choices_N, answer_N = questions(table)
        seen_NQD, present_N = see_all(self.predict, self.data, params)
        rows = np.flatnonzero(present_N)
        if not len(rows):
            raise ValueError(f"nothing to ask: none of the {len(table)} clips could be read")
        pairs = [(row, choice) for row in rows.tolist() for choice in choices_N[row]]
        score_P = self._scores(params, seen_NQD, pairs)
        right_R, first = np.zeros(len(rows), bool), 0
        for place, row in enumerate(rows):
            score_C = score_P[first : first + len(choices_N[row])]
            first += len(score_C)
            own = score_C[answer_N[row]]
            right_R[place] = bool(np.isfinite(own)) and int((score_C >= own).sum()) == 1
        chance_R = np.array([1 / len(choices_N[row]) for row in rows])
        result = {"accuracy": float(right_R.mean()), "chance": float(chance_R.mean())}
        if "kind" in table.columns:
            for name, part_R in parts(table, "kind", rows).items():
                result |= {
                    f"accuracy_{name}": float(right_R[part_R].mean()),
                    f"chance_{name}": float(chance_R[part_R].mean()),
                }
        return {**result, "count": float(len(rows)), "missing": float((~present_N).sum())}

    def _scores(self, params: Any, seen_NQD: np.ndarray, pairs: list[tuple[int, str]]) -> np.ndarray:
        """How likely each (row, choice) is; all processes take their shares of the same batches."""
        prompts = {row: self.prompt.of(self.data.table, row) for row, _ in pairs}
        text_PL, prompt_P = self.data.tokenizer.encode_prompted(
            [prompts[row] for row, _ in pairs], [choice for _, choice in pairs]
        )
        row_P = np.array([row for row, _ in pairs])

        def arrays(items: np.ndarray) -> dict[str, np.ndarray]:
            return {"visual_BQD": seen_NQD[row_P[items]], "text_BL": text_PL[items], "prompt_B": prompt_P[items]}

        size = self.data.batch_size
        sums_P2 = predict_items(self.predict, "likelihood", params, size, len(pairs), arrays)
        score_P: np.ndarray = sums_P2[:, 0] / np.maximum(sums_P2[:, 1], 1) if self.per == "token" else sums_P2[:, 0]
        return score_P
