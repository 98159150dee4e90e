"""Ranks agree with a loop that sorts, lose every tie, and do not depend on order or chunks."""

import numpy as np
import pytest

from vidlang.evals.metrics import ranking


def sorted_rank(scores, correct):
    """Sorts the candidates, wrong before correct among equals and NaN at the end, and reads off the first correct."""
    order = sorted(range(len(scores)), key=lambda c: (-np.nan_to_num(scores[c], nan=-np.inf), correct[c]))
    wrong_before = 0
    for candidate in order:
        if correct[candidate]:
            return wrong_before + 1
        wrong_before += 1
    raise AssertionError("no correct candidate")


def random_case(seed, queries=20, candidates=15):
    rng = np.random.default_rng(seed)
    # Few distinct values, so ties are common; some are NaN.
    scores = rng.integers(0, 6, (queries, candidates)).astype(np.float64)
    scores[rng.random(scores.shape) < 0.15] = np.nan
    correct = rng.random(scores.shape) < 0.15
    correct[np.arange(queries), rng.integers(0, candidates, queries)] = True
    return scores, correct


@pytest.mark.parametrize("seed", range(5))
def test_ranks_equal_sorting(seed):
    scores, correct = random_case(seed)
    expected = [sorted_rank(s, c) for s, c in zip(scores, correct, strict=True)]
    np.testing.assert_array_equal(ranking.ranks(scores, correct), expected)
    assert len(set(expected)) > 5


@pytest.mark.parametrize("value", [0.0, 0.7, -np.inf, np.nan])
def test_equal_scores_give_the_worst_rank(value):
    ranks = ranking.ranks(np.full((4, 9), value), np.eye(4, 9, dtype=bool))
    np.testing.assert_array_equal(ranks, 9)


def test_nan_is_never_best():
    scores = np.array([[np.nan, 0.1, 0.2], [0.3, np.nan, 0.1]])
    np.testing.assert_array_equal(ranking.ranks(scores, np.array([[1, 0, 0], [1, 0, 0]])), [3, 1])


def test_order_of_candidates_does_not_matter():
    scores, correct = random_case(7)
    order = np.random.default_rng(8).permutation(scores.shape[1])
    np.testing.assert_array_equal(ranking.ranks(scores, correct), ranking.ranks(scores[:, order], correct[:, order]))


def case_with_several_texts(seed, videos=13, width=6):
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 5, videos)
    text_video = rng.permutation(np.repeat(np.arange(videos), counts))
    # Small integers: sums are exact, so ties are true ties however they are computed.
    video = rng.integers(-2, 3, (videos, width)).astype(np.float32)
    text = (video[text_video] + rng.integers(-3, 4, (len(text_video), width))).astype(np.float32)
    return video, text, text_video


@pytest.mark.parametrize("chunk", [1, 5, 1000])
def test_retrieval_ranks_equal_brute_force(chunk):
    video, text, text_video = case_with_several_texts(chunk)
    t2v, v2t = ranking.retrieval_ranks(video, text, text_video, chunk=chunk)
    for i, owner in enumerate(text_video):
        scores = [float(sum(a * b for a, b in zip(text[i], v, strict=True))) for v in video]
        assert t2v[i] == sorted_rank(scores, [v == owner for v in range(len(video))])
    for v in range(len(video)):
        scores = [float(sum(a * b for a, b in zip(video[v], t, strict=True))) for t in text]
        per_caption = [
            1 + sum(scores[j] >= scores[i] and text_video[j] != v for j in range(len(text)))
            for i in range(len(text))
            if text_video[i] == v
        ]
        assert v2t[v] == min(per_caption), "a video's rank is that of its best-ranked caption"
    assert t2v.max() > 3 and v2t.max() > 3


def test_identical_embeddings_tie_whatever_the_matrix_product_rounds():
    rng = np.random.default_rng(0)
    one = rng.normal(size=67).astype(np.float32)
    video = np.tile(one / np.linalg.norm(one), (53, 1))
    text = rng.normal(size=(53, 67)).astype(np.float32)
    t2v, _ = ranking.retrieval_ranks(video, text, np.arange(53), chunk=7)
    np.testing.assert_array_equal(t2v, 53)
    _, v2t = ranking.retrieval_ranks(text, video, np.arange(53), chunk=7)
    np.testing.assert_array_equal(v2t, 53)


