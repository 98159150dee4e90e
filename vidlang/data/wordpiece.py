"""Learning a vocabulary of word pieces: a function of how often each word occurs, whatever order the texts come in.

Words start as single characters, all but the first written with "##". The pair of neighbouring pieces that occurs most
often becomes a piece of its own, again and again; ties go to the pair that is first in alphabetical order. Reading
later takes the longest piece that fits.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Mapping

CONTINUED = "##"

Pair = tuple[str, str]


def learn_pieces(count_of_word: Mapping[str, int], room: int, min_count: int) -> list[str]:
    """At most `room` pieces: the characters, then merged pairs in the order of learning.

    A pair that occurs less than `min_count` times is not learnt. Where the characters alone do not fit, the most
    frequent ones stay.
    """
    words = [_characters(word) for word in sorted(count_of_word)]
    counts = [count_of_word[word] for word in sorted(count_of_word)]
    pieces = _most_frequent_characters(words, counts, room)
    pairs, places = _count_pairs(words, counts)
    heap = [(-count, pair) for pair, count in pairs.items()]
    heapq.heapify(heap)
    while len(pieces) < room and heap:
        minus_count, pair = heapq.heappop(heap)
        if -minus_count != pairs[pair]:
            continue  # an outdated entry; the right one is in the heap too
        if -minus_count < min_count:
            break
        pieces.append(join(pair))
        for changed in _merge_everywhere(pair, words, counts, pairs, places):
            if pairs[changed] > 0:
                heapq.heappush(heap, (-pairs[changed], changed))
    return pieces


def join(pair: Pair) -> str:
    """Two neighbouring pieces as one."""
    return pair[0] + pair[1].removeprefix(CONTINUED)


def _characters(word: str) -> list[str]:
    return [word[0], *(CONTINUED + character for character in word[1:])]


def _most_frequent_characters(words: list[list[str]], counts: list[int], room: int) -> list[str]:
    total: Counter[str] = Counter()
    for pieces, count in zip(words, counts, strict=True):
        for piece in pieces:
            total[piece] += count
    kept = sorted(total, key=lambda piece: (-total[piece], piece))[:room]
    return sorted(kept)


def _count_pairs(words: list[list[str]], counts: list[int]) -> tuple[Counter[Pair], defaultdict[Pair, set[int]]]:
    """How often each pair occurs, and in which words."""
    pairs: Counter[Pair] = Counter()
    places: defaultdict[Pair, set[int]] = defaultdict(set)
    for i, (pieces, count) in enumerate(zip(words, counts, strict=True)):
        for pair in zip(pieces, pieces[1:], strict=False):
            pairs[pair] += count
            places[pair].add(i)
    return pairs, places


def _merge_everywhere(
    pair: Pair,
    words: list[list[str]],
    counts: list[int],
    pairs: Counter[Pair],
    places: defaultdict[Pair, set[int]],
) -> set[Pair]:
    """Writes the pair as one piece in every word that has it; gives the pairs whose counts changed."""
    changed: set[Pair] = set()
    for i in places.pop(pair):
        old, new = words[i], _merge(words[i], pair)
        words[i] = new
        for neighbours in zip(old, old[1:], strict=False):
            pairs[neighbours] -= counts[i]
            changed.add(neighbours)
        for neighbours in zip(new, new[1:], strict=False):
            pairs[neighbours] += counts[i]
            places[neighbours].add(i)
            changed.add(neighbours)
    return changed


def _merge(pieces: list[str], pair: Pair) -> list[str]:
    merged, i = [], 0
    while i < len(pieces):
        if tuple(pieces[i : i + 2]) == pair:
            merged.append(join(pair))
            i += 2
        else:
            merged.append(pieces[i])
            i += 1
    return merged
