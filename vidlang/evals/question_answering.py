"""Open questions: the model picks one of a list of answers, which counts where it is what people answered.

This is the protocol of MSRVTT-QA, ActivityNet-QA and AGQA: a classifier over the answers of the training questions,
and equality as texts. Rows have `question` and `answers` (one text for each person asked). A right answer that the
list lacks cannot be found and counts as wrong; `listed` says for how many questions there is one to find.

`answers`, in the order of the model's classes, is one of
- the texts themselves;
- the path of a JSON file with a list of texts;
- a `data` section. A reader with a published list (`answer_list`: msrvtt_qa, activitynet_qa, agqa) gives that, which
  the column `answer` of its tables (option listed=True) numbers; of any other it is the different `answers` of that
  table, sorted, or in the order of its column `answer` where it has one.

normalise="exact" compares texts as they are, which is right for these benchmarks; "loose" ignores case, punctuation and
articles. With `agree` people an answer is fully right, with fewer partly: 3 is the rule of VQA.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import did_you_mean, load_module
from vidlang.datasets._files import short
from vidlang.datasets._texts import read_answers
from vidlang.evals._embed import Means, visits
from vidlang.evals._tables import load, named, need, parts
from vidlang.evals.metrics import answers as metrics


class Evaluator:
    """Accuracy over all, and for each value of the columns in `by` (default: `kind`, where there is one).

    The scores of all questions and answers are held, in float32.
    """

    def __init__(
        self,
        predict: Any,
        data: Any,
        *,
        answers: Any,
        normalise: str = "exact",
        agree: int = 1,
        by: Sequence[str] | None = None,
    ) -> None:
        if normalise not in metrics.NORMALISATIONS:
            known = ", ".join(metrics.NORMALISATIONS)
            hint = did_you_mean(normalise, metrics.NORMALISATIONS)
            raise ValueError(f"unknown normalise {normalise!r}{hint}; there are: {known}")
        if agree < 1:
            raise ValueError(f"agree is the number of people who make an answer right, at least 1; found {agree}")
        need(data.table, ("question", "answers", *(by or ())), "question answering")
        self.predict, self.data = predict, data
        predict.require("answer")
        self.by = tuple(by) if by is not None else ("kind",) if "kind" in data.table.columns else ()
        self.answers = answer_texts(answers)
        self._judge = metrics.Judge(self.answers, metrics.NORMALISATIONS[normalise], agree)

    def run(self, params: Any) -> dict[str, float]:
        """Metrics accuracy, accuracy_<kind>, listed, count and missing; of another column than kind its name too."""
        table = self.data.table
        given_N, questions = table.column("answers"), table.column("question")
        if without := [row for row, given in enumerate(given_N) if not given]:
            raise ValueError(f"open questions need an answer each; row {without[0]} of the table has none")
        means = Means(len(table))
        for visit in visits(self.predict, self.data):
            # Rows that pad a batch have index -1; what is asked of them does not count.
            text_BL = self.data.encode_texts([questions[row] for row in visit.batch["index_B"]])
            logits_BA = self.predict("answer", params, **visit.clips, text_BL=text_BL)
            if logits_BA.shape[1] != len(self.answers):
                raise ValueError(
                    f"the model answers with one of {logits_BA.shape[1]}, the option answers lists "
                    f"{len(self.answers)}; both must be the list that was trained on"
                )
            means.add(visit.index_V, logits_BA[visit.valid_B])
        score_NA, present_N = means.result()
        rows = np.flatnonzero(present_N)
        worth_R = [self._judge.worth(given_N[row]) for row in rows]
        won_R = np.array([metrics.won(score_NA[row], worth_A) for row, worth_A in zip(rows, worth_R, strict=True)])
        result = {"accuracy": float(won_R.mean())}
        for column in self.by:
            for name, part_R in parts(table, column, rows).items():
                label = name if column == "kind" else f"{column}_{name}"
                result[f"accuracy_{label}"] = float(won_R[part_R].mean())
        listed = float(np.mean([worth_A.max() for worth_A in worth_R]))
        return {**result, "listed": listed, "count": float(len(rows)), "missing": float((~present_N).sum())}


def answer_texts(answers: Any) -> list[str]:
    """The answers in the order of the model's classes, from any form of the option."""
    if isinstance(answers, str):
        found = read_answers(Path(answers).expanduser())
    elif isinstance(answers, Mapping):
        found = _from_section(answers)
    else:
        found = list(answers)
    if len(found) < 2 or not all(isinstance(text, str) for text in found):
        raise ValueError(f"the option answers must give two texts or more; found {short(found)}")
    return found


def _from_section(section: Mapping[str, Any]) -> list[str]:
    name, options = named(section, "answers")
    published = getattr(load_module("datasets", name), "answer_list", None)
    if published is not None and list(inspect.signature(published).parameters) == ["root"] and "root" in options:
        return list(published(options["root"]))
    table = load(section, "answers")
    need(table, ("answers",), "the option answers")
    given_N = table.column("answers")
    if "answer" not in table.columns:
        return sorted({text for given in given_N for text in given or ()})
    place_N = np.asarray(table.column("answer"))
    first = {int(place): given[0] for place, given in zip(place_N, given_N, strict=True) if place >= 0 and given}
    if sorted(first) != list(range(len(first))):
        raise ValueError(
            f"the column answer of the section answers has {len(first)} different places, up to "
            f"{max(first, default=-1)}; without all of them the list is not known: give it as texts or as a file"
        )
    return [first[place] for place in range(len(first))]
