"""Reconstruction against a loop over tubelets and colours."""

import numpy as np
import pytest

from tests.objectives.by_hand import check, run, shares
from vidlang.objectives import reconstruction

ROWS, MASKED, PIXELS, CHANNELS = 8, 3, 6, 3


def outputs_of(seed=0):
    rng = np.random.default_rng(seed)
    shape = (ROWS, MASKED, PIXELS * CHANNELS)
    return {"predicted_BMP": rng.normal(size=shape), "target_BMP": rng.random(shape)}


def by_definition(target, normalized, share=None):
    """Mean square error against `normalized(pixels [n, C])` of each tubelet."""
    share = np.full(ROWS, 1 / ROWS) if share is None else share

    def reference(outputs):
        value = 0.0
        for row in range(ROWS):
            for tubelet in range(MASKED):
                pixels = target[row, tubelet].reshape(PIXELS, CHANNELS)
                wanted = normalized(pixels).reshape(-1)
                value += share[row] * np.mean((outputs["predicted_BMP"][row, tubelet] - wanted) ** 2) / MASKED
        return value

    return reference


def per_channel(pixels):
    columns = []
    for channel in range(CHANNELS):
        x = pixels[:, channel]
        columns.append((x - x.mean()) / (np.std(x, ddof=1) + 1e-6))
    return np.stack(columns, axis=1)


def per_tubelet(pixels):
    return (pixels - pixels.mean()) / np.sqrt(np.var(pixels, ddof=1) + 1e-6)


def test_each_colour_of_a_tubelet_is_normalised_by_itself():
    outputs = outputs_of()
    weight, valid = np.arange(ROWS) + 1.0, np.arange(ROWS) != 4
    reference = by_definition(outputs["target_BMP"], per_channel, shares(weight, valid))
    _, _, gradients = check(reconstruction, reference, outputs, {"weight_B": weight, "valid_B": valid}, {"data": 8})
    assert not gradients["target_BMP"].any() and not gradients["predicted_BMP"][4].any()


@pytest.mark.parametrize(
    ("options", "normalized"), [({"per": "tubelet"}, per_tubelet), ({"normalize": False}, lambda pixels: pixels)]
)
def test_a_tubelet_as_a_whole_or_as_it_is(options, normalized):
    outputs = outputs_of(1)
    _, _, gradients = check(reconstruction, by_definition(outputs["target_BMP"], normalized), outputs, {}, **options)
    assert not gradients["target_BMP"].any()


def test_a_tubelet_of_one_colour_is_finite():
    outputs = {"predicted_BMP": np.ones((2, 1, 12), np.float32), "target_BMP": np.full((2, 1, 12), 0.3, np.float32)}
    (value, _), gradients = run(reconstruction, outputs, {})
    assert value == pytest.approx(1, rel=0.2) and all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "patch"}, "per is 'patch'; it is one of channel, tubelet"),
        ({"epsilon": 0.0}, "epsilon must be above 0"),
        ({"channels": 4}, "tubelets of 18 numbers are no pixels of 4 channels"),
    ],
)
def test_wrong_use_says_what_was_found(options, message):
    with pytest.raises(ValueError, match=message):
        run(reconstruction, outputs_of(), {}, **options)
