"""The batch of step s is a pure function of (seed, s), and holds what its rows say."""

import itertools
import multiprocessing
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vidlang.data.pipeline import ClipSpec, train_stream
from vidlang.data.workers.blocks import shared_folder

BATCH, STEPS = 8, 21  # 168 items: three epochs of the 50 clips and a part of the fourth
RANDOM = ClipSpec(
    frames=3,
    size=16,
    times={"name": "segments"},
    crop={"name": "random_resized"},
    text_length=6,
    fields=("label",),
)
PAIRED = ClipSpec(3, 16, {"name": "segments"}, {"name": "random_resized"}, 6, pairs="group")


@pytest.fixture(scope="module")
def stream(tiny_table, tiny_tokenizer):
    def make(spec=RANDOM, **options):
        return train_stream(tiny_table, tiny_tokenizer, spec, **{"seed": 7, "batch_size": BATCH} | options)

    return make


def global_batches(stream, steps=STEPS, process_count=1, **options):
    """The batches as a single process would see them, put together from the shares of all processes."""
    shares = []
    for p in range(process_count):
        with stream(process_index=p, process_count=process_count, **options) as batches:
            shares.append(list(itertools.islice(batches, steps)))
    return [
        {name: np.concatenate([share[name] for share in step]) for name in step[0]}
        for step in zip(*shares, strict=True)
    ]


def assert_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            assert one[name].dtype == other[name].dtype
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.fixture(scope="module")
def plain(stream):
    return global_batches(stream)


@pytest.fixture(scope="module")
def paired(stream):
    return global_batches(stream, steps=16, spec=PAIRED)


def test_batches_have_their_shapes_and_types(plain):
    batch = plain[0]
    expected = {
        "video_BTHWC": ((BATCH, 3, 16, 16, 3), np.uint8),
        "text_BL": ((BATCH, 6), np.int32),
        "index_B": ((BATCH,), np.int64),
        "broken_B": ((BATCH,), np.int64),
        "broken_kind_B": ((BATCH,), np.int8),
        "label_B": ((BATCH,), np.int32),
    }
    assert {name: (array.shape, array.dtype) for name, array in batch.items()} == expected
    assert (batch["broken_B"] == -1).all()


@pytest.mark.parametrize("process_count", [2, 4])
def test_number_of_processes_does_not_change_the_batches(stream, plain, paired, process_count):
    assert_same(global_batches(stream, process_count=process_count), plain)
    assert_same(global_batches(stream, steps=5, process_count=process_count, spec=PAIRED), paired[:5])


def test_starting_at_a_step_continues_exactly(stream, plain, paired):
    assert_same(global_batches(stream, steps=4, start_step=17), plain[17:])
    assert_same(global_batches(stream, steps=2, start_step=5, process_count=2), plain[5:7])
    assert_same(global_batches(stream, steps=3, start_step=9, spec=PAIRED), paired[9:12])


def test_prefetch_does_not_change_the_batches(stream, plain):
    assert_same(global_batches(stream, steps=3, prefetch=0), plain[:3])
    assert_same(global_batches(stream, steps=3, prefetch=5), plain[:3])


def wait_until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_workers_do_not_change_the_batches_and_end_with_them(stream, plain):
    with stream(workers=1) as one, stream(workers=2) as two:
        # They are at work before the first batch is asked for.
        wait_until(lambda: len(multiprocessing.active_children()) == 3)
        found = [next(one) for _ in range(STEPS)], [next(two) for _ in range(STEPS)]
        assert all(array.flags.c_contiguous for batch in (found[0][0], found[1][0]) for array in batch.values())
        assert_same(found[0], plain)
        assert_same(found[1], plain)
    assert not multiprocessing.active_children()
    with pytest.raises(ValueError, match="closed"):
        next(two)


def test_another_seed_gives_other_batches(stream, plain):
    other = global_batches(stream, steps=2, seed=8)
    assert any((one["index_B"] != two["index_B"]).any() for one, two in zip(other, plain, strict=False))


