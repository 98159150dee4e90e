"""Embeddings of a whole table are those of the model, each clip once, however the work was cut up or cut off."""

import json

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import vidlang
from tests.serve.tiny_run import tiny_run
from vidlang.data.bulk_store import EMBEDDINGS, check, require_complete
from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.serve.bulk import Look, embed
from vidlang.serve.bulk_model import digest
from vidlang.serve.bulk_work import filled_up, kept_columns
from vidlang.serve.portable import save_portable
from vidlang.train import build
from vidlang.train.extract import Part

BOTH = ("videos", "texts")
# Files of five clips, in batches of four: the last batch of each is filled up.
LOOK = Look(dtype="float32", batch_size=4)


@pytest.fixture(scope="module")
def table(corpus):
    """Sixteen clips, one of which has no sentence and one two more."""
    found = build.table({**corpus, "split": "train"}, "data")
    columns = {name: found.column(name) for name in ("video", "start", "end", "texts")}
    columns["texts"] = [[], *(each[:1] for each in columns["texts"][1:-1]), ["a red", "b"]]
    columns["tag"] = [f"clip {row}" for row in range(len(found))]
    return ClipTable.from_columns(columns, store=found.store)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tiny_run(tmp_path_factory.mktemp("run"))[0]


@pytest.fixture(scope="module")
def make(run, table):
    def embedded(out, run=run, clips=table, **options):
        settings = {"what": BOTH, "look": LOOK, "columns": ("tag",), "shard_rows": 5}
        return embed(run, clips, out, **settings | options)

    return embedded


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "embeddings"
    told = make(out)
    assert (told.done, told.total, told.sentences, told.broken) == (16, 16, 16, 0)
    assert told.standing == ["videos: 4 of 4 files", "texts: 4 of 4 files"] and "clips/s" in str(told)
    return out


def content(folder):
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: kept for name, kept in found.items() if not name.endswith(".partial")}


def read(folder, kind):
    return pa.concat_tables([pq.read_table(path) for path in sorted((folder / kind).glob("*.parquet"))])


def vectors(folder, kind):
    column = read(folder, kind)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def test_every_clip_is_there_once_with_what_the_model_says_of_it(whole, run, table):
    loaded, videos = vidlang.load(run), read(whole, "videos")
    assert videos["row"].to_pylist() == list(range(16))
    (whole / "videos" / ".00000.parquet.1234.partial").touch()  # another process, in the middle of it
    assert pq.read_table(whole / "videos").equals(videos), "the folder is read as one table"
    (whole / "videos" / ".00000.parquet.1234.partial").unlink()
    assert videos.column_names == ["row", "video", "start", "end", "tag", "embedding"]
    for name in ("video", "start", "end", "tag"):
        assert videos[name].to_pylist() == list(table.column(name))
    assert videos.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    np.testing.assert_allclose(vectors(whole, "videos"), loaded.embed_video(table), atol=1e-5)
    assert np.ptp(vectors(whole, "videos"), axis=0).max() > 1e-2, "clips differ"


def test_every_sentence_is_there_once_beside_its_clip(whole, run, table):
    texts = read(whole, "texts")
    wanted = [(row, place, text) for row, each in enumerate(table.column("texts")) for place, text in enumerate(each)]
    assert list(zip(*(texts[name].to_pylist() for name in ("row", "place", "text")), strict=True)) == wanted
    assert texts["tag"].to_pylist() == [f"clip {row}" for row, _, _ in wanted]
    expected = vidlang.load(run).embed_text([text for _, _, text in wanted])
    np.testing.assert_allclose(vectors(whole, "texts"), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [1, 3, 4, 6, 8, 11])
