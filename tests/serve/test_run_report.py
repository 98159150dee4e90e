"""The page about a run says what its files say, what its stages cost, and what it cannot show."""

import collections
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from configs import svitt
from vidlang.ops.dials import Dials
from vidlang.serve.dial_figures import Pruned
from vidlang.serve.run_report import render_run, results_of, state_of
from vidlang.serve.run_sections import StageReport, stage_html, sweep_html, time_html
from vidlang.serve.stage_costs import StageCost, describe, stage_cost
from vidlang.serve.sweep import Point, read_points, to_json
from vidlang.train.goodput import Goodput
from vidlang.train.recipe import read_recipe

TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 64, "dtype": "float32"}
STAGE = {
    "name": "short",
    "duration": "9 steps",
    "batch_size": 2,
    "model": {"name": "video", "transformer": TRANSFORMER, "tubelet": (2, 8, 8), "pool": "cls"},
    "data": {"name": "synthetic", "split": "train"},
    "clip": {"frames": 4, "size": 32, "times": {"name": "segments"}, "crop": {"name": "center"}, "pairs": "none"},
    "tokenizer": "",
    "objective": {"name": "contrastive"},
    "optimizer": {"learning_rate": 0.01},
    "dials": {"edges": {"local": 1, "random": 1, "block": 4}, "keep": {"0": 0.5}},
}
COST = StageCost("short", 4, "keep 0.5 after layer 0", (32, 16), {"svitt": 2e9}, {"svitt": 8e9}, ("GFLOP true: <no>",))
HISTORY = [
    {"step": 1, "loss": 3.0, "learning_rate": 1e-3, "matching/accuracy": 0.9},
    {"step": 20, "val/t2v_r1": 0.1, "val/videos": 8},
    {"step": 40, "loss": 1.0, "learning_rate": 0.0, "matching/accuracy": 0.9},
    {"step": 40, "order/accuracy": 0.75, "order/chance": 0.5},
    {"step": 40, "val/t2v_r1": 0.3, "val/videos": 8},
]


def read(**changes):
    return read_recipe({"name": "tiny", "seed": 0, "stages": (STAGE | changes,)})


