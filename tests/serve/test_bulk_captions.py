"""Captions of a whole table are those of the captioner, each clip once, however the work was cut up or cut off."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vidlang.data.bulk_store import BROKEN, CAPTIONS, check, require_complete
from vidlang.data.clips import ClipTable
from vidlang.datasets import synthetic
from vidlang.serve.bulk_captions import narrate
from vidlang.serve.captions import Captioner, Timing
from vidlang.train.extract import Part

# Of files of three clips in batches of two: the first one's last batch is nothing but a clip that cannot be read.
UNREADABLE, ROWS, SAMPLES = (2, 3), 7, 2
DRAWN = {"how": "nucleus", "samples": SAMPLES, "seed": 3, "max_new": 5}


@pytest.fixture(scope="module")
def table(captioner_run):
    _, corpus = captioner_run
    clips = synthetic.load("val", annotations="pairs", **{name: corpus[name] for name in corpus if name != "name"})
    columns = {name: list(clips.column(name)[:ROWS]) for name in ("video", "start", "end", "texts")}
    for row in UNREADABLE:  # long past the videos' ends
        columns["start"][row], columns["end"][row] = 1000.0, 1001.0
    words = ["red", "", "circle circle red", "blue", "red square", "blue", "circle"]
    return ClipTable.from_columns({**columns, "words": words}, store=clips.store)


@pytest.fixture(scope="module")
def speaker(captioner_run):
    return Captioner(captioner_run[0], prompt="a {words}", decoding=DRAWN, batch_size=2, max_broken_share=0.5)


@pytest.fixture(scope="module")
def make(speaker, table):
    def made(out, speaker=speaker, clips=table, **options):
        speaker.timing = Timing()
        return narrate(speaker, clips, out, **{"columns": ("words",), "shard_rows": 3, **options})

    return made


@pytest.fixture(scope="module")
def whole(make, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "captions"
    make(out)
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def read(folder):
    return pq.read_table(folder / "captions")


def test_each_clip_is_there_once_with_what_is_said_of_it_by_itself(speaker, make, whole, table, tmp_path):
    said = make(tmp_path / "out")
    assert (said.done, said.total, said.sentences, said.broken) == (ROWS, ROWS, 10, 2)
    assert str(said).startswith("7 clips, 2 of which could not be read and have no caption, 10 sentences in ")
    assert (speaker.timing.clips, speaker.timing.broken) == (5, 2), "what fills up batches is not counted"
    assert content(tmp_path / "out") == content(whole)
    found = read(whole)
    assert found.column_names == [
        *("row", "video", "start", "end", "words", "prompt", "place", "caption", "score"),
    ]
    assert (found.schema.field("score").type, found.schema.field("place").type) == (pa.float32(), pa.int32())
    lines = found.to_pylist()
    expected = [(row, place) for row in range(ROWS) for place in range(1 if row in UNREADABLE else SAMPLES)]
    assert [(line["row"], line["place"]) for line in lines] == expected
    for line in lines:
        row = line["row"]
        assert all(line[name] == table.cell(row, name) for name in ("video", "start", "end", "words"))
        assert line["prompt"] == f"a {table.cell(row, 'words')}"
    assert [line["row"] for line in lines if line["caption"] is None] == list(UNREADABLE)
    # As the lines of JSON are made: in other batches, and with nothing that fills them up.
    told, spoken = [line for line in lines if line["caption"] is not None], list(speaker(table))
    assert [(line["row"], line["caption"]) for line in told] == [(each.row, each.caption) for each in spoken]
    np.testing.assert_allclose([line["score"] for line in told], [each.score for each in spoken], atol=1e-5)
    assert len({line["caption"] for line in told}) > 5, "clips and draws differ"


@pytest.mark.parametrize("moment", [1, 2, 3, 5])
def test_what_was_killed_goes_on_to_the_same_bytes(make, whole, tmp_path, killed_at, moment):
    """Killed when the n-th file was written and not yet in its place: header, note and Parquet files."""
    with killed_at(moment, "vidlang.data.bulk_store"):
        make(tmp_path / "out")
    made = len(list((tmp_path / "out").rglob("*.parquet")))
    assert made == max(0, moment - 3)
    assert make(tmp_path / "out").done == ROWS - 3 * made, "what is there is not made again"
    assert content(tmp_path / "out") == content(whole)


def test_parts_join_to_the_whole_and_share_no_file(make, whole, tmp_path):
    assert make(tmp_path / "out", part=Part(1, 2)).done == 3
    assert [path.name for path in sorted((tmp_path / "out" / "captions").glob("*.parquet"))] == ["00001.parquet"]
    with pytest.raises(ValueError, match="not complete: captions: 1 of 3 files, 5 lines, 1 .*missing are 00000, 00002"):
        require_complete(tmp_path / "out", CAPTIONS)
    told = make(tmp_path / "out", part=Part(0, 2))
    assert told.done == 4 and told.standing == ["captions: 3 of 3 files"]
    assert content(tmp_path / "out") == content(whole)
    assert make(tmp_path / "out").done == 0
    (checked,) = require_complete(tmp_path / "out", CAPTIONS)
    assert str(checked) == "captions: 3 of 3 files, 12 lines, 2 of them for clips that could not be read"


def lines_of(*chosen):
    return lambda table: table.take(list(chosen))


def changed(name, place, value):
    def change(table):
        values = table[name].to_pylist()
        values[place] = value
        return table.set_column(table.column_names.index(name), name, pa.array(values, table.schema.field(name).type))

    return change


@pytest.mark.parametrize(
    "damage",
    [
        lines_of(0, 1, 2, 3),  # row 2 is missing
        lines_of(0, 1, 2, 4),  # one of two captions is
        lines_of(0, 1, 1, 2, 3, 4),
        lines_of(2, 3, 0, 1, 4),
        changed("row", 4, 3),
        changed("place", 1, 0),
        changed("caption", 1, None),
        changed("score", 1, None),
        lambda table: table.replace_schema_metadata({BROKEN: "0"}),
        lambda table: changed("score", 1, None)(changed("caption", 1, None)(table)).replace_schema_metadata(
            {BROKEN: "2"}
        ),
    ],
)
def test_lines_that_are_not_as_they_were_made_are_found(copy, damage):
    """The first file holds two captions of row 0 and of row 1, and the line of row 2, which could not be read."""
    path = copy / "captions" / "00000.parquet"
    table = pq.read_table(path)
    assert table["row"].to_pylist() == [0, 0, 1, 1, 2]
    pq.write_table(damage(table), path)
    with pytest.raises(ValueError, match="00000.parquet does not hold rows 0 to 2 once each; remove it and make it"):
        check(copy, CAPTIONS)


def test_damaged_exchanged_and_foreign_files_are_found(copy, make, whole):
    first, second = (copy / "captions" / f"0000{number}.parquet" for number in (0, 1))
    kept = second.read_bytes()
    second.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(ValueError, match="00001.parquet cannot be read .* remove it and give the command again"):
        check(copy, CAPTIONS)
    second.write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match="00001.parquet does not hold rows 3 to 5 once each"):
        check(copy, CAPTIONS)
    second.unlink()
    assert make(copy).done == 3 and content(copy) == content(whole), "as check says"
    shutil.copy(first, copy / "captions" / "00003.parquet")
    with pytest.raises(ValueError, match="holds 1 Parquet file"):
        check(copy, CAPTIONS)
    (copy / "captions.json").unlink()
    with pytest.raises(ValueError, match="holds no captions: it has no captions.json; launch.caption makes one"):
        check(copy, CAPTIONS)


def test_other_settings_are_refused(captioner_run, make, whole, table):
    def other(**changes):
        options = {"prompt": "a {words}", "decoding": DRAWN, "batch_size": 2, **changes}
        return Captioner(captioner_run[0], **options)

    for options, different in {
        "seed": ({"speaker": other(decoding={**DRAWN, "seed": 4})}, "_model.json .* different are: decoding.seed"),
        "prompt": ({"speaker": other(prompt="the {words}")}, "_model.json .* different are: prompt"),
        "clip": ({"speaker": other(clip={"frames": 4})}, "_model.json .* different are: clip.frames"),
        "dials": ({"speaker": other(dials={"mask": 0.5})}, "_model.json .* different are: dials.mask"),
        "samples": ({"speaker": other(decoding={**DRAWN, "samples": 3})}, "captions.json .* different are: samples"),
        "shard_rows": ({"shard_rows": 4}, "captions.json .* different are: shard_rows"),
        "columns": ({"columns": ()}, "captions.json .* different are: columns"),
        "table": ({"clips": table.select(range(5))}, "different are: rows, table.fingerprint, table.rows"),
    }.values():
        with pytest.raises(ValueError, match=different):
            make(whole, **options)
    note = json.loads((whole / "captions" / "_model.json").read_text())
    assert note["stage"] == "caption" and note["step"] == 2 and len(note["config"]) > 8
    named = ClipTable.from_columns(
        {**{name: table.column(name) for name in ("video", "start", "end", "texts", "words")}, "score": [0.0] * ROWS},
        store=table.store,
    )
    with pytest.raises(ValueError, match="the column 'score' has a name that captions have for their own"):
        make(whole, clips=named, columns=("score",))


def test_too_many_unreadable_clips_are_an_error_once_all_is_written(captioner_run, make, table, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="2 of 2 clips could not be decoded"):
        make(tmp_path / "out", clips=table.select([2, 3]))
    (checked,) = require_complete(tmp_path / "out", CAPTIONS)
    assert (checked.lines, checked.broken) == (2, 2)
    monkeypatch.setattr("vidlang.data.broken._ENOUGH_FOR_SHARE", 1)
    assert make(tmp_path / "some").broken == 2, "half of them may be"
    strict = Captioner(captioner_run[0], prompt="a {words}", decoding=DRAWN, batch_size=2, max_broken_share=0.2)
    with pytest.raises(ValueError, match="allowed are 20.0%"):
        make(tmp_path / "strict", speaker=strict)


def test_room_for_words_does_not_depend_on_the_part(captioner_run, make, table, tmp_path, monkeypatch):
    """The longest prompt is in the first file, and leaves the fewest tokens to all."""
    for number, left in ((1, 16), (0, 16)):
        speaker = Captioner(captioner_run[0], prompt="{words}", batch_size=2)
        monkeypatch.setattr(speaker, "batches", lambda table, rows: ([[], []] for _ in range(len(rows) // 2)))
        make(tmp_path / "out", speaker=speaker, part=Part(number, 2))
        assert speaker.decoding.max_new == left
