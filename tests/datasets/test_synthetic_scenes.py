"""What the grammar draws: the same for the same seed, twins that differ in order only, combinations kept for val."""

import dataclasses

import pytest

from vidlang.datasets.synthetic.grammar import COLOURS, SHAPES, VERBS
from vidlang.datasets.synthetic.scenes import draw_videos
from vidlang.datasets.synthetic.settings import Settings

SMALL = Settings(
    train_videos=40,
    val_videos=30,
    long_videos=2,
    scenes_per_video=3,
    scene_seconds=2.0,
    long_seconds=90.0,
    size=48,
    fps=8,
    colours=len(COLOURS),
    shapes=len(SHAPES),
    verbs=len(VERBS),
    seed=0,
)


def short(videos, split):
    return [video for video in videos if video.split == split and not video.long]


def test_same_seed_same_videos_and_another_seed_others():
    assert draw_videos(SMALL) == draw_videos(SMALL)
    assert draw_videos(SMALL) != draw_videos(dataclasses.replace(SMALL, seed=1))


def test_a_video_does_not_depend_on_how_many_there_are():
    few, more = (short(draw_videos(dataclasses.replace(SMALL, train_videos=n)), "train") for n in (32, 40))
    assert more[:32] == few


def test_names_are_unique_and_splits_share_no_video():
    videos = draw_videos(SMALL)
    assert len({video.name for video in videos}) == len(videos) == 40 + 30 + 2 * 2
    assert all(video.name.startswith(video.split) for video in videos)


def test_twins_show_the_same_events_in_the_other_order():
    for split in ("train", "val"):
        scenes = {}
        for video in short(draw_videos(SMALL), split):
            for scene in video.scenes:
                scenes.setdefault(scene.pair, []).append(scene)
        assert len(scenes) == {"train": 40 * 3 // 2, "val": 15}[split]
        for one, other in scenes.values():
            assert one.background == other.background and one.frames == other.frames
            still = [[dataclasses.replace(event, start=0) for event in scene.events] for scene in (one, other)]
            assert still[0] == still[1][::-1] and still[0] != still[1]
            for scene in (one, other):
                assert [event.start for event in scene.events] == [0, scene.frames // 2]


def test_the_two_events_of_a_scene_differ_in_everything():
    for video in draw_videos(SMALL):
        for scene in video.scenes if not video.long else ():
            assert all(a != b for a, b in zip(scene.events[0].key, scene.events[1].key, strict=True))


@pytest.mark.parametrize("words", [{}, {"colours": 3, "shapes": 3, "verbs": 3}])  # so few that all would be seen
def test_val_shows_events_of_train_in_combinations_train_never_has(words):
    videos = draw_videos(dataclasses.replace(SMALL, **words))
    combinations = {"train": set(), "val": set()}
    singles = {"train": set(), "val": set()}
    for video in videos:
        events = [event.key for _, event in video.events()]
        if video.long and video.split == "train":  # neighbours in long training videos count as seen together
            combinations["train"] |= {frozenset(pair) for scene in video.scenes for pair in neighbours(scene)}
        if not video.long:
            combinations[video.split] |= {frozenset(pair) for scene in video.scenes for pair in neighbours(scene)}
        if not (video.long and video.split == "train"):
            singles[video.split] |= set(events)
    assert len(combinations["val"]) == 15
    assert not combinations["train"] & combinations["val"]
    assert singles["val"] <= singles["train"]


def neighbours(scene):
    keys = [event.key for event in scene.events]
    return list(zip(keys, keys[1:], strict=False))


def test_events_lie_inside_their_scene_one_after_another():
    for video in draw_videos(SMALL):
        place = 0
        for scene in video.scenes:
            assert scene.start == place
            place += scene.frames
            clock = 0
            for event in scene.events:
                assert clock <= event.start and event.frames % event.cycle == 0
                clock = event.start + event.frames
            assert clock <= scene.frames
        assert video.frames == place
    assert all(video.frames == 90 * 8 for video in draw_videos(SMALL) if video.long)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_videos": 3}, "even number"),
        ({"val_videos": 0}, "even number"),
        ({"colours": 9}, "colours=9, expected 3 to 8"),
        ({"size": 47}, "size=47"),
        ({"scene_seconds": 0.5}, "frames for each of two events"),
        ({"long_seconds": 3.0}, "four scenes or more"),
        ({"seed": -1}, "negative"),
    ],
)
def test_impossible_settings_say_what_is_expected(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


def test_too_many_val_videos_for_what_training_shows():
    with pytest.raises(ValueError, match="raise train_videos or lower val_videos"):
        draw_videos(dataclasses.replace(SMALL, train_videos=2, val_videos=200))
