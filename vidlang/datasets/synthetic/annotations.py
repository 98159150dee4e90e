"""Writes what happens in the videos as every kind of annotation that the papers train or test on.

Each kind is a function from the videos of one split to the columns of a ClipTable; `KINDS` names them. Random choices
(distractors, where the right answer stands) come from a Generator of their own, so kinds do not change one another.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from vidlang.datasets.synthetic import sentences
from vidlang.datasets.synthetic.grammar import SHAPES, VERBS, Event, Scene, Video
from vidlang.datasets.synthetic.settings import Settings

Row = dict[str, Any]
SPLITS = ("train", "val")
CHOICES = 5
MOST_COUNTED = 6
# Kinds of questions whose answers are few enough to be classes.
OPEN_KINDS = ("verb", "first", "last", "count")


def narrations(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """One row an event; rows of the same scene share a group: hard negatives over the same background."""
    group = 0
    for video in videos:
        for scene in video.scenes:
            for event in scene.events:
                yield {
                    **_event_row(video, scene, event, settings),
                    "texts": sentences.narrations(event),
                    "group": group,
                }
            group += 1


def classes(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """One row an event with its verb, noun and action (label) classes."""
    for video in videos:
        for scene in video.scenes:
            for event in scene.events:
                yield _event_row(video, scene, event, settings)


def pairs(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """One row a scene of two events; its twin, which only the order tells apart, has the same group."""
    for video in videos:
        for scene in video.scenes:
            if scene.pair < 0:
                continue
            captions = sentences.order_captions(scene)
            right = sentences.order_captions(scene)[0]
            wrong = sentences.order_captions(scene.twin())[0]
            choices, answer = _choose(rng, right, [wrong])
            yield {
                **_span(video, scene.start, scene.start + scene.frames, settings),
                "texts": captions,
                "verbs": [event.verb for event in scene.events],
                "nouns": [event.noun for event in scene.events],
                "group": scene.pair,
                "choices": choices,
                "answer": answer,
                "kind": "order",
            }


def summaries(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """One row a minutes-long video: a paragraph, and up to five choices from different videos."""
    told = {video.name: sentences.summary(video) for video in videos if video.long}
    for video in videos:
        if not video.long:
            continue
        others = [text for name, text in told.items() if name != video.name]
        wrong = [others[place] for place in rng.permutation(len(others))]
        choices, answer = _choose(rng, told[video.name], wrong)
        yield {
            **_span(video, 0, video.frames, settings),
            "texts": [told[video.name]],
            "verbs": sorted({event.verb for _, event in video.events()}),
            "nouns": sorted({event.noun for _, event in video.events()}),
            "choices": choices,
            "answer": answer,
        }


def multiple_choice(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """Which of five narrations fits the clip; the wrong ones are from other videos (inter) or the same one (intra)."""
    told = [list(dict.fromkeys(sentences.narration(event) for _, event in video.events())) for video in videos]
    for index, video in enumerate(videos):
        for scene in video.scenes:
            for event in scene.events:
                right = sentences.narration(event)
                row = {**_event_row(video, scene, event, settings), "question": sentences.WHAT_HAPPENS}
                within = [text for text in told[index] if text != right]
                for kind, wrong in (("inter", _from_others(rng, told, index)), ("intra", within)):
                    if len(wrong) >= CHOICES - 1:
                        picked = [wrong[place] for place in rng.permutation(len(wrong))]
                        choices, answer = _choose(rng, right, picked)
                        yield {**row, "kind": kind, "choices": choices, "answer": answer}


def questions(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """Questions about each scene, long video and a run of events; the open answer is choices[answer] (and texts)."""
    for video in videos:
        events = list(video.events())
        parts = [events] if video.long else [events[place : place + 2] for place in range(0, len(events), 2)]
        for part in parts:
            yield from _about(video, part, settings, rng)
        yield _count(video, settings, rng)


def open_questions(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """The questions that one of `answer_list` answers, without choices; `answer` is its place there."""
    places = {text: place for place, text in enumerate(answer_list(settings.verbs, settings.shapes))}
    for row in questions(videos, settings, rng):
        (right,) = row["texts"]
        if row["kind"] in OPEN_KINDS:
            others = {name: value for name, value in row.items() if name != "choices"}
            yield others | {"answers": [right], "answer": places[right]}


def answer_list(verbs: int, shapes: int) -> list[str]:
    """All answers to open questions in a corpus of so many verbs and shapes, in the order of their classes."""
    counted = sentences.NUMBERS[1 : MOST_COUNTED + 1]
    return [*(verb.third for verb in VERBS[:verbs]), *SHAPES[:shapes], *counted]


def spans(videos: Sequence[Video], settings: Settings, rng: np.random.Generator) -> Iterator[Row]:
    """When does something happen in a long video: the row's seconds are the answer, it happens only once."""
    for video in videos:
        if not video.long:
            continue
        keys = [event.key for _, event in video.events()]
        for start, event in video.events():
            if keys.count(event.key) == 1:
                yield {
                    **_span(video, start, start + event.frames, settings),
                    "texts": [sentences.when_does(event)],
                    "question": sentences.when_does(event),
                    "verbs": [event.verb],
                    "nouns": [event.noun],
                }


