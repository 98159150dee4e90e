"""Every kind of annotation tells the truth about what the grammar drew."""

import hashlib
import json

import pytest

from vidlang.data.clips import ClipTable
from vidlang.data.tokenizer import Tokenizer, train_wordlevel
from vidlang.datasets.synthetic.annotations import KINDS, OPEN_KINDS, SPLITS, answer_list, write
from vidlang.datasets.synthetic.grammar import COLOURS, SHAPES, VERBS
from vidlang.datasets.synthetic.scenes import draw_videos
from vidlang.datasets.synthetic.sentences import vocabulary
from vidlang.datasets.synthetic.settings import Settings

SETTINGS = Settings(24, 16, 6, 3, 2.0, 60.0, 48, 8, len(COLOURS), len(SHAPES), len(VERBS), 0)
VIDEOS = {video.name: video for video in draw_videos(SETTINGS)}
EVENTS = {  # (first second, last second, "red circle", "slides left") of each video, in order
    name: [
        (
            start / SETTINGS.fps,
            (start + event.frames) / SETTINGS.fps,
            f"{COLOURS[event.colour]} {SHAPES[event.shape]}",
            VERBS[event.verb].third,
        )
        for start, event in video.events()
    ]
    for name, video in VIDEOS.items()
}


@pytest.fixture(scope="module")
def rows():
    """All rows of every (split, kind), through ClipTable's checks."""
    tables = {}
    for split in SPLITS:
        for kind in KINDS:
            table = ClipTable.from_columns(write(kind, split, list(VIDEOS.values()), SETTINGS))
            tables[split, kind] = [table.row(i) for i in range(len(table))]
    return tables


def of_kind(rows, kind):
    return [row for split in SPLITS for row in rows[split, kind]]


def told(text):
    """Narration -> (object, verb): 'an orange star spins' -> ('orange star', 'spins')."""
    words = text.split()
    assert words[0] == ("an" if words[1] == "orange" else "a")
    return " ".join(words[1:3]), " ".join(words[3:])


def inside(row):
    """Events that lie wholly inside the row's seconds."""
    return [event for event in EVENTS[row["video"]] if event[0] >= row["start"] and event[1] <= row["end"]]


def test_all_rows_lie_inside_videos_of_their_split(rows):
    for (split, _), found in rows.items():
        for row in found:
            video = VIDEOS[row["video"]]
            assert video.split == split and 0 <= row["start"] < row["end"] <= video.frames / SETTINGS.fps


def test_golden_annotations(rows):
    digest = hashlib.sha256(json.dumps([list(map(str, key)) + rows[key] for key in sorted(rows)]).encode()).hexdigest()
    assert digest[:16] == "da464db9f7c138ca", (
        "other annotations than before: if meant, raise corpus.VERSION and change this"
    )


def test_narrations_name_verb_noun_and_scene(rows):
    found = of_kind(rows, "narrations")
    assert len(found) == sum(map(len, EVENTS.values()))
    scenes = {}
    for row in found:
        ((_, _, thing, verb),) = inside(row)
        assert told(row["texts"][0]) == (thing, verb) and len(row["texts"]) == 2
        other = next(v.other for v in VERBS if v.third == verb)
        assert row["texts"][1].split()[1:3] == [thing.split()[0], "colored"] and row["texts"][1].endswith(other)
        colour, shape = thing.split()
        assert row["verbs"] == [[v.third for v in VERBS].index(verb)]
        assert row["nouns"] == [COLOURS.index(colour) * len(SHAPES) + SHAPES.index(shape)]
        scenes.setdefault((VIDEOS[row["video"]].split, row["group"]), []).append(row)
    for members in scenes.values():  # hard negatives: the same video and background, several events
        assert len({row["video"] for row in members}) == 1 and len(members) > 1
    assert len(scenes) == sum(len(video.scenes) for video in VIDEOS.values())


def test_classes_number_verb_and_object_together(rows):
    found = of_kind(rows, "classes")
    actions = {(row["verbs"][0], row["nouns"][0]): row["label"] for row in found}
    assert len(set(actions.values())) == len(actions)
    assert all(row["label"] == actions[row["verbs"][0], row["nouns"][0]] for row in found)
    assert 0 <= min(actions.values()) and max(actions.values()) < len(COLOURS) * len(SHAPES) * len(VERBS)


def test_pairs_of_twins_swap_their_captions(rows):
    for split in SPLITS:
        groups = {}
        for row in rows[split, "pairs"]:
            first, second = inside(row)
            caption = row["texts"][0]
            assert [told(half) for half in caption.split(" then ")] == [first[2:], second[2:]]
            assert [told(half) for half in row["texts"][1].removeprefix("first ").split(" and after that ")] == [
                first[2:],
                second[2:],
            ]
            swapped = " then ".join(caption.split(" then ")[::-1])
            assert sorted(row["choices"]) == sorted([caption, swapped]) and row["choices"][row["answer"]] == caption
            groups.setdefault(row["group"], []).append(row)
        for one, other in groups.values():
            assert one["video"] != other["video"] and sorted(one["choices"]) == sorted(other["choices"])
            assert one["texts"][0] != other["texts"][0]
        assert 0.2 < sum(row["answer"] for row in rows[split, "pairs"]) / len(rows[split, "pairs"]) < 0.8


