"""The named scores of a set of captions: which metrics, over the whole corpus or video by video."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np

from vidlang.core.config import did_you_mean
from vidlang.evals.metrics import captions as metrics
from vidlang.evals.metrics import ptb

METRICS = ("bleu", "rouge_l", "cider", "cider_plain", "meteor")
USUAL = ("bleu", "rouge_l", "cider")
# Over all captions at once; or, for each video, over its captions as if there were no others, and then the mean.
AGGREGATES = ("corpus", "video")


def check(names: Sequence[str], aggregate: str) -> None:
    """ValueError for a metric that is unknown or cannot be had here."""
    if isinstance(names, str):
        raise ValueError(f"metrics is {names!r}, one text; give a list of names, as ({names!r},)")
    for name in names:
        if name not in METRICS:
            raise ValueError(
                f"unknown caption metric {name!r}{did_you_mean(name, METRICS)}; there are: {', '.join(METRICS)}"
            )
    if aggregate not in AGGREGATES:
        raise ValueError(f"aggregate is {aggregate!r}; it is one of {', '.join(AGGREGATES)}")
    if "meteor" in names:
        _meteor_tool()


def score(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    names: Sequence[str] = USUAL,
    *,
    videos: Sequence[str] | None = None,
) -> dict[str, float]:
    """Scores of the corpus, as bleu_1 to bleu_4, rouge_l, cider (that is CIDEr-D), cider_plain and meteor.

    With `videos`, the name of the one that each caption is of, the mean over videos of what each scores by itself.
    """
    words = [ptb.words(caption) for caption in captions]
    reference_words = [[ptb.words(reference) for reference in refs] for refs in references]
    if videos is None:
        return _of(words, reference_words, captions, references, names)
    rows: dict[str, list[int]] = {}
    for row, video in enumerate(videos):
        rows.setdefault(video, []).append(row)
    found = []
    for part in rows.values():
        own: list[Any] = [[given[row] for row in part] for given in (words, reference_words, captions, references)]
        found.append(_of(own[0], own[1], own[2], own[3], names))
    return {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def _of(
    words: Sequence[metrics.Words],
    reference_words: Sequence[metrics.References],
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    names: Sequence[str],
) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in names:
        if name == "bleu":
            found |= {f"bleu_{n}": float(x) for n, x in enumerate(metrics.bleu(words, reference_words), start=1)}
        elif name == "rouge_l":
            found["rouge_l"] = float(metrics.rouge_l(words, reference_words).mean())
        elif name == "meteor":
            found["meteor"] = _meteor(captions, references)
        else:
            plain = name == "cider_plain"
            found[name] = float(metrics.cider(words, reference_words, plain=plain).mean())
    return found


def _meteor_tool() -> Any:
    """The package whose Java program computes METEOR; nothing else gives the same numbers."""
    try:
        tool = importlib.import_module("pycocoevalcap.meteor.meteor")
    except ImportError as error:
        raise ValueError(
            "METEOR is a Java program that comes with pycocoevalcap, and that is not installed "
            f"({error}): pip install -e '.[cocoeval]', and have java on the path; or leave out the metric 'meteor'"
        ) from None
    if shutil.which("java") is None:
        raise ValueError("METEOR is a Java program, and there is no java on the path; or leave out the metric 'meteor'")
    return tool


def _meteor(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    own = {row: [" ".join(ptb.words(caption))] for row, caption in enumerate(captions)}
    theirs = {row: [" ".join(ptb.words(ref)) for ref in refs] for row, refs in enumerate(references)}
    return float(_meteor_tool().Meteor().compute_score(theirs, own)[0])
