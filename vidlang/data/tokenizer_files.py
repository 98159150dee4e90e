"""Reading a tokenizer from whatever its family publishes, and finding the tokens that begin and end a text.

A file, or a folder with (in this order) tokenizer.json (all families), vocab.json and merges.txt (CLIP, GPT-2), or
vocab.txt (BERT, DistilBERT). OpenAI's own file for CLIP, bpe_simple_vocab_16e6.txt.gz, is what LaViLa and AVION read.
Only tokenizer.json says how words are split; for the others it is the family's own way.
"""

from __future__ import annotations

import gzip
import json
import os
from typing import Any

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

# (begin, end) by family; a family without a token of its own for the beginning has none. Files say it themselves in
# their post-processor where they can; this table is for those that do not, or give the beginning alone (Llama, Gemma).
KNOWN: tuple[tuple[str | None, str], ...] = (
    ("<|startoftext|>", "<|endoftext|>"),  # CLIP
    ("[CLS]", "[SEP]"),  # BERT, DistilBERT, our own
    ("<|begin_of_text|>", "<|end_of_text|>"),  # Llama 3
    ("<bos>", "<eos>"),  # Gemma
    ("<s>", "</s>"),  # Llama 1 and 2, Mistral, RoBERTa
    (None, "<|endoftext|>"),  # GPT-2, Qwen
    (None, "<|im_end|>"),  # SmolLM, whose <|endoftext|> is 0
    (None, "</s>"),  # T5
)

CLIP_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
SUFFIX = "</w>"
OPENAI_MERGES = 49152 - 256 - 2

Pair = tuple[str, str]


def read(path: str | os.PathLike[str]) -> tokenizers.Tokenizer:
    """The tokenizer in this file or folder."""
    found = _find(os.fspath(path))
    name = os.path.basename(found)
    try:
        if name == "vocab.txt":
            return _wordpiece(found)
        if name == "vocab.json":
            return _byte_pairs(*models.BPE.read_file(found, os.path.join(os.path.dirname(found), "merges.txt")))
        if name.endswith(".txt.gz"):
            return _byte_pairs(*_openai(found))
        return tokenizers.Tokenizer.from_file(found)
    except Exception as error:  # `tokenizers` raises bare Exception on a file it cannot read
        raise ValueError(f"{found!r} is not a tokenizer.json file or another that can be read: {error}") from error


def _find(path: str) -> str:
    """The file to read: the path itself, or in a folder the first of the names it may have."""
    if os.path.isdir(path):
        for names in (("tokenizer.json",), ("vocab.json", "merges.txt"), ("vocab.txt",)):
            if all(os.path.isfile(os.path.join(path, name)) for name in names):
                return os.path.join(path, names[0])
        raise ValueError(
            f"The folder {path!r} holds no tokenizer: expected tokenizer.json, vocab.json with merges.txt, or "
            f"vocab.txt; found {', '.join(sorted(os.listdir(path))) or 'nothing'}."
        )
    if not os.path.isfile(path):
        raise ValueError(
            f"There is no tokenizer at {path!r}; give the path of a tokenizer.json file or of a folder with one, or "
            "make one with python -m launch.tokenizer."
        )
    if path.endswith(".model"):
        raise ValueError(
            f"{path!r} is a SentencePiece model; give the tokenizer.json that is published beside it, or write one "
            "with transformers: AutoTokenizer.from_pretrained(FOLDER, use_fast=True).save_pretrained(FOLDER)."
        )
    if os.path.basename(path) in ("merges.txt", "vocab.json"):
        folder = os.path.dirname(path)
        for name in ("vocab.json", "merges.txt"):
            if not os.path.isfile(os.path.join(folder, name)):
                raise ValueError(f"{path!r} needs {name} beside it: byte pairs are two files.")
        return os.path.join(folder, "vocab.json")
    return path


