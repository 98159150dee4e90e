"""Text to a fixed number of token ids, with any tokenizer.json of Hugging Face `tokenizers`.

A sequence is [CLS], the words, [SEP], then [PAD] up to the length. What does not fit is cut from the end of the words,
so the last token of every text is [SEP]. [PAD] must be id 0: models take `text_BL != 0` as the mask.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class Tokenizer:
    """Turns texts into int32 [n, length]; goes to worker processes by value."""

    def __init__(self, path: str | os.PathLike[str], length: int) -> None:
        if not os.path.isfile(path):
            raise ValueError(
                f"There is no tokenizer at {os.fspath(path)!r}; give the path of a tokenizer.json file, or "
                "make one with vidlang.data.tokenizer.train_wordlevel."
            )
        if length < 3:
            raise ValueError(f"A text needs room for [CLS], a word and [SEP], so length >= 3; found {length}.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(os.fspath(path))
        except Exception as error:  # `tokenizers` raises bare Exception on a file it cannot read
            raise ValueError(f"{os.fspath(path)!r} is not a tokenizer.json file: {error}") from error
        # Length and special tokens are ours to set; a file may bring its own settings.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.path = os.path.abspath(path)
        self.length = length
        self.pad_id, self.bos_id, self.eos_id = (self._id(token) for token in ("[PAD]", "[CLS]", "[SEP]"))
        if self.pad_id != 0:
            raise ValueError(f"[PAD] must be token 0, found {self.pad_id} in {self.path}.")

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of each text, cut or padded to the length: int32 [n, length]."""
        if isinstance(texts, str):
            raise ValueError(f"encode takes a sequence of texts, found the single text {texts!r}; give [text].")
        text_NL = np.full((len(texts), self.length), self.pad_id, np.int32)
        for row_L, encoding in zip(text_NL, self._encode(texts), strict=True):
            words = encoding.ids[: self.length - 2]
            row_L[: len(words) + 2] = [self.bos_id, *words, self.eos_id]
        return text_NL

    def _encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        # One text is the common case in a data worker; encode_batch would start a thread pool for it.
        if len(texts) == 1:
            return [self._tokenizer.encode(texts[0], add_special_tokens=False)]
        return self._tokenizer.encode_batch(list(texts), add_special_tokens=False)

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"The tokenizer {self.path} has no token {token}; it needs [PAD], [CLS] and [SEP].")
        return found


def train_wordlevel(texts: Iterable[str], path: str | os.PathLike[str]) -> None:
    """Write a tokenizer of all words in the texts: lower case, special tokens first, then the words in sorted order."""
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = {word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    if not words:
        raise ValueError("A tokenizer needs at least one text with a word in it, found none.")
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *sorted(words - set(SPECIAL))))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.add_special_tokens(list(SPECIAL))
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    tokenizer.save(partial)
    os.replace(partial, path)
