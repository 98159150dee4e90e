"""What a config can get wrong is said in one sentence, before any worker starts."""

import multiprocessing
from collections import namedtuple

import pytest

from vidlang.data.chunks import open_store
from vidlang.data.pipeline import ClipSpec, EvalData, eval_batches, identity, train_stream
from vidlang.data.tokenizer import Tokenizer
from vidlang.data.workers import count as sizing
from vidlang.data.workers import machine

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
        ({"fields": ("texts",)}, "a batch holds numbers and lists of whole numbers"),
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


def with_column(table, **columns):
    return type(table).from_columns({name: list(table.column(name)) for name in table.columns} | columns, table.store)


@pytest.mark.parametrize("value", [2**31, -(2**31) - 1])
def test_a_number_that_does_not_fit_the_device_is_named(tiny_table, tiny_tokenizer, value):
    table = with_column(tiny_table, ident=[*range(30), value, *range(19)])
    spec = ClipSpec(**SPEC, fields=("ident", "group"))
    with pytest.raises(ValueError, match=f"'ident' .* has the value {value} in clip 30, .*fit into 32 bits"):
        train_stream(table, tiny_tokenizer, spec, seed=0, batch_size=4)
    largest = with_column(tiny_table, ident=[*range(30), 2**31 - 1, *range(19)])
    train_stream(largest, tiny_tokenizer, spec, seed=0, batch_size=4).close()


def test_workers_are_chosen_from_cores_and_memory(monkeypatch):
    """With nothing else in the way, all cores but the one that trains."""
    usage = namedtuple("usage", "free")
    limits = {"cores": 9, "memory": 100e9, "shared": 50e9}
    monkeypatch.setattr(sizing, "available_cores", lambda: limits["cores"])
    monkeypatch.setattr(sizing, "available_memory", lambda: limits["memory"])
    monkeypatch.setattr(sizing.shutil, "disk_usage", lambda path: usage(limits["shared"]))
    assert sizing.settle_workers(-1, 2, int(100e6)) == 8
    limits["shared"] = 2.2e9  # 22 batches: 4 for each worker and 2 to spare
    assert sizing.settle_workers(-1, 2, int(100e6)) == 5
    limits["memory"] = 2.2e9  # 3 workers: 14 batches and 0.9 GB of their own
    assert sizing.settle_workers(-1, 2, int(100e6)) == 2
    limits |= {"cores": 1, "memory": 100e9}
    assert sizing.settle_workers(-1, 2, int(100e6)) == 0
    assert sizing.settle_workers(3, 2, int(100e6)) == 3


def test_a_single_core_is_not_given_to_workers(tiny_table, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(sizing, "available_cores", lambda: 1)
    for workers in (-1, 0):
        stream = train_stream(tiny_table, tiny_tokenizer, ClipSpec(**SPEC), seed=0, batch_size=4, workers=workers)
        with stream as batches:
            next(batches)
            assert batches.workers == 0 and not multiprocessing.active_children()


def test_cores_and_memory_are_those_of_the_container(tmp_path, monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(12)))
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert machine.available_cores() == 12 and machine.available_memory() == float("inf")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:   800 kB\n")
    assert machine.available_cores() == 12 and machine.available_memory() == 800 * 1024
    (tmp_path / "cpu.max").write_text("350000 100000\n")
    (tmp_path / "memory.max").write_text("500000\n")
    (tmp_path / "memory.current").write_text("200000\n")
    assert machine.available_cores() == 4 and machine.available_memory() == 300000


def test_identity_is_that_of_content(tiny_table, make_table, make_store, tmp_path):
    one = identity(tiny_table)
    assert one["rows"] == 50 and one["store"] == open_store(tiny_table.store).content_hash
    assert identity(tiny_table.select(range(50)).save(tmp_path / "elsewhere.arrow")) == one
    others = [
        identity(tiny_table.select(range(49))),
        identity(tiny_table.select([1, 0, *range(2, 50)])),
        identity(with_column(tiny_table, label=[0] * 50)),
        identity(make_table(make_store(("north", 0)))),
    ]
    assert len({str(other) for other in [one, *others]}) == 5
