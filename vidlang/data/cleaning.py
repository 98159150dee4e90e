"""Captions as each code base cleans them before its tokenizer, chosen by name in a config.

none         the text as the table has it: EgoVLP, LaViLa and AVION read narrations so, "#C C" and all
lower        lower case
clip         OpenAI CLIP's tokenizer, hence LaViLa's and AVION's: HTML entities, white space, lower case
singularity  Singularity and SViTT
webvid       Frozen in Time and EgoVLP on WebVid: the first 350 characters
howto100m    MIL-NCE on speech: words only
narration    Ego4D's tags ("#C C picks", "#O man X walks", "#unsure") turned into words
"""

from __future__ import annotations

import functools
import html
import re
from collections.abc import Callable, Mapping
from typing import Any

from vidlang.core.config import check_keys, did_you_mean

Cleaner = Callable[[str], str]


def cleaner(clean: str | Mapping[str, Any]) -> Cleaner:
    """The cleaner of that name, or of a section of keys with its `name` and options; goes to workers by value."""
    options = {"name": clean} if isinstance(clean, str) else dict(clean)
    name = options.pop("name", None)
    if name not in CLEANERS:
        hint = did_you_mean(name, CLEANERS) if isinstance(name, str) else ""
        raise ValueError(f"Unknown text cleaning {name!r}{hint}; there are: {', '.join(CLEANERS)}.")
    check_keys(CLEANERS[name], options, what=f"clean {name!r}", extra=("text",))
    for option, value in options.items():
        if isinstance(value, int) and value < 1:
            raise ValueError(f"The option {option} of the text cleaning {name!r} is at least 1, found {value}.")
    return functools.partial(CLEANERS[name], **options) if options else CLEANERS[name]


def _none(text: str) -> str:
    """Nothing is changed: what EgoVLP, LaViLa and AVION do with narrations."""
    return text


def _lower(text: str) -> str:
    """Lower case, for a tokenizer file that keeps case and a text model that never saw capitals."""
    return text.lower()


def _clip(text: str) -> str:
    """What OpenAI CLIP does before its byte pairs, less the repair of wrongly decoded characters (ftfy).

    Entities are read twice because captions scraped from the web hold "&amp;amp;".
    """
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _singularity(text: str, words: int | None = None) -> str:
    """Singularity's and SViTT's: lower case without most punctuation, hyphens and slashes as spaces, cut to `words`.

    "<person>", as Conceptual Captions writes names, becomes a plain word.
    """
    text = text.lower().translate(SINGULARITY).replace("<person>", "person")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return text if words is None else " ".join(text.split(" ")[:words])


def _webvid(text: str, characters: int = 350) -> str:
    """Frozen in Time's: stock footage captions run on, and what they say last matters least."""
    return text[:characters]


def _howto100m(text: str, words: int | None = None) -> str:
    """MIL-NCE's and HowTo100M's: runs of letters, digits and apostrophes, as recognised speech has no other marks."""
    return " ".join(re.findall(r"[\w']+", text)[:words])


def _narration(text: str, wearer: str = "the camera wearer", unsure: str = "something") -> str:
    """Ego4D narrations as plain sentences, for text models that know no tags; none of the papers' own code does this.

    "#C C" (the wearer) and "#unsure" (what the annotator could not see) become words, "#O" before another person goes,
    and so do doubled spaces and the full stop at the end.
    """
    text = re.sub(r"[#@]\s*c\b(\s+c\b)?", wearer, text, flags=re.IGNORECASE)
    text = re.sub(r"#\s*unsure\b", unsure, text, flags=re.IGNORECASE)
    text = re.sub(r"#\s*o\b", "", text, flags=re.IGNORECASE)
    return " ".join(text.replace("#", "").split()).rstrip(" .,")


SINGULARITY = str.maketrans({**dict.fromkeys(",.'!?\"()*#:;~", ""), "-": " ", "/": " "})

CLEANERS: dict[str, Callable[..., str]] = {
    "none": _none,
    "lower": _lower,
    "clip": _clip,
    "singularity": _singularity,
    "webvid": _webvid,
    "howto100m": _howto100m,
    "narration": _narration,
}
