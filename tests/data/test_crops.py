"""Boxes are even, inside the frame and what the rule says; all mistakes have a sentence."""

import numpy as np
import pytest

from vidlang.data.crops import CropBox, choose_crop

SIZES = [(2, 2), (3, 5), (80, 80), (288, 512), (513, 289), (240, 427), (2, 1000), (1000, 2)]


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("name", ["random_resized", "center", "full"])
def test_boxes_are_even_and_inside(name, height, width):
    rng = np.random.default_rng(0)
    for _ in range(200):
        box = choose_crop(rng, height, width, name=name)
        assert all(number % 2 == 0 for number in (box.top, box.left, box.height, box.width))
        box.check_inside(height, width)


def test_random_resized_has_the_asked_area_and_aspect():
    rng = np.random.default_rng(0)
    boxes = [
        choose_crop(rng, 480, 480, name="random_resized", scale=(0.2, 0.45), ratio=(0.5, 2.0)) for _ in range(2000)
    ]
    shares = np.array([box.height * box.width / (480 * 480) for box in boxes])
    aspects = np.array([box.width / box.height for box in boxes])
    assert 0.19 < shares.min() < 0.21 and 0.44 < shares.max() < 0.455
    # Two pixels of rounding on a side of about 200.
    assert 0.48 < aspects.min() < 0.55 and 1.85 < aspects.max() < 2.05
    assert abs(np.log(aspects).mean()) < 0.05
    # Boxes reach every border.
    assert min(box.top for box in boxes) == 0 and min(box.left for box in boxes) == 0
    assert max(box.top + box.height for box in boxes) == 480 and max(box.left + box.width for box in boxes) == 480


def test_random_resized_stays_random_where_no_drawn_box_fits():
    boxes = [choose_crop(np.random.default_rng(seed), 64, 640, name="random_resized") for seed in range(20)]
    assert {(box.height, box.width) for box in boxes} == {(64, 84)}
    assert len({box.left for box in boxes}) > 10


def test_crop_is_a_function_of_the_generator():
    draw = [[choose_crop(np.random.default_rng(seed), 288, 512, name="random_resized") for seed in range(20)]] * 2
    assert draw[0] == draw[1] and len(set(draw[0])) == 20


def test_flip_has_the_asked_probability():
    rng = np.random.default_rng(0)
    flips = [choose_crop(rng, 64, 64, name="random_resized", flip=0.25).flip for _ in range(2000)]
    assert 0.2 < np.mean(flips) < 0.3
    assert not any(choose_crop(rng, 64, 64, name="random_resized").flip for _ in range(50))


def test_center_and_full():
    assert choose_crop(None, 288, 512, name="center") == CropBox(0, 112, 288, 288)
    assert choose_crop(None, 100, 200, name="center", share=0.5) == CropBox(24, 74, 50, 50)
    assert choose_crop(None, 241, 427, name="full") == CropBox(0, 0, 240, 426)


def test_whole_area_of_a_square_is_the_frame():
    rng = np.random.default_rng(0)
    assert choose_crop(rng, 80, 80, name="random_resized", scale=(1, 1), ratio=(1, 1)) == CropBox(0, 0, 80, 80)


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (dict(name="centre"), "did you mean 'center'"),
        (dict(name="center", shar=1), "unknown key 'shar'.*did you mean 'share'"),
        (dict(name="center", share=1.5), "0 < share <= 1"),
        (dict(name="random_resized"), "needs a random generator"),
        (dict(name="random_resized", rng=np.random.default_rng(0), scale=(0.9, 0.5)), "0 < scale <= 1"),
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
