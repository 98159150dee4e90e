"""Accuracies of classifiers from scores [clips, classes], in float64, under the pessimistic rule of ranking.py."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def softmax(logits_BC: np.ndarray) -> np.ndarray:
    """Probabilities in float64; a row with a logit that is no number becomes NaN as a whole."""
    logits_BC = np.asarray(logits_BC, np.float64)
    with np.errstate(invalid="ignore"):
        raised_BC = np.exp(logits_BC - logits_BC.max(axis=1, keepdims=True))
    return raised_BC / raised_BC.sum(axis=1, keepdims=True)


def label_ranks(score_NC: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """1 + the number of other classes that score at least as high as the right one; NaN counts as minus infinity."""
    score_NC = np.where(np.isnan(score_NC), -np.inf, score_NC)
    right_N1 = np.take_along_axis(score_NC, np.asarray(label_N, np.int64)[:, None], axis=1)
    return (score_NC >= right_N1).sum(axis=1)


def summarize(score_NC: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """top1, top5, and mean_class: the mean over the classes that occur of the top-1 accuracy on each."""
    if not len(label_N):
        raise ValueError("no clips to summarize: the set is empty")
    rank_N = label_ranks(score_NC, label_N)
    first_N = (rank_N <= 1).astype(np.float64)
    clips_C = np.bincount(label_N, minlength=score_NC.shape[1])
    right_C = np.bincount(label_N, weights=first_N, minlength=score_NC.shape[1])
    occurs_C = clips_C > 0
    return {
        "top1": float(first_N.mean()),
        "top5": float(np.mean(rank_N <= 5)),
        "mean_class": float((right_C[occurs_C] / clips_C[occurs_C]).mean()),
    }


def part_of(label_R: np.ndarray, part_R: np.ndarray, classes: int) -> np.ndarray:
    """For each class, the part (such as the verb of an action) that all rows of it have; -1 where no row has it."""
    part_C = np.full(classes, -1, np.int64)
    part_C[label_R] = part_R
    wrong = np.flatnonzero(part_C[label_R] != part_R)
    if len(wrong):
        label = label_R[wrong[0]]
        raise ValueError(
            f"class {label} has the parts {part_R[wrong[0]]} and {part_C[label]}; expected one part a class"
        )
    return part_C


def marginal(score_NC: np.ndarray, part_C: np.ndarray, parts: int) -> np.ndarray:
    """Scores of parts [N, parts]: the sum over the classes that have the part; a part of none scores 0."""
    known = np.flatnonzero(part_C >= 0)
    belongs_CP = np.zeros((len(known), parts))
    belongs_CP[np.arange(len(known)), part_C[known]] = 1.0
    marginal_NP: np.ndarray = score_NC[:, known] @ belongs_CP
    return marginal_NP


def split(score_NC: np.ndarray, heads: Mapping[str, int]) -> dict[str, np.ndarray]:
    """The scores of each head, which lie side by side in the order of `heads`."""
    total = sum(heads.values())
    if score_NC.shape[1] != total:
        told = " + ".join(f"{classes} of {name!r}" for name, classes in heads.items())
        raise ValueError(
            f"the model gives {score_NC.shape[1]} logits a clip, the option heads says {told} = {total}; name all "
            "heads of the model, in its order and with its classes"
        )
    ends = np.cumsum(list(heads.values()))
    return dict(zip(heads, np.split(score_NC, ends[:-1], axis=1), strict=True))