def test_what_was_killed_goes_on_to_the_same_bytes(make, whole, tmp_path, killed_at, moment):
    """Killed when the n-th file was written and not yet in its place: header, notes and Parquet files."""
    with killed_at(moment, "vidlang.data.bulk_store"):
        make(tmp_path / "out")
    assert content(tmp_path / "out") != content(whole)
    made = len(list((tmp_path / "out" / "videos").glob("*.parquet")))
    assert make(tmp_path / "out").done == 16 - min(16, 5 * made), "what is there is not made again"
    assert content(tmp_path / "out") == content(whole)
    assert not list((tmp_path / "out").rglob("*.partial")), "what was left half written is gone"


def test_parts_join_to_the_whole_and_share_no_file(make, whole, tmp_path):
    seen = set()
    for number in (2, 0, 1):
        told = make(tmp_path / "out", part=Part(number, 3))
        there = {name for name in content(tmp_path / "out") if name.endswith(".parquet")}
        assert len(there - seen) == (4 if number == 0 else 2) and told.done == (6 if number == 0 else 5)
        seen = there
        if number:
            continue
        with pytest.raises(ValueError, match="not complete: videos: 3 of 4 files, 11 clips; missing are 00001"):
            require_complete(tmp_path / "out", EMBEDDINGS)
    assert content(tmp_path / "out") == content(whole)
    assert make(tmp_path / "out").done == 0
    counted = [(each.kind.name, each.files, each.lines) for each in require_complete(tmp_path / "out", EMBEDDINGS)]
    assert counted == [("videos", 4, 16), ("texts", 4, 16)]


def test_texts_added_later_are_the_same(make, whole, tmp_path):
    for kind in BOTH:
        make(tmp_path / "out", what=(kind,))
    assert content(tmp_path / "out") == content(whole)


def test_half_precision_is_kept_as_such(make, whole, tmp_path):
    make(tmp_path / "out", what=("videos",), look=Look(batch_size=8))
    assert read(tmp_path / "out", "videos").schema.field("embedding").type == pa.list_(pa.float16(), 8)
    np.testing.assert_allclose(vectors(tmp_path / "out", "videos"), vectors(whole, "videos"), atol=2e-3)


def test_a_clip_that_cannot_be_read_is_nan_counted_and_changes_no_other(make, whole, table, tmp_path, monkeypatch):
    store = type(open_store(table.store))
    decode, gone = store.decode, [(table.cell(row, "video"), table.cell(row, "start")) for row in (1, 4, 15)]

    def broken(self, video, times_T, *args, **kwargs):
        if any(video == name and start <= times_T[0] < start + 0.99 for name, start in gone):
            raise OSError("gone")
        return decode(self, video, times_T, *args, **kwargs)

    monkeypatch.setattr(store, "decode", broken)
    monkeypatch.setattr("vidlang.data.fetch.QUICK_WAITS", ())
    told = make(tmp_path / "out", what=("videos",))
    found, expected = vectors(tmp_path / "out", "videos"), vectors(whole, "videos").copy()
    bad = np.flatnonzero(np.isnan(found).any(axis=1))
    assert {1, 4, 15} <= set(bad.tolist()) and len(bad) == told.broken < 8 and np.isnan(found[bad]).all()
    expected[bad] = np.nan
    np.testing.assert_array_equal(found, expected)
    (checked,) = check(tmp_path / "out", EMBEDDINGS)
    assert (checked.lines, checked.broken) == (16, told.broken)
    assert str(checked).endswith(f"16 clips, {told.broken} of which could not be read and are NaN")


