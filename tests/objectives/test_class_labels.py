"""Classification against a loop over rows, with mixed clips and unknown labels; then objectives that are sums."""

import numpy as np
import pytest

from tests.objectives.by_hand import check, log_sum, pairs, run
from vidlang.objectives import classification, combined, contrastive

VERB = np.array([0, 3, -1, 6, 2, 2, -1, 5], np.int32)
NOUN = np.array([1, 0, 2, 8, -1, 3, 8, 7], np.int32)
LABELS = {"verb_label_B": VERB, "noun_label_B": NOUN}


def outputs_of(seed=0):
    rng = np.random.default_rng(seed)
    return {"logits": {"verb_label": 2 * rng.normal(size=(8, 7)), "noun_label": 2 * rng.normal(size=(8, 9))}}


def by_definition(heads, *, smoothing=0.0, weight=None, share=None, partner=None):
    weight, share = np.ones(8) if weight is None else weight, np.ones(8) if share is None else share

    def reference(outputs):
        value = 0.0
        for head, factor in heads.items():
            labels, terms = LABELS[f"{head}_B"], []
            for i, logits in enumerate(outputs["logits"][head]):
                likely = logits - log_sum(logits)
                for j, part in ((i, share[i]), (i if partner is None else partner[i], 1 - share[i])):
                    if labels[j] >= 0:
                        wanted = np.full(len(likely), smoothing / len(likely))
                        wanted[labels[j]] += 1 - smoothing
                        terms.append((-wanted @ likely, weight[i] * part))
            value += factor * sum(v * w for v, w in terms) / sum(w for _, w in terms)
        return value

    return reference


def test_heads_are_added_by_their_weights_and_unknown_labels_are_left_out():
    outputs, weight = outputs_of(), np.arange(8) + 1.0
    heads = {"verb_label": 1.0, "noun_label": 0.5}
    reference = by_definition(heads, smoothing=0.1, weight=weight)
    options = {"heads": heads, "label_smoothing": 0.1}
    _, scalars, gradients = check(classification, reference, outputs, LABELS | {"weight_B": weight}, **options)
    assert not gradients["logits"]["verb_label"][[2, 6]].any() and gradients["logits"]["noun_label"][2].any()
    for name, labels in (("verb_label", VERB), ("noun_label", NOUN)):
        order = np.argsort(-outputs["logits"][name], axis=1)
        for k in (1, 5):
            hits = (order[:, :k] == labels[:, None]).any(axis=1)[labels >= 0]
            assert scalars[f"{name}_top{k}"] == pytest.approx(hits.mean())
    alone = by_definition({"noun_label": 1.0}, smoothing=0.1, weight=weight)
    assert scalars["noun_label_loss"] == pytest.approx(alone(outputs))


def test_mixed_clips_ask_for_both_labels_by_their_shares():
    rng = np.random.default_rng(3)
    share, partner = rng.random(8).round(2), (np.arange(8) + 2) % 8
    share[5], partner[5] = 1.0, 5
    batch = LABELS | {"mix_share_B": share, "mix_partner_B": partner.astype(np.int32)}
    heads = {"verb_label": 1.0, "noun_label": 1.0}
    reference = by_definition(heads, smoothing=0.1, share=share, partner=partner)
    _, scalars, _ = check(classification, reference, outputs_of(), batch, {"data": 8}, label_smoothing=0.1)
    likely = np.where(share >= 0.5, NOUN, NOUN[partner])
    hits = (outputs_of()["logits"]["noun_label"].argmax(axis=1) == likely)[likely >= 0]
    assert scalars["noun_label_top1"] == pytest.approx(hits.mean())


