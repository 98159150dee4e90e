"""Feature stores: what was written is read by clip, and stands in a batch where frames would."""

import itertools
import os
import pickle

import numpy as np
import pytest

from vidlang.data.clips import ClipTable
from vidlang.data.failures import BrokenVideo
from vidlang.data.features.cuts import segments, windows
from vidlang.data.features.rows import FeatureSpec, RowFeatures, identity
from vidlang.data.features.store import FeatureStore
from vidlang.data.features.writer import FeatureWriter
from vidlang.data.pipeline import ClipSpec, Source, eval_batches, mixture_stream, train_stream
from vidlang.data.workers.count import batch_bytes

SEGMENTS, WIDTH, ROWS, SHARD, BROKEN = 4, 3, 50, 16, 7
NOTE = {"step": 3}
EXPECTED = {
    name: np.random.default_rng(number).normal(size=(ROWS, SEGMENTS, WIDTH)).astype(np.float16)
    for number, name in enumerate(("wide", "narrow"))
}
EXPECTED["whole"] = EXPECTED["wide"].copy()  # no clip of it is broken
for name in ("wide", "narrow"):
    EXPECTED[name][BROKEN] = np.nan


def write(path, table, names=("wide", "narrow", "whole")):
    cuts = segments(table, count=SEGMENTS, shard_rows=SHARD)
    writer = FeatureWriter(path, cuts, frames=2)
    for name in names:
        writer.begin(name, NOTE)
        for piece in cuts.pieces:
            rows = EXPECTED[name][piece.first : piece.first + piece.rows]
            writer.write(name, piece.file, rows.reshape(-1, WIDTH).astype(np.float32), "float16")
    return cuts, writer


@pytest.fixture(scope="module")
def store(tmp_path_factory, tiny_table):
    path = tmp_path_factory.mktemp("features") / "store"
    write(path, tiny_table)
    return path


def section(store, *variants, **changes):
    return {"store": str(store), "variants": variants, "segments": SEGMENTS, "width": WIDTH} | changes


def test_each_clip_has_its_vectors_in_files_that_numpy_reads(store, tiny_table):
    opened = pickle.loads(pickle.dumps(FeatureStore(store)))
    assert opened.variants == ("narrow", "whole", "wide") and len(opened) == ROWS
    assert sorted(path.name for path in (store / "wide").iterdir()) == [
        *(f"0000{shard}.npy" for shard in range(4)),
        "variant.json",
    ]
    for row, (name, array) in itertools.product(range(ROWS), EXPECTED.items()):
        np.testing.assert_array_equal(opened.read(row, name), array[row].astype(np.float32))
        where = opened.index.slice(row, 1).to_pylist()[0]
        file = np.load(store / name / f"{where['file']}.npy")
        assert file.dtype == np.float16
        np.testing.assert_array_equal(file[where["offset"] : where["offset"] + where["count"]], array[row])
        assert (where["video"], where["start"]) == (tiny_table.cell(row, "video"), tiny_table.cell(row, "start"))
        assert where["step"] * SEGMENTS == pytest.approx(where["end"] - where["start"])


def test_any_part_of_the_table_finds_its_own_clips(store, tiny_table):
    order = np.random.default_rng(0).permutation(ROWS)[:30]
    rows = pickle.loads(pickle.dumps(RowFeatures(tiny_table.select(order), FeatureSpec(**section(store, "whole")))))
    out = np.empty((SEGMENTS, WIDTH), np.float32)
    for place, row in enumerate(order):
        rows.read(place, 0, out)
        np.testing.assert_array_equal(out, EXPECTED["whole"][row].astype(np.float32))


def spec(store, *variants, **changes):
    return ClipSpec(text_length=6, fields=("label",), features=section(store, *variants), **changes)


@pytest.fixture(scope="module")
def items(store, tiny_table, tiny_tokenizer):
    """The first items of a training, as one process or several see them: (row, which variant)."""

    def make(seed=7, processes=1, steps=40):
        shares = []
        for p in range(processes):
            options = {"seed": seed, "batch_size": 16, "process_index": p, "process_count": processes}
            wanted = spec(store, "wide", "narrow")
            with train_stream(tiny_table, tiny_tokenizer, wanted, **options) as stream:
                shares.append([dict(batch) for batch in itertools.islice(stream, steps)])
        found = []
        for batch in itertools.chain.from_iterable(zip(*shares, strict=True)):
            assert "video_BTHWC" not in batch
            assert batch["features_BSD"].dtype == np.float32 and batch["text_BL"].dtype == np.int32
            for row, label, features_SD in zip(batch["index_B"], batch["label_B"], batch["features_BSD"], strict=True):
                assert label == tiny_table.cell(int(row), "label")
                same = [np.array_equal(features_SD, EXPECTED[name][row]) for name in ("wide", "narrow")]
                assert sum(same) == 1
                found.append((int(row), same.index(True)))
        return found

    return make


