"""Words of captions, as the Penn Treebank's tokenizer splits them and the usual caption metrics count them.

Lower case, punctuation left out. This follows what the Java tokenizer that those metrics come with does to captions;
rare spellings that it knows by long lists are not all here.
"""

from __future__ import annotations

import re

# Left out after splitting. Brackets stay, as "-lrb-", because the reference's list has them in capitals.
PUNCTUATION = frozenset(
    ("''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# Written as other characters, before anything is split.
SAME = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201b": "'", "\u00b4": "'", "\u201c": '"', "\u201d": '"', "\u201e": '"',
        "\u00ab": '"', "\u00bb": '"', "\u2013": "--", "\u2014": "--", "\u2026": "...", "\u00a0": " ", "\u00ad": "",
    }
)  # fmt: skip
# Titles, months, units and the like, which keep the full stop behind them.
ABBREVIATIONS = frozenset(
    "mr mrs ms dr prof rev gen sen rep gov capt lt col sgt cpl st jr sr vs etc inc ltd co corp bros no vol fig ave "
    "blvd rd jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri sat sun approx dept est "
    "messrs mt ph.d esq seq".split()
)
# Two words in one, as the treebank splits them.
FUSED = {
    "cannot": ("can", "not"), "gonna": ("gon", "na"), "gotta": ("got", "ta"), "wanna": ("wan", "na"),
    "gimme": ("gim", "me"), "lemme": ("lem", "me"),
}  # fmt: skip
ENDINGS = r"(?:'s|'m|'d|'re|'ve|'ll)"

TOKEN = re.compile(
    r"""
      (?:https?://|www\.)[^\s<>"]+
    | [\w.+-]+@[\w-]+(?:\.[\w-]+)+                      # addresses
    | '\d0s | '(?:tis|twas|em|n|cause|til)\b            # words that begin with an apostrophe
    | (?:[a-z]\.){2,} | (?<![\w'])[a-z]\.(?!\w)         # u.s., and initials
    | <[a-z][^\s<>]*>                                  # marks, as <person>
    | \d+(?:[.,:]\d+)+ (?:st|nd|rd|th)?                 # 1,000 and 3.5 and 10:30
    | \d+(?:/\d+)+                                           # 1/2
    | (?<=\d)'(?=\d)                                    # feet
    | (?<![^\s(])[-+]\d+(?:\.\d+)*                      # below zero
    | [#@][a-z]\w*
    | [^\W\d_]+(?:\.[^\W_]+)+                           # www.name, and dots inside of words
    | [^\W_]+(?:[-_][^\W_]+)+(?:'[a-z]+)?              # t-shirt
    | [^\W\d_]+(?:/[^\W_]+)+                           # and/or
    | \d+ (?=')
    | [^\W_]+(?:'[^\W_]+)*                             # words, with the apostrophes inside
    | \.{2,} | -{2,} | [?!]{2,} | \*+ | _+ | <<? | >>? | '' | ``
    | [^\w\s]
    """,
    re.VERBOSE,
)


def words(text: str) -> list[str]:
    """The words of one caption."""
    text = " ".join(text.translate(SAME).split()).lower()
    found: list[str] = []
    for match in TOKEN.finditer(text):
        found += _split(match[0], text, match.end())
    return [word for word in found if word not in PUNCTUATION and word.strip("-.")]


def _split(token: str, text: str, end: int) -> list[str]:
    if token in BRACKETS:
        return [BRACKETS[token]]
    if token == '"':
        return ["''"]
    if token in FUSED:
        return list(FUSED[token])
    if token in ABBREVIATIONS and text[end : end + 1] == ".":
        return [f"{token}."]
    if token == "\u20ac":
        return ["$"]  # so the reference writes the euro
    if "'" in token and token[0] != "'":
        return _apostrophes(token)
    # Pictures and other signs beyond letters are dropped.
    return [token] if token.isascii() or any(sign.isalnum() for sign in token) or token in "£€¢¥°" else []


def _apostrophes(token: str) -> list[str]:
    """don't is do and n't, dog's is dog and 's; o'clock stays."""
    if token.endswith("n't") and len(token) > 3:
        stem = {"ca": "ca", "wo": "wo", "sha": "sha"}.get(token[:-3], token[:-3])
        return [stem, "n't"]
    if parts := re.fullmatch(rf"(.+?)({ENDINGS})", token):
        return [*(_apostrophes(parts[1]) if "'" in parts[1] else [parts[1]]), parts[2]]
    return [token]
