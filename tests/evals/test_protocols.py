"""Protocols give the known answer of a toy model, drop padding and broken clips, and agree across processes."""

import numpy as np
import pytest

from tests.evals.toys import WORDS, ToyData, ToyPredict, TwoViews, run_in_processes, seen_counts, table_of, told_counts
from vidlang.evals import _embed, multiple_choice, retrieval

SEEN = ["red ball", "green box", "blue ball", "red box spins", "green ball slides", "blue box grows"]
IDENTITY = np.eye(len(WORDS), dtype=np.float32)
UNIT_TEXTS = [
    ["red ball"],
    ["green box"],
    ["blue ball"],
    ["box spins", "spins"],
    ["slides"],
    ["grows", "blue box grows"],
]


def run(evaluator, table, seen=SEEN, params=IDENTITY, **data):
    return evaluator.Evaluator(ToyPredict(), ToyData(table, seen, **data)).run(params)


def test_a_perfect_model_finds_all():
    result = run(retrieval, table_of(texts=UNIT_TEXTS))
    assert result["videos"] == 6 and result["texts"] == 8 and result["missing"] == 0
    # "spins", "slides", "grows" are one video's alone; "red ball" is beaten by none and tied by none.
    assert result["t2v_r1"] == 1.0 and result["t2v_mean_rank"] == 1.0
    assert set(result) == {
        *(f"{way}_{name}" for way in ("t2v", "v2t") for name in ("r1", "r5", "r10", "median_rank", "mean_rank")),
        *("videos", "texts", "missing"),
    }


def test_a_video_counts_its_best_ranked_text():
    # Only "green ball slides" misses: "slides" scores 1, as does "red ball". Weak second texts hurt nobody.
    result = run(retrieval, table_of(texts=UNIT_TEXTS))
    assert result["v2t_r1"] == pytest.approx(5 / 6)
    scores = np.array([[sum(w in s.split() for w in t.split()) for t in sum(UNIT_TEXTS, [])] for s in SEEN])
    owner = np.repeat(np.arange(6), [len(t) for t in UNIT_TEXTS])
    ranks = [1 + ((scores[v] >= scores[v][owner == v].max()) & (owner != v)).sum() for v in range(6)]
    assert result["v2t_mean_rank"] == pytest.approx(np.mean(ranks))
    assert result["v2t_r1"] == pytest.approx(np.mean(np.array(ranks) == 1))


def test_a_model_that_sees_nothing_is_worst_not_lucky():
    blind = np.ones((len(WORDS), 3), np.float32) * 0
    result = run(retrieval, table_of(texts=UNIT_TEXTS), params=blind)
    assert result["t2v_r1"] == 0 and result["t2v_mean_rank"] == 6
    assert result["v2t_mean_rank"] == np.mean([8 - len(texts) + 1 for texts in UNIT_TEXTS])


@pytest.mark.parametrize("batch_size", [1, 4, 5, 6, 64])
def test_padding_is_never_counted(batch_size):
    expected = run(retrieval, table_of(texts=UNIT_TEXTS), batch_size=6)
    assert run(retrieval, table_of(texts=UNIT_TEXTS), batch_size=batch_size) == expected


def test_a_broken_clip_and_its_texts_are_left_out():
    result = run(retrieval, table_of(texts=UNIT_TEXTS), broken=[3])
    rest = [0, 1, 2, 4, 5]
    without = run(retrieval, table_of(texts=[UNIT_TEXTS[i] for i in rest]), seen=[SEEN[i] for i in rest])
    assert result == without | {"missing": 1.0}


@pytest.mark.parametrize("protocol", [retrieval, multiple_choice])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_agree_with_one(protocol, count, monkeypatch):
    table = table_of(texts=UNIT_TEXTS, choices=[["red", "blue"]] * 6, answer=[0, 0, 1, 0, 1, 1])
    expected = run(protocol, table, broken=[1])
    results = run_in_processes(
        protocol.Evaluator, table, SEEN, count, monkeypatch, params=IDENTITY, batch_size=2, broken=[1]
    )
    assert [result for result, _ in results] == [expected] * count
    shares = [sum(data.encoded, []) for _, data in results]
    assert all(shares) and len({tuple(share) for share in shares}) > 1, "each process feeds its own share"


def test_texts_are_embedded_once_and_keep_their_order():
    data, predict = ToyData(table_of(texts=UNIT_TEXTS), SEEN, batch_size=2), ToyPredict()
    predict.require("embed_text")
    texts = ["grows", "red ball", "grows", "box", "red ball"]
    text_TE = _embed.embed_texts(predict, data, IDENTITY, texts)
    assert predict.rows["embed_text"] == [2, 2]  # three different texts, padded to whole batches
    for row, text in zip(text_TE, texts, strict=True):
        assert {WORDS[i] for i in np.flatnonzero(row)} == set(text.split())


def test_multiple_choice_counts_answers_and_kinds():
    table = table_of(
        choices=[
            ["red ball", "blue ball"],
            ["box", "green box"],
            ["ball", "box"],
            ["red", "spins", "blue"],
            ["box", "slides"],
            ["ball", "grows"],
        ],
        answer=[0, 0, 0, 1, 1, 0],
        kind=["order", "order", "colour", "colour", "order", "colour"],
    )
    # Right: 0 (2 > 1), 2 (1 > 0), 4; wrong: 1 (1 < 2), 3 (tied with "red"), 5.
    result = run(multiple_choice, table)
    assert result == {
        "accuracy": 0.5,
        "chance": pytest.approx((5 / 2 + 1 / 3) / 6),
        "accuracy_order": pytest.approx(2 / 3),
        "chance_order": 0.5,
        "accuracy_colour": pytest.approx(1 / 3),
        "chance_colour": pytest.approx((1 + 1 / 3) / 3),
        "count": 6.0,
        "missing": 0.0,
    }


