"""Whatever happens to its workers, a stream gives the batches that it would have given, and leaves nothing behind."""

import errno
import itertools
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from vidlang.data.pipeline import ClipSpec, train_stream
from vidlang.data.workers import crew
from vidlang.data.workers.blocks import Blocks, shared_folder
from vidlang.data.workers.count import kept_batches
from vidlang.data.workers.patience import Patience
from vidlang.data.workers.stream import Batches

# Workers cannot import a test by its name.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

SPEC = ClipSpec(3, 16, {"name": "segments"}, {"name": "random_resized"}, 6)
HASTY = Patience(decode_timeout=0.5, store_patience=0.5, stall_timeout=3.0)
ROWS = 4


class Numbers:
    """Batches of ROWS numbers: the item, or its negative where the first attempt was given up."""

    def __init__(self, fatal=(), action="die", seconds=0.0):
        self.fatal, self.action, self.seconds = set(fatal), action, seconds

    def layout(self, step):
        return {"number_B": ((ROWS,), np.dtype(np.int64))}

    def fill(self, step, batch, watch):
        time.sleep(self.seconds)
        for place in range(ROWS):
            item = step * ROWS + place
            given_up = watch(item, 0)
            if item in self.fatal and given_up is None:
                self.harm()
            batch["number_B"][place] = item if given_up is None else -item

    def harm(self):
        if self.action == "die":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif self.action == "hang":
            time.sleep(1000)
        else:
            raise self.action


def numbers(maker, steps, workers=2, first=0, patience=HASTY, **options):
    with Batches(maker, first=first, workers=workers, prefetch=2, patience=patience, **options) as batches:
        found = [next(batches)["number_B"].tolist() for _ in range(steps)]
        return np.concatenate(found).tolist(), batches.restarts


def left_behind():
    return sorted(Path(shared_folder()).glob(f"vidlang-{os.getpid()}-*"))


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    assert not left_behind()
    assert not multiprocessing.active_children()


def wait_for_workers(count):
    end = time.monotonic() + 30
    while len(workers := [c for c in multiprocessing.active_children() if "grain" in c.name]) < count:
        assert time.monotonic() < end
        time.sleep(0.05)
    return workers


# Here and below: a death and a silence, each of the only worker and of one of two.
@pytest.mark.parametrize(
    ("how", "workers"), [(signal.SIGKILL, 1), pytest.param(signal.SIGSTOP, 2, marks=pytest.mark.slow)]
)
def test_a_worker_that_is_killed_or_stopped_costs_no_batch(tiny_table, tiny_tokenizer, how, workers, caplog):
    options = {"seed": 3, "batch_size": 4}
    # Longer than a clip takes on a busy machine.
    patience = Patience(decode_timeout=8.0, store_patience=0.5, stall_timeout=9.0)
    with train_stream(tiny_table, tiny_tokenizer, SPEC, **options) as batches:
        expected = list(itertools.islice(batches, 14))
    with train_stream(tiny_table, tiny_tokenizer, SPEC, **options, workers=workers, patience=patience) as batches:
        found = [next(batches) for _ in range(3)]
        os.kill(wait_for_workers(workers)[0].pid, how)
        found += [next(batches) for _ in range(11)]
        assert batches.restarts == 1
    assert "Starting the data workers anew" in caplog.text
    for one, other in zip(found, expected, strict=True):
        for name in sorted(other):
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(("action", "workers"), [("die", 2), ("hang", 1)])
def test_an_item_that_ends_or_stops_two_workers_is_given_up(action, workers, caplog):
    found, restarts = numbers(Numbers(fatal=[9], action=action), 10, workers)
    assert found == [-i if i == 9 else i for i in range(40)]
    assert restarts == 2
    assert caplog.text.count("is given up") == 1


@pytest.mark.slow
def test_workers_that_always_die_are_an_error():
    with pytest.raises(RuntimeError, match="lost 2 times in a row before step 1 was made.*exit code -11"):
        numbers(Numbers(fatal=range(4, 10)), 3, workers=1, patience=Patience(0.5, 0.5, 3.0, restarts=1))