def test_training_draws_a_variant_for_each_item_by_its_place_alone(items):
    plain = items()
    assert items() == items(processes=2) == plain
    other = items(seed=8, steps=2)
    assert [variant for _, variant in other] != [variant for _, variant in plain[:32]]
    narrow = np.array([variant for _, variant in plain])
    assert abs(narrow.mean() - 0.5) < 0.06  # three deviations of 640 fair coins
    # Over epochs, one clip is seen in both.
    by_row = {row: {variant for other, variant in plain if other == row} for row, _ in plain}
    assert len(by_row) == ROWS - 1 and BROKEN not in by_row
    assert sum(len(seen) == 2 for seen in by_row.values()) > 40


def test_an_evaluation_takes_the_first_variant_and_leaves_broken_clips_out(store, tiny_table, tiny_tokenizer):
    for name in ("narrow", "wide"):
        others = [other for other in ("narrow", "wide") if other != name]
        batches = list(eval_batches(tiny_table, tiny_tokenizer, spec(store, name, *others), batch_size=16))
        assert [batch["valid_B"].sum() for batch in batches] == [15, 16, 16, 2]
        for batch in batches:
            for row, valid, features_SD in zip(batch["index_B"], batch["valid_B"], batch["features_BSD"], strict=True):
                np.testing.assert_array_equal(features_SD, EXPECTED[name][row] if valid else np.zeros_like(features_SD))
    (batch,) = [batch for batch in batches if BROKEN in batch["index_B"]]
    assert not batch["valid_B"][list(batch["index_B"]).index(BROKEN)]


def test_a_batch_takes_four_bytes_a_number(store):
    assert batch_bytes(spec(store, "wide"), 5) == 5 * SEGMENTS * WIDTH * 4


def test_nothing_of_the_videos_is_needed(store, tiny_table, tiny_tokenizer):
    names = ("video", "start", "end", "texts", "label")
    bare = ClipTable.from_columns({name: tiny_table.arrow(name).to_pylist() for name in names}, store=None)
    with train_stream(bare, tiny_tokenizer, spec(store, "whole"), seed=0, batch_size=8) as stream:
        assert next(stream)["features_BSD"].shape == (8, SEGMENTS, WIDTH)


