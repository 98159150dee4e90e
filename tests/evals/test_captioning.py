"""Captioning gives the known scores of a model whose sentences are known, each row once, however many processes."""

import functools
import json

import numpy as np
import pytest

from tests.evals.toys import Speaker, ToyData, ToyPredict, TwoViews, run_in_processes, speaking, table_of
from vidlang.data.tokenizer import Tokenizer, train_wordlevel
from vidlang.datasets.synthetic import parse_events, sentences
from vidlang.evals import captioning
from vidlang.evals.metrics import caption_scores

# Twins: of each pair the same two events in the other order.
SAID = [
    "a red circle slides left then a blue star spins",
    "a blue star spins then a red circle slides left",
    "a green ring grows then a red cross bounces",
    "a red cross bounces then a green ring grows",
    "a white square blinks then a cyan ring shrinks",
    "a cyan ring shrinks then a white square blinks",
]
CLIPS = [" ".join(["red"] * number) for number in range(len(SAID))]
TOLD = [[text, f"first {text.replace(' then ', ' and after that ')}"] for text in SAID]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    train_wordlevel([*sentences.vocabulary(), "question answer"], path)
    return Tokenizer(path, 24)


def run(tokenizer, table, *, said=SAID, seen=CLIPS, batch_size=4, broken=(), **options):
    predict = Speaker(said, tokenizer)
    data = ToyData(table, seen, batch_size=batch_size, broken=broken, tokenizer=tokenizer)
    return captioning.Evaluator(predict, data, **options).run({}), predict


def test_captions_that_are_references_are_all_right(tokenizer):
    result, _ = run(tokenizer, table_of(texts=TOLD), parse="synthetic")
    assert result == pytest.approx(caption_scores.score(SAID, TOLD) | {name: result[name] for name in EXTRA})
    assert result["rouge_l"] == 1 and result["exact"] == result["order"] == result["parsed"] == 1
    assert result["count"] == 6 and result["missing"] == 0
    assert result["words"] == pytest.approx(np.mean([len(text.split()) for text in SAID]))


EXTRA = ("words", "count", "missing", "exact", "order", "parsed")


def test_events_in_the_wrong_order_are_wrong_and_sentences_of_no_grammar_too(tokenizer):
    said = [SAID[1], SAID[0], SAID[2], "a green ring", "a white circle blinks then a cyan ring shrinks", SAID[5]]
    result, _ = run(tokenizer, table_of(texts=TOLD), said=said, parse="synthetic")
    assert result["exact"] == pytest.approx(2 / 6)  # rows 2 and 5
    assert result["order"] == pytest.approx(3 / 6)  # row 4 too, whose first event has another shape
    assert result["parsed"] == pytest.approx(5 / 6)


def test_what_cannot_be_read_is_no_event_that_is_right(tokenizer):
    said, told = ["a green ring", *SAID[1:]], [["a ring is there"], *TOLD[1:]]
    result, _ = run(tokenizer, table_of(texts=told), said=said, parse="synthetic")
    assert result["exact"] == result["order"] == result["parsed"] == pytest.approx(5 / 6)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 6, 64])
def test_padding_is_never_counted(tokenizer, batch_size):
    table = table_of(texts=TOLD[::-1])
    assert run(tokenizer, table, batch_size=batch_size)[0] == run(tokenizer, table, batch_size=6)[0]


def test_a_broken_clip_and_its_references_are_left_out(tokenizer):
    said, rest = SAID[:3] + ["a ring"] + SAID[4:], [0, 1, 3, 4, 5]
    result, predict = run(tokenizer, table_of(texts=TOLD), said=said, broken=[2])
    without, _ = run(tokenizer, table_of(texts=[TOLD[i] for i in rest]), said=said, seen=[CLIPS[i] for i in rest])
    assert result == without | {"missing": 1.0}
    assert sorted(predict.heard) == rest


def test_each_clip_has_the_prompt_of_its_own_row(tokenizer, tmp_path):
    questions = ["", "what happens", "which shape moves first", "which shape moves last", "what happens", "how many"]
    table = table_of(texts=TOLD, question=questions)
    out = tmp_path / "new" / "said.jsonl"
    _, predict = run(tokenizer, table, prompt="question {question} answer", decoding={"max_new": 3}, out=str(out))
    for row, question in enumerate(questions):
        prompt = f"question {question} answer"
        assert predict.heard[row] == tokenizer.encode([prompt])[0, : 1 + len(prompt.split())].tolist()
    assert {settings.max_new for settings in predict.settings} == {3}
    assert {settings.stop_ids for settings in predict.settings} == {(tokenizer.end_id,)}
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert lines == [
        {"video": f"v{row}", "start": 0.0, "end": 1.0, "caption": " ".join(SAID[row].split()[:3]), "score": -3.0}
        | {"prompt": f"question {questions[row]} answer", "references": TOLD[row]}
        for row in range(6)
    ]


@pytest.mark.parametrize("count", [2, 3])
def test_processes_agree_with_one(tokenizer, count, monkeypatch, tmp_path):
    questions = ["", "what happens", "how many", "which shape moves last", "what", "what happens"]
    table = table_of(texts=TOLD, group=[0, 0, 1, 1, 2, 2], question=questions)
    options = {"blind": True, "parse": "synthetic", "prompt": "{question}"}
    expected, _ = run(tokenizer, table, broken=[1], out=str(tmp_path / "one.jsonl"), **options)
    results = run_in_processes(
        functools.partial(captioning.Evaluator, out=str(tmp_path / "all.jsonl"), **options),
        table,
        CLIPS,
        count,
        monkeypatch,
        **speaking(SAID, tokenizer),
        broken=[1],
    )
    assert [result for result, _ in results] == [expected] * count
    assert (tmp_path / "all.jsonl").read_text() == (tmp_path / "one.jsonl").read_text()


