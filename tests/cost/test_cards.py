"""Cards and the estimate of a step's time."""

import pytest

from vidlang.cost.cards import CARDS, Card, find_card, measure_cpu, step_seconds

CARD = Card(bfloat16=100.0, float32=50.0, memory=1.0, bandwidth=10.0)


def test_a_step_takes_as_long_as_the_slower_of_operations_and_bytes():
    assert step_seconds(CARD, "bfloat16", flops=1000, traffic=10, utilisation=0.5) == 20
    assert step_seconds(CARD, "float32", flops=1000, traffic=10, utilisation=0.5) == 40
    assert step_seconds(CARD, "bfloat16", flops=1000, traffic=900, utilisation=0.5) == 90


def test_names_are_found_in_any_case_and_unknown_ones_listed():
    assert find_card("h100") is CARDS["H100"]
    with pytest.raises(ValueError, match=r"unknown card 'H10O' \(did you mean 'H100'\?\); there are: H100, H200,"):
        find_card("H10O")


def test_figures_are_of_the_right_size():
    for name, card in CARDS.items():
        assert 0.4 * card.bfloat16 < card.float32 <= card.bfloat16, name
        assert 1e12 < card.bfloat16 < 2e15 and 1e10 < card.memory < 2e11 and 5e11 < card.bandwidth < 1e13, name


def test_this_machine_is_measured():
    card = measure_cpu(size=256, rounds=1)
    assert 1e8 < card.float32 < 1e14 and 1e7 < card.bandwidth < 1e13 and card.memory > 1e8


def test_a_utilisation_above_one_is_refused():
    with pytest.raises(ValueError, match="share of a card's peak"):
        step_seconds(CARD, "bfloat16", flops=1, traffic=1, utilisation=40)
