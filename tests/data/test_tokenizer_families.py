"""Every published family of files gives the same form of rows; small ones of each are made by hand here."""

import gzip
import json
import pickle

import numpy as np
import pytest
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as HfTokenizer

from vidlang.data.tokenizer import Tokenizer

SENTENCES = ["the cat sits on a red mat", "a cat, a mat!!", "zürich 42", ""]
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
LETTERS = [chr(code) for code in BYTES] + [chr(256 + i) for i in range(256 - len(BYTES))]
WORDS = ["a", "the", "cat", "sits", "on", "red", "mat"]


def merges_of(words, mark):
    """Merges that build each word from its letters, left to right; `mark` turns a word into its first pieces."""
    merges = []
    for pieces in map(mark, words):
        while len(pieces) > 1:
            merges.append((pieces[0], pieces[1]))
            pieces = [pieces[0] + pieces[1], *pieces[2:]]
    return list(dict.fromkeys(merges))


CLIP_MERGES = merges_of(WORDS, lambda word: [*word[:-1], word[-1] + "</w>"])
GPT2_MERGES = merges_of(WORDS, lambda word: ["Ġ", *word])


def numbered(tokens):
    return {token: i for i, token in enumerate(tokens)}


def clip_ids():
    merged = [first + second for first, second in CLIP_MERGES]
    ends = [letter + "</w>" for letter in LETTERS]
    return numbered([*LETTERS, *ends, *merged, "<|startoftext|>", "<|endoftext|>"])