Writer = Callable[[Sequence[Video], Settings, np.random.Generator], Iterator[Row]]
KINDS: dict[str, Writer] = {
    function.__name__: function
    for function in (narrations, pairs, summaries, multiple_choice, questions, classes, spans, open_questions)
}


def write(kind: str, split: str, videos: Sequence[Video], settings: Settings) -> dict[str, list[Any]]:
    """Columns of one kind of annotation for one split; empty where these videos have none of it."""
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), list(KINDS).index(kind)])
    rows = list(KINDS[kind]([video for video in videos if video.split == split], settings, rng))
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _span(video: Video, start: int, end: int, settings: Settings) -> Row:
    return {"video": video.name, "start": start / settings.fps, "end": end / settings.fps}


def _event_row(video: Video, scene: Scene, event: Event, settings: Settings) -> Row:
    start = scene.start + event.start
    return {
        **_span(video, start, start + event.frames, settings),
        "texts": [sentences.narration(event)],
        "verbs": [event.verb],
        "nouns": [event.noun],
        "label": event.action,
    }


def _choose(rng: np.random.Generator, right: str, wrong: Sequence[str]) -> tuple[list[str], int]:
    """Up to five choices, the right one at a random place, and that place."""
    kept = [wrong[place] for place in rng.permutation(min(len(wrong), CHOICES - 1))]
    answer = int(rng.integers(len(kept) + 1))
    return [*kept[:answer], right, *kept[answer:]], answer


def _from_others(rng: np.random.Generator, told: Sequence[Sequence[str]], index: int) -> list[str]:
    """Up to four narrations of as many other videos, of things that this video does not show at all."""
    found: list[str] = []
    for other in rng.permutation(len(told)):
        text = told[other][int(rng.integers(len(told[other])))]
        if text not in told[index] and text not in found:
            found.append(text)
        if len(found) == CHOICES - 1:
            break
    return found


def _about(
    video: Video, events: Sequence[tuple[int, Event]], settings: Settings, rng: np.random.Generator
) -> Iterator[Row]:
    """Questions about these events of a video, which the row's seconds cover."""
    start, (last, event) = events[0][0], events[-1]
    clip = _span(video, start, last + event.frames, settings)
    shown = [event for _, event in events]
    nouns, keys = [event.noun for event in shown], [event.key for event in shown]
    verbs = [verb.third for verb in VERBS[: settings.verbs]]
    shapes = SHAPES[: settings.shapes]
    if asked := [event for event in shown if nouns.count(event.noun) == 1]:
        event = asked[int(rng.integers(len(asked)))]
        near = [verbs[other.verb] for other in shown]
        yield clip | _question(rng, "verb", sentences.what_does(event), verbs[event.verb], near, verbs)
    near = [shapes[event.shape] for event in shown]
    yield clip | _question(rng, "first", sentences.WHICH_FIRST, near[0], near[::-1], shapes)
    yield clip | _question(rng, "last", sentences.WHICH_LAST, near[-1], near, shapes)
    if known := [place for place in range(len(shown) - 1) if keys.count(keys[place]) == 1]:
        place = known[int(rng.integers(len(known)))]
        told = [sentences.narration(event) for event in shown]
        near, far = [told[place], *told], _altered(shown[place + 1], settings)
        yield clip | _question(rng, "next", sentences.what_follows(shown[place]), told[place + 1], near, far)


def _count(video: Video, settings: Settings, rng: np.random.Generator) -> Row:
    """How many events happen in a random run of events."""
    events = list(video.events())
    first = int(rng.integers(len(events)))
    count = int(rng.integers(1, min(len(events) - first, MOST_COUNTED) + 1))
    last, event = events[first + count - 1]
    right = sentences.NUMBERS[count]
    far = sentences.NUMBERS[max(1, count - 3) : count + 4]
    clip = _span(video, events[first][0], last + event.frames, settings)
    return clip | _question(rng, "count", sentences.HOW_MANY, right, (), far)


def _altered(event: Event, settings: Settings) -> list[str]:
    """Narrations that differ from the event's in one word."""
    changed = [dataclasses.replace(event, colour=colour) for colour in range(settings.colours)]
    changed += [dataclasses.replace(event, shape=shape) for shape in range(settings.shapes)]
    changed += [dataclasses.replace(event, verb=verb) for verb in range(settings.verbs)]
    return [sentences.narration(other) for other in changed]


def _question(
    rng: np.random.Generator, kind: str, question: str, right: str, near: Sequence[str], far: Sequence[str]
) -> Row:
    """The question with up to five choices: what else happens in the clip first, then random ones that do not."""
    wrong = [*dict.fromkeys(near), *(far[place] for place in rng.permutation(len(far)))]
    choices, answer = _choose(rng, right, [text for text in dict.fromkeys(wrong) if text != right])
    return {"texts": [right], "question": question, "choices": choices, "answer": answer, "kind": kind}
