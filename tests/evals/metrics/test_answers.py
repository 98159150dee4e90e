"""What an answer is worth, by hand."""

import numpy as np
import pytest

from vidlang.evals.metrics import answers
from vidlang.evals.metrics.answers import Judge, exact, loose, won


def test_equal_as_texts():
    judge = Judge(["yes", "no", "Yes"], exact)
    assert judge.worth(["yes"]).tolist() == [1, 0, 0]
    assert judge.worth(["maybe"]).tolist() == [0, 0, 0]
    # Several people: any of them makes an answer right, and more do not make it righter.
    assert judge.worth(["no", "yes", "no"]).tolist() == [1, 1, 0]
    assert Judge(["yes", "no", "Yes"], loose).worth(["YES!"]).tolist() == [1, 0, 1]


def test_three_of_ten_people_make_an_answer_right():
    judge = Judge(["a cat", "dog", "cow"], loose, agree=3)
    given = ["cat"] * 7 + ["dog"] * 2 + ["pig"]
    np.testing.assert_allclose(judge.worth(given), [1, 2 / 3, 0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [(" The  red, ball ", "red ball"), ("it's", "it's"), ("ice-cream", "ice cream"), ("and", "and")],
)
def test_loose_texts(text, expected):
    assert answers.loose(text) == expected


def test_a_tie_for_the_best_takes_the_worst_of_them():
    worth = np.array([1.0, 0.5, 0.0])
    assert won(np.array([3.0, 1.0, 2.0]), worth) == 1
    assert won(np.array([3.0, 3.0, 2.0]), worth) == 0.5
    assert won(np.array([3.0, 3.0, 3.0]), worth) == 0
    assert won(np.array([np.nan, 1.0, 0.0]), worth) == 0.5
    assert won(np.full(3, np.nan), worth) == 0
