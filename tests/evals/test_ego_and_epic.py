"""EgoMCQ and EPIC-KITCHENS MIR give the answers worked by hand, and agree across processes."""

import numpy as np
import pytest

from tests.evals.toys import WORDS, ToyData, ToyPredict, run_in_processes, table_of
from vidlang.datasets import epic_kitchens
from vidlang.evals import egomcq, epic_mir

IDENTITY = np.eye(len(WORDS), dtype=np.float32)

# Three questions of three clips, their rows in no order: (query, choice, answer, kind, sentence, what is seen).
QUESTIONS = [
    (7, 1, 1, "intra", "red ball", "red ball"),
    (4, 0, 0, "inter", "green box", "green box"),
    (7, 0, 1, "intra", "red ball", "red box"),
    (9, 2, 0, "intra", "blue", "green"),
    (4, 2, 0, "inter", "green box", "green"),
    (9, 0, 0, "intra", "blue", "blue ball"),
    (7, 2, 1, "intra", "red ball", "ball"),
    (4, 1, 0, "inter", "green box", "box"),
    (9, 1, 0, "intra", "blue", "blue box"),
]
NAMES = ("query", "choice", "answer", "kind", "texts", "seen")


def questions(rows=QUESTIONS, **changes):
    columns = dict(zip(NAMES, map(list, zip(*rows, strict=True)), strict=True)) | changes
    seen = columns.pop("seen")
    return table_of(**{**columns, "texts": [[text] for text in columns["texts"]]}), seen


def mcq(rows=QUESTIONS, broken=(), **changes):
    table, seen = questions(rows, **changes)
    return egomcq.Evaluator(ToyPredict(), ToyData(table, seen, broken=broken)).run(IDENTITY)


def test_the_nearest_clip_is_taken_and_a_tie_is_wrong():
    # Question 9 has two clips with "blue": a tie.
    assert mcq() == {
        "accuracy": pytest.approx(2 / 3),
        "chance": pytest.approx(1 / 3),
        "accuracy_inter": 1.0,
        "count_inter": 1.0,
        "accuracy_intra": 0.5,
        "count_intra": 2.0,
        "count": 3.0,
        "missing": 0.0,
    }


def test_a_kind_keeps_its_name_when_it_is_alone():
    only = [row for row in QUESTIONS if row[3] == "intra"]
    found = mcq(only)
    assert found["accuracy_intra"] == 0.5 and "accuracy_inter" not in found


def test_a_question_that_lacks_a_clip_is_left_out():
    found = mcq(broken=[4])  # a wrong clip of question 4
    assert found["count"] == 2 and found["missing"] == 1 and found["accuracy"] == 0.5
    with pytest.raises(ValueError, match="each of the 3 questions lacks a clip"):
        mcq(broken=[0, 1, 3])


def test_questions_may_have_different_numbers_of_clips():
    assert (
        mcq(QUESTIONS + [(1, 0, 1, "inter", "grows", "red"), (1, 1, 1, "inter", "grows", "grows")])["accuracy_inter"]
        == 1
    )


def test_processes_agree_on_questions(monkeypatch):
    (table, seen), one = questions(), mcq()
    results = run_in_processes(egomcq.Evaluator, table, seen, 2, monkeypatch, params=IDENTITY, batch_size=2)
    assert [result for result, _ in results] == [one] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choice": [0, 0, 0, 2, 2, 0, 2, 1, 1]}, r"question 7 of the table has the choices \[0, 0, 2\]"),
        ({"answer": [1, 0, 2, 0, 0, 0, 1, 0, 0]}, "question 7 of the table has the answers"),
        ({"answer": [3, 0, 3, 0, 0, 0, 3, 0, 0]}, r"question 7 .* \[3, 3, 3\] .* one of its 3 clips"),
        ({"texts": ["red"] + [row[4] for row in QUESTIONS[1:]]}, "question 7 of the table must have the same sentence"),
    ],
)
def test_a_question_that_is_none_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        mcq(**changes)
    with pytest.raises(ValueError, match="EgoMCQ needs the columns query, choice and answer; the table lacks query"):
        egomcq.Evaluator(ToyPredict(), ToyData(table_of(choice=[0], answer=[0]), ["red"])).run(IDENTITY)


# (what is seen, told, verb, nouns): the fourth tells what the second does, of another class of noun.
ACTIONS = [
    ("red ball", "red ball", 0, [1]),
    ("green box", "green box", 0, [2]),
    ("blue spins", "blue", 3, [1, 2]),
    ("green grows", "green box", 0, [4]),
    ("ball slides", "slides ball", 5, [1]),
]


