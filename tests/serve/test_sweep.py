"""The table and the picture of a sweep show its points and nothing else."""

import math
from xml.etree import ElementTree

import pytest

from vidlang.serve.sweep import Point, pick_metrics, render
from vidlang.serve.sweep_figure import sweep_figure

POINTS = [
    Point("d-768", (32, 32), "val", {"true": 8e9, "adavid": 7e9}, {"val/r1": 0.5, "val/r5": 0.75}),
    Point("d-768", (32, 32), "mcq", {"true": 8e9, "adavid": 7e9}, {"mcq/accuracy": 1.0}),
    Point("d-dec", (32, 8), "val", {"true": 4e9, "adavid": 3e9}, {"val/r1": 0.25, "val/r5": 0.5}),
    Point("d-dec", (32, 8), "mcq", {"true": 4e9, "adavid": 3e9}, {"mcq/accuracy": math.nan}),
    Point("d-inc", (8, 32), "val", {"true": 4e9, "adavid": 3e9}, {"val/r1": 0.0, "val/r5": 0.25}),
]


def test_a_table_has_a_line_for_each_preset():
    assert pick_metrics(POINTS) == ["val/r1", "mcq/accuracy"]
    lines = render(POINTS, ["val/r5"]).splitlines()
    assert [line.split() for line in lines] == [
        ["widths", "mean", "GFLOP", "adavid", "GFLOP", "true", "val/r5"],
        ["d-768", "32", "7", "8", "0.75"],
        ["d-dec", "20", "3", "4", "0.5"],
        ["d-inc", "20", "3", "4", "0.25"],
    ]
    with pytest.raises(ValueError, match="no metric 'val/r2'; there are: val/r1, val/r5, mcq/accuracy"):
        pick_metrics(POINTS, ["val/r2"])


def test_a_picture_has_a_dot_for_each_finite_value_in_its_place():
    picture = ElementTree.fromstring(sweep_figure(POINTS, ["val/r1", "mcq/accuracy"], "true"))
    dots = [(float(e.get("cx")), float(e.get("cy")), e.get("fill")) for e in picture.iter() if e.tag.endswith("circle")]
    first = [(x, y) for x, y, fill in dots if fill == dots[0][2]]
    assert len(dots) == 4 and len(first) == 3
    # From cheap to dear: left to right; better is higher, and twice as good is twice as high above nothing.
    (zero, low), (same, middle), (right, high) = first
    assert zero == same < right and low > middle > high
    assert (low - high) == pytest.approx(2 * (low - middle), abs=0.2)
    words = [e.text for e in picture.iter() if e.tag.endswith("text")]
    assert {"d-dec, d-inc", "d-768", "val/r1", "mcq/accuracy", "4", "8"} <= set(words)
    assert "nan" not in ElementTree.tostring(picture, encoding="unicode")
    with pytest.raises(ValueError, match="not counted as 'svitt'; there are: adavid, true"):
        sweep_figure(POINTS, ["val/r1"], "svitt")
