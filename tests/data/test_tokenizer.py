"""Token rows have one form whatever the text, and the word-level tokenizer is a pure function of its texts."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models, processors

from vidlang.data.tokenizer import Tokenizer, train_wordlevel, train_wordpiece

TEXTS = ["A red square slides left.", "the BLUE circle spins, then grows", "a square"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_wordlevel(TEXTS, path)
    return path


def reference_words(text: str) -> list[str]:
    """Lower case, split at spaces and before and after punctuation, by hand for the texts above."""
    return text.lower().replace(",", " ,").replace(".", " .").split()


def test_texts_are_cleaned_first(path):
    plain, clean = Tokenizer(path, 8), Tokenizer(path, 8, clean={"name": "singularity", "words": 2})
    np.testing.assert_array_equal(clean.encode(["#a SQUARE, left"]), plain.encode(["a square"]))


def test_ids_are_special_tokens_then_sorted_words(path):
    words = sorted({word for text in TEXTS for word in reference_words(text)})
    ids = {word: 4 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(path, 10)
    text_NL = tokenizer.encode(TEXTS)
    assert text_NL.dtype == np.int32 and text_NL.shape == (3, 10) and text_NL.flags.c_contiguous
    for row_L, text in zip(text_NL, TEXTS, strict=True):
        expected = [2, *(ids[word] for word in reference_words(text)), 3]
        assert row_L.tolist() == expected + [0] * (10 - len(expected))
    assert (tokenizer.begin_id, tokenizer.end_id, tokenizer.vocab_size) == (2, 3, 4 + len(words))
    assert tokenizer.decode(text_NL)[0] == "a red square slides left ."


def test_unknown_words_and_empty_text(path):
    assert Tokenizer(path, 5).encode(["a zebra", ""]).tolist() == [
        [2, Tokenizer(path, 3).encode(["a"])[0, 1], 1, 3, 0],
        [2, 3, 0, 0, 0],
    ]
    assert Tokenizer(path, 5).encode([]).shape == (0, 5)


def test_one_text_and_many_texts_agree(path):
    tokenizer = Tokenizer(path, 8)
    assert (tokenizer.encode(TEXTS) == np.concatenate([tokenizer.encode([text]) for text in TEXTS])).all()


def test_settings_inside_the_file_do_not_leak(path, tmp_path):
    other = HfTokenizer.from_file(str(path))
    other.enable_truncation(3)
    other.enable_padding(length=17)
    other.save(str(tmp_path / "t.json"))
    assert (Tokenizer(tmp_path / "t.json", 9).encode(TEXTS) == Tokenizer(path, 9).encode(TEXTS)).all()


def test_wordlevel_depends_on_the_words_alone(path, tmp_path):
    train_wordlevel(reversed(TEXTS + TEXTS), tmp_path / "again" / "t.json")
    assert (tmp_path / "again" / "t.json").read_bytes() == path.read_bytes()
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["t.json"]


def test_workers_import_no_torch(path):
    script = f"import sys; from vidlang.data.tokenizer import Tokenizer; Tokenizer({str(path)!r}, 5).encode(['a']); "
    script += "assert not {'torch', 'transformers', 'jax'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    "vocabulary, options, sentence",
    [
        ({"[SEP]": 0, "[CLS]": 1, "[PAD]": 2}, dict(end="[SEP]"), r"end token \[SEP\] .* has id 0.*end="),
        ({"[SEP]": 0, "[CLS]": 1, "[PAD]": 2}, {}, r"no token that ends a text \(looked for .*\[SEP\].*end="),
        ({"[PAD]": 0}, {}, "no token that ends a text"),
        ({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2}, dict(begin="<s>"), "no token <s>; begin= and end="),
    ],
)
def test_missing_tokens_are_named(tmp_path, vocabulary, options, sentence):
    HfTokenizer(models.WordLevel(vocabulary, unk_token="[PAD]")).save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match=sentence):
        Tokenizer(tmp_path / "t.json", 8, **options)


def test_the_file_goes_before_the_table(tmp_path):
    """Gemma's file has tags of HTML among its words; that it begins texts with <bos> is what counts."""
    words = {token: i for i, token in enumerate(["[PAD]", "[CLS]", "[SEP]", "<s>", "</s>", "<bos>", "<eos>"])}
    tokenizer = HfTokenizer(models.WordLevel(words, unk_token="[PAD]"))
    begins = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 5)])
    for processor in (begins, processors.Sequence([processors.ByteLevel(), begins])):
        tokenizer.post_processor = processor
        tokenizer.save(str(tmp_path / "t.json"))
        assert Tokenizer(tmp_path / "t.json", 3).encode([""]).tolist() == [[5, 6, 0]]


