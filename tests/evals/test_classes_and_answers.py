"""Classification and open questions: views, heads, marginals, lists of answers; no text tower anywhere."""

import json

import numpy as np
import pytest

import vidlang.datasets
from tests.evals.toys import WORDS, ToyData, ToyPredict, TwoViews, run_in_processes, seen_counts, table_of, told_counts
from vidlang.evals import _tables, classification, question_answering

# Actions are colours and shapes: red ball 0, red box 1, green ball 2, green box 3, blue ball 4.
TRIPLES = [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1), (4, 2, 0)]
SEEN = ["red ball", "red box", "green ball", "green box", "blue ball", "red ball"]


class Classifier(ToyPredict):
    """Logits are those of `params` [words, classes]; there is no way to embed anything."""

    def _classify(self, params, video_BTHWC):
        return seen_counts(video_BTHWC) @ params

    def _embed_video(self, *_):
        raise AssertionError("a classifier embeds nothing")

    _embed_text = _embed_video


def labelled(labels=(0, 1, 2, 3, 4, 0)):
    triples = [TRIPLES[label] for label in labels]
    columns = dict(zip(("label", "verb_label", "noun_label"), map(list, zip(*triples, strict=True)), strict=True))
    return table_of(texts=[[]] * len(labels), **columns)


def weights(*rows):
    """[words, classes] from (words of a class, their logit)."""
    found = np.zeros((len(WORDS), len(rows)), np.float32)
    for column, (words, value) in enumerate(rows):
        found[[WORDS.index(word) for word in words.split()], column] = value
    return found


GOOD = weights(("red ball", 2), ("red box", 2), ("green ball", 2), ("green box", 2), ("blue ball", 2))


def classify(table, seen=SEEN, params=GOOD, make=ToyData, broken=(), **options):
    options = {"heads": {"label": 5}} | options
    return classification.Evaluator(Classifier(), make(table, seen, broken=broken), **options).run(params)


def test_a_perfect_classifier_and_one_that_sees_nothing():
    assert classify(labelled()) == {
        "label_top1": 1.0,
        "label_top5": 1.0,
        "label_mean_class": 1.0,
        "count": 6.0,
        "missing": 0.0,
    }
    blind = classify(labelled(), params=GOOD * 0)
    assert blind["label_top1"] == 0 and blind["label_top5"] == 1  # five classes in all, the right one last


def test_broken_clips_are_left_out_and_classes_count_alike():
    # Wrong: row 1, so class 1 is never right; class 0 is right twice.
    found = classify(labelled((0, 4, 2, 3, 4, 0)), broken=[3])
    assert found["label_top1"] == pytest.approx(4 / 5) and found["missing"] == 1
    assert found["label_mean_class"] == pytest.approx((1 + 1 + 0.5) / 3)


def test_verbs_are_summed_over_actions():
    # The single best action of "blue ball" is 4, of verb 2; but together the two reds are more probable.
    params = weights(("blue", 1.0), ("blue", 0.9), ("grows", 0), ("grows", 0), ("blue", 1.1))
    found = classify(
        labelled(), params=params, marginalize={"verb_label": 3, "noun_label": 2}, seen=["blue"] * 6, broken=range(1, 6)
    )
    p = np.exp([1.0, 0.9, 0, 0, 1.1])
    verbs, nouns = [p[0] + p[1], p[2] + p[3], p[4]], [p[0] + p[2] + p[4], p[1] + p[3]]
    assert np.argmax(p) == 4 and np.argmax(verbs) == 0 and np.argmax(nouns) == 0
    assert found["label_top1"] == 0 and found["verb_label_top1"] == 1 and found["noun_label_top1"] == 1


