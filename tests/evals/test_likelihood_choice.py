"""Multiple choice by likelihood: the choice with the best mean (or sum) of log p wins, after each row's own prompt."""

import functools

import numpy as np
import pytest

from tests.evals.toys import Speaker, ToyData, ToyPredict, run_in_processes, speaking, table_of
from vidlang.data.tokenizer import Tokenizer, train_wordlevel
from vidlang.evals import likelihood_choice

SAID = ["a dog runs far", "a cat sits", "the ball rolls", "two birds", "a man sings", "snow falls"]
CLIPS = [" ".join(["red"] * number) for number in range(len(SAID))]
CHOICES = [
    ["a cat runs", "a dog runs", "the ball"],
    ["the cat", "a cat sits"],
    ["the ball rolls", "the ball falls"],
    ["two birds", "birds two"],  # a tie
    ["a man", "snow", "a bird sings", "two"],
    ["falls", "a man falls"],
]
ANSWERS = [1, 0, 0, 0, 2, 0]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    train_wordlevel([*SAID, "bird question answer what who where"], path)
    return Tokenizer(path, 12)


def run(tokenizer, table, *, batch_size=4, broken=(), end=-0.5, predict=Speaker, **options):
    model = predict(SAID, tokenizer, end=end)
    data = ToyData(table, CLIPS, batch_size=batch_size, broken=broken, tokenizer=tokenizer)
    return likelihood_choice.Evaluator(model, data, **options).run({}), model


def chosen(row, per, end):
    """Whether the right choice alone is best, by hand."""
    known = SAID[row].split()
    score = []
    for choice in CHOICES[row]:
        worth = [0.0 if word in known else -1.0 for word in choice.split()] + [end]
        score.append(sum(worth) / len(worth) if per == "token" else sum(worth))
    return sum(x >= score[ANSWERS[row]] for x in score) == 1


@pytest.mark.parametrize("per", ["token", "text"])
@pytest.mark.parametrize("end", [-0.5, -3.0, 0.0])
def test_the_likeliest_choice_is_taken_and_a_tie_is_wrong(tokenizer, per, end):
    table = table_of(choices=CHOICES, answer=ANSWERS)
    result, _ = run(tokenizer, table, end=end, per=per)
    assert result == {
        "accuracy": pytest.approx(np.mean([chosen(row, per, end) for row in range(6)])),
        "chance": pytest.approx(np.mean([1 / len(choices) for choices in CHOICES])),
        "count": 6.0,
        "missing": 0.0,
    }


def test_long_answers_lose_by_their_sum_and_not_by_their_mean(tokenizer):
    table = table_of(choices=[["a dog", "a dog runs far a cat"]] + [["a", "the"]] * 5, answer=[1] * 6)
    results = [run(tokenizer, table, end=-3.0, per=per)[0]["accuracy"] for per in ("token", "text")]
    assert results[0] > results[1]


def test_each_choice_follows_the_question_of_its_row(tokenizer):
    questions = ["what", "who", "where", "what what", "", "who"]
    table = table_of(choices=CHOICES, answer=ANSWERS, question=questions)
    result, predict = run(tokenizer, table, prompt="question {question} answer", batch_size=5)
    for sentence, question in zip(SAID, questions, strict=True):
        ids = tokenizer.encode([f"question {question} answer"])[0]
        assert predict.heard[sentence] == {tuple(ids[: np.argmax(ids == tokenizer.end_id)].tolist())}
    # What is asked before a choice is no part of it.
    assert result == run(tokenizer, table)[0]


@pytest.mark.parametrize("batch_size", [1, 4, 5, 64])
def test_padding_is_never_counted(tokenizer, batch_size):
    table = table_of(choices=CHOICES, answer=ANSWERS, kind=["x", "y"] * 3)
    result, _ = run(tokenizer, table, batch_size=batch_size, broken=[2])
    right = {row: chosen(row, "token", -0.5) for row in (0, 1, 3, 4, 5)}
    assert result["accuracy"] == pytest.approx(np.mean(list(right.values())))
    assert result["accuracy_x"] == pytest.approx(np.mean([right[row] for row in (0, 4)]))
    assert result["accuracy_y"] == pytest.approx(np.mean([right[row] for row in (1, 3, 5)]))
    assert result["chance_x"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert (result["count"], result["missing"]) == (5, 1)


@pytest.mark.parametrize("count", [2, 3])
def test_processes_agree_with_one(tokenizer, count, monkeypatch):
    table = table_of(choices=CHOICES, answer=ANSWERS, question=["what"] * 6)
    expected, _ = run(tokenizer, table, broken=[1], prompt="{question}")
    results = run_in_processes(
        functools.partial(likelihood_choice.Evaluator, prompt="{question}"),
        table,
        CLIPS,
        count,
        monkeypatch,
        **speaking(SAID, tokenizer),
        broken=[1],
    )
    assert [result for result, _ in results] == [expected] * count


class Broken(Speaker):
    """Finds `right` for choices of one word, and `wrong` for others, where these are given."""

    right, wrong = np.nan, None

    def _likelihood(self, params, visual_BQD, text_BL, prompt_B):
        found_B2 = super()._likelihood(params, visual_BQD, text_BL, prompt_B)
        other_B2 = found_B2 if self.wrong is None else np.full_like(found_B2, self.wrong)
        return np.where(found_B2[:, 1:] == 2, self.right, other_B2)


class Lost(Broken):
    """Finds the right choice impossible, and no number for the wrong one."""

    right, wrong = -np.inf, np.nan


@pytest.mark.parametrize("predict", [Broken, Lost])
def test_a_likelihood_that_is_no_number_is_wrong(tokenizer, predict):
    table = table_of(choices=[["a", "the cat sings"]] * 6, answer=[0] * 6)
    assert run(tokenizer, table, predict=predict)[0]["accuracy"] == 0


@pytest.mark.parametrize(
    ("columns", "options", "broken", "message"),
    [
        ({}, {"per": "word"}, (), "per is 'word'; likelihoods are compared by one of token, text"),
        ({}, {"prompt": "{question}"}, (), "asks for the column 'question'"),
        ({"answer": [7] * 6}, {}, (), "row 0 of the table has 3 choices and answer 7"),
        ({}, {}, range(6), "none of the 6 clips could be read"),
        (
            {"choices": [["a " * 12, "b"]] * 6, "answer": [0] * 6, "q": ["a " * 12] * 6},
            {"prompt": "{q}"},
            (),
            "no room",
        ),
    ],
)
def test_what_cannot_be_asked_says_why(tokenizer, columns, options, broken, message):
    table = table_of(**{"choices": CHOICES, "answer": ANSWERS, **columns})
    with pytest.raises(ValueError, match=message):
        run(tokenizer, table, broken=broken, **options)


def test_a_model_without_likelihoods_is_refused_before_training(tokenizer):
    with pytest.raises(ValueError, match="has no method 'see'"):
        likelihood_choice.Evaluator(
            ToyPredict(), ToyData(table_of(choices=CHOICES, answer=ANSWERS), CLIPS, tokenizer=tokenizer)
        )
