"""Accuracies and marginals against loops, and against cases worked by hand."""

import math

import numpy as np
import pytest

from vidlang.evals.metrics import classes


def test_accuracies_equal_a_loop():
    rng = np.random.default_rng(0)
    score = rng.integers(0, 4, (200, 9)).astype(float)
    score[rng.random(score.shape) < 0.05] = np.nan
    label = rng.integers(0, 8, 200)  # class 8 never occurs
    place = []
    for row, right in zip(score.tolist(), label, strict=True):
        key = [-math.inf if math.isnan(x) else x for x in row]
        place.append(sum(key[c] >= key[right] for c in range(9) if c != right))
    place = np.array(place)
    found = classes.summarize(score, label)
    assert found["top1"] == np.mean(place == 0) and found["top5"] == np.mean(place < 5)
    assert found["mean_class"] == pytest.approx(np.mean([np.mean(place[label == c] == 0) for c in range(8)]))
    assert 0 < found["top1"] < found["top5"] < 1


def test_a_rare_class_counts_as_much_as_a_common_one():
    score = np.eye(3)[[0, 0, 0, 0, 2]]
    found = classes.summarize(score, np.array([0, 0, 0, 1, 2]))
    assert found["top1"] == pytest.approx(4 / 5) and found["mean_class"] == pytest.approx(2 / 3)


def test_probabilities_are_those_of_float64():
    logits = np.array([[0.0, math.log(3.0), -2000.0], [1e4, 1e4, 0.0], [np.nan, 0.0, 1.0]], np.float32)
    found = classes.softmax(logits)
    np.testing.assert_allclose(found[:2], [[0.25, 0.75, 0], [0.5, 0.5, 0]], rtol=1e-7)
    assert np.isnan(found[2]).all() and found.dtype == np.float64


def test_a_part_has_the_sum_of_its_classes():
    part = classes.part_of(np.array([0, 2, 3, 0]), np.array([1, 1, 0, 1]), 5)
    assert part.tolist() == [1, -1, 1, 0, -1]
    score = np.array([[0.1, 0.2, 0.3, 0.15, 0.25]])
    np.testing.assert_allclose(classes.marginal(score, part, 3), [[0.15, 0.4, 0.0]])
    with pytest.raises(ValueError, match="class 2 has the parts 1 and 0"):
        classes.part_of(np.array([2, 2]), np.array([1, 0]), 5)


def test_heads_lie_side_by_side_in_order():
    score = np.arange(10).reshape(2, 5)
    found = classes.split(score, {"verb": 2, "noun": 3})
    assert found["verb"].tolist() == [[0, 1], [5, 6]] and found["noun"].tolist() == [[2, 3, 4], [7, 8, 9]]
    with pytest.raises(ValueError, match="gives 5 logits a clip, the option heads says 2 of 'verb' = 2"):
        classes.split(score, {"verb": 2})
