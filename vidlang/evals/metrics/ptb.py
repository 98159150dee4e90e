"""Words of captions, as the Penn Treebank's tokenizer splits them and the usual caption metrics count them.

Lower case, punctuation left out. This does to captions what the Java tokenizer does that those metrics come with: it
was written against what that program gives, and agrees with it on 99 of 100 lines of prose and nearly all captions.
What is left over are rare spellings of other kinds of text, such as code.
"""

from __future__ import annotations

import re

# Left out after splitting. Brackets stay, as "-lrb-", because the reference's list has them in capitals.
PUNCTUATION = frozenset(("'", "`", "''", "``", '"', ".", "?", "!", ",", ":", ";", *("-" * n for n in range(1, 5))))
BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
# The reference writes the pound as a hash, and the euro as a dollar.
SIGNS = {"\u00a3": "#", "\u20ac": "$", "\u00a2": "cents"}
# Written as other characters, before anything is split.
SAME = str.maketrans(
    {
        "\u2018": "'", "\u2019": "'", "\u201b": "'", "\u2039": "'", "\u203a": "'", "\u201c": '"', "\u201d": '"',
        "\u00ab": '"', "\u00bb": '"', "\u2010": "-", "\u2011": "-", "\u2013": "--", "\u2014": "--", "\u2015": "--",
        "\u2026": "...", "\u00ad": "", "\u00bc": " 1/4 ", "\u00bd": " 1/2 ", "\u00be": " 3/4 ", "\u2153": " 1/3 ",
        "\u2154": " 2/3 ", "\u300c": " ", "\u300d": " ",
    }
)  # fmt: skip
# Pictures and invisible signs, which vanish, and raised or lowered digits, which stand alone.
VANISH = re.compile("[\U00010000-\U0010ffff\ufe0e\ufe0f\u200b-\u200f\u2060\ufeff]")
RAISED = re.compile("[\u00b2\u00b3\u00b9\u2070-\u209c]")
ENTITIES = {"&nbsp;": " ", "&apos;": "'", "&quot;": '"', "&lt;": " < ", "&gt;": " > ", "&amp;": "&"}

# Titles, months, units, states and the like, which keep the full stop behind them; some only before a number, and
# some, which are words as well, only with a capital.
ABBREVIATIONS = (
    "mr mrs ms dr drs prof rev gen ens sen sens rep reps gov govs capt lt lieut col sgt maj cpl pvt pfc adm hon msgr "
    "messrs mlle mme pres supt supts insp atty cmdr comdr brig st ste jr sr esq vs etc seq inc ltd co cos corp bros "
    "bhd assn assoc cie plc mfg dept univ bldg intl natl tel ext treas ave blvd rd ct sq mt ft mo est al cf ph adj "
    "adv jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri alex wm jos "
    "ala ariz calif colo conn fla ga ind kan ky md mich minn mont neb nev okla penn tenn va vt wis wisc wyo"
).split()
BEFORE_NUMBERS = "no nos fig figs pp op prop art ca".split()
CAPITALS = "Ark Del Ill La Mass Miss Ore Pa Tex Wash".split()
# An initial before one of these is no initial: a sentence begins.
OPENERS = (
    "A An As At But He Her In It Our She So Some That The Their Then There These They This We What When While You One "
    "After However If More Now Other Since Such Yet According Here Last Many Once"
).split()
# Two words in one, as the treebank splits them.
FUSED = {
    "cannot": ["can", "not"], "gonna": ["gon", "na"], "gotta": ["got", "ta"], "wanna": ["wan", "na"],
    "gimme": ["gim", "me"], "lemme": ["lem", "me"], "'tis": ["'t", "is"], "'twas": ["'t", "was"],
}  # fmt: skip

