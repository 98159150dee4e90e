"""Each cleaning does what the code it is named after does, and goes to workers by value."""

import itertools
import pickle
import string

import pytest

from vidlang.data.cleaning import CLEANERS, cleaner

TEXTS = [
    "#C C picks a bag of clothes from the floor.",
    'A <PERSON>\'s dog, "well-trained"; jumps/runs (fast)!',
    "two  spaces   and\ttabs\n",
    "Tom &amp;amp; Jerry &lt;3  \n ",
    "",
    "#unsure * ~ : ?",
]


def characters_of_singularity(text):
    """Singularity's rules, one character at a time."""
    out = ""
    for character in text.lower():
        if character in ",.'!?\"()*#:;~":
            continue
        out += " " if character in "-/" else character
    runs = [(blank, "".join(run)) for blank, run in itertools.groupby(out.replace("<person>", "person"), str.isspace)]
    return "".join(" " if blank and len(run) > 1 else run for blank, run in runs).rstrip("\n").strip(" ")


@pytest.mark.parametrize("text", TEXTS)
def test_singularity_is_its_rules_one_character_at_a_time(text):
    assert cleaner("singularity")(text) == characters_of_singularity(text)


def test_singularity_cuts_to_words():
    clean = cleaner({"name": "singularity", "words": 3})
    assert clean("A man - who runs - falls.") == "a man who"
    assert clean("A man.") == "a man"
    assert cleaner("singularity")("a \t b\n\nc\n") == "a b c"
    assert cleaner("singularity")("a<person>b") == "apersonb"


def test_narrations_pass_unchanged_by_none():
    assert all(cleaner("none")(text) is text for text in TEXTS)


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("lower", "A Red SQUARE.", "a red square."),
        ("clip", "Tom &amp;amp; Jerry &lt;3 \n  RUN ", "tom & jerry <3 run"),
        ("webvid", "x" * 349 + "yz", "x" * 349 + "y"),
        ("howto100m", "so, I'm gonna -- cut_it (here)!", "so I'm gonna cut_it here"),
        ("narration", "#C C picks a bag of clothes.", "the camera wearer picks a bag of clothes"),
        ("narration", "#c c  looks around", "the camera wearer looks around"),
        ("narration", "#C picks #unsure from the table ", "the camera wearer picks something from the table"),
        ("narration", "#O A man X talks to #C C.", "A man X talks to the camera wearer"),
        ("narration", "#o Person B opens #Unsure.", "Person B opens something"),
        ("narration", "#C C cuts a carrot", "the camera wearer cuts a carrot"),
        ("narration", "@C puts the cup down", "the camera wearer puts the cup down"),
        ("narration", "#C Cuts a #carrot", "the camera wearer Cuts a carrot"),
    ],
)
def test_cleaners(name, text, expected):
    assert cleaner(name)(text) == expected


def test_options():
    assert cleaner({"name": "narration", "wearer": "C", "unsure": ""})("#C C cuts #unsure now.") == "C cuts now"
    assert cleaner({"name": "webvid", "characters": 4})("a red square") == "a re"
    assert cleaner({"name": "howto100m", "words": 2})("one, two, three") == "one two"


@pytest.mark.parametrize("name", CLEANERS)
def test_every_cleaner_says_whose_it_is_keeps_plain_words_and_pickles(name):
    assert CLEANERS[name].__doc__
    clean = pickle.loads(pickle.dumps(cleaner({"name": name})))
    words = string.ascii_lowercase + " with 2 hands"
    assert clean(words) == words and clean("") == ""
    assert clean(clean(TEXTS[1])) == clean(TEXTS[1])


@pytest.mark.parametrize(
    "clean, sentence",
    [
        ("singular", "Unknown text cleaning 'singular' .did you mean 'singularity'.*there are: none, lower"),
        ({"words": 3}, "Unknown text cleaning None"),
        ({"name": "singularity", "word": 3}, "unknown key 'word'.*did you mean 'words'"),
        ({"name": "singularity", "words": 2.5}, "words of clean 'singularity' must be a whole number"),
        ({"name": "webvid", "characters": 0}, "at least 1, found 0"),
        ({"name": "lower", "text": "x"}, "unknown key 'text'"),
    ],
)
def test_mistakes_have_a_sentence(clean, sentence):
    with pytest.raises(ValueError, match=sentence):
        cleaner(clean)
