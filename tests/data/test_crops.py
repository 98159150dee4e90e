"""Boxes are even, inside the frame and what the rule says; views cover it; all mistakes have a sentence."""

import numpy as np
import pytest

from vidlang.data.crops import CROPS, FIXED_PLACES, CropBox, choose_crop

SIZES = [(2, 2), (3, 5), (80, 80), (288, 512), (513, 289), (240, 427), (2, 1000), (1000, 2)]
RULES = [
    dict(name="random_resized"),
    dict(name="multi_scale"),
    dict(name="multi_scale", places="random", distort=3),
    dict(name="short_side", side=(256, 320)),
    dict(name="center", share=0.7),
    dict(name="full"),
    dict(name="fixed", top=0.3, left=0.21, bottom=1.0, right=0.999),
]
RANDOM = RULES[:4]


def draws(count, height, width, **rule):
    rng = np.random.default_rng(0)
    return [choose_crop(rng, height, width, **rule) for _ in range(count)]


def check_uniform(values):
    """Chi-square against equal counts of the values found: beyond the bound once in a million seeds."""
    counts = np.unique(values, return_counts=True)[1]
    expected = counts.mean()
    assert ((counts - expected) ** 2 / expected).sum() < len(counts) - 1 + 6.5 * np.sqrt(2 * (len(counts) - 1))


def test_every_rule_is_tried_here():
    assert {rule["name"] for rule in RULES} == set(CROPS)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_boxes_are_even_and_inside(rule, height, width):
    for box in draws(100, height, width, **rule):
        assert all(number % 2 == 0 for number in (box.top, box.left, box.height, box.width))
        box.check_inside(height, width)


@pytest.mark.parametrize("rule", RANDOM, ids=str)
def test_a_box_is_a_function_of_the_generator_and_mirrored_as_often_as_asked(rule):
    one, other = (draws(2000, 288, 512, flip=0.25, **rule) for _ in range(2))
    assert one == other and len(set(one)) > 50
    assert 0.2 < np.mean([box.flip for box in one]) < 0.3
    assert not any(box.flip for box in draws(50, 288, 512, **rule))


def test_random_resized_has_the_asked_area_and_aspect():
    boxes = draws(2000, 480, 480, name="random_resized", scale=(0.2, 0.45), ratio=(0.5, 2.0))
    shares = np.array([box.height * box.width / (480 * 480) for box in boxes])
    aspects = np.array([box.width / box.height for box in boxes])
    assert 0.19 < shares.min() < 0.21 and 0.44 < shares.max() < 0.455
    # Area is uniform and aspect log-uniform; two pixels of rounding on a side of about 200.
    np.testing.assert_allclose(np.quantile(shares, [0.25, 0.5, 0.75]), [0.2625, 0.325, 0.3875], atol=0.012)
    np.testing.assert_allclose(np.quantile(np.log2(aspects), [0.25, 0.5, 0.75]), [-0.5, 0, 0.5], atol=0.08)
    assert 0.48 < aspects.min() < 0.55 and 1.85 < aspects.max() < 2.05
    # Boxes reach every border.
    assert min(box.top for box in boxes) == 0 and min(box.left for box in boxes) == 0
    assert max(box.top + box.height for box in boxes) == 480 and max(box.left + box.width for box in boxes) == 480


def test_random_resized_stays_random_where_no_drawn_box_fits():
    boxes = [choose_crop(np.random.default_rng(seed), 64, 640, name="random_resized") for seed in range(20)]
    assert {(box.height, box.width) for box in boxes} == {(64, 84)}
    assert len({box.left for box in boxes}) > 10


def test_whole_area_of_a_square_is_the_frame():
    rng = np.random.default_rng(0)
    assert choose_crop(rng, 80, 80, name="random_resized", scale=(1, 1), ratio=(1, 1)) == CropBox(0, 0, 80, 80)


def test_multi_scale_is_the_published_set_of_boxes():
    """Sides from four scales of the short side, next to one another in the list; offsets in quarters of the room."""
    height, width = 320, 568
    sides = [320, 280, 240, 211]
    expected = set()
    for i, h in enumerate(sides):
        for j, w in enumerate(sides):
            if abs(i - j) > 1:
                continue
            down, along = (height - h) / 4, (width - w) / 4
            corners = [(0, 0), (0, 4), (4, 0), (4, 4), (2, 2)]
            more = [(2, 0), (2, 4), (4, 2), (0, 2), (1, 1), (1, 3), (3, 1), (3, 3)]
            expected |= {(a * down, b * along, h, w) for a, b in corners + more}
    boxes = draws(8000, height, width, name="multi_scale")
    found = np.array(sorted({(box.top, box.left, box.height, box.width) for box in boxes}))
    # At the full height the three places down are one: of 13 places 5 are left.
    assert len(found) == len(expected) == 8 * 13 + 2 * 5
    for box in expected:
        assert np.abs(found - box).max(1).min() <= 2  # even numbers
    check_uniform([f"{box.height} {box.width}" for box in boxes])
    narrow = [f"{box.top} {box.left}" for box in boxes if (box.height, box.width) == (240, 240)]
    assert len(set(narrow)) == len(FIXED_PLACES) == 13
    check_uniform(narrow)


def test_multi_scale_at_random_places_is_everywhere():
    boxes = draws(4000, 120, 120, name="multi_scale", scales=(0.75,), places="random")
    assert {(box.height, box.width) for box in boxes} == {(90, 90)}
    assert {box.top for box in boxes} == {box.left for box in boxes} == set(range(0, 31, 2))
    check_uniform([box.top for box in boxes])