def kitchen(rows=ACTIONS):
    seen, told, verbs, nouns = zip(*rows, strict=True)
    ids = [f"P01_{row}" for row in range(len(rows))]
    table = table_of(texts=[[text] for text in told], verbs=[[verb] for verb in verbs], nouns=list(nouns), id=ids)
    return table, list(seen)


def by_definition(score, relevancy):
    """Means of both metrics over rows, written as sums."""
    precisions, gains = [], []
    for s, r in zip(score, relevancy, strict=True):
        ranked = r[np.lexsort((r, -s))]
        full = np.flatnonzero(ranked == 1)
        if len(full):
            precisions.append(np.mean([ranked[: k + 1].sum() / (k + 1) for k in full]))
        weights = 1 / np.log2(np.arange(2, 2 + (r > 0).sum()))
        gains.append((ranked[: len(weights)] * weights).sum() / (np.sort(r)[::-1][: len(weights)] * weights).sum())
    return np.mean(precisions), np.mean(gains)


@pytest.mark.parametrize("broken", [(), (4,)])
def test_mir_is_what_its_definition_gives(broken):
    table, seen = kitchen()
    found = epic_mir.Evaluator(ToyPredict(), ToyData(table, seen, broken=broken), chunk=2).run(IDENTITY)
    rows, sentences = [row for row in range(5) if row not in broken], [0, 1, 2, 4]
    count = lambda text: np.array([text.split().count(word) for word in WORDS])  # noqa: E731
    score = np.array([[count(seen[v]) @ count(ACTIONS[s][1]) for s in sentences] for v in rows])

    def fits(v, s):
        (_, _, verb, nouns), (_, _, other, others) = ACTIONS[v], ACTIONS[s]
        return ((verb == other) + len({*nouns} & {*others}) / len({*nouns} | {*others})) / 2

    relevancy = np.array([[fits(v, s) for s in sentences] for v in rows])
    for way, matrices in {"v2t": (score, relevancy), "t2v": (score.T, relevancy.T)}.items():
        precision, gain = by_definition(*matrices)
        assert found[f"{way}_map"] == pytest.approx(precision) and found[f"{way}_ndcg"] == pytest.approx(gain)
    for name in ("map", "ndcg"):
        assert found[name] == pytest.approx((found[f"v2t_{name}"] + found[f"t2v_{name}"]) / 2)
    # Clip 3 fits no sentence wholly: its sentence has the class of clip 1. Without clip 4, nor does the sentence of it.
    assert found["unfit"] == 1 + len(broken)
    assert (found["videos"], found["texts"], found["missing"]) == (len(rows), 4, len(broken))


def test_official_sentences_have_the_classes_of_their_narration(monkeypatch, caplog):
    table, seen = kitchen()
    listed = epic_kitchens.Sentences(
        ("red ball", "green box", "green box", "gone"), ("P01_0", "P01_1", "P01_3", "P99_0"), np.zeros(4, int)
    )
    asked = []
    monkeypatch.setattr(epic_kitchens, "sentences", lambda *where: asked.append(where) or listed)
    found = epic_mir.Evaluator(ToyPredict(), ToyData(table, seen), root="here", split="mir_train").run(IDENTITY)
    assert asked == [("here", "mir_train")]
    # Both of the same text are there, so clip 3 has a sentence of its own class; clips 2 and 4 fit none wholly.
    assert found["texts"] == 3 and found["unfit"] == 2
    assert "1 official sentences have no clip" in caplog.text
    other = table_of(texts=[["red"]], verbs=[[0]], nouns=[[1]], id=["P77_0"])
    with pytest.raises(ValueError, match="is it that split"):
        epic_mir.Evaluator(ToyPredict(), ToyData(other, ["red"]), root="here").run(IDENTITY)


def test_processes_agree_on_mir(monkeypatch):
    table, seen = kitchen()
    one = epic_mir.Evaluator(ToyPredict(), ToyData(table, seen)).run(IDENTITY)
    results = run_in_processes(epic_mir.Evaluator, table, seen, 2, monkeypatch, params=IDENTITY, batch_size=2)
    assert [result for result, _ in results] == [one] * 2


def test_what_has_no_relevancy_says_why():
    table, seen = kitchen()
    several = table_of(texts=[["red"]], verbs=[[0, 1]], nouns=[[1]])
    with pytest.raises(ValueError, match=r"row 0 of the table has the verbs \[0, 1\]"):
        epic_mir.Evaluator(ToyPredict(), ToyData(several, ["red"])).run(IDENTITY)
    with pytest.raises(ValueError, match="chunk must be at least 1"):
        epic_mir.Evaluator(ToyPredict(), ToyData(table, seen), chunk=0)