def test_every_epoch_is_another_order_of_all_rows(plain):
    index = np.concatenate([batch["index_B"] for batch in plain])
    epochs = [index[50 * e : 50 * (e + 1)].tolist() for e in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_example_is_what_its_row_says(plain, tiny_table, tiny_tokenizer):
    choices = set()
    for batch in plain:
        for i in range(BATCH):
            row = tiny_table.row(batch["index_B"][i])
            video_THWC = batch["video_BTHWC"][i].astype(float)
            # The colours of tests/data/conftest.py: red is the video, green the frame.
            number = ("north", "east", "south", "west").index(row["video"])
            np.testing.assert_allclose(video_THWC[..., 0], 40 + 50 * number, atol=8)
            seconds_T = (video_THWC[..., 1].mean((1, 2)) - 20) / 6 / 8
            assert (np.diff(seconds_T) > -0.05).all()
            assert row["start"] - 0.2 < seconds_T[0] and seconds_T[-1] < row["end"] + 0.05
            texts = [tiny_tokenizer.encode([text])[0].tolist() for text in row["texts"]]
            choices.add(texts.index(batch["text_BL"][i].tolist()))
            assert batch["label_B"][i] == row["label"]
    assert choices == {0, 1}


def test_a_row_looks_different_in_every_epoch(plain):
    """Times and crop are drawn anew, not once for each row."""
    seen = {}
    for batch in plain:
        for row, video_THWC in zip(batch["index_B"].tolist(), batch["video_BTHWC"], strict=True):
            seen.setdefault(row, []).append(video_THWC.mean((1, 2))[:, 1])
    different = [not np.array_equal(views[0], views[1]) for views in seen.values()]
    assert np.mean(different) > 0.7


def test_pairs_are_two_rows_of_one_group(paired, tiny_table):
    index = np.concatenate([batch["index_B"] for batch in paired])
    anchors, partners = index[0::2], index[1::2]
    group = tiny_table.column("group")
    assert (anchors != partners).all()
    assert (group[anchors] == group[partners]).all()
    assert sorted(anchors[:50]) == list(range(50))
    members = {(a, p) for a, p in zip(anchors.tolist(), partners.tolist(), strict=True) if a == 0}
    assert members <= {(0, 1), (0, 2)}
    # Over all groups of three, both other members are drawn.
    assert 0.2 < np.mean((partners - anchors)[group[anchors] < 16] % 3 == 1) < 0.8


PROGRAM = """
import sys
sys.modules["jax"] = sys.modules["tensorflow"] = sys.modules["tensorflow_datasets"] = None
from vidlang.data.clips import ClipTable
from vidlang.data.pipeline import ClipSpec, train_stream
from vidlang.data.tokenizer import Tokenizer
table, tokenizer = ClipTable.open(sys.argv[1]), Tokenizer(sys.argv[2], 6)
spec = ClipSpec(3, 16, dict(name="middle"), dict(name="center"), 6)
batches = train_stream(table, tokenizer, spec, seed=0, batch_size=2, workers=int(sys.argv[3]))
assert next(batches)["video_BTHWC"].shape == (2, 3, 16, 16, 3)
if sys.argv[4] == "close":
    batches.close()
if sys.argv[4] == "killed":
    import os, signal
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_program(table, tokenizer, workers, end):
    """What the program wrote to stderr, and its process."""
    command = [sys.executable, "-c", PROGRAM, table.path, tokenizer.path, str(workers), end]
    program = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    messages = program.communicate(timeout=120)[1]
    assert program.returncode == (-9 if end == "killed" else 0), messages
    return messages, program.pid


def test_batches_come_without_jax(tiny_table, tiny_tokenizer):
    """Grain itself imports jax where it is installed; nothing of ours needs it."""
    run_program(tiny_table, tiny_tokenizer, 0, "close")


@pytest.mark.slow
@pytest.mark.parametrize("end", ["close", "forget", "killed"])
def test_no_shared_memory_is_left_behind(tiny_table, tiny_tokenizer, end):
    """Python's resource tracker says at the end of a program what was not freed; our own files have its number."""
    # Of a process group that was killed as a whole, files stay, and a later process may get its number.
    before = set(Path(shared_folder()).glob("vidlang-*"))
    messages, pid = run_program(tiny_table, tiny_tokenizer, 1, end)
    # Whoever is killed leaves its semaphores to that tracker.
    leaked = "leaked shared_memory" if end == "killed" else "leaked"
    assert leaked not in messages and "Traceback" not in messages
    wait_until(lambda: not set(Path(shared_folder()).glob(f"vidlang-{pid}-*")) - before)
