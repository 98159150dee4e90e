"""Curves are drawn where their numbers are, and say what they leave out."""

import math
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from vidlang.serve.report_figures import POINTS, Series, line_chart, nice_ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0, 4.7), (0, 3e-4), (-2.3, 8), (0, 0), (5, 5), (0, 123456), (0.5, 0.51)]
)
def test_ticks_are_round_even_and_cover_the_range(low, high):
    ticks = nice_ticks(low, high)
    gaps = np.diff(ticks)
    assert ticks[0] <= low + 1e-12 and ticks[-1] >= high - 1e-12 and 2 <= len(ticks) <= 8
    np.testing.assert_allclose(gaps, gaps[0])
    digits = gaps[0] / 10 ** math.floor(math.log10(gaps[0]) + 1e-9)
    assert any(digits == pytest.approx(nice) for nice in (1, 2, 2.5, 5))


def polylines(chart):
    svg = ElementTree.fromstring(re.search(r"<svg viewBox.*?</svg>(?=<figcaption)", chart)[0])
    lines = svg.findall("g/polyline")
    return [np.array([[float(v) for v in point.split(",")] for point in line.get("points").split()]) for line in lines]


def test_curve_is_linear_in_step_and_value():
    steps, values = [0, 10, 20, 50], [0.0, 0.5, 1.0, 0.25]
    (points,) = polylines(line_chart("A", [Series("a", steps, values)], share=True))
    for column, given in ((0, steps), (1, values)):
        slope, offset = np.polyfit(given, points[:, column], 1)
        np.testing.assert_allclose(points[:, column], slope * np.array(given) + offset, atol=0.1)
        assert slope > 0 if column == 0 else slope < 0


def test_values_that_are_not_finite_leave_a_gap():
    lines = polylines(line_chart("A", [Series("a", range(5), [1.0, 2.0, math.nan, 3.0, 4.0])]))
    assert [len(line) for line in lines] == [2, 2]
    assert "No finite value" in line_chart("A", [Series("a", [0], [math.nan])])


def test_long_curves_are_averaged_and_say_so():
    values = np.random.default_rng(0).random(10_000).tolist()
    chart = line_chart("A", [Series("a", range(10_000), values)])
    (points,) = polylines(chart)
    assert len(points) == POINTS and "mean of neighbouring logged steps" in chart
    assert np.ptp(points[:, 1]) < 100, "means vary less than values"
    assert "mean of" not in line_chart("A", [Series("a", range(POINTS), values[:POINTS])])
