"""What fails for a while is waited for and changes nothing; what fails for good is replaced, and told apart."""

import itertools
import time
from types import SimpleNamespace

import numpy as np
import pytest

from vidlang.data import fetch
from vidlang.data.chunks import ChunkStore
from vidlang.data.failures import KINDS, BrokenVideo, StoreAway
from vidlang.data.pipeline import ClipSpec, eval_batches, train_stream
from vidlang.data.workers.patience import Patience

SPEC = ClipSpec(3, 16, {"name": "segments"}, {"name": "random_resized"}, 6)
FIXED = ClipSpec(3, 16, {"name": "middle"}, {"name": "center"}, 6)
SHORT = Patience(decode_timeout=30.0, store_patience=20.0, stall_timeout=60.0)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves; `waits` are the sleeps."""
    clock = SimpleNamespace(now=time.monotonic(), waits=[])

    def sleep(seconds):
        clock.waits.append(seconds)
        clock.now += seconds

    monkeypatch.setattr(fetch, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


@pytest.fixture
def failing(monkeypatch):
    """Makes decode raise what `error(video)` returns, if anything; gives back a list of all calls."""
    decode, calls = ChunkStore.decode, []

    def install(error):
        def failing_decode(self, video, *arguments, **options):
            calls.append(options)
            if (found := error(video)) is not None:
                raise found
            return decode(self, video, *arguments, **options)

        monkeypatch.setattr(ChunkStore, "decode", failing_decode)
        return calls

    return install


def take(table, tokenizer, steps=2):
    options = {"seed": 3, "batch_size": 8, "prefetch": 0, "patience": SHORT}
    with train_stream(table, tokenizer, SPEC, **options) as batches:
        return list(itertools.islice(batches, steps))


def times(count, error):
    """Fails `count` times from the fourth call on."""
    calls = itertools.count()
    return lambda video: error if 3 <= next(calls) < 3 + count else None


@pytest.fixture(scope="module")
def undisturbed(tiny_table, tiny_tokenizer):
    return take(tiny_table, tiny_tokenizer)


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        for name in other:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize(
    ("error", "count", "waits"),
    [
        (OSError("stale handle"), 1, [0.05]),
        (OSError("stale handle"), 3, [0.05, 0.2, 0.8]),
        (StoreAway("gone"), 1, [0.5]),
        (StoreAway("gone"), 5, [0.5, 1.0, 2.0, 4.0, 8.0]),
    ],
)
def test_what_fails_for_a_while_changes_no_batch(
    tiny_table, tiny_tokenizer, undisturbed, clock, failing, error, count, waits
):
    failing(times(count, error))
    assert_same(take(tiny_table, tiny_tokenizer), undisturbed)
    assert clock.waits == waits


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError("bad sector"), "unreadable"),
        (BrokenVideo("cut short", "truncated"), "truncated"),
        (BrokenVideo("endless", "timeout"), "timeout"),
    ],
)
def test_what_fails_for_good_is_replaced_and_sorted(
    tiny_table, tiny_tokenizer, undisturbed, clock, failing, error, kind
):
    calls = failing(lambda video: error if video == "east" else None)
    found = take(tiny_table, tiny_tokenizer)
    hit = 0
    for one, other in zip(found, undisturbed, strict=True):
        hit_B = other["index_B"] % 4 == 1
        hit += hit_B.sum()
        np.testing.assert_array_equal(one["broken_B"], np.where(hit_B, other["index_B"], -1))
        np.testing.assert_array_equal(one["broken_kind_B"], np.where(hit_B, KINDS.index(kind), -1))
        np.testing.assert_array_equal(one["video_BTHWC"][~hit_B], other["video_BTHWC"][~hit_B])
    assert hit and calls[0]["deadline"] == pytest.approx(clock.now - sum(clock.waits) + 30.0)


def test_a_store_that_stays_away_is_waited_for_once(tiny_table, tiny_tokenizer, clock, failing):
    calls = failing(lambda video: StoreAway("the mount is gone"))
    with pytest.raises(ValueError, match=r"8 replacements.*store was away for 20 s: the mount is gone"):
        take(tiny_table, tiny_tokenizer)
    # All the patience goes to the first clip; its replacements are tried once each.
    assert sum(clock.waits) == 20.0 and len(calls) == len(clock.waits) + 9


def test_patience_is_new_for_every_absence(tiny_table, tiny_tokenizer, undisturbed, clock, failing):
    """Away four times for 15 of 20 seconds, with a clip between."""
    calls = itertools.count()
    failing(lambda video: StoreAway("gone") if next(calls) % 6 < 5 else None)
    assert_same(take(tiny_table, tiny_tokenizer, 1), undisturbed[:1])
    assert sum(clock.waits) == 8 * 15.5


def test_an_evaluation_sorts_them_too(tiny_table, tiny_tokenizer, failing):
    failing(lambda video: BrokenVideo("cut short", "truncated") if video == "east" else None)
    batches = list(eval_batches(tiny_table, tiny_tokenizer, FIXED, batch_size=10))
    kind_B = np.concatenate([batch["broken_kind_B"] for batch in batches])
    assert kind_B.tolist() == [KINDS.index("truncated") if i % 4 == 1 else -1 for i in range(50)]


def test_a_clip_that_takes_too_long_is_a_timeout(tiny_table, tiny_tokenizer):
    """Really decoded, with less time than any decoder needs."""
    hasty = Patience(decode_timeout=1e-9)
    with pytest.raises(ValueError, match="4 of 4 clips .*; 4 timeout"):
        list(eval_batches(tiny_table.select(range(4)), tiny_tokenizer, FIXED, batch_size=5, patience=hasty))
