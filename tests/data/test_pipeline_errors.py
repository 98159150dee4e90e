"""What a config can get wrong is said in one sentence, before any worker starts."""

from collections import namedtuple

import pytest

from vidlang.data import workers as sizing
from vidlang.data.pipeline import ClipSpec, EvalData, eval_batches, train_stream
from vidlang.data.tokenizer import Tokenizer

SPEC = {
    "frames": 3,
    "size": 16,
    "times": {"name": "segments"},
    "crop": {"name": "random_resized"},
    "text_length": 6,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"frames": 0}, "clip.frames must be at least 1, found 0"),
        ({"size": -1}, "clip.size must be at least 1"),
        ({"pairs": "groups"}, "unknown clip.pairs 'groups'.*did you mean 'group'"),
        ({"times": {}}, "clip.times must name its rule"),
        ({"times": {"name": "segmets"}}, "unknown times 'segmets'.*segments"),
        ({"crop": {"name": "center", "shar": 1}}, "unknown key 'shar'.*share"),
        ({"text_length": 7}, "tokenizer makes 6 tokens and clip.text_length is 7"),
        ({"fields": ("lable",)}, "no column 'lable'"),
        ({"fields": ("texts",)}, "must hold one number a clip"),
    ],
)
def test_wrong_clip_specs_are_named(tiny_table, tiny_tokenizer, wrong, message):
    with pytest.raises(ValueError, match=message):
        train_stream(tiny_table, tiny_tokenizer, ClipSpec(**SPEC | wrong), seed=0, batch_size=4)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "multiple of the number of processes, found 6 for 4"),
        ({"batch_size": 0}, "multiple of the number of processes, found 0"),
        ({"process_index": 2, "process_count": 2}, "Process 2 of 2 does not exist"),
        ({"seed": -1}, "seed of the data"),
        ({"start_step": -1}, "first step must be at least 0"),
        ({"workers": -2}, "at least 0, or -1 .*found -2"),
    ],
)
def test_wrong_options_are_named(tiny_table, tiny_tokenizer, wrong, message):
    with pytest.raises(ValueError, match=message):
        train_stream(tiny_table, tiny_tokenizer, ClipSpec(**SPEC), **{"seed": 0, "batch_size": 4} | wrong)


def test_pairs_need_an_even_batch_and_groups(tiny_table, tiny_tokenizer, make_table):
    paired = ClipSpec(**SPEC, pairs="group")
    with pytest.raises(ValueError, match="must be even, found 5"):
        train_stream(tiny_table, tiny_tokenizer, paired, seed=0, batch_size=5)
    alone = tiny_table.select([0, 3, 6])
    with pytest.raises(ValueError, match="each of 3 clips is alone in its group"):
        train_stream(alone, tiny_tokenizer, paired, seed=0, batch_size=4)
    with pytest.raises(ValueError, match="set clip.pairs='none'"):
        eval_batches(tiny_table, tiny_tokenizer, paired, batch_size=4)


def test_tables_that_cannot_be_read_are_refused(make_table, make_store, tiny_tokenizer, tmp_path):
    options = {"seed": 0, "batch_size": 4}
    with pytest.raises(ValueError, match="names no chunk store"):
        train_stream(make_table(None), tiny_tokenizer, ClipSpec(**SPEC), **options)
    with pytest.raises(ValueError, match="absent"):
        train_stream(make_table(str(tmp_path / "absent")), tiny_tokenizer, ClipSpec(**SPEC), **options)
    table = make_table(make_store())
    columns = {name: list(table.column(name)) for name in table.columns}
    elsewhere = type(table).from_columns(columns | {"video": ["up"] * 49 + ["north"]}, store=table.store)
    with pytest.raises(ValueError, match="1 videos of the clip table.*'up'.*only_videos"):
        train_stream(elsewhere, tiny_tokenizer, ClipSpec(**SPEC), **options)
    silent = type(table).from_columns(columns | {"texts": [[]] + [["a"]] * 49}, store=table.store)
    with pytest.raises(ValueError, match="1 of 50 clips have no text"):
        train_stream(silent, tiny_tokenizer, ClipSpec(**SPEC), **options)


def test_eval_data_complains_when_built(tiny_table, tiny_tokenizer):
    with pytest.raises(ValueError, match="found 6 for 4"):
        EvalData(tiny_table, tiny_tokenizer, ClipSpec(**SPEC), batch_size=6, process_count=4)


def test_too_little_shared_memory_is_said_before_workers_die(tiny_table, tiny_tokenizer, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(sizing.shutil, "disk_usage", lambda path: usage(10_000))
    with pytest.raises(ValueError, match="2 workers keep .* --shm-size"):
        train_stream(tiny_table, tiny_tokenizer, ClipSpec(**SPEC), seed=0, batch_size=4, workers=2)
    train_stream(tiny_table, tiny_tokenizer, ClipSpec(**SPEC), seed=0, batch_size=4, workers=0).close()


def test_missing_tokenizer_is_named(tmp_path):
    with pytest.raises(ValueError, match="no tokenizer at"):
        Tokenizer(tmp_path / "tokenizer.json", 6)
