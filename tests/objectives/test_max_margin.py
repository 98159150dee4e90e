"""The max-margin loss against the mean over the terms of its definition."""

import numpy as np
import pytest

from tests.objectives.by_hand import check, pairs, run
from vidlang.objectives import max_margin

TEXT = np.array([[1, 5, 2], [1, 6, 2], [1, 5, 2], [1, 5, 0], [2, 5, 2], [1, 6, 2], [3, 3, 3], [4, 4, 4]], np.int32)
EQUAL = {(0, 2), (2, 0), (1, 5), (5, 1)}


def by_definition(margins, *, skipped=frozenset(), weight=None):
    """The mean over both kinds of terms of all pairs of rows that are not skipped."""

    def reference(outputs):
        cosine = outputs["text_BE"] @ outputs["video_BE"].T
        rows = len(cosine)
        total = count = 0.0
        for i in range(rows):
            for j in set(range(rows)) - {i}:
                if (i, j) not in skipped:
                    heavy = 1.0 if weight is None else weight[i]
                    total += heavy * max(0.0, margins[i] - cosine[i, i] + cosine[i, j])
                    total += heavy * max(0.0, margins[i] - cosine[i, i] + cosine[j, i])
                    count += 2 * heavy
        return total / count

    return reference


def test_a_fixed_margin():
    _, scalars, gradients = check(max_margin, by_definition([0.2] * 8), pairs(8), {}, {"data": 8})
    assert gradients["scale"] == 0 and 0 < scalars["violated"] < 1


def test_margins_by_relevancy_of_the_row_that_is_asked():
    relevancy = np.array([1.0, 0.5, 0.2, 1.0, 0.7, 0.0, 0.3, 0.9])
    check(max_margin, by_definition(0.4 * relevancy), pairs(8), {"relevancy_B": relevancy}, adaptive=True)


def test_rows_with_equal_texts_are_left_out_and_weights_count():
    weight = np.arange(8) + 1.0
    reference = by_definition([0.3] * 8, skipped=EQUAL, weight=weight)
    batch = {"text_BL": TEXT, "weight_B": weight}
    check(max_margin, reference, pairs(8), batch, {"data": 8}, margin=0.3, exclude_equal_texts=True)


def test_rows_that_are_not_valid_are_not_there():
    outputs, valid = pairs(8), np.arange(8) < 5
    few = {name: x[:5] if np.ndim(x) else x for name, x in outputs.items()}
    outputs["text_BE"][5:] = np.nan
    (value, _), gradients = run(max_margin, outputs, {"valid_B": valid})
    np.testing.assert_allclose(value, by_definition([0.2] * 5)(few), rtol=1e-5)
    assert np.isfinite(gradients["video_BE"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptive": True}, "no relevancy_B.*let clip.fields hold 'relevancy', and the table the column text_weights"),
        ({"margin": 0.0}, "margin must be above 0; found 0.0"),
        ({"exclude_equal_texts": True}, "no text_BL, and exclude_equal_texts compares texts"),
    ],
)
def test_wrong_use_says_what_to_do(options, message):
    with pytest.raises(ValueError, match=message):
        run(max_margin, pairs(4), {}, **options)