def test_more_than_one_token_on_a_side_is_refused(tmp_path):
    tokenizer = HfTokenizer(models.WordLevel({"[PAD]": 0, "<en>": 1, "</s>": 2}, unk_token="[PAD]"))
    special = [("</s>", 2), ("<en>", 1)]
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> <en> $A </s>", special_tokens=special)
    tokenizer.save(str(tmp_path / "t.json"))
    with pytest.raises(ValueError, match=r"unknown here: it puts \['</s>', '<en>'\] before.*begin= and end="):
        Tokenizer(tmp_path / "t.json", 8)
    assert Tokenizer(tmp_path / "t.json", 8, begin="<en>", end="</s>").encode([""]).tolist() == [[1, 2, *[0] * 6]]


def test_wrong_files_and_lengths_are_named(path, tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at .*absent.json.*launch.tokenizer"):
        Tokenizer(tmp_path / "absent.json", 8)
    (tmp_path / "bad.json").write_text(json.dumps({"not": "one"}))
    with pytest.raises(ValueError, match="not a tokenizer.json file"):
        Tokenizer(tmp_path / "bad.json", 8)
    with pytest.raises(ValueError, match="holds no tokenizer.*found bad.json"):
        Tokenizer(tmp_path, 8)
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    with pytest.raises(ValueError, match="needs vocab.json beside it"):
        Tokenizer(tmp_path / "merges.txt", 8)
    (tmp_path / "spiece.model").write_bytes(b"")
    with pytest.raises(ValueError, match="SentencePiece model; give the tokenizer.json"):
        Tokenizer(tmp_path / "spiece.model", 8)


def test_wrong_arguments_are_named(path, tmp_path):
    tokenizer = Tokenizer(path, 8)
    with pytest.raises(ValueError, match="length >= 3; found 2"):
        Tokenizer(path, 2)
    with pytest.raises(ValueError, match="Unknown text cleaning 'lowercase'"):
        Tokenizer(path, 8, clean="lowercase")
    with pytest.raises(ValueError, match="sequence of texts"):
        tokenizer.encode("a square")
    with pytest.raises(ValueError, match=r"\[n, length\], found int64 of shape \(4,\)"):
        tokenizer.decode(np.arange(4))
    for train in (train_wordlevel, train_wordpiece):
        with pytest.raises(ValueError, match="at least one text"):
            train(["", "  "], tmp_path / "none.json")
        with pytest.raises(ValueError, match="single text"):
            train("a red square", tmp_path / "none.json")
    with pytest.raises(ValueError, match="found vocab_size 4 and min_count 2"):
        train_wordpiece(TEXTS, tmp_path / "none.json", 4)
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize("train", [train_wordlevel, train_wordpiece])
def test_a_folder_is_refused_before_a_text_is_read(tmp_path, train):
    def texts():
        raise AssertionError("read")
        yield ""

    for path in (tmp_path, f"{tmp_path}/new/"):
        with pytest.raises(
            ValueError, match="is a folder, and a tokenizer is a file; name one, such as .*tokenizer.js"
        ):
            train(texts(), path)
    assert not list(tmp_path.iterdir())


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        train_wordlevel(["a dog"], tmp_path / "tokenizer.json")
    assert not list(tmp_path.iterdir())
