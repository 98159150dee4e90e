"""Classification: top-1, top-5 and mean class accuracy of each head of a classifier. No text is needed.

`heads` says the model's heads and their numbers of classes, {"label": 400}, all of them and in the model's order (a
ConfigDict sorts both alike); each is called like the column with its labels. A clip that is seen as several views and
crops (`clip.views`, `clip.crops`) has the mean of their probabilities, as VideoMAE's test does with five times three.

EPIC-KITCHENS-100 is trained on actions alone, and the probability of a verb is the sum over the actions that have it:
marginalize={"verb_label": 97, "noun_label": 300}. Which verb and noun an action has is read from the columns label,
verb_label and noun_label of the table and of `tables`, other `data` sections: the validation split alone does not have
all 3,806 actions, so name cls_train there.

A class that scores as high as the right one is counted before it, so scores that are all the same are all wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from vidlang.evals._embed import Means, visits
from vidlang.evals._tables import load, need
from vidlang.evals.metrics import classes


class Evaluator:
    """Accuracies as shares from 0 to 1; probabilities of all rows and classes are held, in float64."""

    def __init__(
        self,
        predict: Any,
        data: Any,
        *,
        heads: Mapping[str, int],
        marginalize: Mapping[str, int] | None = None,
        action: str = "label",
        tables: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self.predict, self.data, self.heads = predict, data, dict(heads)
        predict.require("classify")
        self.marginalize, self.action = dict(marginalize or {}), action
        counts = {**self.heads, **self.marginalize}
        if not self.heads or not all(isinstance(count, int) and count >= 2 for count in counts.values()):
            raise ValueError(
                f"heads and marginalize give two classes or more by name, as in {{'label': 400}}; found {counts}"
            )
        if both := set(self.heads) & set(self.marginalize):
            raise ValueError(f"{min(both)!r} is both a head and to be marginalized; name it in one of them")
        if self.marginalize and action not in self.heads:
            raise ValueError(f"marginalize sums over the classes of the head {action!r}; heads are {', '.join(heads)}")
        need(data.table, list(counts), "this classification")
        self._label_N = {name: self._labels(data.table, name) for name in counts}
        self._parts = self._parts_of_actions(tables) if self.marginalize else {}

    def run(self, params: Any) -> dict[str, float]:
        """Metrics <head>_top1, <head>_top5 and <head>_mean_class, then count and missing (clips that were broken)."""
        means = Means(len(self.data.table), np.float64)
        for visit in visits(self.predict, self.data):
            logits_VC = self.predict("classify", params, **visit.clips)[visit.valid_B]
            heads = classes.split(logits_VC, self.heads)
            means.add(visit.index_V, np.concatenate([classes.softmax(logits) for logits in heads.values()], axis=1))
        score_NC, present_N = means.result()
        score_NC = score_NC[present_N]
        if bad := int((~np.isfinite(score_NC).all(axis=1)).sum()):
            logging.warning("%d of %d clips have logits that are not finite; they are wrong", bad, len(score_NC))
        scores = classes.split(score_NC, self.heads)
        for name, count in self.marginalize.items():
            scores[name] = classes.marginal(scores[self.action], self._parts[name], count)
        result: dict[str, float] = {}
        for name, score in scores.items():
            found = classes.summarize(score, self._label_N[name][present_N])
            result |= {f"{name}_{key}": value for key, value in found.items()}
        return {**result, "count": float(present_N.sum()), "missing": float((~present_N).sum())}

    def _labels(self, table: Any, name: str) -> np.ndarray:
        """A column of class ids, checked."""
        label_N, count = np.asarray(table.column(name), np.int64), {**self.heads, **self.marginalize}[name]
        outside = np.flatnonzero((label_N < 0) | (label_N >= count))
        if len(outside):
            raise ValueError(
                f"row {outside[0]} of the table has {name} {label_N[outside[0]]}; with {count} classes expected 0 to "
                f"{count - 1}"
            )
        return label_N

    def _parts_of_actions(self, sections: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
        """For each name to marginalize, the class that each action has of it."""
        tables = [self.data.table, *(load(section, "tables of the classification") for section in sections)]
        for table in tables:
            need(table, [self.action, *self.marginalize], "marginalizing")
        label_R = np.concatenate([self._labels(table, self.action) for table in tables])
        found = {}
        for name in self.marginalize:
            part_R = np.concatenate([self._labels(table, name) for table in tables])
            found[name] = classes.part_of(label_R, part_R, self.heads[self.action])
        unknown = self.heads[self.action] - len(np.unique(label_R))
        if unknown:
            logging.warning(
                "%d of %d actions are in no table, so their probability goes to no verb and no noun; name the training "
                "split in the option tables",
                unknown,
                self.heads[self.action],
            )
        return found
