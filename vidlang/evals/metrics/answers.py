"""Right or wrong for open questions: an answer from a list against what people answered, compared as texts."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans({letter: " " for letter in string.punctuation if letter != "'"})


def loose(text: str) -> str:
    """The text in lower case, without punctuation, articles and spaces that are too many."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact(text: str) -> str:
    """The text as it is."""
    return text


NORMALISATIONS: dict[str, Callable[[str], str]] = {"exact": exact, "loose": loose}


class Judge:
    """What each answer of a list is worth to a question: min(1, people who gave it / `agree`)."""

    def __init__(self, listed: Sequence[str], normalise: Callable[[str], str], agree: int = 1) -> None:
        self._normalise, self._agree, self._count = normalise, agree, len(listed)
        # Several entries of the list may mean the same.
        self._places: dict[str, list[int]] = {}
        for place, text in enumerate(listed):
            self._places.setdefault(normalise(text), []).append(place)

    def worth(self, given: Sequence[str]) -> np.ndarray:
        """float64 [answers of the list], for one question that people answered with these texts."""
        worth_A = np.zeros(self._count)
        for text in given:
            worth_A[self._places.get(self._normalise(text), [])] += 1 / self._agree
        return np.minimum(worth_A, 1.0)


def won(score_A: np.ndarray, worth_A: np.ndarray) -> float:
    """What the answer with the highest score is worth; of those that tie for it, the one that is worth least.

    A score that is NaN counts as minus infinity.
    """
    score_A = np.where(np.isnan(score_A), -np.inf, score_A)
    return float(worth_A[score_A == score_A.max()].min())
