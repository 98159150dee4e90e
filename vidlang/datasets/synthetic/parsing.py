"""Reads a sentence of the corpus back: which events it tells, in which order."""

from __future__ import annotations

import re

from vidlang.datasets.synthetic.grammar import COLOURS, PATTERNS, SHAPES, VERBS, Key

_COLOUR, _SHAPE = "|".join(COLOURS), "|".join(SHAPES)
_VERBS = {words: number for number, verb in enumerate(VERBS) for words in (verb.third, verb.other)}
_VERB = "|".join(sorted(_VERBS, key=len, reverse=True))
_EVENT = rf"an? (?:{_COLOUR}) (?:colored )?(?:{_SHAPE}) (?:{_VERB})"
_PLACE = rf"in a place with (?:{'|'.join(PATTERNS)})"
# What the sentences are: one event, a scene of two, or a paragraph of places with events.
_SCENE = rf"{_EVENT}(?: then {_EVENT})?|first {_EVENT} and after that {_EVENT}"
_PART = rf"{_PLACE} {_EVENT}(?: and then {_EVENT})*"
_SENTENCE = re.compile(rf"(?:{_SCENE}|at first {_PART}(?: after that {_PART})*)")
_ONE = re.compile(rf"an? ({_COLOUR}) (?:colored )?({_SHAPE}) ({_VERB})")


def parse_events(text: str) -> list[Key] | None:
    """(colour, shape, verb) of each event in the order told; None where the text is no sentence of the corpus."""
    text = " ".join(text.lower().split())
    if not _SENTENCE.fullmatch(text):
        return None
    return [(COLOURS.index(c), SHAPES.index(s), _VERBS[v]) for c, s, v in _ONE.findall(text)]
