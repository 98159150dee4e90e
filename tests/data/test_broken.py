"""A clip that cannot be decoded is replaced by a rule, counted, named once, and is an error when one of too many."""

import itertools
import logging

import numpy as np
import pytest

from vidlang.data.broken import BrokenClips
from vidlang.data.chunks import ChunkStore
from vidlang.data.clips import ClipTable
from vidlang.data.failures import KINDS
from vidlang.data.pipeline import ClipSpec, train_stream

SPEC = ClipSpec(3, 16, {"name": "segments"}, {"name": "random_resized"}, 6)


def take(table, tokenizer, steps, **options):
    with train_stream(table, tokenizer, SPEC, **{"seed": 3, "batch_size": 8} | options) as batches:
        return list(itertools.islice(batches, steps))


@pytest.fixture(scope="module")
def damaged(make_store, make_table, tiny_tokenizer):
    """Batches from a whole store, and from one in which a quarter of the videos is garbage."""
    good, bad = make_table(make_store()), make_table(make_store(("south", 0), ("south", 1)))
    return bad, take(good, tiny_tokenizer, 7), take(bad, tiny_tokenizer, 7)


def test_only_broken_clips_are_replaced(damaged):
    table, good, bad = damaged
    is_south = np.array([video == "south" for video in table.column("video")])
    for whole, batch in zip(good, bad, strict=True):
        hit_B = is_south[whole["index_B"]]
        np.testing.assert_array_equal(batch["broken_B"], np.where(hit_B, whole["index_B"], -1))
        np.testing.assert_array_equal(batch["broken_kind_B"], np.where(hit_B, KINDS.index("damaged"), -1))
        for name in ("video_BTHWC", "text_BL", "index_B"):
            np.testing.assert_array_equal(batch[name][~hit_B], whole[name][~hit_B])
        # What stands in can be decoded, is another clip, and comes with its own pixels and text.
        assert not is_south[batch["index_B"]].any()
        np.testing.assert_allclose(
            batch["video_BTHWC"][..., 0].mean((1, 2, 3)), 40 + 50 * (batch["index_B"] % 4), atol=8
        )
    replaced = np.concatenate([batch["index_B"][batch["broken_B"] >= 0] for batch in bad])
    assert len(set(replaced.tolist())) > len(replaced) / 2  # drawn for each place, not one clip for all


def test_replacements_are_a_function_of_seed_and_step(damaged, tiny_tokenizer):
    table, _, bad = damaged
    shares = [take(table, tiny_tokenizer, 2, start_step=4, process_index=p, process_count=2) for p in (0, 1)]
    for i, expected in enumerate(bad[4:6]):
        for name in expected:
            together = np.concatenate([share[i][name] for share in shares])
            np.testing.assert_array_equal(together, expected[name])


def test_a_store_of_garbage_ends_with_the_clips_names(make_store, make_table, tiny_tokenizer):
    store = make_store(*((video, k) for video in ("north", "east", "south", "west") for k in (0, 1)))
    with pytest.raises(
        ValueError, match=r"Neither the planned clip nor 8 replacements.*clip \d+ \((north|east|south|we)"
    ):
        take(make_table(store), tiny_tokenizer, 1)


def test_a_mistake_in_the_code_is_not_a_broken_clip(damaged, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(ChunkStore, "decode", lambda *arguments, **options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        take(damaged[0], tiny_tokenizer, 1)


def batch(broken, padding=0, kind="damaged", **more):
    """A batch of which these rows could not be decoded; -1 for a clip that could."""
    kinds = [KINDS.index(kind) if row >= 0 else -1 for row in broken]
    return {
        "broken_B": np.array([*broken, *[-1] * padding]),
        "broken_kind_B": np.array([*kinds, *[-1] * padding], np.int8),
        "index_B": np.array([0] * len(broken) + [-1] * padding),
        **more,
    }


def test_each_broken_video_is_named_once(tiny_table, caplog):
    clips = BrokenClips(tiny_table)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert clips.update(batch([-1, 5, -1, 9, 6])) == 3  # 5 and 9 are of one video
        assert clips.update(batch([-1, 5, -1, -1], padding=4, kind="timeout")) == 1
    messages = [record.getMessage() for record in caplog.records]
    row = tiny_table.row(5)
    assert len(messages) == 2 and "clip 6 (south" in messages[1]
    assert f"clip 5 ({row['video']}, {row['start']:.2f} to {row['end']:.2f} s): damaged" in messages[0]
    assert (clips.seen, clips.broken, clips.share) == (9, 4, 4 / 9)
    assert clips.counts == {"damaged": 3, "timeout": 1}
    assert clips.metrics() == {"broken_clips": 4.0, "broken_damaged": 3.0, "broken_timeout": 1.0}


def test_clips_of_a_mixture_are_named_by_their_own_table(tiny_table, make_table, caplog):
    other = make_table("elsewhere", 8).select([3, 2, 1])
    clips = BrokenClips([tiny_table, other])
    clips.update(batch([0, 0, 0], source_B=np.array([0, 1, 0])))
    named = [record.getMessage().split(",")[0] for record in caplog.records]
    assert named == ["Could not decode clip 0 (north", "Could not decode clip 0 (west"]


def test_the_log_is_sampled(caplog):
    rows = 2500
    columns = {
        "video": [f"video {i}" for i in range(rows)],
        "start": [0.0] * rows,
        "end": [1.0] * rows,
        "texts": [["a"]] * rows,
    }
    clips = BrokenClips(ClipTable.from_columns(columns))
    clips.count(batch(range(rows)))
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 22
    assert "Clips of 200 videos" in messages[20] and "Clips of 2000 videos" in messages[21]


def test_stops_at_more_than_the_allowed_share_of_enough_clips(tiny_table):
    clips = BrokenClips(tiny_table, max_share=0.05)
    clips.update(batch([3] * 20 + [-1] * 235))  # 7.8 % of 255: too few to judge
    message = r"20 of 256 clips could not be decoded \(7.8%, allowed are 5.0%; 20 damaged\).*clip 3"
    with pytest.raises(ValueError, match=message):
        clips.update(batch([-1]))
    clips = BrokenClips(tiny_table, max_share=0.05)
    for _ in range(4):
        clips.update(batch([3] * 5 + [-1] * 95))  # exactly 5 %


def test_stops_early_when_nothing_can_be_decoded(tiny_table):
    clips = BrokenClips(tiny_table)
    clips.update(batch([1] * 31))
    with pytest.raises(ValueError, match="32 of 32"):
        clips.update(batch([1]))
    with pytest.raises(ValueError, match="max_share"):
        BrokenClips(tiny_table, max_share=1.0)
