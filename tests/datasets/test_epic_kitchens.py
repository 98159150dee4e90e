"""EPIC-KITCHENS-100 as published: actions, classes, and a relevancy that follows its definition."""

import csv
import io

import numpy as np
import pytest

from vidlang.datasets import epic_kitchens

HEADER = (
    "narration_id participant_id video_id narration_timestamp start_timestamp stop_timestamp start_frame stop_frame "
    "narration verb verb_class noun noun_class all_nouns all_noun_classes"
).split()
# narration, verb, verb_class, noun, noun_class, all_nouns, all_noun_classes
TAKE = ("take plate", "take", 0, "plate", 2, "['plate']", "[2]")
OPEN = ("open door, slowly", "open", 3, "door", 8, "['door']", "[8]")
CUT = ("cut onion with knife", "cut", 7, "onion", 16, "['onion', 'knife']", "[16, 4]")
PUT = ("put plate on top", "put", 1, "plate", 2, "['plate', 'top']", "[2, 42]")
GRAB = ("grab plate", "grab", 0, "plate", 2, "['plate']", "[2]")
TIMES = [("00:00:00.00", "00:00:01.89"), ("00:00:01.5", "00:00:03.25"), ("00:01:05.100", "00:01:06.00")]
SECONDS = [(0, 1.89), (1.5, 3.25), (65.1, 66)]


def row(number, video, what, time):
    who = video.split("_")[0]
    return [f"{video}_{number}", who, video, "00:00:00.560", *time, 1, 113, *what]


def write(path, rows, header=HEADER):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    path.write_text(text.getvalue())


ROWS = [row(0, "P01_11", TAKE, TIMES[0]), row(1, "P01_11", OPEN, TIMES[1]), row(0, "P22_03", CUT, TIMES[2])]
OTHERS = [row(5, "P22_03", PUT, TIMES[0]), row(9, "P01_11", GRAB, TIMES[1])]


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "retrieval_annotations"
    folder.mkdir()
    write(tmp_path / "EPIC_100_train.csv", ROWS)
    write(tmp_path / "EPIC_100_validation.csv", OTHERS)
    write(tmp_path / "EPIC_100_test_timestamps.csv", [r[:8] for r in ROWS], HEADER[:8])
    write(folder / "EPIC_100_retrieval_train.csv", ROWS + OTHERS)
    write(folder / "EPIC_100_retrieval_test.csv", OTHERS + ROWS)
    told = [[r[0], r[8]] for r in (OTHERS[0], ROWS[2], OTHERS[1])]
    write(folder / "EPIC_100_retrieval_train_sentence.csv", told, ["narration_id", "narration"])
    write(folder / "EPIC_100_retrieval_test_sentence.csv", told[:2], ["narration_id", "narration"])
    write(tmp_path / "EPIC_100_tail_verbs.csv", [[7], [1]], ["verb"])
    write(tmp_path / "EPIC_100_tail_nouns.csv", [[16]], ["noun"])
    write(tmp_path / "EPIC_100_unseen_participant_ids_validation.csv", [["P18"], ["P22"]], ["participant_id"])
    return tmp_path


@pytest.fixture(scope="module")
def store(make_store):
    return make_store({"P22_03": 70.0, "P01_11": 100.0})


def expected(published, seconds):
    found = []
    for r, (start, end) in zip(published, seconds, strict=True):
        found.append(
            {"video": r[2], "start": start, "end": end, "texts": [r[8]], "verbs": [r[10]], "nouns": eval(r[14])}
        )
        found[-1] |= {"verb_label": r[10], "noun_label": r[12], "id": r[0], "participant": r[1]}
    return found


def test_every_action_is_there_with_its_classes(root, store, rows_of):
    # Sorted as texts: 16 comes before 2, and 7 before nothing else.
    assert epic_kitchens.actions(root) == ["0:2", "1:2", "3:8", "7:16"]
    train = expected(ROWS, SECONDS)
    found = rows_of(epic_kitchens.load("cls_train", root=str(root), store=store))
    assert found == [r | {"label": label} for r, label in zip(train, (0, 2, 3), strict=True)]
    val = expected(OTHERS, SECONDS[:2])
    found = rows_of(epic_kitchens.load("cls_val", root=str(root), store=store))
    assert found == [r | {"label": label} for r, label in zip(val, (1, 0), strict=True)]
    assert rows_of(epic_kitchens.load("mir_train", root=str(root), store=store)) == train + val
    found = rows_of(epic_kitchens.load("cls_test", root=str(root), store=store))
    names = ("video", "start", "end", "id", "participant")
    assert found == [{name: r[name] for name in names} | {"texts": []} for r in train]


def test_actions_are_sorted_as_texts(root):
    write(root / "EPIC_100_validation.csv", [row(1, "P01_11", (*TAKE[:2], 10, *TAKE[3:]), TIMES[0])])
    assert epic_kitchens.actions(root) == ["0:2", "10:2", "3:8", "7:16"]


def definition(clip, sentence):
    """The relevancy of one pair, from the words of its definition."""
    one, other = set(eval(clip[14])), set(eval(sentence[14]))
    return (float(clip[10] == sentence[10]) + len(one & other) / len(one | other)) / 2