def test_blind_captions_tell_of_other_clips(tokenizer):
    table = table_of(texts=TOLD, group=[0, 0, 1, 1, 2, 2])
    result, predict = run(tokenizer, table, blind=True, parse="synthetic")
    others = captioning.derangement(table, np.arange(6))
    blind = caption_scores.score([SAID[other] for other in others], TOLD)
    assert result["exact"] == 1 and result["blind_exact"] == 0
    assert {name: result[f"blind_{name}"] for name in blind} == pytest.approx(blind)
    # Where a clip is broken, the others have another one among what is left.
    rest = [0, 1, 2, 4, 5]
    left, _ = run(tokenizer, table_of(texts=[TOLD[i] for i in rest]), seen=[CLIPS[i] for i in rest], blind=True)
    broken, _ = run(tokenizer, table_of(texts=TOLD), broken=[3], blind=True)
    assert broken == left | {"missing": 1.0}
    # What is seen of a clip is computed once.
    assert sum(predict.rows["see"]) == 8 and sum(predict.rows["generate"]) == 16


def test_another_clip_is_of_another_video_and_no_twin():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(rng.integers(4, 20))
        videos = [f"v{i}" for i in rng.integers(0, count // 2 + 2, count)]
        groups = [int(i) for i in rng.integers(0, count // 2 + 2, count)]
        table = table_of(video=videos, group=groups)
        rows = np.sort(rng.permutation(count)[: count - 1])
        fits = [
            [o for o in range(len(rows)) if videos[rows[o]] != videos[row] and groups[rows[o]] != groups[row]]
            for row in rows
        ]
        if not all(fits):
            with pytest.raises(ValueError, match="all clips are of one video or one group"):
                captioning.derangement(table, rows)
            continue
        found = captioning.derangement(table, rows)
        assert all(other in fit for other, fit in zip(found.tolist(), fits, strict=True))
        assert np.array_equal(found, captioning.derangement(table, rows))


def test_without_groups_each_clip_has_another_one_of_its_own():
    found = captioning.derangement(table_of(texts=[["a"]] * 9), np.arange(9))
    assert sorted(found.tolist()) == list(range(9)) and not (found == np.arange(9)).any()


def test_each_video_may_be_a_corpus_of_its_own(tokenizer):
    videos = ["x", "x", "y", "y", "y", "x"]
    table, said = table_of(texts=TOLD, video=videos), [*SAID[:5], SAID[0]]
    result, _ = run(tokenizer, table, said=said, aggregate="video", metrics=("cider", "bleu"))
    expected = caption_scores.score(said, TOLD, ("cider", "bleu"), videos=videos)
    assert {name: result[name] for name in expected} == pytest.approx(expected)
    assert result["cider"] != run(tokenizer, table, said=said)[0]["cider"]


def test_references_may_be_another_column_of_one_text_each(tokenizer):
    result, _ = run(tokenizer, table_of(summary=SAID, texts=[["a"]] * 6), references="summary")
    assert result["rouge_l"] == 1


@pytest.mark.parametrize(
    ("columns", "options", "broken", "message"),
    [
        ({}, {"metrics": ("cidr",)}, (), "unknown caption metric 'cidr'.*did you mean 'cider'"),
        ({}, {"aggregate": "clip"}, (), "aggregate is 'clip'"),
        ({}, {"references": "summary"}, (), "captioning needs the columns summary; the table lacks summary"),
        ({}, {"prompt": "{question}"}, (), "asks for the column 'question'"),
        ({}, {"decoding": {"beam": 3}}, (), "beam"),
        ({}, {"parse": "msrvtt"}, (), "the dataset 'msrvtt' has no grammar"),
        ({"texts": [["a"], []] * 3}, {}, (), "row 1 of the table has none"),
        ({}, {}, range(6), "none of the 6 clips could be read"),
        ({"texts": [["a dog runs"]] * 6}, {"parse": "synthetic"}, (), "reads none of the references, as 'a dog runs'"),
        ({"video": ["x"] * 6}, {"blind": True}, (), "all clips are of one video"),
    ],
)
def test_what_cannot_be_captioned_says_why(tokenizer, columns, options, broken, message):
    with pytest.raises(ValueError, match=message):
        run(tokenizer, table_of(**{"texts": TOLD, **columns}), broken=broken, **options)


def test_several_views_of_a_clip_are_refused(tokenizer):
    data = TwoViews(table_of(texts=TOLD), CLIPS, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="looks at one view of a clip.*set views=1 and crops=1"):
        captioning.Evaluator(Speaker(SAID, tokenizer), data).run({})


def test_a_model_that_says_nothing_is_refused_before_training(tokenizer):
    with pytest.raises(ValueError, match="has no method 'see'"):
        captioning.Evaluator(ToyPredict(), ToyData(table_of(texts=TOLD), CLIPS, tokenizer=tokenizer))


def test_the_sentences_here_are_of_the_corpus():
    assert all(parse_events(text) for texts in TOLD for text in texts)