def test_other_tables_tell_what_actions_are_made_of(monkeypatch, caplog):
    loaded = []
    monkeypatch.setattr(_tables, "load_module", lambda *_: type("M", (), {"load": staticmethod(load)}))

    def load(split):
        loaded.append(split)
        return labelled((1, 2, 3, 4))

    short = labelled((0, 0))
    options = {"marginalize": {"verb_label": 3, "noun_label": 2}}
    assert classify(short, seen=["red ball"] * 2, **options)["verb_label_top1"] == 1
    assert "4 of 5 actions are in no table" in caplog.text
    caplog.clear()
    # All of the probability is at an action that only the other table knows: of the same verb, another noun.
    params = weights(("red", 0), ("red", 9), ("grows", 0), ("grows", 0), ("grows", 0))
    options["tables"] = ({"name": "mine", "split": "train"},)
    found = classify(short, seen=["red"] * 2, params=params, **options)
    assert loaded == ["train"] and not caplog.text
    assert found["label_top1"] == 0 and found["verb_label_top1"] == 1 and found["noun_label_top1"] == 0


def test_views_count_by_the_mean_of_their_probabilities():
    # The second view has one ball more, and there is none of row 1. By mean logits class 0 would be the best.
    params = np.zeros((len(WORDS), 3), np.float32)
    params[WORDS.index("red")], params[WORDS.index("ball")] = (4, 4, -10), (0, -4, 20)
    first, second = np.array([4, 4, -10]), np.array([4, 0, 10])
    chances = [np.exp(logits) / np.exp(logits).sum() for logits in (first, second)]
    assert np.argmax(first + second) == 0 and np.argmax(chances[0] + chances[1]) == 2
    table = table_of(texts=[[]] * 3, label=[2, 0, 2])
    # Row 1 has one view, in which two classes tie.
    found = classify(table, ["red"] * 3, params, make=TwoViews, heads={"label": 3})
    assert found["label_top1"] == pytest.approx(2 / 3) and found["count"] == 3


def test_heads_are_split_in_their_order():
    params = np.concatenate([weights(("ball", 1), ("box", 1)), weights(("red", 1), ("green", 1), ("blue", 1))], axis=1)
    found = classify(labelled(), params=params, heads={"noun_label": 2, "verb_label": 3})
    assert found["noun_label_top1"] == 1 and found["verb_label_top1"] == 1
    with pytest.raises(ValueError, match="gives 5 logits a clip, the option heads says 2 of 'noun_label' = 2"):
        classify(labelled(), params=params, heads={"noun_label": 2})


def test_logits_that_are_not_finite_are_wrong_and_told(caplog):
    assert classify(labelled(), params=GOOD * np.nan)["label_top5"] == 1
    assert classify(labelled(), params=GOOD * np.nan)["label_top1"] == 0
    assert "6 of 6 clips have logits that are not finite" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {}}, "two classes or more"),
        ({"heads": {"kind": 3}}, "needs the columns kind; the table lacks kind"),
        ({"heads": {"label": 4}}, "row 4 of the table has label 4; with 4 classes expected 0 to 3"),
        ({"heads": {"label": 5}, "marginalize": {"label": 5}}, "'label' is both"),
        ({"heads": {"verb_label": 3}, "marginalize": {"noun_label": 2}}, "classes of the head 'label'"),
    ],
)
def test_heads_that_do_not_fit_the_table_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        classify(labelled(), params=GOOD[:, : sum(options["heads"].values())], **options)


class Answers(ToyPredict):
    """An answer scores by how often it is seen, if the question asks for anything."""

    def _answer(self, params, video_BTHWC, text_BL):
        return (seen_counts(video_BTHWC) * (told_counts(text_BL) @ params)[:, None])[:, :5]


ASKED = table_of(
    texts=[["red"], ["ball"], ["pink"], ["green"], ["blue"], ["red"]],
    question=["spins", "spins", "spins", "grows", "slides", "spins"],
    answers=[["red"], ["ball"], ["pink"], ["green"], ["blue", "green"], ["red"]],
    kind=["color", "object", "color", "color", "color", "color"],
    tags=[["a", "b"], ["a"], ["b"], ["b"], ["a"], ["b"]],
)
SHOWN = ["red red ball", "ball", "red", "green", "blue blue green", "red ball"]
LIST = ["red", "green", "blue", "ball", "box"]
ASKING = np.array([0, 0, 0, 0, 0, 1, 1, 0], np.float32)  # "grows" asks for nothing


