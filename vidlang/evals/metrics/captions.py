"""CIDEr, BLEU and ROUGE-L of captions against several references each, in float64, as the COCO caption tools count.

Captions and references come as lists of words (`ptb.words`). Every function takes all captions of a corpus at once:
CIDEr weighs n-grams by how rare they are in its references, and BLEU pools its counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

Words = Sequence[str]
References = Sequence[Words]
ORDERS = 4
# Constants of the reference: a precision of nothing out of nothing is about TINY / SMALL.
TINY, SMALL = 1e-15, 1e-9
# Width of CIDEr-D's penalty on lengths, and the factor that all CIDErs carry.
SIGMA, SCALE = 6.0, 10.0
BETA = 1.2


def ngrams(words: Words, order: int) -> Counter[Words]:
    """How often each run of `order` words occurs."""
    return Counter(zip(*(words[i:] for i in range(order)), strict=False))


def bleu(candidates: Sequence[Words], references: Sequence[References]) -> np.ndarray:
    """BLEU-1 to BLEU-4 of the corpus, [4]: counts are pooled, and lengths those of the closest reference.

    Of two references as close, the shorter counts.
    """
    _check(candidates, references)
    matched, guessed = np.zeros(ORDERS), np.zeros(ORDERS)
    length, wanted = 0, 0
    for candidate, refs in zip(candidates, references, strict=True):
        length += len(candidate)
        wanted += min((abs(len(ref) - len(candidate)), len(ref)) for ref in refs)[1]
        for order in range(1, ORDERS + 1):
            own, most = ngrams(candidate, order), Counter[Words]()
            for ref in refs:
                most |= ngrams(ref, order)
            matched[order - 1] += (own & most).total()
            guessed[order - 1] += max(0, len(candidate) - order + 1)
    # As the reference does it: the product runs over orders, and each root is taken of what there is so far.
    product = np.cumprod((matched + TINY) / (guessed + SMALL))
    scores = product ** (1 / np.arange(1, ORDERS + 1))
    ratio = (length + TINY) / (wanted + SMALL)
    return scores * math.exp(1 - 1 / ratio) if ratio < 1 else scores


def rouge_l(candidates: Sequence[Words], references: Sequence[References]) -> np.ndarray:
    """ROUGE-L of each caption, [N]: the best precision and the best recall, each over all references by itself."""
    _check(candidates, references)
    return np.array([_rouge_l(c, refs) for c, refs in zip(candidates, references, strict=True)])


def _rouge_l(candidate: Words, references: References) -> float:
    if not candidate:
        return 0.0
    common = [(longest_common(candidate, ref), len(ref)) for ref in references]
    precision = max(count / len(candidate) for count, _ in common)
    recall = max((count / length if length else 0.0) for count, length in common)
    if precision == 0 or recall == 0:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(one: Words, other: Words) -> int:
    """Length of the longest subsequence of both."""
    # Bits of `row` say where the length grows along `other`: one big number stands for a row of the usual table.
    places: dict[str, int] = {}
    for i, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(other)) - 1
    row = full
    for word in one:
        hit = row & places.get(word, 0)
        row = ((row + hit) | (row - hit)) & full
    return len(other) - row.bit_count()


def cider(candidates: Sequence[Words], references: Sequence[References], *, plain: bool = False) -> np.ndarray:
    """CIDEr-D of each caption, [N]; the corpus has their mean. With `plain`, CIDEr without clipping and length penalty.

    What the COCO tools call CIDEr is CIDEr-D. A corpus of one caption scores 0, for nothing in it is rare.
    """
    _check(candidates, references)
    counted = [[_all_ngrams(ref) for ref in refs] for refs in references]
    rows_with: Counter[Words] = Counter()
    for refs in counted:
        rows_with.update(set().union(*refs))
    rarest = math.log(len(candidates))
    weight: Callable[[Words], float] = {gram: rarest - math.log(count) for gram, count in rows_with.items()}.get  # type: ignore[assignment]
    scores = np.zeros(len(candidates))
    for row, (candidate, refs) in enumerate(zip(candidates, counted, strict=True)):
        own = _Vector(_all_ngrams(candidate), weight, rarest)
        alike = [own.cosines(_Vector(ref, weight, rarest), clip=not plain) for ref in refs]
        scores[row] = SCALE * np.mean(alike)
    return scores


def _all_ngrams(words: Words) -> Counter[Words]:
    found: Counter[Words] = Counter()
    for order in range(1, ORDERS + 1):
        found.update(ngrams(words, order))
    return found


class _Vector:
    """A text as weights of its n-grams, by order; its length is the number of its bigrams, as in the reference."""

    def __init__(self, counts: Counter[Words], weight: Callable[..., float], rarest: float) -> None:
        self.weights: list[dict[Words, float]] = [{} for _ in range(ORDERS)]
        squares, self.length = [0.0] * ORDERS, 0
        for gram, count in counts.items():
            order = len(gram) - 1
            value = count * weight(gram, rarest)
            self.weights[order][gram] = value
            squares[order] += value * value
            if order == 1:
                self.length += count
        self.norms = [math.sqrt(square) for square in squares]

    def cosines(self, ref: _Vector, *, clip: bool) -> float:
        """Mean over the orders of how alike two texts are."""
        total = 0.0
        for own, other, one, two in zip(self.weights, ref.weights, self.norms, ref.norms, strict=True):
            if not (one and two):
                continue
            if clip:  # what a caption repeats counts as often as the reference has it
                product = sum(min(value, other[gram]) * other[gram] for gram, value in own.items() if gram in other)
            else:
                product = sum(value * other[gram] for gram, value in own.items() if gram in other)
            total += product / (one * two)
        if clip:
            total *= math.exp(-((self.length - ref.length) ** 2) / (2 * SIGMA**2))
        return total / ORDERS


def _check(candidates: Sequence[Words], references: Sequence[References]) -> None:
    if not candidates:
        raise ValueError("caption metrics need at least one caption")
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions and {len(references)} lists of references; each needs its own")
    for row, (candidate, refs) in enumerate(zip(candidates, references, strict=True)):
        if isinstance(candidate, str) or any(isinstance(ref, str) for ref in refs):
            raise ValueError("caption metrics take lists of words; split texts with `ptb.words`")
        if not refs:
            raise ValueError(f"caption {row} has no reference; leave it out, or give it one")
