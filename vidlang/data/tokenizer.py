"""Text to a fixed number of token ids, with the tokenizer files of CLIP, BERT, GPT-2, Llama and their kin.

Whatever the file, a sequence is the begin token (where the family has one), the words, the end token, then 0 up to the
length. What does not fit is cut from the end of the words, so the last token of every text is the end token. The end
token is never 0, so a model's mask is "not in the trailing run of zeros", and 0 inside a text is a word (CLIP's "!").
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from vidlang.data import tokenizer_files
from vidlang.data.cleaning import cleaner
from vidlang.data.wordpiece import CONTINUED, learn_pieces

PAD = 0
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


class Tokenizer:
    """Turns texts into int32 [n, length]; goes to worker processes by value.

    path: a tokenizer file, or a folder with one. clean: a name of `vidlang.data.cleaning`, or {"name": ..., options}.
    begin, end: tokens of the file, where it does not say or something else is wanted; begin "" is none.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        length: int,
        clean: str | Mapping[str, Any] = "none",
        *,
        begin: str | None = None,
        end: str | None = None,
    ) -> None:
        if length < 3:
            raise ValueError(f"A text needs room for its begin, a word and its end, so length >= 3; found {length}.")
        self._tokenizer = tokenizer_files.read(path)
        # Length and special tokens are ours to set; a file may bring its own settings.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.path = os.path.abspath(path)
        self.length = length
        self.clean = cleaner(clean)
        begin, end = self._marks(begin, end)
        self.begin_id = self._id(begin) if begin else None
        self.end_id = self._id(end)
        if self.end_id == PAD:
            raise ValueError(
                f"The end token {end} of the tokenizer {self.path} has id 0, which is padding here; "
                "choose another with end=."
            )

    @property
    def vocab_size(self) -> int:
        """One more than the largest token id, special tokens included: the rows that a model's table needs."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def save(self, path: str | os.PathLike[str]) -> dict[str, str]:
        """Writes it as a tokenizer.json, and returns what else to say of that: its begin and end.

        Whatever files it was read from, one is enough then. How texts are cleaned is not in it.
        """
        _write(self._tokenizer, path)
        begin = "" if self.begin_id is None else self._tokenizer.id_to_token(self.begin_id)
        return {"begin": begin, "end": self._tokenizer.id_to_token(self.end_id)}

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Ids of each text, cleaned, cut or padded to the length: int32 [n, length]."""
        if isinstance(texts, str):
            raise ValueError(f"encode takes a sequence of texts, found the single text {texts!r}; give [text].")
        begin = [] if self.begin_id is None else [self.begin_id]
        text_NL = np.full((len(texts), self.length), PAD, np.int32)
        for row_L, encoding in zip(text_NL, self._encode([self.clean(text) for text in texts]), strict=True):
            ids = [*begin, *encoding.ids[: self.length - len(begin) - 1], self.end_id]
            row_L[: len(ids)] = ids
        return text_NL

    def encode_prompts(self, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n, length] of prompts, how many tokens each has): begin and words, and no end.

        A model goes on from the last of these. Where the family has no begin token, the end token stands in front of an
        empty prompt, as texts follow one another in what such models were trained on.
        """
        found = [self._prompt_ids(prompt) for prompt in prompts]
        for prompt, ids in zip(prompts, found, strict=True):
            if len(ids) > self.length:
                raise ValueError(
                    f"the prompt {prompt[:60]!r} has {len(ids)} tokens, and there is room for {self.length}; shorten "
                    "it, or set clip.text_length higher"
                )
        text_NL = np.full((len(found), self.length), PAD, np.int32)
        for row_L, ids in zip(text_NL, found, strict=True):
            row_L[: len(ids)] = ids
        return text_NL, np.array([len(ids) for ids in found], np.int32)

    def encode_prompted(self, prompts: Sequence[str], texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """(ids int32 [n, length] of prompts with texts after them, how many tokens the prompts have).

        The two are read as one line, with a space between: what a model that goes on after the prompt writes first is
        a word behind a space, which is another token than the word that begins a line (GPT-2). What does not fit is cut
        from the end of the text; the end token always is there, and so is the whole prompt.
        """
        text_NL = np.full((len(texts), self.length), PAD, np.int32)
        prompt_N = np.zeros(len(texts), np.int32)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            before = self._prompt_ids(prompt)
            room = self.length - len(before) - 1
            if room < 1:
                raise ValueError(
                    f"the prompt {prompt[:60]!r} has {len(before)} tokens, which leaves no room for a text in "
                    f"{self.length}; shorten it, or set clip.text_length higher"
                )
            ids = [*before, *self._ids_after(prompt, self.clean(text))[:room], self.end_id]
            text_NL[row, : len(ids)], prompt_N[row] = ids, len(before)
        return text_NL, prompt_N

    def _prompt_ids(self, prompt: str) -> list[int]:
        words = self._encode([self._line(prompt)])[0].ids
        begin = self.begin_id if self.begin_id is not None or words else self.end_id
        return words if begin is None else [begin, *words]

    def _ids_after(self, prompt: str, text: str) -> list[int]:
        line = self._line(prompt)
        if line and text:
            before, both = (self._encode([words])[0].ids for words in (line, f"{line} {text.lstrip()}"))
            if both[: len(before)] == before:
                return both[len(before) :]
        # Nothing comes before the text, or its first letters would become part of the prompt's last token.
        return self._encode([text])[0].ids

    def _line(self, prompt: str) -> str:
        # A space at the end would be a token of its own, and the text's first word one without it.
        return self.clean(prompt).rstrip() if prompt else ""

    def decode(self, text_NL: np.ndarray) -> list[str]:
        """The texts of rows of ids as people read them: without begin, end and padding."""
        text_NL = np.asarray(text_NL)
        if text_NL.ndim != 2 or text_NL.dtype.kind not in "iu":
            raise ValueError(f"decode takes integer ids [n, length], found {text_NL.dtype} of shape {text_NL.shape}.")
        return [self._decode(np.trim_zeros(row_L, "b").tolist()) for row_L in text_NL]

    def _decode(self, ids: list[int]) -> str:
        ids = ids[1:] if ids and ids[0] == self.begin_id else ids
        ids = ids[:-1] if ids and ids[-1] == self.end_id else ids
        text = self._tokenizer.decode(ids, skip_special_tokens=False)
        # CLIP's files mark the ends of words with a suffix that their decoder leaves in the text.
        suffix = getattr(self._tokenizer.model, "end_of_word_suffix", None)
        return (text.replace(suffix, " ") if suffix else text).strip()

    def _encode(self, texts: list[str]) -> list[tokenizers.Encoding]:
        # One text is the common case in a data worker; encode_batch would start a thread pool for it.
        if len(texts) == 1:
            return [self._tokenizer.encode(texts[0], add_special_tokens=False)]
        return self._tokenizer.encode_batch(texts, add_special_tokens=False)

    def _marks(self, begin: str | None, end: str | None) -> tuple[str | None, str]:
        """The begin and the end token: as asked, else as the file has it."""
        found_begin, found_end = None, None
        if begin is None or end is None:
            try:
                found_begin, found_end = tokenizer_files.begin_and_end(self._tokenizer)
            except ValueError as error:
                raise ValueError(
                    f"The tokenizer {self.path} is of a kind unknown here: {error}; say begin= and end=."
                ) from error
        end = found_end if end is None else end
        if not end:
            known = ", ".join(dict.fromkeys(end for _, end in tokenizer_files.KNOWN))
            raise ValueError(
                f"The tokenizer {self.path} has no token that ends a text (looked for {known}, none of them id 0); say "
                "which one it is with end=."
            )
        return (found_begin if begin is None else begin), end

    def _id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(
                f"The tokenizer {self.path} has no token {token}; begin= and end= name tokens of the file."
            )
        return found

    def __getstate__(self) -> dict[str, Any]:
        packed = zlib.compress(self._tokenizer.to_str().encode(), level=1)
        return {**self.__dict__, "_tokenizer": packed}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer = tokenizers.Tokenizer.from_str(zlib.decompress(state["_tokenizer"]).decode())


def check_output(path: str | os.PathLike[str]) -> None:
    """Raises where a tokenizer cannot be written because the path is that of a folder."""
    if os.path.isdir(path) or os.fspath(path).endswith(os.sep):
        file = os.path.join(path, "tokenizer.json")
        raise ValueError(f"{os.fspath(path)} is a folder, and a tokenizer is a file; name one, such as {file}.")


def train_wordlevel(texts: Iterable[str], path: str | os.PathLike[str]) -> None:
    """Write a tokenizer of all words in the texts: lower case, special tokens first, then the words in sorted order."""
    check_output(path)
    normalizer, splitter = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words = sorted(_count_words(texts, normalizer, splitter).keys() - set(SPECIAL))
    vocabulary = {word: i for i, word in enumerate((*SPECIAL, *words))}
    tokenizer = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    _save(tokenizer, path)


def train_wordpiece(
    texts: Iterable[str],
    path: str | os.PathLike[str],
    vocab_size: int = 30522,
    *,
    lower: bool = True,
    min_count: int = 2,
) -> None:
    """Write a tokenizer of pieces of words, split and normalised as BERT's, with at most `vocab_size` ids.

    It depends on how often each word occurs and on nothing else; pairs of pieces seen less than `min_count` times are
    not learnt.
    """
    check_output(path)
    if vocab_size <= len(SPECIAL) or min_count < 1:
        raise ValueError(
            f"A vocabulary holds more than its {len(SPECIAL)} special tokens and min_count is at least 1; "
            f"found vocab_size {vocab_size} and min_count {min_count}."
        )
    normalizer, splitter = normalizers.BertNormalizer(lowercase=lower), pre_tokenizers.BertPreTokenizer()
    counts = _count_words(texts, normalizer, splitter)
    pieces = learn_pieces(counts, vocab_size - len(SPECIAL), min_count)
    vocabulary = {piece: i for i, piece in enumerate((*SPECIAL, *pieces))}
    model = models.WordPiece(vocabulary, unk_token="[UNK]", continuing_subword_prefix=CONTINUED)
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, splitter
    tokenizer.decoder = decoders.WordPiece(prefix=CONTINUED)
    _save(tokenizer, path)


def _count_words(
    texts: Iterable[str], normalizer: normalizers.Normalizer, splitter: pre_tokenizers.PreTokenizer
) -> Counter[str]:
    if isinstance(texts, str):
        raise ValueError(f"A tokenizer learns from a sequence of texts, found the single text {texts[:40]!r}.")
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    if not words:
        raise ValueError("A tokenizer needs at least one text with a word in it, found none.")
    return words


def _save(tokenizer: tokenizers.Tokenizer, path: str | os.PathLike[str]) -> None:
    tokenizer.add_special_tokens(list(SPECIAL))
    _write(tokenizer, path)


def _write(tokenizer: tokenizers.Tokenizer, path: str | os.PathLike[str]) -> None:
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    partial = f"{os.fspath(path)}.{os.getpid()}.partial"
    try:
        # The library's own save names no file in its errors, and they are no OSError.
        with open(partial, "w", encoding="utf-8") as file:
            file.write(tokenizer.to_str(pretty=True))
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.unlink(partial)