def test_a_damaged_or_foreign_file_is_found(make, whole, tmp_path):
    make(tmp_path / "out")
    path = tmp_path / "out" / "videos" / "00001.parquet"
    kept = path.read_bytes()
    path.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="00001.parquet cannot be read .* remove it and give the command again"):
        check(tmp_path / "out", EMBEDDINGS)
    path.write_bytes((tmp_path / "out" / "videos" / "00002.parquet").read_bytes())
    with pytest.raises(ValueError, match="00001.parquet does not hold rows 5 to 9 once each"):
        check(tmp_path / "out", EMBEDDINGS)
    path.write_bytes(kept)
    texts = tmp_path / "out" / "texts" / "00003.parquet"
    texts.write_bytes((tmp_path / "out" / "texts" / "00000.parquet").read_bytes())
    with pytest.raises(ValueError, match="00003.parquet does not hold rows 15 to 15"):
        check(tmp_path / "out", EMBEDDINGS)
    texts.unlink()
    first = tmp_path / "out" / "texts" / "00000.parquet"
    first.write_bytes((whole / "texts" / "00003.parquet").read_bytes())
    with pytest.raises(ValueError, match="00000.parquet does not hold rows 0 to 4"):
        check(tmp_path / "out", EMBEDDINGS)
    first.unlink()
    (tmp_path / "out" / "videos" / "00009.parquet").write_bytes(kept)
    with pytest.raises(ValueError, match="holds 1 Parquet file"):
        check(tmp_path / "out", EMBEDDINGS)


def test_other_settings_are_refused(make, whole, table, tmp_path):
    with pytest.raises(ValueError, match=r"videos/_model.json was made with other .* different are: clip.frames"):
        make(whole, look=Look({"frames": 2}, dtype="float32", batch_size=4))
    with pytest.raises(ValueError, match=r"videos/_model.json was made with other .* different are: dtype"):
        make(whole, look=Look(batch_size=4))
    with pytest.raises(ValueError, match=r"embeddings.json was made with other settings; different are: shard_rows"):
        make(whole, shard_rows=4)
    with pytest.raises(ValueError, match=r"different are: rows, table.fingerprint, table.rows"):
        make(whole, clips=table.select(range(5)))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(ValueError, match="is there and holds no embeddings; give a new folder"):
        make(tmp_path / "out")


def test_what_cannot_be_is_a_sentence_and_leaves_nothing(make, tmp_path):
    for options, words in {
        "what": (("audio",), "it is videos, texts or both"),
        "columns": (("narration",), "the table has no column 'narration'; it has video, start"),
        "look": (Look(dtype="int8"), "dtype must be one of float16, float32"),
        "shard_rows": (0, "shard_rows must be at least 1"),
        "step": (9, "no checkpoint of step 9"),
    }.items():
        value, sentence = words if isinstance(words, tuple) else (None, words)
        with pytest.raises(ValueError, match=sentence):
            make(tmp_path / "out", **{options: value})
    with pytest.raises(ValueError, match="clip has 'views'"):
        make(tmp_path / "out", look=Look({"views": 3}))
    assert not (tmp_path / "out").exists()


def test_a_portable_folder_embeds_as_its_run_does(make, whole, run, tmp_path):
    folder = save_portable(run, tmp_path / "portable")
    with pytest.raises(ValueError, match=r"texts/_model.json was made with other .* different are: .*parameters"):
        make(whole, run=folder, what=("texts",))
    told = make(tmp_path / "out", run=folder, what=("texts",))
    ones = {"a": np.ones(3), "b": {"c": np.ones(2)}}
    assert digest(ones) == digest({**ones}) != digest({**ones, "b": {"c": np.array([1.0, 2.0])}})
    params = jax.device_get(vidlang.load(run).params)
    assert json.loads((tmp_path / "out" / "texts" / "_model.json").read_text())["parameters"] == digest(params)
    assert told.sentences == 16
    np.testing.assert_allclose(vectors(tmp_path / "out", "texts"), vectors(whole, "texts"), atol=1e-6)
    np.testing.assert_array_equal(filled_up(range(5, 8), 2), [5, 6, 7, 7])


def test_columns_may_not_be_called_like_those_of_embeddings(table):
    clash = ClipTable.from_columns(
        {**{n: table.column(n) for n in ("video", "start", "end", "texts")}, "row": [0] * 16}
    )
    with pytest.raises(ValueError, match="'row' has a name that embeddings have for their own"):
        kept_columns(clash, ["row"], EMBEDDINGS)
    assert kept_columns(table, ["tag", "video"], EMBEDDINGS) == ["video", "start", "end", "tag"]
    assert jax.process_count() == 1
