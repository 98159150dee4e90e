"""When a claim counts as held: the arithmetic of figures and verdicts, on numbers made by hand."""

import math

import pytest

from vidlang.serve.claims.verdicts import (
    HELD,
    LITTLE,
    NOT_HELD,
    UNDECIDED,
    Figure,
    Finding,
    at_least,
    better,
    combine,
    decide,
    no_worse,
)


def figure(*values, **options):
    return Figure("figure", values, **options)


def test_mean_spread_and_standard_error_are_those_of_a_sample():
    """1, 2, 6: mean 3, squared distances 4 + 1 + 9, so a variance of 7 among three."""
    found = figure(1.0, 2.0, 6.0)
    assert found.mean == pytest.approx(3.0)
    assert found.spread == pytest.approx(math.sqrt(7.0))
    assert found.error == pytest.approx(math.sqrt(7.0 / 3.0))
    counted = figure(5.0, counted=True)
    assert (counted.spread, counted.error) == (0.0, 0.0)


# The mean of -1, 0, 1 about 10: standard error 1 / sqrt(3) = 0.577, so two of them are 1.155.
@pytest.mark.parametrize(
    ("values", "bound", "verdict"),
    [
        ((9.0, 10.0, 11.0), 8.84, HELD),
        ((9.0, 10.0, 11.0), 8.85, UNDECIDED),
        ((9.0, 10.0, 11.0), 11.15, UNDECIDED),
        ((9.0, 10.0, 11.0), 11.16, NOT_HELD),
        ((10.0,), 0.0, UNDECIDED),
        ((0.0, 0.0, 0.0), 0.0, UNDECIDED),
        ((0.1, 0.1), 0.0, HELD),
    ],
)
def test_a_mean_must_lie_beyond_two_standard_errors(values, bound, verdict):
    assert decide(figure(*values), bound) == verdict


def test_what_is_counted_needs_no_seeds():
    assert decide(figure(2.1, counted=True), 2.0) == HELD
    assert decide(figure(1.9, counted=True), 2.0) == NOT_HELD


def test_differences_and_ratios_are_paired_by_seed():
    """Seeds differ by far more than the two sides do: only pairs show it."""
    one, other = figure(0.51, 0.71, 0.92), figure(0.50, 0.70, 0.90)
    found = better("recall", one, other)
    assert found.tested.values == pytest.approx((0.01, 0.01, 0.02))
    assert (found.bound, found.verdict) == (0.0, HELD)
    assert better("recall", other, one).verdict == NOT_HELD
    rates = at_least("rate", figure(6.0, 9.0), figure(2.0, 3.0), 2.5)
    assert rates.tested.values == pytest.approx((3.0, 3.0)) and rates.verdict == HELD
    with pytest.raises(ValueError, match="2 values and 'figure' 3; .* same seeds"):
        better("recall", figure(1.0, 2.0), one)


def test_no_worse_allows_a_margin_and_no_more():
    plain = figure(0.5, 0.5, 0.5)
    found = no_worse("recall", figure(0.48, 0.49, 0.47), plain)
    assert (found.bound, found.verdict) == (-LITTLE, HELD), "0.02 lost, give or take 0.012"
    assert no_worse("recall", figure(0.45, 0.46, 0.44), plain).verdict == UNDECIDED
    assert no_worse("recall", figure(0.40, 0.41, 0.39), plain).verdict == NOT_HELD


def test_a_ratio_of_counted_figures_is_counted():
    found = at_least("memory", figure(10.0, counted=True), figure(4.0, counted=True), 2.0)
    assert found.tested.counted and found.tested.values == (2.5,) and found.verdict == HELD


@pytest.mark.parametrize(
    ("verdicts", "whole"),
    [
        ([HELD], HELD),
        ([HELD, HELD], HELD),
        ([HELD, UNDECIDED], UNDECIDED),
        ([UNDECIDED, NOT_HELD], NOT_HELD),
        ([HELD, NOT_HELD], NOT_HELD),
    ],
)
def test_a_claim_is_as_strong_as_its_weakest_part(verdicts, whole):
    findings = [Finding("part", (figure(1.0),), figure(1.0), 0.0, verdict) for verdict in verdicts]
    assert combine(findings) == whole


def test_a_figure_is_made_of_numbers():
    for values in ((), (math.nan,), (1.0, math.inf)):
        with pytest.raises(ValueError, match="needs finite values"):
            figure(*values)
