"""An evaluation sees every clip once, in order, in full batches, the same way every time."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.crops import choose_crop
from vidlang.data.frames import choose_times
from vidlang.data.pipeline import ClipSpec, EvalData, eval_batches

FIXED = ClipSpec(4, 16, {"name": "middle"}, {"name": "center"}, 6, fields=("label",))


@pytest.fixture(scope="module")
def batches(tiny_table, tiny_tokenizer):
    def make(**options):
        return list(eval_batches(tiny_table, tiny_tokenizer, FIXED, **{"batch_size": 8} | options))

    return make


@pytest.fixture(scope="module")
def whole(batches):
    return batches()


def rows(batches, name):
    return np.concatenate([batch[name] for batch in batches])


def test_every_row_once_and_the_rest_is_padding(whole):
    assert len(whole) == 7 and all(len(array) == 8 for batch in whole for array in batch.values())
    assert rows(whole, "index_B").tolist() == [*range(50), *[-1] * 6]
    assert rows(whole, "valid_B").tolist() == [True] * 50 + [False] * 6
    assert rows(whole, "label_B")[:50].tolist() == list(range(100, 150))
    assert (rows(whole, "broken_B") == -1).all()
    assert not whole[-1]["video_BTHWC"][2:].any()


def test_every_process_has_as_many_full_batches(batches, whole):
    """With 4 processes and 50 clips the last batch leaves three of them nothing but padding."""
    shares = [batches(process_index=p, process_count=4) for p in range(4)]
    assert [len(share) for share in shares] == [7] * 4
    for p, share in enumerate(shares):
        for batch, expected in zip(share, whole, strict=True):
            for name in batch:
                np.testing.assert_array_equal(batch[name], expected[name][2 * p : 2 * p + 2])
    assert not any(share[-1]["valid_B"].any() for share in shares[1:])


def test_frames_are_the_middles_of_equal_parts(whole, tiny_table):
    seconds_BT = (rows(whole, "video_BTHWC")[:50, ..., 1].mean((2, 3)) - 20) / 6 / 8
    start, end = tiny_table.column("start")[:, None], np.minimum(tiny_table.column("end"), 4)[:, None]
    expected_BT = start + (np.arange(4) + 0.5) / 4 * (end - start)
    assert np.abs(seconds_BT - expected_BT).max() < 1.5 / 8


def test_a_clip_that_runs_over_the_end_is_seen_up_to_the_end(tiny_table, tiny_tokenizer):
    columns = {"video": ["north"], "start": [1.0], "end": [9.0], "texts": [["first 1"]]}
    table = ClipTable.from_columns(columns, store=tiny_table.store)
    spec = ClipSpec(4, 16, {"name": "middle"}, {"name": "center"}, 6)
    batch = next(iter(eval_batches(table, tiny_tokenizer, spec, batch_size=1)))
    seconds_T = (batch["video_BTHWC"][0, ..., 1].mean((1, 2)) - 20) / 6 / 8
    assert np.abs(seconds_T - (1 + (np.arange(4) + 0.5) / 4 * 3)).max() < 1.5 / 8


def test_text_is_the_first_text(whole, tiny_table, tiny_tokenizer):
    firsts = [texts[0] for texts in tiny_table.column("texts")]
    np.testing.assert_array_equal(rows(whole, "text_BL")[:50], tiny_tokenizer.encode(firsts))


@pytest.mark.slow
def test_workers_change_nothing(batches, whole):
    """Seven batches over two workers: one of them is done before the other."""
    for batch, expected in zip(batches(workers=2), whole, strict=True):
        for name in batch:
            np.testing.assert_array_equal(batch[name], expected[name])


def test_eval_data_starts_anew_at_each_call(tiny_table, tiny_tokenizer, whole):
    data = EvalData(tiny_table, tiny_tokenizer, FIXED, batch_size=8, process_count=2)
    assert data.batch_size == 4 and data.table is tiny_table
    for _ in range(2):
        np.testing.assert_array_equal(
            rows(data.batches(), "index_B"), rows(whole, "index_B").reshape(-1, 8)[:, :4].ravel()
        )
    assert data.encode_texts(["first 3", "second 4 again"]).shape == (2, 6)


def test_broken_clip_keeps_its_place_and_is_not_valid(make_store, make_table, tiny_tokenizer, caplog):
    """Both chunks of one video are garbage: 3 of 12 clips are, and the others are untouched."""
    good = make_table(make_store(), 12)
    bad = make_table(make_store(("south", 0), ("south", 1)), 12)
    data = EvalData(bad, tiny_tokenizer, FIXED, batch_size=6)
    with caplog.at_level(logging.WARNING, logger="absl"):
        found, again = list(data.batches()), list(data.batches())
    valid = np.arange(12) % 4 != 2
    for batches in (found, again):
        assert rows(batches, "valid_B").tolist() == valid.tolist()
        assert rows(batches, "index_B").tolist() == list(range(12))
        assert rows(batches, "broken_B").tolist() == [-1 if ok else i for i, ok in enumerate(valid)]
    expected = rows(eval_batches(good, tiny_tokenizer, FIXED, batch_size=6), "video_BTHWC")
    np.testing.assert_array_equal(rows(found, "video_BTHWC")[valid], expected[valid])
    assert not rows(found, "video_BTHWC")[~valid].any()
    assert sum("clip 2 (south" in record.getMessage() for record in caplog.records) == 1
    assert sum("Could not decode" in record.getMessage() for record in caplog.records) == 1


def test_evaluation_of_nothing_but_broken_clips_is_an_error(make_store, make_table, tiny_tokenizer):
    store = make_store(*((video, k) for video in ("north", "east", "south", "west") for k in (0, 1)))
    with pytest.raises(ValueError, match="12 of 12 clips could not be decoded.*clip 0 .north"):
        list(eval_batches(make_table(store, 12), tiny_tokenizer, FIXED, batch_size=6))


def test_random_rules_are_refused(tiny_table, tiny_tokenizer):
    random_times = ClipSpec(4, 16, {"name": "segments"}, {"name": "center"}, 6)
    with pytest.raises(ValueError, match="segments.*middle"):
        eval_batches(tiny_table, tiny_tokenizer, random_times, batch_size=8)
    random_crop = ClipSpec(4, 16, {"name": "middle"}, {"name": "random_resized"}, 6)
    with pytest.raises(ValueError, match="random_resized.*center"):
        eval_batches(tiny_table, tiny_tokenizer, random_crop, batch_size=8)


def test_views_and_crops_of_a_row_follow_one_another(tiny_table, tiny_tokenizer, whole):
    """Each item is what choosing by hand gives, and one view alone is the plain evaluation."""
    spec = replace(FIXED, frames=2, times={"name": "fps", "rate": 4.0}, crop={"name": "center"}, views=2, crops=3)
    shares = [
        list(eval_batches(tiny_table, tiny_tokenizer, spec, batch_size=8, process_index=p, process_count=2))
        for p in range(2)
    ]
    assert len(shares[0]) == len(shares[1]) == 38  # 50 rows of 6 items: 300, and 4 of padding
    batches = [
        {name: np.concatenate([one[name], other[name]]) for name in one} for one, other in zip(*shares, strict=True)
    ]
    assert rows(batches, "index_B").tolist() == [*np.repeat(np.arange(50), 6).tolist(), *[-1] * 4]
    assert rows(batches, "view_B")[:300].tolist() == list(range(6)) * 50
    assert rows(batches, "valid_B").tolist() == [True] * 300 + [False] * 4
    store = open_store(tiny_table.store)
    for item in (0, 5, 13, 100, 299):
        row, view = tiny_table.row(item // 6), item % 6
        options = {"view": view // 3, "views": 2, "name": "fps", "rate": 4.0}
        times_T = choose_times(None, row["start"], min(row["end"], 4.0), 2, **options)
        crop = choose_crop(None, 48, 64, view=view % 3, views=3, name="center")
        expected = store.decode(row["video"], times_T, crop, (16, 16))
        np.testing.assert_array_equal(rows(batches, "video_BTHWC")[item], expected)
    assert "view_B" not in whole[0]


def test_frames_may_stay_in_their_planes(tiny_table, make_store, make_table, tiny_tokenizer):
    spec = replace(FIXED, pixels="yuv420")
    (batch,) = eval_batches(tiny_table.select([0, 2]), tiny_tokenizer, spec, batch_size=4)
    assert "video_BTHWC" not in batch
    yuv_BTXW = batch["yuv_BTXW"]
    assert yuv_BTXW.shape == (4, 4, 24, 16) and yuv_BTXW.dtype == np.uint8
    # Flat colours: red tells the video, and red is most of what the last plane holds.
    assert yuv_BTXW[1, :, 20:].mean() - yuv_BTXW[0, :, 20:].mean() > 20
    assert (yuv_BTXW[2:, :, :16] == 16).all() and (yuv_BTXW[2:, :, 16:] == 128).all()  # padding is black
    with pytest.raises(ValueError, match="clip.size that divides by 4, found 18"):
        replace(spec, size=18)


def test_a_table_in_memory_is_not_sent_to_workers(tiny_table, tiny_tokenizer, whole, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(ClipTable, "__reduce__", refuse_by_value)
    table = tiny_table.filter(np.arange(50) < 10)
    batches = eval_batches(table, tiny_tokenizer, FIXED, batch_size=8, workers=1)
    np.testing.assert_array_equal(next(batches)["video_BTHWC"], whole[0]["video_BTHWC"])
    assert len(list(tmp_path.glob("vidlang-*/*.arrow"))) == 1
    batches.close()
    assert not list(tmp_path.iterdir())


def refuse_by_value(table):
    assert table.path is not None, "the table is pickled whole"
    return ClipTable.open, (table.path,)
