"""The sigmoid loss against the sum over all pairs of its definition."""

import numpy as np
import pytest

from tests.objectives.by_hand import check, pairs, run, shares
from vidlang.objectives import sigmoid


def by_definition(*, bias=None, valid=None, weight=None):
    def reference(outputs):
        rows = len(outputs["video_BE"])
        ok = np.ones(rows, bool) if valid is None else valid
        share = shares(np.ones(rows) if weight is None else weight, ok)
        value, offset = 0.0, outputs["bias"] if bias is None else bias
        for i in np.flatnonzero(ok):
            for j in np.flatnonzero(ok):
                logit = outputs["scale"] * outputs["video_BE"][i] @ outputs["text_BE"][j] + offset
                value += share[i] * np.log1p(np.exp(-logit if i == j else logit))
        return value

    return reference


@pytest.mark.slow
def test_every_pair_is_a_question():
    outputs = pairs(16) | {"bias": np.float64(-4.0)}
    _, scalars, gradients = check(sigmoid, by_definition(), outputs, {}, {"data": 4, "fsdp": 2}, chunk=1)
    cosine = outputs["video_BE"] @ outputs["text_BE"].T
    assert scalars["accuracy_v2t"] == np.mean(cosine.argmax(axis=1) == np.arange(16)) and scalars["bias"] == -4
    assert gradients["bias"] != 0


def test_a_model_without_a_bias_gets_a_fixed_one_and_rows_count_as_they_say():
    valid, weight = np.arange(6) < 5, np.arange(6) + 1.0
    batch = {"valid_B": valid, "weight_B": weight}
    check(sigmoid, by_definition(bias=-3.0, **{"valid": valid, "weight": weight}), pairs(6), batch, bias=-3.0)


@pytest.mark.parametrize(("more", "options"), [({"bias": None}, {}), ({"bias": np.float64(-4)}, {"bias": -10.0})])
def test_there_is_one_bias(more, options):
    with pytest.raises(ValueError, match="adds one bias to its logits.*(neither is|both are) there; give one"):
        run(sigmoid, pairs(4) | more, {}, **options)
