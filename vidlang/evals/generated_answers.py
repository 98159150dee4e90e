"""Open questions, answered in words: the model goes on after the question, and what it says is right or is not.

Rows have `question` and `answers` (one text for each person asked) or, without that column, `texts`. An answer counts
where it is one of these, as texts: normalise="loose" ignores case, punctuation and articles, "exact" nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vidlang.core.config import call, did_you_mean
from vidlang.data.prompts import Prompt
from vidlang.evals._tables import need, parts
from vidlang.evals.captioning import generate_texts, see_all, with_end
from vidlang.evals.metrics import answers as metrics
from vidlang.nn.generation import Decoding


class Evaluator:
    """Share of questions answered right, over all and for each value of the columns in `by` (default: `kind`)."""

    def __init__(
        self,
        predict: Any,
        data: Any,
        *,
        prompt: str = "{question}",
        decoding: Mapping[str, Any] | None = None,
        normalise: str = "loose",
        by: Sequence[str] | None = None,
    ) -> None:
        if normalise not in metrics.NORMALISATIONS:
            hint = did_you_mean(normalise, metrics.NORMALISATIONS)
            raise ValueError(f"unknown normalise {normalise!r}{hint}; there are: {', '.join(metrics.NORMALISATIONS)}")
        self.column = "answers" if "answers" in data.table.columns else "texts"
        need(data.table, (self.column, *(by or ())), "answering in words")
        self.predict, self.data, self.normalise = predict, data, metrics.NORMALISATIONS[normalise]
        self.by = tuple(by) if by is not None else ("kind",) if "kind" in data.table.columns else ()
        self.prompt = Prompt(prompt)
        self.prompt.check(data.table)
        self.decoding = with_end(call(Decoding, {"max_new": 16, **(decoding or {})}, what="decoding"), data.tokenizer)
        predict.require("see", "generate")

    def run(self, params: Any) -> dict[str, float]:
        """Metrics accuracy, accuracy_<kind>, count and missing; of another column than kind its name too."""
        table = self.data.table
        given_N = list(table.column(self.column))
        if without := [row for row, given in enumerate(given_N) if not given]:
            raise ValueError(f"open questions need an answer each; row {without[0]} of the table has none")
        seen_NQD, present_N = see_all(self.predict, self.data, params)
        rows = np.flatnonzero(present_N)
        if not len(rows):
            raise ValueError(f"nothing to ask: none of the {len(table)} clips could be read")
        prompts = [self.prompt.of(table, int(row)) for row in rows]
        texts, _ = generate_texts(self.predict, self.data, params, seen_NQD[rows], prompts, rows, self.decoding)
        right_R = np.array(
            [
                self.normalise(text) in {self.normalise(given) for given in given_N[row]}
                for text, row in zip(texts, rows, strict=True)
            ]
        )
        result = {"accuracy": float(right_R.mean())}
        for column in self.by:
            for name, part_R in parts(table, column, rows).items():
                label = name if column == "kind" else f"{column}_{name}"
                result[f"accuracy_{label}"] = float(right_R[part_R].mean())
        return {**result, "count": float(len(rows)), "missing": float((~present_N).sum())}