def _openai(path: str) -> tuple[dict[str, int], list[Pair]]:
    """CLIP's vocabulary from its merges alone: the bytes, the bytes that end a word, the merges, two special tokens."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : OPENAI_MERGES + 1]
    pairs = [(first, second) for first, second in (line.split() for line in lines if line)]
    # Every byte as a character: printable ones as themselves and first, the others from 256 on.
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in plain] + [chr(256 + i) for i in range(256 - len(plain))]
    tokens = [*letters, *(letter + SUFFIX for letter in letters), *(a + b for a, b in pairs), *KNOWN[0]]
    return {str(token): i for i, token in enumerate(tokens)}, pairs


def _byte_pairs(ids: dict[str, int], pairs: list[Pair]) -> tokenizers.Tokenizer:
    """CLIP's where words end in </w>, else GPT-2's."""
    if any(token.endswith(SUFFIX) for token in ids):
        model = models.BPE(ids, pairs, end_of_word_suffix=SUFFIX, unk_token="<|endoftext|>")
        tokenizer = tokenizers.Tokenizer(model)
        spaces = normalizers.Replace(Regex(r"\s+"), " ")
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
        words = pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True)
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
    else:
        tokenizer = tokenizers.Tokenizer(models.BPE(ids, pairs))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([token for token in ("<|startoftext|>", "<|endoftext|>") if token in ids])
    return tokenizer


def _wordpiece(vocabulary: str) -> tokenizers.Tokenizer:
    """BERT's; tokenizer_config.json beside it says whether to lower case, else a vocabulary without capitals does."""
    ids = models.WordPiece.read_file(vocabulary)
    special = [token for token in ids if token.startswith("[") and token.endswith("]") and len(token) > 2]
    config = os.path.join(os.path.dirname(vocabulary), "tokenizer_config.json")
    lower = not any(token != token.lower() for token in ids.keys() - set(special))
    if os.path.isfile(config):
        with open(config, encoding="utf-8") as file:
            lower = bool(json.load(file).get("do_lower_case", lower))
    tokenizer = tokenizers.Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([token for token in special if not token.startswith("[unused")])
    return tokenizer


def begin_and_end(tokenizer: tokenizers.Tokenizer) -> tuple[str | None, str | None]:
    """The tokens around a text: as the file's post-processor puts them, what that leaves out from the table.

    The end is None where neither says one.
    """
    before, after = _around(tokenizer)
    if len(before) > 1 or len(after) > 1:
        raise ValueError(f"it puts {before} before a text and {after} after it, and one of each is expected")
    usable = [pair for pair in KNOWN if (tokenizer.token_to_id(pair[1]) or 0) > 0]
    if after:
        return (before[0] if before else None), after[0]
    if before:
        return before[0], next((end for begin, end in usable if begin == before[0]), None)
    present = [pair for pair in usable if pair[0] is None or tokenizer.token_to_id(pair[0]) is not None]
    return present[0] if present else (None, None)


def _around(tokenizer: tokenizers.Tokenizer) -> tuple[list[str], list[str]]:
    """What the post-processor puts before and after one text."""
    if tokenizer.post_processor is None:
        return [], []
    # Processors have no getters; their pickled state is the JSON of the file.
    stated: dict[str, Any] = json.loads(tokenizer.post_processor.__getstate__())
    for processor in stated.get("processors", [stated]):
        if processor["type"] in ("RobertaProcessing", "BertProcessing"):
            return [processor["cls"][0]], [processor["sep"][0]]
        if processor["type"] == "TemplateProcessing":
            return _of_template(processor)
    return [], []


def _of_template(processor: dict[str, Any]) -> tuple[list[str], list[str]]:
    before: list[str] = []
    after: list[str] = []
    side = before
    for piece in processor["single"]:
        if "Sequence" in piece:
            side = after
        else:
            side.extend(processor["special_tokens"][piece["SpecialToken"]["id"]]["tokens"])
    return before, after