def test_an_embedding_that_is_not_finite_ranks_last():
    video, text = np.eye(5, dtype=np.float32), np.eye(5, dtype=np.float32)
    video[2] = np.nan
    t2v, v2t = ranking.retrieval_ranks(video, text, np.arange(5))
    np.testing.assert_array_equal(t2v, [1, 1, 5, 1, 1])
    np.testing.assert_array_equal(v2t, [1, 1, 5, 1, 1])


def test_summary_of_known_ranks():
    assert ranking.summarize(np.array([1, 2, 5, 6, 10, 11, 400, 1])) == {
        "r1": 0.25,
        "r5": 0.5,
        "r10": 0.75,
        "median_rank": 5.5,
        "mean_rank": 54.5,
    }


@pytest.mark.parametrize(("candidates", "correct"), [(4, 1), (7, 1), (12, 3), (5, 5)])
def test_chance_equals_shuffling(candidates, correct):
    rng = np.random.default_rng(0)
    scores = rng.random((40_000, candidates))
    flags = np.broadcast_to(np.arange(candidates) < correct, scores.shape)
    found, expected = ranking.summarize(ranking.ranks(scores, flags)), ranking.chance(candidates, correct=correct)
    median = expected.pop("median_rank")
    assert expected == {name: pytest.approx(found[name], rel=0.03) for name in expected}
    assert abs(median - found["median_rank"]) <= 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ranking.ranks(np.zeros((2, 3)), np.zeros((2, 3))), "query 0 has no correct candidate"),
        (lambda: ranking.ranks(np.zeros((2, 3)), np.zeros((2, 4))), "one shape"),
        (lambda: ranking.retrieval_ranks(np.ones((2, 3)), np.ones((2, 3)), np.array([0, 2])), "found 0 to 2"),
        (lambda: ranking.retrieval_ranks(np.ones((2, 3)), np.ones((2, 3)), np.array([0, 0])), "video 1 has no text"),
        (lambda: ranking.retrieval_ranks(np.ones((2, 3)), np.ones((2, 3)), np.array([0])), "2 texts but 1"),
        (lambda: ranking.retrieval_ranks(np.ones((0, 3)), np.ones((0, 3)), np.zeros(0, int)), "nothing to rank"),
        (lambda: ranking.summarize(np.zeros(0)), "no ranks"),
        (lambda: ranking.chance(3, correct=0), "found 0"),
    ],
)
def test_wrong_use_says_what_was_found(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_an_order_puts_ties_by_the_second_key():
    score = np.array([[1.0, 2.0, 2.0 + 1e-15, np.nan, 2.0]])
    last = np.array([[0.0, 0.5, 0.9, 0.0, 0.1]])
    assert ranking.order(score, last).tolist() == [[4, 1, 2, 0, 3]]


def reranked_by_sorting(score, correct, chosen, second):
    """Sorts the chosen ones by their second score and the others by the first, wrong before right among equals."""
    key = {c: (-np.nan_to_num(score[c], nan=-np.inf), correct[c]) for c in range(len(score)) if c not in chosen}
    first = sorted(range(len(chosen)), key=lambda i: (-np.nan_to_num(second[i], nan=-np.inf), correct[chosen[i]]))
    line = [chosen[i] for i in first] + sorted(key, key=key.__getitem__)
    found = next(place for place, c in enumerate(line) if correct[c])
    return found + 1


@pytest.mark.parametrize("count", [1, 4, 15])
def test_chosen_candidates_come_first_by_their_second_score(count):
    score, correct = random_case(3, queries=60)
    rng = np.random.default_rng(count)
    chosen = np.stack([rng.permutation(15)[:count] for _ in score])
    second = rng.integers(0, 3, chosen.shape).astype(float)
    second[rng.random(second.shape) < 0.1] = np.nan
    found = ranking.reranked(score, correct, chosen, second)
    cases = zip(score, correct, chosen.tolist(), second, strict=True)
    np.testing.assert_array_equal(found, [reranked_by_sorting(*case) for case in cases])