@pytest.mark.slow
def test_workers_that_never_begin_are_an_error(monkeypatch):
    """As when the disk with the Python packages hangs. Another stream's workers live on."""
    with Batches(Numbers(), first=0, workers=1, prefetch=2, patience=HASTY) as other:
        next(other)
        monkeypatch.setattr(crew, "_BEGINNING_SECONDS", 0.1)
        with pytest.raises(RuntimeError, match="lost 1 times in a row before step 0 was made.*no batch came for 0.3 s"):
            numbers(Numbers(), 1, workers=1, patience=Patience(0.1, 0.1, 0.3, restarts=0))
        assert [next(other)["number_B"][0] for _ in range(6)] == [4, 8, 12, 16, 20, 24] and other.restarts == 0


def test_a_mistake_in_the_code_is_raised_as_it_is_and_costs_no_restart():
    # Of the class that Grain raises for a worker that died.
    with Batches(Numbers([9], RuntimeError("lable")), first=0, workers=1, prefetch=2, patience=HASTY) as batches:
        next(batches), next(batches)
        with pytest.raises(RuntimeError, match="^lable") as caught:
            next(batches)
        assert batches.restarts == 0 and "in fill" in "".join(caught.value.__notes__)
        with pytest.raises(ValueError, match="closed"):
            next(batches)


@pytest.fixture(scope="module")
def short():
    """What was seen of a stream of sixty batches: its numbers, its blocks, its end, and the first batch once closed."""
    seen, blocks = [], []
    with Batches(Numbers(), first=3, count=60, workers=1, prefetch=2, patience=HASTY) as batches:
        one = next(batches)
        seen.append(one["number_B"].tolist())
        for batch in batches:
            seen.append(batch["number_B"].tolist())
            blocks.append(len([path for path in left_behind() if not path.name.endswith(("marks", "lock"))]))
        after = next(batches, None)
    return {"seen": seen, "blocks": blocks, "after": after, "first": (one["number_B"].tolist(), one["number_B"].flags)}


def test_an_end_is_an_end(short):
    assert np.concatenate(short["seen"]).tolist() == list(range(12, 252))
    assert short["after"] is None


def test_batches_outlive_their_stream(short):
    numbers, flags = short["first"]
    assert numbers == [12, 13, 14, 15] and flags.writeable and min(short["blocks"]) >= 1


def test_workers_use_few_blocks_for_many_batches(short):
    assert max(short["blocks"]) <= kept_batches(1, 2) + 1  # the first was still in use


@pytest.mark.slow
def test_a_slow_batch_is_not_a_hanging_one():
    patience = Patience(0.2, 0.2, 1.0)
    assert numbers(Numbers(seconds=0.7), 3, workers=1, patience=patience) == (list(range(12)), 0)


def test_a_block_is_used_again_when_its_last_array_is_gone():
    taker = Blocks()
    maker = Blocks(taker.path("")[:-1])
    layout = {"one_B": ((3,), np.dtype(np.int8)), "two_BT": ((3, 5), np.dtype(np.float64))}
    block, made = maker.make(layout)
    made["one_B"][:], made["two_BT"][:] = 7, np.arange(15).reshape(3, 5)
    taken = taker.take(block)
    np.testing.assert_array_equal(taken["two_BT"], np.arange(15).reshape(3, 5))
    assert all(array.flags.c_contiguous and array.ctypes.data % 64 == 0 for array in taken.values())
    part = taken["two_BT"][1:, ::2]
    del taken
    second, _ = maker.make(layout)
    assert second.path != block.path and part[0, 0] == 5  # in use through a view of a view
    del part
    assert maker.make(layout)[0].path == block.path
    larger = maker.make({"one_B": ((300,), np.dtype(np.int8))})[0]
    taker.take(larger)  # and nobody holds it
    assert maker.make(layout)[0].path not in (block.path, second.path, larger.path)
    assert len(left_behind()) == 4
    kept = taker.take(second)["one_B"]
    taker.clear()
    assert not left_behind() and kept.tolist() == [0, 0, 0]
    del kept  # its file is gone, which is no error


def test_no_room_for_a_block_is_said_and_not_died_of(monkeypatch):
    def full(handle, offset, size):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(MemoryError, match="No room for a batch of 8.0 MB.*--shm-size"):
        Blocks().make({"one_B": ((10**6,), np.dtype(np.float64))})


def test_patience_must_make_sense():
    with pytest.raises(ValueError, match="must exceed store_patience"):
        Patience(stall_timeout=60)
    with pytest.raises(ValueError, match="patience.decode_timeout must be above 0"):
        Patience(decode_timeout=0)
    with pytest.raises(ValueError, match="patience.restarts must be a number from 0 on"):
        Patience(restarts=-1)