class Page(HTMLParser):
    """Which tags a page has, what they load, and what it says."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.sources, self.text = [], [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.sources += [value for name, value in attrs if name in ("src", "href", "data")]

    def handle_data(self, data):
        self.text += data.replace("\u00a0", " ") + "|"


def cells(page):
    """{head of a row: its cells}, as text."""
    found = {}
    for row in re.findall(r"<tr>(.*?)</tr>", page):
        texts = [re.sub(r"<[^>]*>", "", cell).replace("\u00a0", " ") for cell in re.findall(r"<t[hd].*?</t[hd]>", row)]
        found[texts[0]] = texts[1:]
    return found


def test_compute_falls_stage_by_stage_relative_to_dense():
    recipe = read_recipe(svitt.get_config())
    costs = [stage_cost(recipe, index, counts=("svitt",)) for index in range(len(recipe.stages))]
    assert [cost.frames for cost in costs] == [1, 4, 8, 16]
    shares = [cost.share("svitt") for cost in costs]
    assert shares[0] == 1.0 and all(later < before for before, later in zip(shares, shares[1:], strict=False))
    # GFLOP, hybrid and dense, in the paper's Table 2.
    for cost, printed in zip(costs[1:], [(93.9, 139.9), (166.4, 291.3), (296.2, 627.8)], strict=True):
        assert (cost.own["svitt"] / 1e9, cost.off["svitt"] / 1e9) == pytest.approx(printed, rel=0.01)
    assert [cost.tokens for cost in costs] == [(196, 196), (784, 270), (1568, 339), (3136, 392)]


def test_own_operations_are_counted_under_the_dials_and_the_others_without():
    sparse, dense = stage_cost(read(), 0), stage_cost(read(dials={}), 0)
    assert sparse.off == dense.off == dense.own and not sparse.reasons
    assert sparse.own.keys() == {"svitt", "true"}
    assert all(0 < sparse.share(name) < 1 and dense.share(name) == 1 for name in sparse.own)
    assert sparse.tokens == (32, 16) and dense.tokens == (32, 32)


def test_what_cannot_be_counted_is_missing_with_its_reason():
    views = ({"size": (2, 8, 8), "stride": (2, 8, 8)}, {"size": (4, 16, 16), "stride": (4, 16, 16)})
    cost = stage_cost(read(model=STAGE["model"] | {"views": views, "positions": "none"}, dials={}), 0)
    assert cost.tokens is None and cost.own.keys() == {"true"} and cost.share("svitt") is None
    assert [reason.split(":")[0] for reason in cost.reasons] == ["tokens", "GFLOP svitt"]


@pytest.mark.parametrize(
    ("dials", "words"),
    [
        ({}, "all off"),
        ({"mask": 0.5, "mask_kind": "tube"}, "mask 0.5 (tube)"),
        ({"widths": {"name": "dec"}}, "widths drawn in each step, counted at the widest"),
        (
            {"edges": {"local": 1, "random": 3, "block": 56}, "keep": {"9": 0.5, "3": 0.5}, "keep_text": {"1": 0.1}},
            "edges (1, 3, 56); keep 0.5 after layers 3, 9; keep_text 0.1 after layer 1",
        ),
        ({"keep": {"3": 0.7, "6": 0.6}}, "keep 0.7, 0.6 after layers 3, 6"),
    ],
)
def test_dials_in_words(dials, words):
    assert describe(Dials(**dials)) == words


def test_results_are_the_last_of_each_evaluation_beside_those_made_later():
    assert results_of(HISTORY, {}) == {
        "step 40": {"order/accuracy": 0.75, "val/t2v_r1": 0.3, "val/videos": 8},
        "chance": {"order/accuracy": 0.5},
    }
    found = results_of(HISTORY[:4], {"40": {"order/accuracy": 0.8}, "untrained": {"val/t2v_r1": 0.0}})
    assert list(found) == ["step 40", "step 20", "untrained", "chance"]
    assert found["step 40"] == {"order/accuracy": 0.8}
    assert found["step 20"] == {"val/t2v_r1": 0.1, "val/videos": 8} and found["untrained"] == {"val/t2v_r1": 0.0}


def test_a_stage_says_how_far_it_is():
    stage = read().stages[0]
    assert state_of(stage, [], finished=False) == "Not begun."
    assert state_of(stage, HISTORY[:2], finished=False) == "At step 20; it lasts 9 steps."
    assert state_of(stage, HISTORY, finished=True) == "Finished at step 40 (9 steps)."


def test_a_page_shows_costs_curves_results_and_pictures_and_loads_nothing():
    pruned = Pruned(np.zeros((16, 20, 3), np.uint8), ("the clip", "after layer 0, which keeps 0.5: 16 of 32 tokens"))
    begun = StageReport("0_short", "At step 40.", COST, HISTORY, results_of(HISTORY, {}), pruned)
    html = render_run("<b>A run", [begun, StageReport("1_long", "Not begun.", COST)])
    page = Page(html)
    assert "script" not in page.tags and "b" not in page.tags[: page.tags.index("div")]
    assert len(page.sources) == 1 and page.sources[0].startswith("data:image/png;base64,")
    assert cells(html)["shortkeep 0.5 after layer 0"] == ["4", "32 to 16", "2", "8", "25.0 %", "–", "–", "–"]
    assert 'class="part" width="25.0"' in html and "short: GFLOP true: <no>" in page.text
    assert cells(html)["Accuracy"] == ["75.0 %", "50.0 %"]
    charts = re.findall(r"<h3>(.*?)</h3><svg", html)
    assert charts == [
        "Loss",
        "Learning rate",
        "Accuracy (matching), in training",
        "Accuracy (order)",
        "Text to video (val)",
    ]
    assert "1 of 2 stages begun: 0_short, 1_long." in page.text and "16 of 32 tokens" in page.text


def test_where_the_time_went_is_a_table_of_all_of_it():
    assert time_html(Goodput()) == ""
    seconds = {"compile": 30.0, "down": 45.0, "training": 120.0, "save": 0.05, "<start>": 4.95}
    goodput = Goodput(200.0, collections.defaultdict(float, seconds), restarts=2, repeated=7)
    html = time_html(goodput)
    assert list(cells(html).items())[1:] == [
        ("training", ["2m00s", "60.0 %"]),
        ("down", ["45s", "22.5 %"]),
        ("compile", ["30s", "15.0 %"]),
        ("&lt;start&gt;", ["4s", "2.5 %"]),
    ]
    assert 'class="part" width="22.5"' in html and "<start>" not in html
    assert "Of 3m20s since the first start; 2 restarts, 7 steps done again." in html
    assert time_html(goodput) in render_run("A run", [StageReport("0_short", "", COST)], (), goodput)


def test_what_a_stage_lacks_is_said():
    assert "Nothing was evaluated yet." in stage_html(StageReport("0_short", "", COST, HISTORY[:1]))
    assert "cannot be shown: no &lt;clip&gt;" in stage_html(StageReport("0_short", "", COST, no_picture="no <clip>"))
    assert "<h3>" not in stage_html(StageReport("0_short", "Not begun.", COST))


def test_a_sweep_has_its_table_and_its_picture(tmp_path):
    points = [
        Point("d-768", (64, 64), "val", {"true": 4e9}, {"val/t2v_r1": 0.5}),
        Point("d-dec", (64, 32), "val", {"true": 3e9}, {"val/t2v_r1": float("nan")}),
    ]
    path = tmp_path / "sweep.json"
    path.write_text(to_json(points))
    again = read_points(path)
    assert to_json(again) == to_json(points)  # as text, for NaN equals nothing
    html = sweep_html(again)
    assert cells(html)["d-768"] == ["64", "4", "0.5"] and cells(html)["d-dec"][:2] == ["48", "3"]
    assert [source.split(";")[0] for source in Page(html).sources] == ["data:image/svg+xml"]
    assert sweep_html([]) == "" and Page(sweep_html([Point("d", (1,), "val", {}, {"val/x": 1.0})])).sources == []
    path.write_text('[{"preset": "d-768"}]')
    with pytest.raises(ValueError, match="does not hold the points of a sweep; run launch.sweep again"):
        read_points(path)
