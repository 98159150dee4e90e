"""The second look: a fake model's matches decide among the best by cosine and nowhere else."""

import numpy as np
import pytest

from tests.evals.toys import WORDS, ToyData, ToyPredict, TwoViews, run_in_processes, seen_counts, table_of, told_counts
from vidlang.evals import _rerank, retrieval

SEEN = ["red ball", "green box", "blue ball", "red box spins", "green ball slides", "blue box grows"]
TEXTS = [["red ball"], ["green box", "box"], ["blue ball"], ["red box"], ["slides", "ball"], ["box", "blue grows"]]
VALUES = np.random.default_rng(0).normal(size=(len(WORDS), 4)).astype(np.float32)
MATCH = np.random.default_rng(1).normal(size=(len(WORDS), len(WORDS)))


class Fusion(ToyPredict):
    """Tokens are what is seen, twice; the match of a clip and a text is a form of both."""

    def _video_tokens(self, params, video_BTHWC):
        seen = seen_counts(video_BTHWC)
        return np.stack([seen, 2 * seen], axis=1)

    def _match(self, params, tokens_BND, text_BL):
        assert tokens_BND.dtype == np.float32 and tokens_BND.shape[1] == 2
        return np.einsum("BV,VW,BW->B", tokens_BND.mean(axis=1), MATCH, told_counts(text_BL)) / 1.5


def counts(text):
    return np.array([text.split().count(word) for word in WORDS], float)


def by_loop(rerank, views):
    """Ranks of both directions; `views` gives the match of a clip's row and a text."""
    texts = sum(TEXTS, [])
    owner = np.repeat(np.arange(6), [len(told) for told in TEXTS])
    video, text = (np.stack([counts(words) @ VALUES for words in side]).astype(np.float32) for side in (SEEN, texts))
    cosine = (video.astype(np.float64) @ text.T.astype(np.float64)).round(12)
    match = np.array([[views(row, told) for told in texts] for row in range(6)])
    right = owner[None] == np.arange(6)[:, None]
    ranks = []
    for score, second, correct in ((cosine.T, match.T, right.T), (cosine, match, right)):
        found = []
        for s, m, r in zip(score, second, correct, strict=True):
            line = sorted(range(len(s)), key=lambda c: (-s[c], r[c]))
            best = sorted(line[:rerank], key=lambda c: (-m[c].round(9), r[c]))
            found.append(1 + [bool(r[c]) for c in best + line[rerank:]].index(True))
        ranks.append(found)
    return ranks


def run(rerank, make=ToyData, batch_size=4, predict=None, **options):
    evaluator = retrieval.Evaluator(
        predict or Fusion(), make(table_of(texts=TEXTS), SEEN, batch_size=batch_size), rerank=rerank, **options
    )
    return evaluator.run(VALUES)


@pytest.mark.parametrize("rerank", [1, 3, 100])
def test_the_best_by_cosine_are_ranked_by_match_and_the_others_stay(rerank):
    found = run(rerank, chunk=4)
    for way, ranks in zip(("t2v", "v2t"), by_loop(rerank, lambda row, told: match_of(row, told)), strict=True):
        assert found[f"{way}_mean_rank"] == np.mean(ranks)
        assert found[f"{way}_r1"] == np.mean(np.array(ranks) <= 1)


def match_of(row, told, extra=0.0):
    seen = counts(SEEN[row]) + extra * counts("ball")
    return seen @ MATCH @ counts(told)


def test_cosines_alone_are_told_too_and_equal_a_run_without_the_second_look():
    alone, found = run(0), run(3)
    measures = [name for name in alone if name[:3] in ("t2v", "v2t")]
    assert len(measures) == 10 and {f"cosine_{name}" for name in measures} <= set(found)
    assert all(found[f"cosine_{name}"] == alone[name] for name in measures)
    assert found["t2v_mean_rank"] != alone["t2v_mean_rank"]


def test_only_chosen_pairs_are_matched_in_batches_of_one_shape():
    predict = Fusion()
    run(2, predict=predict)
    # At most two for each of nine texts and six clips, and "box" is one text though it is told of two clips.
    assert set(predict.rows["match"]) == {4} and sum(predict.rows["match"]) <= 2 * (9 + 6) + 3
    everything = Fusion()
    run(100, predict=everything)
    assert sum(everything.rows["match"]) == -(-6 * 8 // 4) * 4


@pytest.mark.parametrize(
    ("ensemble", "combine"),
    [("lse", lambda m: np.log(np.mean(np.exp(m)))), ("mean", np.mean), ("max", np.max)],
)
def test_views_are_combined(ensemble, combine):
    # The cosines are those of the mean embedding, which one ball in two views changes.
    found = run(100, make=TwoViews, ensemble=ensemble)

    def views(row, told):
        return combine([match_of(row, told, extra) for extra in ((0.0,) if row == 1 else (0.0, 1.0))])

    expected = by_loop(100, views)
    assert found["t2v_mean_rank"] == np.mean(expected[0]) and found["v2t_mean_rank"] == np.mean(expected[1])


def test_a_clip_gains_nothing_by_having_more_views():
    scores, pair, views = np.array([1.5, 1.5, 1.5, 2.0]), np.array([0, 0, 0, 1]), np.array([3, 1])
    for ensemble in _rerank.ENSEMBLES:
        np.testing.assert_allclose(_rerank._combined(scores, pair, views, ensemble), [1.5, 2.0])


def test_a_model_that_sees_nothing_is_last_among_the_chosen():
    class Blind(Fusion):
        def _match(self, params, tokens_BND, text_BL):
            return np.zeros(len(text_BL))

    found = retrieval.Evaluator(Blind(), ToyData(table_of(texts=TEXTS), SEEN), rerank=3).run(VALUES * 0)
    # By cosine all tie too, so the right clip is not even among those that are looked at again.
    assert found["t2v_mean_rank"] == 6 and found["cosine_t2v_mean_rank"] == 6


def test_processes_agree(monkeypatch):
    one = run(3)
    results = run_in_processes(
        lambda predict, data: retrieval.Evaluator(predict, data, rerank=3),
        table_of(texts=TEXTS),
        SEEN,
        2,
        monkeypatch,
        predict=Fusion,
        params=VALUES,
        batch_size=2,
    )
    assert [result for result, _ in results] == [one] * 2


def test_what_cannot_be_looked_at_again_says_why():
    class Large(Fusion):
        def _video_tokens(self, params, video_BTHWC):
            return super()._video_tokens(params, video_BTHWC) * 1e5

    with pytest.raises(ValueError, match="too large for float16; set the option tokens_dtype to 'float32'"):
        run(3, predict=Large())
    assert run(3, predict=Large(), tokens_dtype="float32")["t2v_r1"] == run(3)["t2v_r1"]
    for options, message in (
        ({"rerank": -1}, "0 for none; found -1"),
        ({"rerank": 3, "ensemble": "sum"}, "unknown ensemble 'sum'"),
        ({"rerank": 3, "tokens_dtype": "float64"}, "unknown tokens_dtype 'float64'"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**options)