def test_short_side_cuts_as_if_scaled_first():
    boxes = draws(3000, 288, 512, name="short_side")
    assert {(box.height, box.width) for box in boxes} == {(252, 252)}  # 224 of 256, of 288
    assert {box.left for box in boxes} == set(range(0, 261, 2)) and {box.top for box in boxes} == set(range(0, 37, 2))
    shares = np.array([box.height / 1000 for box in draws(3000, 1000, 1000, name="short_side", side=(256, 320))])
    np.testing.assert_allclose(np.quantile(224 / shares, [0, 0.5, 1]), [256, 288, 320], atol=3)
    assert choose_crop(None, 288, 512, name="short_side") == CropBox(18, 130, 252, 252)
    assert choose_crop(None, 320, 320, name="short_side", side=320, crop=160) == CropBox(80, 80, 160, 160)


def test_center_full_and_fixed():
    assert choose_crop(None, 288, 512, name="center") == CropBox(0, 112, 288, 288)
    assert choose_crop(None, 100, 200, name="center", share=0.5) == CropBox(24, 74, 50, 50)
    assert choose_crop(None, 100, 100, name="center", share=0.58).height == 58  # 57.99999999999999 in floats
    assert choose_crop(None, 241, 427, name="full") == CropBox(0, 0, 240, 426)
    sliver = choose_crop(None, 100, 100, name="fixed", top=0.0, left=0.999, bottom=1.0, right=1.0)
    assert sliver == CropBox(0, 98, 100, 2)
    whole = dict(top=0.0, left=0.0, bottom=1.0, right=1.0)
    assert choose_crop(None, 241, 427, name="fixed", **whole) == CropBox(0, 0, 240, 426)
    lower_right = dict(top=0.5, left=0.75, bottom=1.0, right=1.0)
    assert choose_crop(None, 288, 512, name="fixed", **lower_right) == CropBox(144, 384, 144, 128)
    assert choose_crop(None, 100, 100, name="fixed", top=0.1, left=0.2, bottom=0.4, right=0.9) == CropBox(
        10, 20, 30, 70
    )


@pytest.mark.parametrize("height, width", [(288, 512), (512, 288), (256, 257), (300, 300), (240, 720)])
@pytest.mark.parametrize("views", [2, 3, 5])
def test_views_are_videomaes_crops_along_the_long_side(height, width, views):
    """Squares of the short side at multiples of (long - short) / (views - 1)."""
    boxes = [choose_crop(None, height, width, view=view, views=views, name="center") for view in range(views)]
    short, long = min(height, width), max(height, width)
    for view, box in enumerate(boxes):
        along, across = (box.top, box.left) if height > width else (box.left, box.top)
        assert abs(along - view * (long - short) / (views - 1)) <= 1 and across == 0
        assert box.height == box.width == short and not box.flip


@pytest.mark.parametrize("rule", [dict(name="center"), dict(name="short_side", side=256, crop=256)], ids=str)
def test_three_views_cover_the_frame_and_the_middle_one_is_the_only_one(rule):
    covered = np.zeros((288, 512), bool)
    boxes = [choose_crop(None, 288, 512, view=view, views=3, **rule) for view in range(3)]
    for box in boxes:
        covered[box.top : box.top + box.height, box.left : box.left + box.width] = True
    assert covered.all() and boxes[1] == choose_crop(None, 288, 512, **rule)


RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(name="centre"), "did you mean 'center'"),
        (dict(name="center", shar=1), "unknown key 'shar'.*did you mean 'share'"),
        (dict(name="center", where=0.5), "unknown key 'where'"),
        (dict(name="center", share=1.5), "0 < share <= 1"),
        (dict(name="center", view=3, views=3), "from 0 to views - 1"),
        (dict(name="center", views=3, rng=RNG), "several views are for testing"),
        (dict(name="full", views=3), "several views .* center, short_side; got 3 and the crop 'full'"),
        (dict(name="random_resized"), "needs a random generator"),
        (dict(name="random_resized", rng=RNG, scale=(0.9, 0.5)), "0 < scale <= 1"),
        (dict(name="random_resized", rng=RNG, flip=2), "0 <= flip <= 1"),
        (dict(name="multi_scale"), "needs a random generator"),
        (dict(name="multi_scale", rng=RNG, scales=()), "needs scales above 0"),
        (dict(name="multi_scale", rng=RNG, scales=(1.2,)), "needs scales above 0"),
        (dict(name="multi_scale", rng=RNG, places="corners"), "'fixed' or 'random'"),
        (dict(name="short_side", side=200), "2 <= crop <= side"),
        (dict(name="short_side", side=(256, 320)), "one number as side in testing"),
        (dict(name="fixed", top=0.0, left=0.5, bottom=1.0, right=0.5), "0 <= left < right <= 1"),
        (dict(name="fixed", top=0.0), "lacks 'left', 'bottom', 'right'"),
        (dict(name="full", height=1), "at least 2"),
    ],
)
def test_mistakes_have_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        choose_crop(**{"rng": None, "height": 64, "width": 64, **arguments})


@pytest.mark.parametrize("numbers", [(1, 0, 2, 2), (0, 0, 3, 2), (-2, 0, 2, 2), (0, 0, 0, 2)])
def test_box_refuses_odd_or_empty(numbers):
    with pytest.raises(ValueError, match="even numbers"):
        CropBox(*numbers)


def test_box_outside_is_refused():
    with pytest.raises(ValueError, match="height 64 and width 64"):
        CropBox(0, 32, 64, 34).check_inside(64, 64)
