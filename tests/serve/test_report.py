"""The report says what the numbers say, holds everything it shows, and is honest about what is missing."""

import json
import re
from collections import defaultdict
from html.parser import HTMLParser

import numpy as np
import pytest

from vidlang.serve.gallery import GalleryItem, GalleryRow
from vidlang.serve.report import history_of, render, write_report
from vidlang.serve.report_tables import arrange

METRICS = {
    "trained": {
        "val/t2v_r1": 0.54,
        "val/t2v_mean_rank": 4.73,
        "val/videos": 200,
        "order/accuracy": 0.86,
        "order/chance": 0.5,
    },
    "untrained": {"val/t2v_r1": 0.005, "val/t2v_mean_rank": 100.2, "val/videos": 200, "order/accuracy": 0.485},
    "chance": {"val/t2v_r1": 0.0051, "val/t2v_mean_rank": 100.5},
    "device": "two cores",
}
HISTORY = [
    {"step": 1, "loss": 4.0, "learning_rate": 1e-5, "accuracy_t2v": 0.1},
    {"step": 100, "loss": 2.0, "learning_rate": 1e-3},
    {"step": 100, "val/t2v_r1": 0.2, "val/t2v_r5": 0.5, "order/accuracy": 0.6},
    {"step": 200, "loss": 1.0, "learning_rate": 0.0},
    {"step": 200, "val/t2v_r1": 0.54, "val/t2v_r5": 0.8, "order/accuracy": 0.86},
]


def clip(seed, frames=5, size=16):
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


class Page(HTMLParser):
    """Checks nesting, and collects tags, addresses and text."""

    VOID = {"meta", "img"}

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.sources, self.pieces = [], [], [], []
        self.attributes = defaultdict(list)
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes[name].append(value)
        self.sources += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        assert tag != "img" or dict(attrs)["alt"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.pieces.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.pieces).replace("\u00a0", " "))


def rows_of(page):
    """{metric: cells} of the table of results."""
    body = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', page)
    return {name: re.findall(r"<td>(.*?)</td>", cells.replace("\u00a0", " ")) for name, cells in body}


def sample_gallery():
    right = GalleryItem(clip(1), "a red ball", 0.25, True)
    wrong = GalleryItem(clip(2), "a green box", 0.5, False)
    return [
        GalleryRow("the red ball", [wrong, right], rank=2, candidates=9),
        GalleryRow("the other", [wrong], rank=7, candidates=9, right=right),
        GalleryRow("first", [right, wrong], rank=1, candidates=9),
    ]


def test_page_is_self_contained_and_well_formed():
    page = Page(render("A run", METRICS, HISTORY, sample_gallery()))
    assert len([source for source in page.sources if source.startswith("data:image/png;base64,")]) == 6
    assert all(source.startswith("data:") for source in page.sources)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)


def test_table_shows_every_number_beside_untrained_and_chance():
    html = render("A run", METRICS, HISTORY, [])
    assert rows_of(html) == {
        "Text to video, recall at 1": ["54.0 %", "0.5 %", "0.5 %"],
        "Text to video, mean rank": ["4.7", "100.2", "100.5"],
        "Accuracy": ["86.0 %", "48.5 %", "50.0 %"],
    }
    text = Page(html).text
    assert "val – 200 videos" in text and "Device two cores" in text
    assert "Accuracy (order) 86.0 % untrained 48.5 % · chance 50.0 %" in text


def test_chance_that_a_protocol_knows_joins_the_other_chances():
    columns, facts = arrange({"trained": {"a/accuracy_x": 1.0, "a/chance_x": 0.25, "chance": 0.5}, "seed": 3})
    assert columns == {"trained": {"a/accuracy_x": 1.0}, "chance": {"a/accuracy_x": 0.25, "accuracy": 0.5}}
    assert facts == {"seed": "3"}


def test_flat_and_nested_metrics_are_understood():
    assert rows_of(render("x", {"t2v_r1": 0.5}, [], [])) == {"Text to video, recall at 1": ["50.0 %"]}
    nested = {"trained": {"val": {"t2v_r1": 0.5, "other": float("nan")}}}
    assert rows_of(render("x", nested, [], [])) == {"Text to video, recall at 1": ["50.0 %"], "Other": ["not finite"]}


def test_curves_show_what_was_logged():
    text = Page(render("A run", METRICS, HISTORY, [])).text
    charts = re.findall(r"<h3>(.*?)</h3>", render("A run", METRICS, HISTORY, []))
    assert charts == ["Loss", "Learning rate", "Accuracy (order)", "Text to video (val)"]
    assert "chance of recall at 1: 0.5 %" in text and "Recall at 5 80.0 %" in text


def test_what_is_missing_is_said():
    assert "No training history was found" in render("x", METRICS, [], [])
    assert "<svg" not in render("x", METRICS, [], [])
    assert "No evaluation was logged" in render("x", METRICS, HISTORY[:2], [])
    assert "No evaluation was logged" not in render("x", METRICS, HISTORY, [])
    assert "No gallery was made" in render("x", METRICS, HISTORY, [])
    assert "holds no number" in render("x", {}, HISTORY, [])


def test_gallery_marks_the_right_video_by_word_and_class():
    page = Page(render("x", METRICS, [], sample_gallery()))
    assert "The right video is at place 2 of 9." in page.text and "2 ✓ right 0.250" in page.text
    assert "The right video comes first among 9." in page.text and "7 ✓ right" in page.text
    assert page.attributes["class"].count("right") == 2 and page.attributes["class"].count("right below") == 1


def test_everything_a_user_wrote_is_escaped():
    evil = "<script>\"alert(1)' onload=x &lt;"
    label = f"{evil}/t2v_r1"
    item = GalleryItem(clip(0), evil, 0.5, True)
    metrics = {
        "Trained" + evil: {evil: 0.5, label: 0.5, f"{evil}/count": 2},
        "fact" + evil: evil,
        "chance": {label: 1.0},
    }
    history = [{"step": 1, label: 0.5, f"{evil}/accuracy_{evil}": 0.5, "loss": 1.0}]
    page = Page(render(evil, metrics, history, [GalleryRow(evil, [item])]))
    assert "script" not in page.tags and "onload" not in page.attributes
    assert f"Frames of a video: {evil}" in page.attributes["alt"]
    # Title twice, chart titles, legend, table (head, group, row, fact), query and caption.
    assert page.text.lower().count(evil) >= 10


def test_written_report_is_the_same_twice_and_replaces_the_old(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in HISTORY))
    path = write_report(tmp_path, title="A run", gallery=sample_gallery())
    first = path.read_text(encoding="utf-8")
    assert path == tmp_path / "report.html" and first == render("A run", METRICS, HISTORY, sample_gallery())
    assert write_report(tmp_path, title="A run", gallery=sample_gallery()).read_text(encoding="utf-8") == first
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.json", "metrics.jsonl", "report.html"]


def test_stages_are_one_history(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps(METRICS))
    for name, half in (("0_short", HISTORY), ("10_long", HISTORY[:2]), ("2_mid", [])):
        (tmp_path / name).mkdir()
        if half:
            (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in half))
    history = history_of(tmp_path)
    assert [record["step"] for record in history] == [1, 100, 100, 200, 200, 201, 300]
    assert write_report(tmp_path, title="A run").read_text(encoding="utf-8") == render("A run", METRICS, history, [])


@pytest.mark.parametrize(
    ("content", "message"), [(None, "evaluate the run first"), ("{", "not JSON"), ("[1]", "found list")]
)
def test_a_run_without_results_says_how_to_get_them(tmp_path, content, message):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(tmp_path)
