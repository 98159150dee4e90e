"""Seconds that caption metrics take on one core: splitting into words, BLEU, ROUGE-L and CIDEr-D.

    python -m benchmarks.caption_metrics                       # 40,000 captions with five references each
    python -m benchmarks.caption_metrics --captions=4000

Where pycocoevalcap is installed (pip install -e '.[cocoeval]', and Java), its own tools score the same captions, and
the largest difference is shown. Captions are drawn: phrases of a few hundred words, the frequent ones far more often,
some with commas, apostrophes and numbers; a caption is one of its references with words changed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from absl import app, flags

from benchmarks._common import machine
from vidlang.evals.metrics import captions as metrics
from vidlang.evals.metrics import ptb

_CAPTIONS = flags.DEFINE_integer("captions", 40_000, "Captions to score.")
_REFERENCES = flags.DEFINE_integer("references", 5, "References of each.")
_WORDS = flags.DEFINE_integer("words", 2_000, "Different words that captions have.")

SIGNS = (",", " 's", "'s", " (", ") ", " - ", " 5", " 3.5", "!", " t-shirt", " don't")


def main(argv: list[str]) -> None:
    said, told = draw(_CAPTIONS.value, _REFERENCES.value, _WORDS.value)
    print(f"{machine()}; {len(said):,} captions, {_REFERENCES.value} references each")
    words, split_s = timed(lambda: [ptb.words(text) for text in said])
    references, more_s = timed(lambda: [[ptb.words(text) for text in texts] for texts in told])
    own, seconds = {}, {"words": split_s + more_s}
    for name in ("bleu", "rouge_l", "cider"):
        own[name], seconds[name] = timed(functools.partial(getattr(metrics, name), words, references))
    report("here", seconds)
    if importlib.util.find_spec("pycocoevalcap") is None or shutil.which("java") is None:
        print("the reference: pycocoevalcap or Java is not here")
        return
    theirs, seconds, other = reference(said, told)
    report("the reference", seconds)
    unlike = sum(one.split() != two for one, two in zip(theirs, words, strict=True))
    print(f"captions split otherwise: {unlike:,} of {len(said):,}")
    for name, values in own.items():
        print(f"largest difference of {name}: {np.abs(np.asarray(other[name]) - values).max():.2g}")


def draw(count: int, references: int, vocabulary: int) -> tuple[list[str], list[list[str]]]:
    """(captions, the references of each)."""
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    words = np.array(["".join(rng.choice(letters, size=rng.integers(2, 10))) for _ in range(vocabulary)])
    chances = 1 / np.arange(1, vocabulary + 1)
    chances /= chances.sum()

    def changed(text_W: np.ndarray, share: float) -> np.ndarray:
        return np.where(rng.random(len(text_W)) < share, rng.choice(words, size=len(text_W), p=chances), text_W)

    def written(text_W: np.ndarray) -> str:
        text = " ".join(text_W)
        return text + rng.choice(SIGNS) + " there" if rng.random() < 0.3 else text

    said, told = [], []
    for _ in range(count):
        topic_W = rng.choice(words, size=rng.integers(6, 16), p=chances)
        told.append([written(changed(topic_W, 0.4)) for _ in range(references)])
        said.append(written(changed(topic_W, 0.4)))
    return said, told


def reference(
    said: Sequence[str], told: Sequence[Sequence[str]]
) -> tuple[list[str], dict[str, float], dict[str, Sequence[float]]]:
    """(captions as the reference splits them, its seconds, its scores)."""
    bleu, cider, rouge, tokenizer = (
        importlib.import_module(f"pycocoevalcap.{name}")
        for name in ("bleu.bleu", "cider.cider", "rouge.rouge", "tokenizer.ptbtokenizer")
    )
    splitter = tokenizer.PTBTokenizer()
    with contextlib.redirect_stdout(io.StringIO()):
        own, one_s = timed(lambda: splitter.tokenize({row: [{"caption": text}] for row, text in enumerate(said)}))
        references, two_s = timed(
            lambda: splitter.tokenize({row: [{"caption": text} for text in texts] for row, texts in enumerate(told)})
        )
        seconds, scores = {"words": one_s + two_s}, {}
        tools: dict[str, Any] = {"bleu": bleu.Bleu(4), "rouge_l": rouge.Rouge(), "cider": cider.Cider()}
        for name, tool in tools.items():
            found, seconds[name] = timed(functools.partial(tool.compute_score, references, own))
            scores[name] = found[0 if name == "bleu" else 1]
    return [own[row][0] for row in range(len(said))], seconds, scores


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """(what the call gives, seconds)."""
    began = time.perf_counter()
    found = call()
    return found, time.perf_counter() - began


def report(name: str, seconds: dict[str, float]) -> None:
    parts = "  ".join(f"{part} {value:.1f} s" for part, value in seconds.items())
    print(f"{name:>14}: {parts}  all {sum(seconds.values()):.1f} s", flush=True)


if __name__ == "__main__":
    app.run(main)
