"""What a captioner says of a table's clips is what its model says of each by itself, in the table's order."""

import dataclasses

import jax
import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.crops import choose_crop
from vidlang.data.frames import choose_times
from vidlang.datasets import synthetic
from vidlang.evals.captioning import with_end
from vidlang.nn.generation import Decoding
from vidlang.serve import captions
from vidlang.serve.captions import Captioner, Timing
from vidlang.train.evaluate import restore_model

SHORT = {"max_new": 5}


@pytest.fixture(scope="module")
def table(captioner_run):
    _, corpus = captioner_run
    options = {key: value for key, value in corpus.items() if key != "name"}
    clips = synthetic.load("val", annotations="pairs", **options)
    columns = {name: clips.column(name)[:5] for name in ("video", "start", "end", "texts")}
    words = ["red", "", "circle circle red", "blue", "red square"]
    return ClipTable.from_columns({**columns, "words": words}, store=clips.store)


@pytest.fixture(scope="module")
def captioner(captioner_run):
    return Captioner(captioner_run[0], prompt="a {words}", decoding=SHORT, batch_size=2)


def by_itself(run, captioner, table, row, decoding):
    """The model's own text and score for one clip, decoded, looked at and asked for alone."""
    model, params, _ = restore_model(run)
    clip = table.row(row)
    store = open_store(table.store)
    info = store.info(clip["video"])
    crop = choose_crop(None, info.height, info.width, name="center")
    times_T = choose_times(None, clip["start"], clip["end"], 2, name="middle")
    video_BTHWC = store.decode(clip["video"], times_T, crop, (16, 16))[None]
    bound = model.bind({"params": jax.tree.map(np.asarray, params)})
    prompt_BL, length_B = captioner.tokenizer.encode_prompts([f"a {clip['words']}"])
    made = bound.generate(
        bound.see(video_BTHWC), prompt_BL[:, : length_B[0]], length_B, np.array([row]), settings=decoding
    )
    texts = captioner.tokenizer.decode(np.asarray(made.tokens_BSN)[0])
    return list(zip(texts, np.asarray(made.score_BS)[0].tolist(), strict=True))


def told(found):
    return [(each.row, each.caption) for each in found]


@pytest.mark.slow
def test_each_clip_is_told_as_the_model_tells_it_alone(captioner_run, captioner, table):
    found = list(captioner(table))
    assert [each.row for each in found] == [0, 1, 2, 3, 4]
    for each in found:
        [(text, score)] = by_itself(captioner_run[0], captioner, table, each.row, captioner.decoding)
        assert (each.caption, each.prompt) == (text, f"a {table.cell(each.row, 'words')}")
        assert each.score == pytest.approx(score, abs=1e-4)
        assert (each.video, each.start, each.end) == tuple(table.cell(each.row, n) for n in ("video", "start", "end"))
    assert len({round(each.score, 4) for each in found}) == 5, "clips and prompts matter"
    assert told(captioner(table, [3, 1])) == [told(found)[3], told(found)[1]]
    compiled = [jitted._cache_size() for jitted in captioner._predict._jitted.values()]
    assert compiled == [1, 1], "prompts of other lengths in another batch compile nothing anew"


@pytest.mark.slow
def test_what_is_drawn_depends_on_the_row_and_the_seed_alone(captioner_run, captioner, table):
    drawn = {"how": "nucleus", "samples": 2, "seed": 3, **SHORT}
    speaker = Captioner(captioner_run[0], prompt="a {words}", decoding=drawn, batch_size=4)
    whole = list(speaker(table))
    assert [each.row for each in whole] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert told(speaker(table, [4, 2])) == told([*whole[8:], *whole[4:6]])
    alone = by_itself(captioner_run[0], captioner, table, 4, with_end(Decoding(**drawn), captioner.tokenizer))
    assert [text for text, _ in alone] == [each.caption for each in whole[8:]]
    assert len({each.caption for each in whole}) > 5


def test_clips_that_cannot_be_read_are_counted_and_the_others_told(captioner_run, table):
    speaker = Captioner(captioner_run[0], prompt="", decoding=SHORT, batch_size=2)
    columns = {name: list(table.column(name)) for name in ("video", "start", "end", "texts")}
    whole = list(speaker(ClipTable.from_columns(columns, store=table.store)))
    for row in (0, 2, 3):  # long past the videos' ends; two of them are a batch
        columns["start"][row], columns["end"][row] = 1000.0, 1001.0
    broken = ClipTable.from_columns(columns, store=table.store)
    speaker.timing = Timing()
    found = list(speaker(broken))
    assert told(found) == told([whole[1], whole[4]])
    # Texts may be alike; scores are not.
    assert [each.score for each in found] == pytest.approx([whole[1].score, whole[4].score], abs=1e-5)
    assert speaker.timing.broken == 3 and "2 clips, 3 could not be read" in str(speaker.timing)
    with pytest.raises(ValueError, match="3 of 3 clips could not be decoded"):
        list(speaker(broken, [0, 2, 3]))