def clip():
    """As in openai/clip-vit-base-patch32."""
    ids = clip_ids()
    tokenizer = HfTokenizer(models.BPE(ids, CLIP_MERGES, end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, "removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    end, begin = ((token, ids[token]) for token in ("<|endoftext|>", "<|startoftext|>"))
    tokenizer.post_processor = processors.RobertaProcessing(end, begin, trim_offsets=False, add_prefix_space=False)
    return with_special(tokenizer, "<|startoftext|>", "<|endoftext|>")


def clip_files(folder):
    """OpenAI's merges alone, and the two files that were published before tokenizer.json."""
    lines = "\n".join(["#version: 0.2", *(" ".join(pair) for pair in CLIP_MERGES)])
    (folder / "merges.txt").write_text(lines + "\n", "utf-8")
    (folder / "vocab.json").write_text(json.dumps(clip_ids()), "utf-8")
    with gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "wt", encoding="utf-8") as file:
        file.write(lines + "\n")


def byte_level(*special, first=()):
    ids = numbered([*first, *LETTERS, *(a + b for a, b in GPT2_MERGES), *special])
    tokenizer = HfTokenizer(models.BPE(ids, GPT2_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return with_special(tokenizer, *first, *special)


def gpt2():
    return byte_level("<|endoftext|>")


def qwen():
    return byte_level("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def smollm():
    return byte_level(first=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


def llama3():
    tokenizer = byte_level("<|begin_of_text|>", "<|end_of_text|>")
    begins = template(tokenizer, "<|begin_of_text|> $A", "<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=True), begins])
    return tokenizer


def roberta():
    tokenizer = byte_level("<mask>", first=("<s>", "<pad>", "</s>", "<unk>"))
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def bert_tokens():
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)] + [",", "."]
    pieces = ["##" + letter for letter in letters] + ["##ting"]
    return ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *pieces, *WORDS[1:]]


def bert():
    ids = numbered(bert_tokens())
    tokenizer = HfTokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer = with_special(tokenizer, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    tokenizer.post_processor = template(tokenizer, "[CLS] $A [SEP]", "[CLS]", "[SEP]")
    return tokenizer


def sentence_piece(tokenizer):
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer


def fallback_tokens(*special):
    merges = merges_of(WORDS, lambda word: ["▁", *word])
    letters = sorted({letter for pair in merges for letter in pair if len(letter) == 1})
    return [*special, *(f"<0x{i:02X}>" for i in range(256)), *letters, *(a + b for a, b in merges)], merges


def llama2(*special, begin="<s>"):
    special = special or ("<unk>", "<s>", "</s>")
    tokens, merges = fallback_tokens(*special)
    model = models.BPE(numbered(tokens), merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = with_special(sentence_piece(HfTokenizer(model)), *special)
    tokenizer.post_processor = template(tokenizer, f"{begin} $A", begin)
    return tokenizer


def gemma():
    return llama2("<pad>", "<eos>", "<bos>", "<unk>", begin="<bos>")


def t5():
    """Unigram: each piece has a score."""
    tokens, _ = fallback_tokens("<pad>", "</s>", "<unk>")
    scores = [(token, 0.0 if i < 3 else -20.0 + len(token)) for i, token in enumerate(dict.fromkeys(tokens))]
    tokenizer = with_special(sentence_piece(HfTokenizer(models.Unigram(scores, 2, byte_fallback=True))), *tokens[:3])
    tokenizer.post_processor = template(tokenizer, "$A </s>", "</s>")
    return tokenizer


def with_special(tokenizer, *special):
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def template(tokenizer, single, *special):
    pairs = [(token, tokenizer.token_to_id(token)) for token in special]
    return processors.TemplateProcessing(single=single, special_tokens=pairs)


# What the family puts around a text here.
FAMILIES = {
    clip: ("<|startoftext|>", "<|endoftext|>"),
    bert: ("[CLS]", "[SEP]"),
    gpt2: (None, "<|endoftext|>"),
    qwen: (None, "<|endoftext|>"),
    smollm: (None, "<|im_end|>"),
    llama2: ("<s>", "</s>"),
    llama3: ("<|begin_of_text|>", "<|end_of_text|>"),
    gemma: ("<bos>", "<eos>"),
    roberta: ("<s>", "</s>"),
    t5: (None, "</s>"),
}


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def family(request, tmp_path):
    """A file of the family, the library's own tokenizer of it, and what goes around a text."""
    tokenizer = request.param()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json", tokenizer, FAMILIES[request.param]


def test_every_family_gives_begin_words_end_zeros(family):
    path, reference, (begin, end) = family
    ours, begins = Tokenizer(path, 40), [] if begin is None else [reference.token_to_id(begin)]
    assert ours.begin_id == (begins[0] if begins else None) and ours.end_id == reference.token_to_id(end) > 0
    for row_L, text in zip(ours.encode(SENTENCES), SENTENCES, strict=True):
        ids = [*begins, *reference.encode(text, add_special_tokens=False).ids, ours.end_id]
        assert row_L.tolist() == ids + [0] * (40 - len(ids))
        assert np.trim_zeros(row_L, "b").tolist() == ids  # the mask of a model: all but the zeros at the end
    assert ours.vocab_size == 1 + max(reference.get_vocab().values())


def test_every_family_cuts_words_and_keeps_the_end(family):
    path, _, _ = family
    long, short = Tokenizer(path, 40), Tokenizer(path, 6)
    assert (short.encode(SENTENCES[:1])[:, :5] == long.encode(SENTENCES[:1])[:, :5]).all()
    assert short.encode(SENTENCES[:1])[0, 5] == short.end_id


def test_every_family_reads_back_what_it_wrote(family):
    path, _, _ = family
    ours = Tokenizer(path, 40)
    texts = ["the cat sits on a red mat", "a mat", ""]
    text_NL = ours.encode(texts)
    assert ours.decode(text_NL) == texts
    words_NL = text_NL[:1, ours.begin_id is not None : np.flatnonzero(text_NL[0] == ours.end_id)[-1]]
    assert ours.decode(words_NL) == texts[:1]  # without begin and end, as a language model may write


def test_every_family_reads_a_prompt_and_its_text_as_one_line(family):
    path, reference, (begin, _) = family
    ours, begins = Tokenizer(path, 40), [] if begin is None else [reference.token_to_id(begin)]
    prompts, texts = ["the cat", "the cat ", "a red mat"], ["sits on a mat", "sits on a mat", " on the cat"]
    text_NL, prompt_N = ours.encode_prompted(prompts, texts)
    alone_NL, length_N = ours.encode_prompts(prompts)
    assert prompt_N.tolist() == length_N.tolist()
    for row, line in enumerate(["the cat sits on a mat", "the cat sits on a mat", "a red mat on the cat"]):
        ids = [*begins, *reference.encode(line, add_special_tokens=False).ids, ours.end_id]
        assert text_NL[row].tolist() == ids + [0] * (40 - len(ids))
        # What a model goes on from is what stands before the texts that it learned from.
        assert alone_NL[row].tolist() == [*ids[: prompt_N[row]], *[0] * (40 - prompt_N[row])]
        assert ours.decode(text_NL[row : row + 1, prompt_N[row] :]) == [texts[row].strip()]


def test_a_text_after_no_words_is_a_line_of_its_own(family):
    path, _, (begin, end) = family
    ours = Tokenizer(path, 40)
    text_NL, prompt_N = ours.encode_prompted([""], ["the cat"])
    plain_NL = ours.encode(["the cat"])
    first = [] if begin else [ours.end_id]
    assert prompt_N.tolist() == [1]
    assert text_NL[0].tolist() == [*first, *plain_NL[0].tolist()][:40]


def test_a_text_never_changes_the_prompt_before_it(tmp_path):
    """Here is a token that has the prompt's last letter, the space and the text's first."""
    ids = numbered(["<s>", "</s>", "a", "b", "▁", "▁b", "a▁b"])
    tokenizer = with_special(HfTokenizer(models.BPE(ids, [("▁", "b"), ("a", "▁b")])), "<s>", "</s>")
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.save(str(tmp_path / "t.json"))
    text_NL, prompt_N = Tokenizer(tmp_path / "t.json", 6, begin="<s>", end="</s>").encode_prompted(["ba"], ["bb"])
    assert text_NL[0].tolist() == [0, 3, 2, 3, 3, 1] and prompt_N.tolist() == [3]


def test_every_family_goes_to_workers_by_value(family):
    path, _, _ = family
    ours = Tokenizer(path, 20, clean={"name": "singularity", "words": 4})
    data, expected = pickle.dumps(ours), ours.encode(SENTENCES)
    assert len(data) < path.stat().st_size / 2
    path.unlink()
    assert (pickle.loads(data).encode(SENTENCES) == expected).all()


def test_zero_inside_a_text_is_a_word(tmp_path):
    clip().save(str(tmp_path / "clip.json"))
    row_L = Tokenizer(tmp_path / "clip.json", 8).encode(["!!!"])[0]
    begin, last, end = (clip_ids()[token] for token in ("<|startoftext|>", "!</w>", "<|endoftext|>"))
    assert row_L.tolist() == [begin, 0, 0, last, end, 0, 0, 0]


def openai_clip(text):
    """The tokenizer that OpenAI published, for words of letters: merges the best-ranked pair until there is none."""
    rank, ids = {pair: i for i, pair in enumerate(CLIP_MERGES)}, clip_ids()
    out = []
    for word in text.lower().split():
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            best = min(zip(pieces, pieces[1:], strict=False), key=lambda pair: rank.get(pair, 10**9))
            if best not in rank:
                break
            i = list(zip(pieces, pieces[1:], strict=False)).index(best)
            pieces[i : i + 2] = ["".join(best)]
        out += [ids[piece] for piece in pieces]
    return out


@pytest.mark.parametrize("name", ["", "vocab.json", "merges.txt", "bpe_simple_vocab_16e6.txt.gz"])
def test_clips_old_files_are_its_tokenizer(tmp_path, name):
    clip_files(tmp_path)
    clip().save(str(tmp_path / "new.json"))
    old, new = Tokenizer(tmp_path / name, 24), Tokenizer(tmp_path / "new.json", 24)
    texts = [*SENTENCES, "Hat  cats\nTHE thecat", "it's 3-4 o'clock", "nai\u0308ve 東京"]
    np.testing.assert_array_equal(old.encode(texts), new.encode(texts))
    assert (old.begin_id, old.end_id, old.vocab_size) == (new.begin_id, new.end_id, new.vocab_size)
    row_L = old.encode(["Hat cats THE theca"])[0]
    expected = [old.begin_id, *openai_clip("hat cats the theca"), old.end_id]
    assert np.trim_zeros(row_L, "b").tolist() == expected


def test_gpt2s_old_files_are_its_tokenizer(tmp_path):
    gpt2().model.save(str(tmp_path))
    gpt2().save(str(tmp_path / "new.json"))
    old, new = Tokenizer(tmp_path, 24), Tokenizer(tmp_path / "new.json", 24)
    texts = [*SENTENCES, "It's  the CAT's\nmat", "naïve 東京"]
    np.testing.assert_array_equal(old.encode(texts), new.encode(texts))
    assert old.begin_id is None and old.decode(old.encode(texts[-2:])) == texts[-2:]


def test_lavilas_gpt2_begins_with_the_end_token(tmp_path):
    gpt2().save(str(tmp_path / "t.json"))
    tokenizer = Tokenizer(tmp_path / "t.json", 6, begin="<|endoftext|>")
    row_L = tokenizer.encode(["the"])[0]
    assert row_L[0] == tokenizer.end_id and tokenizer.decode(row_L[None]) == ["the"]


def test_berts_old_file_is_its_tokenizer(tmp_path):
    bert().save(str(tmp_path / "new.json"))
    (folder := tmp_path / "old").mkdir()
    (folder / "vocab.txt").write_text("\n".join(bert_tokens()) + "\n", "utf-8")
    texts = [*SENTENCES, "The CAT sitting, on É mat."]
    expected = Tokenizer(tmp_path / "new.json", 24).encode(texts)
    for old in (folder, folder / "vocab.txt"):
        np.testing.assert_array_equal(Tokenizer(old, 24).encode(texts), expected)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert (Tokenizer(folder, 24).encode(["CAT"]) != Tokenizer(tmp_path / "new.json", 24).encode(["CAT"])).any()
    (folder / "tokenizer_config.json").unlink()
    (folder / "vocab.txt").write_text("\n".join([*bert_tokens(), "Cat"]) + "\n", "utf-8")
    assert Tokenizer(folder, 24).encode(["Cat"])[0, 1] == len(bert_tokens())


def test_begin_and_end_can_be_said(tmp_path):
    clip().save(str(tmp_path / "t.json"))
    plain, none = Tokenizer(tmp_path / "t.json", 6), Tokenizer(tmp_path / "t.json", 6, begin="")
    assert none.begin_id is None
    assert (none.encode(["a cat"])[0, :3] == plain.encode(["a cat"])[0, 1:4]).all()
    assert Tokenizer(tmp_path / "t.json", 6, end="<|startoftext|>").end_id == plain.begin_id
