"""Learns a tokenizer from the texts of a dataset.

    python -m launch.tokenizer --root=data/mine --store=data/mine/store --output=data/mine/tokenizer.json
    python -m launch.tokenizer --dataset=vatex --root=data/vatex --store=data/vatex/store --output=vatex.json

Word pieces by default; --words keeps whole words, for a small vocabulary such as that of the embedded corpus. --option
gives further arguments of the dataset. A stage's `tokenizer` is the path of the file, and its model needs as many rows
as the last line says.
"""

from absl import flags

from launch import cli
from vidlang.core.config import call, load_module
from vidlang.data.cleaning import CLEANERS, cleaner
from vidlang.data.tokenizer import Tokenizer, check_output, train_wordlevel, train_wordpiece

DATASET = flags.DEFINE_string("dataset", "videos", "A file in vidlang/datasets.")
ROOT = flags.DEFINE(cli.PATH, "root", None, "Folder of the dataset's published files.", required=True)
STORE = flags.DEFINE(cli.PATH, "store", None, "The chunk store of its videos.", required=True)
SPLIT = flags.DEFINE_string("split", "train", "Which of its texts to learn from.")
OPTION = flags.DEFINE_multi_string("option", [], "Another argument of the dataset, as name=text; any number of them.")
OUTPUT = flags.DEFINE(cli.PATH, "output", None, "Where the tokenizer.json goes.", required=True)
VOCAB = flags.DEFINE_integer("vocab_size", 30_522, "Word pieces at most, special tokens included.")
MIN_COUNT = flags.DEFINE_integer("min_count", 2, "Pieces that occur less often are not learnt.")
WORDS = flags.DEFINE_bool("words", False, "Keep every whole word instead of learning pieces.")
CLEAN = flags.DEFINE_enum(
    "clean", "none", list(CLEANERS), "How captions are cleaned first; say the same in the config."
)


def main(argv: list[str]) -> None:
    """Reads the texts, learns, and says how large the vocabulary is."""
    del argv
    check_output(OUTPUT.value)  # the texts may take minutes to read
    pairs = [option.partition("=") for option in OPTION.value]
    if wrong := [option for option, (_, sign, _) in zip(OPTION.value, pairs, strict=True) if not sign]:
        raise ValueError(f"--option must be name=text, found {wrong[0]!r}")
    options = {"root": ROOT.value, "store": STORE.value, **{name: text for name, _, text in pairs}}
    load = load_module("datasets", DATASET.value).load
    table = call(load, options, what=f"dataset {DATASET.value!r}", split=SPLIT.value)
    clean = cleaner(CLEAN.value)
    texts = (clean(text) for row in range(len(table)) for text in table.cell(row, "texts"))
    if WORDS.value:
        train_wordlevel(texts, OUTPUT.value)
    else:
        train_wordpiece(texts, OUTPUT.value, vocab_size=VOCAB.value, min_count=MIN_COUNT.value)
    longest = Tokenizer(OUTPUT.value, 512)
    sample = longest.encode(
        [clean(text) for row in range(min(len(table), 10_000)) for text in table.cell(row, "texts")]
    )
    lengths = (sample != 0).sum(axis=1)
    print(f"{longest.vocab_size} tokens in {OUTPUT.value}: give the model's text a vocab of that or more")
    print(f"texts have {int(lengths.mean())} tokens on average, the longest {int(lengths.max())}: see clip.text_length")


if __name__ == "__main__":
    cli.run(main)