def ask(table=ASKED, broken=(), **options):
    options = {"answers": LIST} | options
    return question_answering.Evaluator(Answers(), ToyData(table, SHOWN, broken=broken), **options).run(ASKING)


def test_an_answer_counts_where_it_is_the_right_text():
    # Right: 0, 1, 4. Wrong: 2 (not in the list), 3 (all scores the same), 5 (a tie with a wrong one).
    assert ask() == {
        "accuracy": 0.5,
        "accuracy_color": pytest.approx(2 / 5),
        "accuracy_object": 1.0,
        "listed": pytest.approx(5 / 6),
        "count": 6.0,
        "missing": 0.0,
    }
    found = ask(broken=[2], by=("tags",))
    assert found["accuracy"] == 3 / 5 and found["missing"] == 1 and found["listed"] == 1
    assert found["accuracy_tags_a"] == 1.0 and found["accuracy_tags_b"] == pytest.approx(1 / 3)
    assert "accuracy_color" not in found


def test_processes_agree_on_classes_and_answers(monkeypatch):
    def make(predict, data):
        return question_answering.Evaluator(predict, data, answers=LIST)

    results = run_in_processes(make, ASKED, SHOWN, 2, monkeypatch, predict=Answers, params=ASKING, batch_size=2)
    assert [result for result, _ in results] == [ask()] * 2

    def classes(predict, data):
        return classification.Evaluator(predict, data, heads={"label": 5})

    results = run_in_processes(classes, labelled(), SEEN, 2, monkeypatch, predict=Classifier, params=GOOD, batch_size=2)
    assert [result for result, _ in results] == [classify(labelled())] * 2


def test_the_list_comes_from_a_file_a_reader_or_a_table(tmp_path, monkeypatch):
    (tmp_path / "list.json").write_text(json.dumps(LIST))
    assert question_answering.answer_texts(str(tmp_path / "list.json")) == LIST
    (tmp_path / "msrvtt_qa_answer_list.json").write_text(json.dumps(LIST[::-1]))
    section = {"name": "msrvtt_qa", "split": "train", "root": str(tmp_path), "store": "nowhere"}
    assert question_answering.answer_texts(section) == LIST[::-1]
    # A reader that is found by its name, with what its table has.
    (tmp_path / "mine.py").write_text(
        "from vidlang.data.clips import ClipTable\n"
        "def load(split, *, places=None):\n"
        "    rows = {'video': ['v'] * 4, 'start': [0.0] * 4, 'end': [1.0] * 4, 'texts': [[]] * 4,\n"
        "            'answers': [['yes'], ['no'], ['a lot'], ['no']]}\n"
        "    return ClipTable.from_columns(rows | ({'answer': list(places)} if places else {}))\n"
    )
    monkeypatch.setattr(vidlang.datasets, "__path__", [*vidlang.datasets.__path__, str(tmp_path)])
    mine = {"name": "mine", "split": "train"}
    assert question_answering.answer_texts(mine) == ["a lot", "no", "yes"]
    assert question_answering.answer_texts({**mine, "places": (1, 2, 0, 2)}) == ["a lot", "yes", "no"]
    with pytest.raises(ValueError, match="3 different places, up to 5"):
        question_answering.answer_texts({**mine, "places": (1, 5, 0, 5)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": LIST[:4]}, "answers with one of 5, the option answers lists 4"),
        ({"answers": ["red"]}, "two texts or more"),
        ({"normalise": "lose"}, "did you mean 'loose'"),
        ({"agree": 0}, "at least 1; found 0"),
        ({"by": ("sort",)}, "lacks sort"),
        ({"table": table_of(question=["red"], answers=[[]])}, "row 0 of the table has none"),
    ],
)
def test_questions_that_cannot_be_judged_say_why(options, message):
    with pytest.raises(ValueError, match=message):
        ask(**options)