L, W = r"[^\W\d_]", r"[^\W_]"  # a letter; a letter or a digit
ENDING = rf"'(?i:s|m|d|re|ve|ll)(?!{W})"
# The first that fits is taken, so the longer stand before the shorter.
KINDS = (
    r"-(?i:[lr][rsc]b)-",
    # marks of a page, addresses, names in networks
    r"</?[A-Za-z][\w:.-]*(?:\s+[A-Za-z][\w:-]*(?:\s*=\s*(?:\"[^\"]*\"|'[^']*'|\w+))?)*\s*/?> | &\#\d+;",
    r"https?://[^\s<>\"|()]*[^\s<>\"|().,!?;:{}-]",
    rf"(?:www\.(?:[\w-]+\.)+[A-Za-z]{{2,4}} | (?:{W}[\w-]*\.)+(?:com|net|org|edu))(?!{W})"
    r"(?:/[^\s\"<>|()]+[^\s\"<>|.!?(){},-])?",
    rf"<?[\w.+-]+@{W}[\w-]*(?:\.{W}[\w-]*)*>? | @[A-Za-z_]\w* | \#{L}+",
    # what is written with an apostrophe
    rf"{ENDING} | '(?i:tis|twas|em|cause|til|till)(?!{W}) | '[nN]' | '[nN](?!{W}) | (?<!\d)'(?:[2-9]0s|\d\d)(?!{W})",
    rf"(?i:c'mon|c'est|s'mores?|cap'n|li'l|nat'l|ev'ry|nor'easter)(?!{W}) | (?i:ol|dunkin|somethin)'(?!{W})",
    rf"[jJyY](?!{ENDING})'(?={L}) | [dDoOlL](?!{ENDING})'{W}+ | [dDlL]'(?!{W}) | [A-HJ-XZn]'{L}{{2,}}",
    rf"{L}*[aeiouyAEIOUY](?!{ENDING})'[aeiouA-Z]{L}*",
    rf"{L}+?(?=[nN]'[tT][sS]?(?!{W})) | [nN]'[tT][sS]?(?!{W})",
    # u.s., initials, abbreviations
    rf"(?:[A-Za-z]\.){{2,}}-{W}+ | [A-Za-z](?:\.[A-Za-z])+(?!{W})\.? | [Pp][Hh]\.[Dd](?!{W})\.?",
    rf"(?:(?i:{'|'.join(ABBREVIATIONS)})|{'|'.join(CAPITALS)})\.(?!{L})",
    rf"(?i:{'|'.join(BEFORE_NUMBERS)})\.(?=\s*\d)",
    rf"[A-Za-z]\.(?!{L}|\s+(?:{'|'.join(OPENERS)})(?!\w))",
    # numbers with signs and points; fractions and days; words between strokes
    r"[-+]?(?:\d+(?:[.,:]\d+)+|(?:[.,:]\d+)+) | [-+]\d+",
    rf"\d+(?:/\d+)+(?:st|nd|rd|th)?(?![/-]?{W}) | {W}+(?:-{W}+)?(?:/{W}+(?:-{W}+)?){{1,2}}",
    # c++; at&t; us$
    r"[cC]\+\+ | [cCfF]\# | [A-Z]+(?:&[A-Z]+)+ | (?:US|AU|CAN|HK|NZ|NT|MX|[ACRS])\$",
    # names with points inside; words with hyphens, and words, which keep a full stop before a comma
    rf"{W}*{L}(?:[.!?]{L}{W}*)+(?:-{W}+)* | {W}+\.(?:txt|py|jpg|png|gif|html?|pdf|avi|zip)(?!{W})",
    rf"{W}+(?:[-_]{W}+)*(?:\.(?=[,;:]))?",
    # faces, runs of signs, and what is left
    rf"[:;=][-o']?[()\[\]DPpO|\\](?!{W}) | \^_\^ | -_-",
    r"\.{2,} | -+ | [?!]{2,} | \*+ | _+ | <<? | >>? | '' | `` | [^\w\s]",
)
TOKEN = re.compile("|".join(KINDS), re.VERBOSE)
PLAIN = re.compile(r"[A-Za-z ]*")


def words(text: str) -> list[str]:
    """The words of one caption."""
    if PLAIN.fullmatch(text):  # most captions are
        return [part for word in text.lower().split() for part in FUSED.get(word, (word,))]
    text = VANISH.sub(" ", text.translate(SAME))
    text = RAISED.sub(r" \g<0> ", text)
    if "&" in text:
        for entity, sign in ENTITIES.items():
            text = text.replace(entity, sign)
    found = [part for match in TOKEN.finditer(text) for part in _split(match[0].lower())]
    return [word for word in found if word not in PUNCTUATION and word.strip(".")]


def _split(token: str) -> list[str]:
    """The words of a token: the reference writes brackets and some signs as others, and a mark may have spaces."""
    if token in FUSED:
        return FUSED[token]
    if len(token) == 1:
        return [BRACKETS.get(token, SIGNS.get(token, token))]
    if token[0] in ":;=":  # a face
        return [token.replace("(", BRACKETS["("]).replace(")", BRACKETS[")"])]
    return token.split()
