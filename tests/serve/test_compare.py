"""The page about several runs says what each run's files say, and of their configs only what differs."""

import json
import re

import pytest

from tests.serve.test_run_report import STAGE, Page, cells
from vidlang.serve.compare import flat, render_comparison, short_names, speeds_of, write_comparison
from vidlang.serve.compare_sections import charted, differences
from vidlang.train.run_files import write_json

# The newest checkpoint counts, whichever was evaluated last.
EVALS = {
    "0_short/30": {"val/t2v_r1": 0.5, "val/x": 7.0},
    "0_short/2": {"val/t2v_r1": 0.9},
    "0_short/untrained": {"val/t2v_r1": 0.01},
}
STAGES = (STAGE | {"optimizer": {"learning_rate": 0.01}}, STAGE | {"name": "long", "duration": "5 steps"})


def run_at(folder, losses, recalls=(), rate=0.01, evals=None, stages=1):
    """A run's folder with a history, and without a checkpoint; the last step of a stage is that of its evaluation."""
    config = {"name": "tiny", "seed": 0, "stages": (STAGES[0] | {"optimizer": {"learning_rate": rate}}, STAGES[1])}
    folder.mkdir(parents=True)
    write_json(folder / "config.json", config | {"stages": config["stages"][:stages]})
    for name in ("0_short", "1_long")[:stages]:
        (folder / name).mkdir()
        records = [
            {"step": i, "loss": loss, "contrastive/loss": loss, "step_seconds": 0.5, "clips_per_second": 4.0}
            for i, loss in enumerate(losses)
        ]
        records += [
            {"step": 10 * i, "val/t2v_r1": r, "val/videos": 8, "val/chance": 0.1} for i, r in enumerate(recalls)
        ]
        lines = map(json.dumps, records)
        (folder / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    if evals:
        write_json(folder / "evals.json", evals)
    return folder


def charts_of(page):
    """{title of a chart: {label of a curve: its last value}}."""
    found = {}
    for figure in re.findall(r'<figure class="chart">(.*?)</figure>', page):
        title = re.search(r"<h3>(.*?)</h3>", figure)[1]
        found[title] = dict(re.findall(r"</svg>([^<]*) <b>(.*?)</b>", figure))
    return found


def test_curves_lie_over_each_other_and_the_last_metrics_side_by_side(tmp_path):
    one = run_at(tmp_path / "One", [3.0, 2.0], [0.1, 0.25])
    two = run_at(tmp_path / "two", [3.0, 1.0, 0.5], evals=EVALS)
    page = write_comparison([one, two])
    html = page.read_text()
    assert page == one / "comparison.html"
    charts = charts_of(html)
    assert charts["Loss"] == charts["Loss (contrastive)"] == {"One": "2", "two": "0.5"}
    assert charts["Text to video, recall at 1 (val)"] == {"One": "25.0\u00a0%"}, "a later evaluation has no curve"
    assert not any("ideos" in title or "hance" in title for title in charts)
    rows = cells(html)
    assert rows["Metric"] == ["One", "two", "chance"] and rows["Loss"][:2] == ["2", "0.5"]
    assert rows["Text to video, recall at 1"][:2] == ["25.0 %", "50.0 %"] and rows["X"][:2] == ["–", "7"]
    assert rows["One"] == ["At step 10; it lasts 9 steps.", "2", "4"]
    assert "script" not in Page(html).tags and Page(html).sources == []


def test_a_run_has_the_same_line_in_every_chart(tmp_path):
    one, two = run_at(tmp_path / "one", [1.0, 2.0]), run_at(tmp_path / "two", [1.0, 2.0], [0.1, 0.2])
    html = write_comparison([one, two], tmp_path / "pages" / "both.html").read_text()
    recall = next(figure for figure in re.findall(r"<figure.*?</figure>", html) if "recall at 1" in figure)
    assert 'class="curve s1"' in recall and 'class="curve s0"' not in recall


def test_stages_follow_one_another_and_the_last_counts(tmp_path):
    runs = [run_at(tmp_path / name, [2.0, 1.0], [0.2, 0.4], stages=stages) for name, stages in (("a", 1), ("b", 2))]
    html = write_comparison(runs).read_text()
    assert cells(html)["b"][0] == "1_long: At step 10; it lasts 5 steps." and "Loss" in charts_of(html)
    assert re.search(r"step 20: 40.0", html), "the second stage's step 10, after the first's ten"


def test_configs_are_compared_by_path_and_only_where_they_differ(tmp_path):
    one = run_at(tmp_path / "one", [1.0], rate=0.01)
    two = run_at(tmp_path / "two", [1.0], rate=0.02, stages=2)
    rows = cells(write_comparison([one, two]).read_text())
    assert rows["stages[0].optimizer.learning_rate"] == ["0.01", "0.02"]
    assert rows["stages[1].duration"] == ["–", "&quot;5 steps&quot;"]
    assert not any(key.startswith("stages[0]") and "learning_rate" not in key for key in rows)
    assert flat({"a": {"b": (1, {"c": 2})}, "d": [], "e": {}}) == {"a.b[0]": 1, "a.b[1].c": 2, "d": [], "e": {}}
    assert differences({"x": {"a": 1, "b": 1}, "y": {"a": 1.0, "b": True}}) == {"a": ["1", "1.0"], "b": ["1", "true"]}
    same = [run_at(tmp_path / "same" / name, [1.0]) for name in "xy"]
    assert "The configs are the same in every key." in write_comparison(same).read_text()


def test_runs_that_lack_something_are_said_and_compared_all_the_same(tmp_path):
    one, two = run_at(tmp_path / "one", [1.0]), run_at(tmp_path / "two", [])
    (two / "0_short" / "metrics.jsonl").unlink()
    assert cells(write_comparison([one, two]).read_text())["two"] == ["Not begun.", "–", "–"]
    page = render_comparison([])
    assert "No run has a history yet" in page and "No run has written a metric yet" in page


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("one",), "at least two runs; found 1"),
        (("one", "one"), "is given twice; name each run once"),
        (("one", "no"), "no is not the folder of a run: it has no config.json"),
    ],
)
def test_what_cannot_be_compared_is_a_sentence(tmp_path, names, words):
    run_at(tmp_path / "one", [1.0])
    with pytest.raises(ValueError, match=words):
        write_comparison([tmp_path / name for name in names])


