"""EgoNCE against the sums of its definition, in both forms, and what it says when tags are missing."""

import jax
import numpy as np
import pytest

from tests.objectives.by_hand import check, pairs, run, shares
from vidlang.objectives import contrastive, ego_nce

# Of rows 0 to 7: what they are named by. -1 pads a list.
VERBS = np.array([[1, -1], [1, 4], [2, -1], [1, 2], [-1, -1], [-1, -1], [4, -1], [2, 3]], np.int32)
NOUNS = np.array(
    [[7, 8, -1], [8, -1, -1], [7, -1, -1], [9, 8, 5], [7, -1, -1], [7, -1, -1], [-1, -1, -1], [7, 6, 5]], np.int32
)
# Which rows share a verb and a noun, read off the lists: 0-1 (1; 8), 0-3 (1; 8), 1-3 (1; 8), 2-7 (2; 7), 3-7 (2; 5).
BOTH = {0: {0, 1, 3}, 1: {0, 1, 3}, 2: {2, 7}, 3: {0, 1, 3, 7}, 4: {4}, 5: {5}, 6: {6}, 7: {2, 3, 7}}
VERB_ONLY = {
    0: {0, 1, 3},
    1: {0, 1, 3, 6},
    2: {2, 3, 7},
    3: {0, 1, 2, 3, 7},
    4: {4},
    5: {5},
    6: {1, 6},
    7: {2, 3, 7},
}
TAGS = {"verbs_BK": VERBS, "nouns_BK": NOUNS}


def by_definition(positives, *, ways=2, valid=None, weight=None, candidates=None):
    """-sum_i share_i log(sum over positives / sum over all) of each way, with plain exponentials."""

    def reference(outputs):
        rows = len(outputs["video_BE"])
        ok = np.ones(rows, bool) if valid is None else valid
        share = shares(np.ones(rows) if weight is None else weight, ok)
        value = 0.0
        for query, other in (("video_BE", "text_BE"), ("text_BE", "video_BE"))[:ways]:
            likely = np.exp(outputs["scale"] * outputs[query] @ outputs[other].T)
            for i in np.flatnonzero(ok):
                right = sum(likely[i, j] for j in positives[i] if ok[j])
                value -= share[i] * np.log(right / likely[i, ok].sum())
        return value

    return reference


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "positives"), [({}, BOTH), ({"tags": "verbs", "chunk": 3}, VERB_ONLY)], ids=["both", "verbs"]
)
def test_the_code_adds_both_directions_of_the_sum_of_probabilities(options, positives):
    mesh = {"data": 8} if options else {"data": 2, "fsdp": 2, "tensor": 2}
    _, scalars, _ = check(ego_nce, by_definition(positives), pairs(8), TAGS, mesh, **options)
    assert scalars["positives"] == pytest.approx(np.mean([len(rows) for rows in positives.values()]))


def test_valid_rows_and_weights():
    valid, weight = np.arange(8) != 3, np.arange(8) + 1.0
    reference = by_definition(BOTH, valid=valid, weight=weight)
    outputs = pairs(8)
    value, _, _ = check(ego_nce, reference, outputs, TAGS | {"valid_B": valid, "weight_B": weight})
    outputs["video_BE"][3] = np.nan
    with jax.enable_x64(True):
        (other, _), gradients = run(ego_nce, outputs, TAGS | {"valid_B": valid, "weight_B": weight})
    assert other == value and not gradients["video_BE"][3].any() and np.isfinite(gradients["scale"])


def test_the_paper_looks_for_positives_among_originals_and_from_video_to_text_only():
    originals = {i: {j for j in rows if j % 2 == 0 or j == i} for i, rows in BOTH.items()}
    assert originals != BOTH
    options = {"form": "paper", "partners": True}
    check(ego_nce, by_definition(originals, ways=1), pairs(8), TAGS, **options)
    with jax.enable_x64(True):
        (value, _), _ = run(ego_nce, pairs(8), TAGS, form="paper", partners=False)
    np.testing.assert_allclose(value, by_definition(BOTH, ways=1)(pairs(8)), rtol=1e-10)


@pytest.mark.slow
def test_without_tags_it_is_infonce():
    none = {name: np.full_like(tags, -1) for name, tags in TAGS.items()}
    with jax.enable_x64(True):
        (value, scalars), gradients = run(ego_nce, pairs(8), none, direction_reduction="mean")
        (expected, plain), plain_gradients = run(contrastive, pairs(8), {})
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient, plain_gradients[name], rtol=1e-9, atol=1e-14)
    assert scalars["accuracy_t2v"] == plain["accuracy_t2v"] and scalars["positives"] == 1


def test_probabilities_too_small_for_a_float_have_finite_logarithms():
    """At a scale of 400 what is right has a probability near exp(-800), which is 0 in float32."""
    video = np.eye(4, dtype=np.float32)
    outputs = {"video_BE": video, "text_BE": -video, "scale": np.float32(400)}
    batch = {name: np.full((4, 1), -1, np.int32) for name in TAGS}
    (value, _), gradients = run(ego_nce, outputs, batch)
    np.testing.assert_allclose(value, 2 * (400 + np.log(3)), rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"verbs_BK": VERBS}, {}, "no nouns_BK.*let clip.fields hold 'verbs' and 'nouns'.*it has: verbs_BK"),
        ({"verbs_BK": VERBS[:, 0]}, {"tags": "verbs"}, r"a list of ids, padded with -1, for each of 8.*\(8,\)"),
        (TAGS, {"tags": "verb"}, "tags is 'verb'; it is one of both, verbs, nouns"),
        (TAGS, {"form": "papr"}, "form is 'papr'; it is one of code, paper"),
        (TAGS, {"form": "paper"}, 'say partners=True where clip.pairs is "group"'),
        (TAGS, {"partners": True}, 'form="code" treats partners like all rows; leave it out'),
        (TAGS, {"form": "paper", "partners": False, "direction_reduction": "mean"}, "has one direction"),
        (TAGS | {"mix_share_B": np.ones(8)}, {}, "ego_nce pairs a clip with its own text"),
    ],
)
def test_wrong_use_says_what_to_do(batch, options, message):
    with pytest.raises(ValueError, match=message):
        run(ego_nce, pairs(8), batch, **options)
