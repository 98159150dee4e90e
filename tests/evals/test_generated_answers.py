"""Answers in words: right where they are what people said, as texts, after each row's own question."""

import pytest

from tests.evals.toys import Speaker, ToyData, run_in_processes, speaking, table_of
from vidlang.data.tokenizer import Tokenizer, train_wordlevel
from vidlang.evals import generated_answers

SAID = ["the dog", "two", "a ball rolls", "red", "red", "no"]
CLIPS = [" ".join(["red"] * number) for number in range(len(SAID))]
QUESTIONS = ["who runs", "how many", "what rolls", "which colour", "what", "who"]
# Right: as texts 1 and 4; without case, articles and punctuation also 0 and 3.
ANSWERS = [["dog"], ["three", "two"], ["ball"], ["RED!"], ["red"], ["yes"]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    train_wordlevel([*SAID, *QUESTIONS, "question answer"], path)
    return Tokenizer(path, 12)


def run(tokenizer, table, *, batch_size=4, broken=(), **options):
    predict = Speaker(SAID, tokenizer)
    data = ToyData(table, CLIPS, batch_size=batch_size, broken=broken, tokenizer=tokenizer)
    return generated_answers.Evaluator(predict, data, **options).run({}), predict


def asked(**columns):
    return table_of(**{"question": QUESTIONS, "answers": ANSWERS, **columns})


def test_an_answer_is_right_where_somebody_said_it(tokenizer):
    assert run(tokenizer, asked())[0] == {"accuracy": pytest.approx(4 / 6), "count": 6.0, "missing": 0.0}
    assert run(tokenizer, asked(), normalise="exact")[0]["accuracy"] == pytest.approx(2 / 6)


def test_each_row_is_asked_its_own_question(tokenizer):
    _, predict = run(tokenizer, asked())
    for row, question in enumerate(QUESTIONS):
        assert predict.heard[row] == tokenizer.encode([question])[0, : 1 + len(question.split())].tolist()
    _, predict = run(tokenizer, asked(), prompt="question {question} answer", decoding={"max_new": 2})
    assert len(predict.heard[1]) == 5 and {settings.max_new for settings in predict.settings} == {2}


def test_an_answer_that_is_cut_off_is_another(tokenizer):
    # The dog becomes the, which is nothing without articles.
    assert run(tokenizer, asked(), decoding={"max_new": 1})[0]["accuracy"] == pytest.approx(3 / 6)


def test_accuracy_by_kind_and_by_other_columns(tokenizer):
    table = asked(kind=["x", "y"] * 3, steps=["1", "1", "2", "2", "2", "2"])
    result, _ = run(tokenizer, table, by=("kind", "steps"))
    # Right: 0, 1, 3, 4.
    assert result["accuracy_x"] == pytest.approx(2 / 3) and result["accuracy_y"] == pytest.approx(2 / 3)
    assert result["accuracy_steps_1"] == 1 and result["accuracy_steps_2"] == pytest.approx(2 / 4)
    assert "accuracy_x" in run(tokenizer, table)[0] and "accuracy_steps_1" not in run(tokenizer, table)[0]


def test_a_broken_clip_is_left_out(tokenizer):
    result, _ = run(tokenizer, asked(), broken=[2, 5])
    assert result == {"accuracy": 1.0, "count": 4.0, "missing": 2.0}


def test_without_answers_the_texts_are_asked_for(tokenizer):
    assert run(tokenizer, table_of(question=QUESTIONS, texts=ANSWERS))[0]["accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_agree_with_one(tokenizer, count, monkeypatch):
    expected, _ = run(tokenizer, asked(), broken=[1])
    results = run_in_processes(
        generated_answers.Evaluator,
        asked(),
        CLIPS,
        count,
        monkeypatch,
        **speaking(SAID, tokenizer),
        broken=[1],
    )
    assert [result for result, _ in results] == [expected] * count


@pytest.mark.parametrize(
    ("columns", "options", "broken", "message"),
    [
        ({}, {"normalise": "lose"}, (), "unknown normalise 'lose'.*did you mean 'loose'"),
        ({}, {"by": ("kind",)}, (), "lacks kind"),
        ({}, {"prompt": "{ask}"}, (), "asks for the column 'ask'"),
        ({}, {"decoding": {"how": "best"}}, (), "decoding.how is 'best'"),
        ({"answers": [["a"], []] * 3}, {}, (), "row 1 of the table has none"),
        ({}, {}, range(6), "none of the 6 clips could be read"),
    ],
)
def test_what_cannot_be_asked_says_why(tokenizer, columns, options, broken, message):
    with pytest.raises(ValueError, match=message):
        run(tokenizer, asked(**columns), broken=broken, **options)
