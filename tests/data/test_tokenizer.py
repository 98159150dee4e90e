"""Token rows have a fixed form whatever the text, and the word-level tokenizer is a pure function of its texts."""

import json
import pickle

import numpy as np
import pytest
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models

from vidlang.data.tokenizer import Tokenizer, train_wordlevel

TEXTS = ["A red square slides left.", "the BLUE circle spins, then grows", "a square"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_wordlevel(TEXTS, path)
    return path


def reference_words(text: str) -> list[str]:
    """Lower case, split at spaces and before and after punctuation, by hand for the texts above."""
    return text.lower().replace(",", " ,").replace(".", " .").split()


def test_ids_are_special_tokens_then_sorted_words(path):
    words = sorted({word for text in TEXTS for word in reference_words(text)})
    ids = {word: 4 + i for i, word in enumerate(words)}
    tokenizer = Tokenizer(path, 10)
    text_NL = tokenizer.encode(TEXTS)
    assert text_NL.dtype == np.int32 and text_NL.shape == (3, 10) and text_NL.flags.c_contiguous
    for row_L, text in zip(text_NL, TEXTS, strict=True):
        expected = [2, *(ids[word] for word in reference_words(text)), 3]
        assert row_L.tolist() == expected + [0] * (10 - len(expected))
    assert (tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 2, 3)
    assert tokenizer.vocab_size == 4 + len(words)


def test_unknown_words_and_empty_text(path):
    assert Tokenizer(path, 5).encode(["a zebra", ""]).tolist() == [
        [2, Tokenizer(path, 3).encode(["a"])[0, 1], 1, 3, 0],
        [2, 3, 0, 0, 0],
    ]
    assert Tokenizer(path, 5).encode([]).shape == (0, 5)


def test_long_text_is_cut_and_still_ends_with_sep(path):
    long, short = Tokenizer(path, 20).encode(TEXTS), Tokenizer(path, 5).encode(TEXTS)
    assert (short[:, :4] == long[:, :4]).all()
    assert short[:2, 4].tolist() == [3, 3]


def test_one_text_and_many_texts_agree(path):
    tokenizer = Tokenizer(path, 8)
    assert (tokenizer.encode(TEXTS) == np.concatenate([tokenizer.encode([text]) for text in TEXTS])).all()


def test_settings_inside_the_file_do_not_leak(path, tmp_path):
    other = HfTokenizer.from_file(str(path))
    other.enable_truncation(3)
    other.enable_padding(length=17)
    other.save(str(tmp_path / "t.json"))
    assert (Tokenizer(tmp_path / "t.json", 9).encode(TEXTS) == Tokenizer(path, 9).encode(TEXTS)).all()


def test_pickles_by_value(path, tmp_path):
    train_wordlevel(TEXTS, tmp_path / "t.json")
    tokenizer = Tokenizer(tmp_path / "t.json", 8)
    data = pickle.dumps(tokenizer)
    (tmp_path / "t.json").unlink()
    assert (pickle.loads(data).encode(TEXTS) == tokenizer.encode(TEXTS)).all()


def test_training_depends_on_the_words_alone(path, tmp_path):
    train_wordlevel(reversed(TEXTS + TEXTS), tmp_path / "again" / "t.json")
    assert (tmp_path / "again" / "t.json").read_bytes() == path.read_bytes()
    assert [p.name for p in (tmp_path / "again").iterdir()] == ["t.json"]


def test_wrong_files_and_lengths_are_named(path, tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at .*absent.json.*train_wordlevel"):
        Tokenizer(tmp_path / "absent.json", 8)
    (tmp_path / "bad.json").write_text(json.dumps({"not": "one"}))
    with pytest.raises(ValueError, match="not a tokenizer.json file"):
        Tokenizer(tmp_path / "bad.json", 8)
    with pytest.raises(ValueError, match="length >= 3; found 2"):
        Tokenizer(path, 2)
    with pytest.raises(ValueError, match="sequence of texts"):
        Tokenizer(path, 8).encode("a square")
    for vocabulary, message in (
        ({"[CLS]": 0, "[SEP]": 1, "[PAD]": 2}, "must be token 0"),
        ({"[PAD]": 0}, "no token .CLS"),
    ):
        HfTokenizer(models.WordLevel(vocabulary, unk_token="[PAD]")).save(str(tmp_path / "ids.json"))
        with pytest.raises(ValueError, match=message):
            Tokenizer(tmp_path / "ids.json", 8)
    with pytest.raises(ValueError, match="at least one text"):
        train_wordlevel(["", "  "], tmp_path / "none.json")
