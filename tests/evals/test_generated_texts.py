"""Texts from token ids: in batches of one shape, each row after its own prompt, without what ended them."""

from types import SimpleNamespace

import numpy as np
import pytest

from vidlang.data.tokenizer import Tokenizer, train_wordlevel
from vidlang.evals.captioning import generate_texts, with_end
from vidlang.nn.generation import Decoding, Generated

WORDS = ["red", "green", "ball", "box", "stop"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    train_wordlevel([" ".join(WORDS)], path)
    return Tokenizer(path, 8)


class Parrot:
    """Says again the words of the prompt's end, as many as the clip has, then an end of the kind the clip asks for."""

    def __init__(self, ends):
        self.ends, self.shapes, self.rows = ends, [], []

    def __call__(self, method, params, settings, *, visual_BQD, prompt_BL, length_B, rows_B):
        assert method == "generate"
        self.shapes.append(prompt_BL.shape)
        self.rows += rows_B.tolist()
        tokens_BSN = np.zeros((len(rows_B), 1, settings.max_new), np.int32)
        length_BS = np.zeros((len(rows_B), 1), np.int32)
        for place, (count, end) in enumerate(visual_BQD[:, 0].astype(int)):
            said = [*prompt_BL[place, length_B[place] - count : length_B[place]], *self.ends[end]]
            tokens_BSN[place, 0, : len(said)], length_BS[place] = said, len(said)
        return Generated(tokens_BSN, length_BS, rows_B[:, None].astype(np.float32))


def test_each_row_has_its_text_without_what_ended_it(tokenizer):
    stop = int(tokenizer.encode(["stop"])[0, 1])
    ends = [[tokenizer.end_id], [stop], []]
    predict, data = Parrot(ends), SimpleNamespace(tokenizer=tokenizer, batch_size=2)
    prompts = ["red ball", "green box ball", "red green box", "box", "red stop"]
    seen_RQD = np.array([[2, 0], [1, 1], [3, 2], [1, 1], [1, 2]], np.float32)[:, None]
    rows = np.array([3, 5, 6, 8, 9])
    settings = with_end(Decoding(max_new=4, stop_ids=(stop,)), tokenizer)
    texts, scores = generate_texts(predict, data, {}, seen_RQD, prompts, rows, settings)
    assert texts[:4] == ["red ball", "ball", "red green box", "box"]
    # The last was cut off at a word that ends texts: that too is what ended it.
    assert texts[4] == ""
    assert scores.tolist() == rows.tolist()
    assert predict.shapes == [(2, 4)] * 3 and predict.rows == [3, 5, 6, 8, 9, 9]


def test_the_tokenizers_end_ends_texts_beside_others(tokenizer):
    assert with_end(Decoding(stop_ids=(7,)), tokenizer).stop_ids == (tokenizer.end_id, 7)
    assert with_end(Decoding(stop_ids=(tokenizer.end_id,)), tokenizer).stop_ids == (tokenizer.end_id,)