def test_val_captions_are_distinct_and_unseen(rows):
    val, train = ([row["texts"][0] for row in rows[split, "pairs"]] for split in ("val", "train"))
    assert len(set(val)) == len(val) == SETTINGS.val_videos
    assert not set(val) & set(train)


def test_summaries_tell_everything_in_order(rows):
    for split in SPLITS:
        found = rows[split, "summaries"]
        assert len(found) == SETTINGS.long_videos
        for row in found:
            (text,), video = row["texts"], VIDEOS[row["video"]]
            assert (row["start"], row["end"]) == (0, video.frames / SETTINGS.fps) == (0, 60)
            places = []
            for *_, thing, verb in EVENTS[row["video"]]:
                places.append(text.index(f"{thing} {verb}", places[-1] + 1 if places else 0))
            assert text.count("in a place with") == len(video.scenes) and places == sorted(places)
            assert row["choices"][row["answer"]] == text and len(set(row["choices"])) == 5
            assert set(row["choices"]) <= {other["texts"][0] for other in found}


def test_multiple_choice_draws_wrong_answers_from_where_it_says(rows):
    for split in SPLITS:
        found = rows[split, "multiple_choice"]
        assert {row["kind"] for row in found} == {"inter", "intra"}
        everywhere = {event[2:] for name, events in EVENTS.items() if name.startswith(split) for event in events}
        for row in found:
            ((*_, thing, verb),) = inside(row)
            choices = [told(text) for text in row["choices"]]
            assert choices[row["answer"]] == (thing, verb) and len(set(choices)) == 5
            here = {event[2:] for event in EVENTS[row["video"]]}
            if row["kind"] == "intra":
                assert set(choices) <= here
            else:
                assert set(choices) <= everywhere
                assert [choice for choice in choices if choice in here] == [(thing, verb)]
        assert {row["answer"] for row in found} == set(range(5))


def test_questions_have_one_true_answer(rows):
    asked = set()
    for row in of_kind(rows, "questions"):
        events, question = inside(row), row["question"]
        right = row["choices"][row["answer"]]
        assert row["texts"] == [right] and 2 <= len(row["choices"]) == len(set(row["choices"])) <= 5
        if row["kind"] == "verb":
            (verb,) = [verb for *_, thing, verb in events if question == f"what does the {thing} do"]
            assert right == verb
        elif row["kind"] in ("first", "last"):
            assert question == f"which shape moves {row['kind']}"
            assert right == events[0 if row["kind"] == "first" else -1][2].split()[1]
            if len(events) == 2:  # the other one is the hard choice
                assert events[-1 if row["kind"] == "first" else 0][2].split()[1] in row["choices"]
        elif row["kind"] == "next":
            (place,) = [
                n for n, event in enumerate(events) if question == f"what happens right after the {' '.join(event[2:])}"
            ]
            assert told(right) == events[place + 1][2:]
        else:
            assert right == ["zero", "one", "two", "three", "four", "five", "six"][len(events)]
        asked.add(row["kind"])
    assert asked == {"verb", "first", "last", "next", "count"}


def test_spans_are_the_only_seconds_that_answer(rows):
    for row in of_kind(rows, "spans"):
        question = row["question"]
        fitting = [
            (start, end)
            for start, end, thing, verb in EVENTS[row["video"]]
            if question == f"when does the {thing} {next(v.base for v in VERBS if v.third == verb)}"
        ]
        assert fitting == [(row["start"], row["end"])] and row["texts"] == [question]


def test_the_tokenizer_knows_every_word(rows, tmp_path):
    train_wordlevel(vocabulary(), tmp_path / "tokenizer.json")
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", length=256)
    for row in (row for found in rows.values() for row in found):
        texts = [*row["texts"], *row.get("choices", ()), row.get("question", "what")]
        assert not (tokenizer.encode(texts) == 1).any(), texts


def test_an_open_question_has_its_answer_in_the_list(rows):
    listed = answer_list(len(VERBS), len(SHAPES))
    assert len(set(listed)) == len(listed)
    for split in SPLITS:
        found = rows[split, "open_questions"]
        assert {row["kind"] for row in found} == set(OPEN_KINDS)
        for row in found:
            assert [listed[row["answer"]]] == row["answers"] == row["texts"] and "choices" not in row
            if row["kind"] == "first":
                assert row["answers"][0] == inside(row)[0][2].split()[1]


def test_fewer_words_are_used_when_settings_ask_for_fewer():
    few = Settings(24, 4, 5, 2, 2.0, 60.0, 48, 8, 4, 4, 5, 0)
    videos = draw_videos(few)
    said = " ".join(
        text
        for kind in KINDS
        for split in SPLITS
        for row in [write(kind, split, videos, few)]
        for texts in [*row["texts"], *row.get("choices", ())]
        for text in texts
    )
    for word in (*COLOURS[4:], *SHAPES[4:], *(verb.third for verb in VERBS[5:])):
        assert word not in said
