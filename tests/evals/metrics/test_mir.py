"""mAP and nDCG of graded relevancy against loops written from their definitions, and against cases worked by hand."""

import math

import numpy as np
import pytest

from vidlang.evals.metrics import mir


def loop(scores, relevancies):
    """(average precision, nDCG) of one query by its definition; the less relevant of a tie come first."""
    key = [(-math.inf if math.isnan(s) else s) for s in scores]
    ranked = [relevancies[c] for c in sorted(range(len(scores)), key=lambda c: (-key[c], relevancies[c]))]
    precisions = [sum(ranked[: k + 1]) / (k + 1) for k, r in enumerate(ranked) if r == 1]
    relevant = sum(r > 0 for r in ranked)
    gain = [
        sum(r / math.log2(k + 2) for k, r in enumerate(order[:relevant])) for order in (ranked, sorted(ranked)[::-1])
    ]
    return (
        sum(precisions) / len(precisions) if precisions else math.nan,
        gain[0] / gain[1] if relevant else math.nan,
    )


def measured(scores, relevancies):
    ranked = mir.ranked(np.asarray(scores, float), np.asarray(relevancies, float))
    return mir.average_precision(ranked), mir.ndcg(ranked)


def test_they_equal_their_definitions():
    rng = np.random.default_rng(0)
    # Few values: many ties. Rows 0 and 1 have nothing that fits, or nothing that fits wholly.
    scores = rng.integers(0, 5, (60, 17)).astype(float)
    scores[rng.random(scores.shape) < 0.1] = np.nan
    relevancies = rng.choice([0, 0, 0, 1 / 6, 0.25, 0.5, 1], scores.shape)
    relevancies[0], relevancies[1] = 0, 0.5
    found = measured(scores, relevancies)
    expected = np.array([loop(s, r) for s, r in zip(scores.tolist(), relevancies.tolist(), strict=True)]).T
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isnan(found[0][:2]).all() and np.isnan(found[1][0]) and not np.isnan(found[1][1:]).any()


def test_precision_counts_fractions_and_is_read_where_a_candidate_fits_wholly():
    # In order of scores: 0.5, 1, 0, 1. Sums: 0.5, 1.5, 1.5, 2.5. Read at ranks 2 and 4.
    precision, gain = measured([[4.0, 3.0, 2.0, 1.0]], [[0.5, 1.0, 0.0, 1.0]])
    assert precision[0] == pytest.approx((1.5 / 2 + 2.5 / 4) / 2)
    # Three are relevant at all, so only three ranks count; best order: 1, 1, 0.5.
    best = 1 + 1 / math.log2(3) + 0.5 / 2
    assert gain[0] == pytest.approx((0.5 + 1 / math.log2(3)) / best)


def test_of_yes_and_no_it_is_the_textbook():
    # Right ones at ranks 1, 3 and 6 of ten: (1/1 + 2/3 + 3/6) / 3.
    right = np.zeros((1, 10))
    right[0, [0, 2, 5]] = 1
    precision, _ = measured(-np.arange(10.0)[None], right)
    assert precision[0] == pytest.approx((1 + 2 / 3 + 3 / 6) / 3)


def test_a_perfect_order_is_one_and_scores_that_are_all_the_same_are_the_worst():
    relevancy = np.array([[0.0, 1.0, 0.25, 1.0, 0.5]])
    assert measured(relevancy, relevancy)[1] == pytest.approx(1)
    same, reverse = measured(np.zeros((1, 5)), relevancy), measured(-relevancy, relevancy)
    assert same == reverse and same[0] < 0.6
    # Differences that only the order of summation makes are ties.
    assert measured(relevancy * 1e-15, relevancy) == same


def test_relevancy_is_the_mean_of_verb_and_nouns():
    found = mir.relevancy(np.array([3, 5, 3]), [[1], [1, 2], []], np.array([3, 4]), [[1, 2, 9], []])
    assert found.tolist() == [[(1 + 1 / 3) / 2, 0], [2 / 3 / 2, 0], [0.5, 0]]


@pytest.mark.parametrize(
    ("scores", "relevancies", "message"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2)), "one shape"),
        (np.zeros((1, 2)), np.array([[0.5, np.nan]]), "between 0 and 1"),
        (np.zeros((1, 2)), np.array([[0.5, 2.0]]), "between 0 and 1"),
    ],
)
def test_what_is_no_relevancy_is_refused(scores, relevancies, message):
    with pytest.raises(ValueError, match=message):
        mir.ranked(scores, relevancies)