def test_a_file_is_complete_or_absent(tmp_path, tiny_table, monkeypatch):
    _, writer = write(tmp_path / "store", tiny_table, names=("wide",))
    writer.begin("late", NOTE)
    assert not (tmp_path / "store/late").exists(), "a variant begins with its first vectors"
    vectors = np.ones((64, WIDTH))
    writer.write("late", "00001", vectors, "float32")

    def power_cut(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", power_cut)
        with pytest.raises(KeyboardInterrupt):
            writer.write("late", "00002", vectors, "float32")
    assert not writer.has("late", "00002")
    assert FeatureStore(tmp_path / "store").missing("late") == ["00000", "00002", "00003"]
    writer.write("late", "00002", vectors, "float32")
    assert {path.name for path in (tmp_path / "store/late").iterdir()} == {"00001.npy", "00002.npy", "variant.json"}
    with pytest.raises(ValueError, match=r"late lacks 2 files, the first is 00000.npy; the command that began"):
        RowFeatures(tiny_table, FeatureSpec(**section(tmp_path / "store", "late")))


def test_a_store_goes_on_only_with_what_it_was_begun_with(tmp_path, tiny_table):
    cuts, writer = write(tmp_path / "store", tiny_table, names=("wide",))
    assert FeatureWriter(tmp_path / "store", cuts, frames=2).has("wide", "00000")
    with pytest.raises(ValueError, match=r"different are: frames. Give the same ones to go on, or another --out"):
        FeatureWriter(tmp_path / "store", cuts, frames=4)
    for other in (tiny_table.select(range(49)), tiny_table.select(np.arange(ROWS)[::-1])):
        with pytest.raises(ValueError, match="different are: index"):
            FeatureWriter(tmp_path / "store", segments(other, count=SEGMENTS, shard_rows=SHARD), frames=2)
    with pytest.raises(ValueError, match="different are: step"):
        writer.begin("wide", {"step": 4})
    with pytest.raises(ValueError, match="is there and holds no features"):
        FeatureWriter(tmp_path, cuts, frames=2)
    with pytest.raises(ValueError, match="are too large for float16, up to 1e"):
        writer.write("wide", "00000", np.full((2, 2), 1e6), "float16")
    with pytest.raises(ValueError, match=r"a variant's name is a folder's name.*found '\.\./up'"):
        writer.begin("../up", NOTE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": ("wyde",)}, r"has no features 'wyde' \(did you mean 'wide'"),
        ({"width": 4}, "have width 3, and clip.features.width is 4"),
        ({"segments": 3}, "clip.features.segments is 3, and .* has clips of 4 segments"),
        ({"store": "nowhere"}, "nowhere is not a feature store: it has no store.json"),
        ({"variants": ()}, r"is a list of names, as in \('d-768',\); found \(\)"),
        ({"kind": 1}, "clip.features has an unknown key 'kind'"),
    ],
)
def test_what_a_config_gets_wrong_is_said(store, tiny_table, tiny_tokenizer, changes, words):
    with pytest.raises(ValueError, match=words):
        wanted = ClipSpec(text_length=6, features=section(store, "wide") | changes)
        train_stream(tiny_table, tiny_tokenizer, wanted, seed=0, batch_size=4)


def test_features_and_frames_exclude_each_other(store, tiny_table, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"clip.size says which frames; leave out size, views, or features"):
        spec(store, "wide", size=16, views=2)
    frames = ClipSpec(3, 16, {"name": "segments"}, {"name": "center"}, 6, fields=("label",))
    sources = [Source(tiny_table, each) for each in (spec(store, "wide"), frames)]
    with pytest.raises(ValueError, match=r"clip.frames is 0 and 3"):
        mixture_stream(sources, tiny_tokenizer, seed=0, batch_size=4)
    other = tiny_table.select([0, 1])
    moved = ClipTable.from_columns(
        {name: other.arrow(name).to_pylist() for name in ("video", "texts", "label")}
        | {"start": [0.0, 0.125], "end": [1.0, 1.0]}
    )
    with pytest.raises(ValueError, match=r"2 of 2 clips of the table have no features in .* row 0 \(north, 0.0 to 1.0"):
        RowFeatures(moved, FeatureSpec(**section(store, "wide")))
    with pytest.raises(BrokenVideo, match="row 7 could not be read when its features were extracted"):
        RowFeatures(tiny_table, FeatureSpec(**section(store, "wide"))).read(7, 0, np.empty((SEGMENTS, WIDTH)))


def test_an_identity_knows_the_clips_and_the_models_and_no_place(store, tmp_path, tiny_table):
    write(tmp_path / "copy", tiny_table)
    one, other = (identity(FeatureSpec(**section(path, "wide"))) for path in (store, tmp_path / "copy"))
    assert one == other != identity(FeatureSpec(**section(store, "wide", "narrow")))


@pytest.mark.parametrize(
    ("window", "stride", "seconds"),
    [
        ("4 frames", "4 frames", (0.5, 0.5)),
        ("0.1 s", "0.1 seconds", (0.1, 0.1)),
        ("16 frames", "1 frame", (2.0, 0.125)),
    ],
)
def test_windows_are_all_that_fit_into_each_different_clip(make_store, window, stride, seconds):
    """Videos are of four seconds at eight frames a second."""
    clips = [("north", 0.3, 2.0), ("east", 1.0, 1.05), ("north", 0.3, 2.0), ("north", 0.5, 9.0)]
    columns = dict(zip(("video", "start", "end"), zip(*clips, strict=True), strict=True))
    columns |= {"texts": [["who?"]] * 4, "clip": ["a/b", "c", "a/b", "d"]}
    table = ClipTable.from_columns({name: list(values) for name, values in columns.items()}, store=make_store())
    cuts = windows(table, window=window, stride=stride, name_column="clip")
    expected, counts = [], []
    for number in (0, 1, 3):
        video, start, end = clips[number]
        counts.append(0)
        at, end = start, min(end, 4.0)
        while not counts[-1] or at + seconds[0] <= end + 1e-9:
            expected.append((video, at, min(at + seconds[0], end)))
            counts[-1] += 1
            at += seconds[1]
    found = list(zip(*(cuts.clips.column(name) for name in ("video", "start", "end")), strict=True))
    assert [video for video, *_ in found] == [video for video, *_ in expected]
    np.testing.assert_allclose([clip[1:] for clip in found], [clip[1:] for clip in expected])
    assert cuts.index["count"].to_pylist() == counts == [piece.rows for piece in cuts.pieces]
    assert cuts.index["file"].to_pylist() == ["a%2Fb", "c", "d"]
    assert cuts.index["step"].to_pylist() == [seconds[1]] * 3
    assert cuts.index["span"].to_pylist() == [seconds[0]] * 3


def test_windows_that_cannot_be_are_said(tiny_table):
    with pytest.raises(ValueError, match="window is '4'; it is a length such as '16 frames'"):
        windows(tiny_table, window="4", stride="1 s", name_column="label")
    with pytest.raises(ValueError, match="column 'video' has 'north', the name of two clips at different seconds"):
        windows(tiny_table, window="1 s", stride="1 s")