def test_names_are_as_short_as_they_may_be(tmp_path):
    assert short_names([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert short_names([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]


def test_speeds_are_medians():
    assert speeds_of([{"step_seconds": s} for s in (0.5, 0.25, 90.0)] + [{"val/x": 1.0}]) == {"steps/s": 2.0}


def test_goodput_is_shown_of_a_run_that_has_it(tmp_path):
    one, two = run_at(tmp_path / "one", [1.0]), run_at(tmp_path / "two", [1.0])
    span = {"run": "a", "stage": "0_short", "seconds": 3.0}
    lines = [
        span | {"what": "train", "began": 0.0, "first": 0, "last": 6, "waited": 0.0, "skipped": 0},
        span | {"what": "evaluation", "began": 3.0, "seconds": 1.0},
    ]
    (one / "goodput.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    rows = cells(write_comparison([one, two]).read_text())
    assert rows["Run"][-2:] == ["goodput", "restarts"]
    assert rows["one"][-2:] == ["75.0 %", "0"] and rows["two"][-2:] == ["–", "–"]


def test_losses_come_first():
    history = [{"step": 1, "lr": 1, "b/loss": 1, "learning_rate": 1, "loss": 1, "a/accuracy": 1}, {"step": 1, "v/m": 1}]
    assert charted([history]) == ["loss", "b/loss", "learning_rate", "v/m"]