def test_a_prompt_is_found_too_long_before_anything_is_decoded(captioner_run, table, monkeypatch):
    monkeypatch.setattr(captions, "EvalData", None)
    words = ["red"] * 4 + ["red " * 20]
    columns = {name: table.column(name) for name in ("video", "start", "end", "texts")}
    long = ClipTable.from_columns({**columns, "words": words}, store=table.store)
    speaker = Captioner(captioner_run[0], prompt="{words}", decoding=SHORT)
    with pytest.raises(ValueError, match="has 21 tokens, and there is room for 12"):
        list(speaker(long))
    with pytest.raises(ValueError, match="asks for the column 'colour'"):
        list(Captioner(captioner_run[0], prompt="{colour}", decoding=SHORT)(table))


def test_of_equally_long_prompts_all_processes_look_at_the_same(captioner_run, table, monkeypatch):
    """Those that come last as words do; else shapes would differ by how each process lays out its sets."""
    monkeypatch.setattr(captions, "PROMPTS_AT_A_TIME", 100)
    words = ["z z z z", *(f"a{number:06d}" for number in range(400))]
    columns = {name: [table.cell(0, name)] * len(words) for name in ("video", "start", "end", "texts")}
    speaker = Captioner(captioner_run[0], prompt="{words}")
    speaker.fit(ClipTable.from_columns({**columns, "words": words}, store=table.store))
    assert speaker.decoding.max_new == 20 - 5, "of begin and four words"


@pytest.mark.slow
def test_runs_that_cannot_caption_say_so(captioner_run, table, monkeypatch):
    run, _ = captioner_run
    model, params, stage = restore_model(run)
    with pytest.raises(ValueError, match="a prompt of 2 tokens and 60 new ones do not fit into the 20"):
        list(Captioner(run, prompt="red", decoding={"max_new": 60})(table))
    speaker = Captioner(run, prompt="red")
    next(speaker(table))
    assert speaker.decoding.max_new == 18, "as many as there is room for, where nobody said how many"
    other = dataclasses.replace(stage, model={"name": "dual_encoder"})
    monkeypatch.setattr(captions, "restore_model", lambda *_, **__: (object(), params, other))
    with pytest.raises(ValueError, match="is of the model 'dual_encoder', which makes no texts"):
        Captioner(run)
    other = dataclasses.replace(stage, tokenizer="")
    monkeypatch.setattr(captions, "restore_model", lambda *_, **__: (model, params, other))
    with pytest.raises(ValueError, match="has no tokenizer to make words"):
        Captioner(run)


def test_a_diverged_model_is_not_listened_to(captioner_run, table):
    speaker = Captioner(captioner_run[0], prompt="", decoding=SHORT)
    speaker.params = jax.tree.map(lambda leaf: leaf * np.nan, speaker.params)
    with pytest.raises(ValueError, match="scores of the captions are NaN"):
        list(speaker(table))


def test_the_prompt_is_that_of_the_training_where_none_is_given(captioner_run, monkeypatch):
    model, params, stage = restore_model(captioner_run[0])
    prompted = dataclasses.replace(stage, clip={**stage.clip, "prompt": "a video of"})
    monkeypatch.setattr(captions, "restore_model", lambda *_, **__: (model, params, prompted))
    assert Captioner(captioner_run[0]).prompt.template == "a video of"
    assert Captioner(captioner_run[0], prompt="").prompt.template == ""


def test_times_without_the_first_batch_which_compiles():
    timing = Timing()
    timing.add({"decoding": 1.0, "looking": 20.0, "speaking": 30.0}, 4, 40)
    assert str(timing) == "4 clips; waited 1.0 s for decoding; first 4 clips, with compiling, 50.0 s"
    timing.add({"decoding": 1.0, "looking": 2.0, "speaking": 4.0}, 4, 40)
    assert "8 clips; waited 2.0 s" in str(timing)
    assert str(timing).endswith("then looked for 2.0 s (2 clips/s) and spoke for 4.0 s (10 tokens/s)")