def test_relevancy_follows_its_definition(root):
    told = [OTHERS[0], ROWS[2], OTHERS[1]]
    matrix = np.array([[definition(clip, sentence) for sentence in told] for clip in ROWS + OTHERS])
    found = epic_kitchens.relevancy(root, "mir_train")
    assert found.dtype == np.float64 and np.array_equal(found, matrix)
    assert np.array_equal(epic_kitchens.relevancy(root, "mir_train", slice(1, 4)), matrix[1:4])
    assert {0, 0.25, 1} <= set(matrix.ravel().tolist())
    found = epic_kitchens.sentences(root, "mir_test")
    assert found.texts == (OTHERS[0][8], ROWS[2][8]) and found.ids == ("P22_03_5", "P22_03_0")
    assert found.rows.tolist() == [0, 4]
    assert epic_kitchens.relevancy(root, "mir_test").shape == (5, 2)
    # The first version of the files.
    path = root / "retrieval_annotations" / "EPIC_100_retrieval_test_sentence.csv"
    path.write_text(path.read_text().replace("narration_id,narration", "index,sentence"))
    again = epic_kitchens.sentences(root, "mir_test")
    assert (again.texts, again.ids, again.rows.tolist()) == (found.texts, found.ids, found.rows.tolist())


@pytest.mark.parametrize("at_once", [2, 100])
def test_training_texts_are_the_sentences_that_fit(root, store, monkeypatch, at_once):
    monkeypatch.setattr(epic_kitchens, "ROWS", at_once)
    table = epic_kitchens.load("mir_train", root=str(root), store=store, above=0.25)
    fit = epic_kitchens.relevancy(root, "mir_train")
    fits = fit > 0.25
    texts = epic_kitchens.sentences(root, "mir_train").texts
    plain = epic_kitchens.load("mir_train", root=str(root), store=store)
    for i, told in enumerate(table.column("texts")):
        # The door is in no sentence: its clip keeps its own.
        assert told == ([texts[s] for s in np.flatnonzero(fits[i])] or plain.cell(i, "texts"))
        assert table.cell(i, "text_weights") == (fit[i][fits[i]].tolist() or [1.0])  # quarters: exact in float32
    assert table.cell(1, "texts") == ["open door, slowly"] and table.column("id") == plain.column("id")
    # Another bound is another table: all sentences fit now.
    assert epic_kitchens.load("mir_train", root=str(root), store=store, above=-1).cell(1, "texts") == list(texts)
    with pytest.raises(ValueError, match="above=0.1 .* is for mir_train, found split 'mir_test'"):
        epic_kitchens.load("mir_test", root=str(root), store=store, above=0.1)


def test_lists_of_the_challenge(root):
    found = epic_kitchens.subsets(root)
    assert found.tail_verbs.tolist() == [7, 1] and found.tail_nouns.tolist() == [16]
    assert found.unseen_participants == ("P18", "P22")


def test_videos_may_lie_in_folders_of_people(root, make_store):
    store = make_store({"P01/P01_11": 100.0, "P22/P22_03": 70.0})
    table = epic_kitchens.load("cls_test", root=str(root), store=store, video_name="{participant}/{video}")
    assert table.column("video") == ["P01/P01_11", "P01/P01_11", "P22/P22_03"]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("start_timestamp", "soon", "row 3, column 'start_timestamp': must be a time such as .*, found 'soon'"),
        ("verb_class", "take", "row 3, column 'verb_class': must be a whole number, found 'take'"),
        (
            "all_noun_classes",
            "[x]",
            r"row 3, column 'all_noun_classes': must be a list of whole numbers, found '\[x\]'",
        ),
        ("video_id", "P99_01", "row 3: video 'P99_01' is not in the chunk store"),
        ("start_timestamp", "00:02:00", "row 3: the clip 120 to 3.25 s of video 'P01_11' starts after the video's end"),
    ],
)
def test_a_wrong_value_is_named(root, store, column, value, message):
    wrong = list(ROWS[1])
    wrong[HEADER.index(column)] = value
    write(root / "EPIC_100_train.csv", [ROWS[0], wrong, ROWS[2]])
    with pytest.raises(ValueError, match="EPIC_100_train.csv, " + message):
        epic_kitchens.load("cls_train", root=str(root), store=store)


def test_a_wrong_column_and_a_wrong_sentence_are_named(root, store):
    path = root / "EPIC_100_train.csv"
    path.write_text(path.read_text().replace("all_noun_classes", "noun_classes"))
    with pytest.raises(ValueError, match="EPIC_100_train.csv has no column 'all_noun_classes'"):
        epic_kitchens.load("cls_train", root=str(root), store=store)
    path = root / "retrieval_annotations" / "EPIC_100_retrieval_test_sentence.csv"
    write(path, [["P22_03_5", "a"], ["P22_03_77", "b"]], ["narration_id", "narration"])
    with pytest.raises(
        ValueError, match="test_sentence.csv, row 3: there is no narration 'P22_03_77' in EPIC_100_retr"
    ):
        epic_kitchens.sentences(root, "mir_test")