def test_multiple_choice_leaves_out_broken_clips():
    table = table_of(choices=[["red", "grows"]] * 6, answer=[0, 0, 0, 0, 0, 1])
    assert run(multiple_choice, table, broken=[1, 2])["accuracy"] == 3 / 4
    assert run(multiple_choice, table, broken=[1, 2])["missing"] == 2


def test_two_choices_that_the_model_cannot_tell_apart_are_wrong():
    table = table_of(choices=[["red ball", "ball red"]] * 6, answer=[0, 1] * 3)
    assert run(multiple_choice, table)["accuracy"] == 0


def test_embeddings_that_are_not_finite_are_wrong_and_told(caplog):
    params = np.full((len(WORDS), 4), np.nan, np.float32)
    table = table_of(texts=UNIT_TEXTS, choices=[["red", "blue"]] * 6, answer=[0] * 6)
    assert run(retrieval, table, params=params)["t2v_mean_rank"] == 6
    assert run(multiple_choice, table, params=params)["accuracy"] == 0
    assert "6 of 6 embeddings of clips are not finite" in caplog.text


@pytest.mark.parametrize(
    ("protocol", "columns", "broken", "message"),
    [
        (retrieval, {"texts": UNIT_TEXTS}, range(6), "none of the 6 clips could be read"),
        (retrieval, {"texts": [["red"], []] * 3}, (), "row 1 of the table has none"),
        (multiple_choice, {"texts": UNIT_TEXTS}, (), "lacks choices and answer"),
        (
            multiple_choice,
            {"choices": [["red", "blue"]] * 6, "answer": [0, 2] * 3},
            (),
            "row 1 .* 2 choices and answer 2",
        ),
        (multiple_choice, {"choices": [["red"]] * 6, "answer": [0] * 6}, (), "row 0 .* 1 choices"),
    ],
)
def test_what_cannot_be_evaluated_says_why(protocol, columns, broken, message):
    with pytest.raises(ValueError, match=message):
        run(protocol, table_of(**columns), broken=broken)


def test_views_of_a_clip_count_by_their_mean():
    predict = ToyPredict()
    predict.require("embed_video")
    once, _ = _embed.embed_clips(predict, ToyData(table_of(texts=UNIT_TEXTS), SEEN), IDENTITY)
    found, present = _embed.embed_clips(predict, TwoViews(table_of(texts=UNIT_TEXTS), SEEN), IDENTITY)
    want = once + 0.5 * np.eye(len(WORDS))[WORDS.index("ball")]
    want[1] = once[1]
    np.testing.assert_array_equal(found, want)
    assert present.all()


def test_a_row_that_comes_twice_is_refused():
    class Twice(ToyData):
        def batches(self):
            yield from super().batches()
            yield from super().batches()

    with pytest.raises(ValueError, match="repeats a row"):
        retrieval.Evaluator(ToyPredict(), Twice(table_of(texts=UNIT_TEXTS), SEEN)).run(IDENTITY)


def test_no_batches_is_an_error():
    class Empty(ToyData):
        def batches(self):
            return iter(())

    with pytest.raises(ValueError, match="nothing to evaluate"):
        retrieval.Evaluator(ToyPredict(), Empty(table_of(texts=UNIT_TEXTS), SEEN)).run(IDENTITY)


def test_a_question_goes_before_each_of_its_choices():
    table = table_of(choices=[["box", "ball"]] * 2, answer=[1, 1], question=["red", "blue"])
    data, predict = ToyData(table, ["red ball", "blue ball"]), ToyPredict()
    assert multiple_choice.Evaluator(predict, data, with_question=True).run(IDENTITY)["accuracy"] == 1
    assert sum(data.encoded, [])[:4] == ["red box", "red ball", "blue box", "blue ball"]
    with pytest.raises(ValueError, match="with_question needs the columns question; the table lacks question"):
        table = table_of(choices=[["box", "ball"]], answer=[1])
        multiple_choice.Evaluator(predict, ToyData(table, ["red"]), with_question=True).run(IDENTITY)


@pytest.mark.parametrize("rerank", [{}, {"rerank": 4}])
def test_clips_of_one_label_share_their_text(rerank):
    # Both balls are the answer to either "ball"; of the boxes, "red box" is one and "box" are two.
    table = table_of(texts=[["ball"], ["ball"], ["box"], ["box"], ["red box"]], label=[3, 3, 5, 5, 8])
    seen = ["red ball", "green ball", "box", "green box", "red box"]

    class Matching(ToyPredict):
        def _video_tokens(self, params, video_BTHWC):
            return seen_counts(video_BTHWC)[:, None]

        def _match(self, params, tokens_BND, text_BL):
            return (tokens_BND[:, 0] * told_counts(text_BL)).sum(axis=1)

    def found(**options):
        return retrieval.Evaluator(Matching(), ToyData(table, seen), **options, **rerank).run(IDENTITY)

    # Alone, each "ball" and each "box" ties with that of another row; shared, each "box" still does with the red one,
    # and the clips of "red ball", "box" and "green box" with the text "red box".
    assert found()["t2v_r1"] == 1 / 5 and found(shared=True)["t2v_r1"] == 3 / 5
    assert found()["v2t_r1"] == 1 / 5 and found(shared=True)["v2t_r1"] == 2 / 5
    with pytest.raises(ValueError, match="shared texts needs the columns label"):
        retrieval.Evaluator(ToyPredict(), ToyData(table_of(texts=[["red"]]), ["red"]), shared=True)