def test_no_known_label_is_no_loss_and_a_label_beyond_the_classes_is_not_learned_as_another():
    outputs = {"logits": {"verb_label": np.ones((2, 4), np.float32)}}
    for label, valid, expected in ((-1, True, 0.0), (2, False, 0.0), (4, True, np.nan)):
        batch = {"verb_label_B": np.full(2, label, np.int32), "valid_B": np.full(2, valid)}
        (value, scalars), gradients = run(classification, outputs, batch)
        np.testing.assert_array_equal(value, expected)
        assert expected != 0 or (scalars["verb_label_top5"] == 0 and not gradients["logits"]["verb_label"].any())


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({}, {}, "no noun_label_B, and the head 'noun_label' is asked for it: let clip.fields hold 'noun_label'"),
        (LABELS, {"heads": {"verb": 1.0}}, "no head 'verb'.*it has: noun_label, verb_label"),
        (LABELS, {"heads": {"verb_label": -1.0}}, "the weight of 'verb_label' must be from 0 on; found -1"),
        (LABELS, {"heads": {"verb_label": 0.0}}, "no head has a weight above 0"),
        (LABELS, {"label_smoothing": -0.1}, "label_smoothing must be from 0 to below 1; found -0.1"),
        ({"noun_label_B": NOUN[:3]}, {}, r"\(8, 9\) and \(3,\)"),
    ],
)
def test_wrong_use_says_what_to_do(batch, options, message):
    with pytest.raises(ValueError, match=message):
        run(classification, outputs_of(), batch, **options)


def test_parts_are_summed_by_their_weights():
    parts = (
        {"name": "contrastive", "weight": 2.0, "direction_reduction": "sum"},
        {"name": "classification", "weight": 0.25, "label_smoothing": 0.1},
        {"name": "max_margin"},
    )
    outputs = pairs(8) | outputs_of()

    def reference(outputs):
        logits = outputs["scale"] * outputs["video_BE"] @ outputs["text_BE"].T
        own = np.diag(logits)
        infonce = (log_sum(logits) - own).mean() + (log_sum(logits.T) - own).mean()
        cosine = logits / outputs["scale"]
        terms = [max(0, 0.2 - cosine[i, i] + x) for i in range(8) for j in range(8) if i != j for x in
                 (cosine[i, j], cosine[j, i])]  # fmt: skip
        labels = by_definition({"verb_label": 1.0, "noun_label": 1.0}, smoothing=0.1)(outputs)
        return 2 * infonce + 0.25 * labels + np.mean(terms)

    value, scalars, _ = check(combined, reference, outputs, LABELS, parts=parts)
    total = 2 * scalars["contrastive/loss"] + 0.25 * scalars["classification/loss"] + scalars["max_margin/loss"]
    assert value == pytest.approx(total, rel=1e-6)
    assert scalars["contrastive/scale"] == 14 and "classification/noun_label_top1" in scalars


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), "objective.parts holds nothing"),
        (({"name": "contrastive", "weight": 0},), "holds no weight above 0"),
        (({"name": "contrastve"},), r"unknown name 'contrastve' in vidlang/objectives/ \(did you mean 'contrastive'"),
        (({"weight": 1.0},), r"parts\[0\] must be a section with a name"),
        (("contrastive",), r"parts\[0\] must be a section with a name.*found 'contrastive'"),
        (({"name": "contrastive", "weight": -1},), r"parts\[0\]: weight must be a number from 0 on; found -1"),
        (({"name": "contrastive", "chunks": 2},), r"parts\[0\] has an unknown key 'chunks' \(did you mean 'chunk'"),
        (({"name": "contrastive", "chunk": "2"},), r"parts\[0\].chunk must be a whole number; found '2'"),
        (({"name": "contrastive"}, {"name": "contrastive"}), "has 'contrastive' twice"),
        (({"name": "combined", "parts": ()},), r"parts\[0\] is itself 'combined'"),
    ],
)
def test_wrong_parts_are_found_without_a_batch(parts, message):
    with pytest.raises(ValueError, match=message):
        combined.check(parts)
    assert combined.check(({"name": "contrastive"},))[0].loss is contrastive.loss
