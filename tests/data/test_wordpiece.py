"""The pieces learnt are those of the plainest algorithm, and a function of how often each word occurs."""

import os
import subprocess
import sys

import numpy as np
import pytest
from tokenizers import Tokenizer as HfTokenizer

from vidlang.data.tokenizer import Tokenizer, train_wordpiece
from vidlang.data.wordpiece import join, learn_pieces


def slowest_pieces(counts, room, min_count):
    """The same rule with every pair counted anew at every step."""
    words = {word: [word[0], *("##" + letter for letter in word[1:])] for word in counts}
    pieces = sorted({piece for parts in words.values() for piece in parts})
    while len(pieces) < room:
        pairs = {}
        for word, parts in words.items():
            for pair in zip(parts, parts[1:], strict=False):
                pairs[pair] = pairs.get(pair, 0) + counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < min_count:
            break
        pieces.append(join(best))
        for parts in words.values():
            i = 0
            while i < len(parts) - 1:
                if (parts[i], parts[i + 1]) == best:
                    parts[i : i + 2] = [join(best)]
                i += 1
    return pieces


@pytest.mark.parametrize("seed", range(8))
def test_pieces_are_those_of_the_slowest_way(seed):
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abc"), rng.integers(1, 9))) for _ in range(60)]
    counts = {word: int(rng.integers(1, 20)) for word in words}
    for room, min_count in ((20, 1), (60, 3), (500, 1), (500, 9)):
        pieces = learn_pieces(counts, room, min_count)
        assert pieces == slowest_pieces(counts, room, min_count) and len(set(pieces)) == len(pieces)


def test_wordpiece_learns_whole_words_and_spells_the_rest(tmp_path):
    texts = ["the cat sits"] * 5 + ["the mat, the cats!"] * 3
    train_wordpiece(texts, tmp_path / "t.json", 200)
    tokenizer = Tokenizer(tmp_path / "t.json", 12)
    assert (tokenizer.begin_id, tokenizer.end_id) == (2, 3)
    assert len(np.trim_zeros(tokenizer.encode(["The CAT sits"])[0])) == 5
    assert tokenizer.decode(tokenizer.encode(["the hats sit, e", "The  CATS"])) == ["the [UNK] sit, [UNK]", "the cats"]
    train_wordpiece(texts, tmp_path / "cased.json", 200, lower=False)
    assert 1 in Tokenizer(tmp_path / "cased.json", 12).encode(["The cat"])


def test_wordpiece_keeps_to_its_size(tmp_path):
    texts = ["abcdefgh " * 9 + "zz", "abab cdcd"]
    for size in (6, 12, 20, 40):
        train_wordpiece(texts, tmp_path / "t.json", size)
        assert Tokenizer(tmp_path / "t.json", 5).vocab_size <= size
    train_wordpiece(texts, tmp_path / "t.json", 6)
    vocabulary = HfTokenizer.from_file(str(tmp_path / "t.json")).get_vocab()
    assert vocabulary.keys() == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "##b", "##d"}  # the most frequent characters


def test_wordpiece_depends_on_the_counts_alone(tmp_path):
    script = (
        "import sys, random; from vidlang.data.tokenizer import train_wordpiece; "
        "texts = [f'word{i % 7} other{i % 5} {i}' for i in range(300)]; "
        "random.Random(int(sys.argv[2])).shuffle(texts); "
        "train_wordpiece(iter(texts), sys.argv[1], 80)"
    )
    for seed in ("1", "2"):
        command = [sys.executable, "-c", script, str(tmp_path / seed), seed]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
