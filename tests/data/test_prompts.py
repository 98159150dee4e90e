"""Prompts stand before texts and are not learned; clips may have texts alone."""

import numpy as np
import pytest

from vidlang.data.clips import ClipTable
from vidlang.data.mixture import Source, mixture_stream
from vidlang.data.pipeline import ClipSpec, EvalData, train_stream
from vidlang.data.prompts import Prompt
from vidlang.data.tokenizer import Tokenizer, train_wordlevel

TEXTS = ["a dog runs", "the cat sleeps all day", "two birds"]
QUESTIONS = ["what runs", "who sleeps", "how many"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    file = tmp_path_factory.mktemp("words") / "tokenizer.json"
    train_wordlevel([*TEXTS, *QUESTIONS, "question answer"], file)
    return file


@pytest.fixture(scope="module")
def table():
    rows = len(TEXTS)
    return ClipTable.from_columns(
        {
            "video": ["x"] * rows,
            "start": [0.0] * rows,
            "end": [1.0] * rows,
            "texts": [[text] for text in TEXTS],
            "question": QUESTIONS,
        }
    )


def words(tokenizer, row_L):
    return tokenizer._tokenizer.decode([int(i) for i in row_L if i], skip_special_tokens=False)


def test_a_prompt_has_a_begin_and_no_end(path):
    tokenizer = Tokenizer(path, 6)
    text_NL, length_N = tokenizer.encode_prompts(["what runs", ""])
    assert length_N.tolist() == [3, 1] and words(tokenizer, text_NL[0]) == "[CLS] what runs"
    text_NL, prompt_N = tokenizer.encode_prompted(["what runs", ""], ["the cat sleeps all day", "a dog runs"])
    assert prompt_N.tolist() == [3, 1]
    # The text loses its end and the prompt nothing.
    assert words(tokenizer, text_NL[0]) == "[CLS] what runs the cat [SEP]"
    assert words(tokenizer, text_NL[1]) == "[CLS] a dog runs [SEP]"
    with pytest.raises(ValueError, match="has 6 tokens, which leaves no room for a text in 6"):
        tokenizer.encode_prompted(["the cat sleeps all day"], ["a"])
    with pytest.raises(ValueError, match="has 7 tokens, and there is room for 6"):
        tokenizer.encode_prompts(["the cat sleeps all day day"])


def test_without_a_begin_token_the_end_token_begins_an_empty_prompt(path):
    tokenizer = Tokenizer(path, 6, begin="", end="[SEP]")
    text_NL, length_N = tokenizer.encode_prompts(["", "a dog"])
    assert length_N.tolist() == [1, 2] and text_NL[0, 0] == tokenizer.end_id and text_NL[1, 0] != tokenizer.end_id


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_of_texts_alone_have_prompts_and_no_pixels(path, table, workers):
    """No store is named, so nothing can have been decoded."""
    spec = ClipSpec(text_length=12, prompt="question {question} answer")
    tokenizer = Tokenizer(path, 12)
    with train_stream(table, tokenizer, spec, seed=0, batch_size=6, workers=workers) as stream:
        batch = next(stream)
    assert set(batch) == {"text_BL", "prompt_B", "index_B", "broken_B", "broken_kind_B"}
    for row_L, prompt, index in zip(batch["text_BL"], batch["prompt_B"], batch["index_B"], strict=True):
        assert words(tokenizer, row_L[:prompt]) == f"[CLS] question {QUESTIONS[index]} answer"
        assert words(tokenizer, row_L[prompt:]) == f"{TEXTS[index]} [SEP]"
    found = list(EvalData(table, tokenizer, spec, batch_size=2).batches())
    assert [batch["valid_B"].tolist() for batch in found] == [[True, True], [True, False]]


def test_sources_in_one_batch_all_have_prompts_or_none(path, table):
    one, other = ClipSpec(text_length=12, prompt=""), ClipSpec(text_length=12, prompt="{question}")
    sources = [Source(table, one, name="a"), Source(table, other, name="b")]
    with mixture_stream(sources, Tokenizer(path, 12), seed=0, batch_size=8) as stream:
        batch = next(stream)
    assert (batch["prompt_B"] == 1).tolist() == (batch["source_B"] == 0).tolist()
    with pytest.raises(ValueError, match="clip.prompted is True and False"):
        mixture_stream([sources[0], Source(table, ClipSpec(text_length=12))], Tokenizer(path, 12), seed=0, batch_size=8)


@pytest.mark.parametrize("workers", [0, 1])
def test_prompts_without_room_are_found_before_the_first_batch(path, workers):
    rows = 40
    columns = {"video": ["x"] * rows, "start": [0.0] * rows, "end": [1.0] * rows, "texts": [["a dog"]] * rows}
    questions = ["what runs", *[None] * 37, "who sleeps all day the dog", ""]
    table = ClipTable.from_columns({**columns, "question": questions})
    for length, prompt in ((7, "{question}"), (8, "question {question}")):
        spec = ClipSpec(text_length=length, prompt=prompt)
        with pytest.raises(ValueError, match=f"has {length} tokens, which leaves no room for a text in {length};"):
            train_stream(table, Tokenizer(path, length), spec, seed=0, batch_size=2, workers=workers)
        with pytest.raises(ValueError, match="leaves no room"):
            EvalData(table, Tokenizer(path, length), spec, batch_size=2)
    spec = ClipSpec(text_length=9, prompt="{question}")
    with train_stream(table, Tokenizer(path, 9), spec, seed=0, batch_size=40, workers=workers) as stream:
        batch = next(stream)
    assert (batch["prompt_B"] == [1 + len((questions[row] or "").split()) for row in batch["index_B"]]).all()


def test_what_is_no_template_is_said(path, table):
    for template in ("{", "{}", "{question:5}", "{0!r}"):
        with pytest.raises(ValueError, match="the prompt"):
            Prompt(template)
    with pytest.raises(ValueError, match="asks for the column 'answer', and the table has video"):
        train_stream(table, Tokenizer(path, 12), ClipSpec(text_length=12, prompt="{answer}"), seed=0, batch_size=2)
    with pytest.raises(ValueError, match="clip.frames is 0, for texts alone, and clip.text_length is 0 too"):
        ClipSpec()
    assert Prompt("{{a}} {texts}").of(table, 0) == "{a} a dog runs"


def test_the_objective_does_not_ask_for_the_prompt():
    from types import SimpleNamespace

    from vidlang.objectives import captioning

    rng = np.random.default_rng(0)
    text = np.array([[2, 5, 6, 7, 3, 0], [2, 4, 4, 3, 0, 0]])
    logits = rng.normal(size=(2, 6, 9)).astype(np.float32)
    prompt = np.array([3, 1])
    loss, scalars = captioning.loss(SimpleNamespace(caption_BLV=logits), {"text_BL": text, "prompt_B": prompt})
    log_p = logits - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    asked = [(0, 3), (0, 4), (1, 1), (1, 2), (1, 3)]
    assert float(loss) == pytest.approx(-np.mean([log_p[b, place - 1, text[b, place]] for b, place in asked]), rel=1e-5)
    assert float(scalars["asked"]) == 2.5
