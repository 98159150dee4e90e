"""What the caption demo says of its numbers and shows of its clips."""

import numpy as np

from vidlang.serve import demo_caption
from vidlang.serve.demo_caption import Said, arranged, closing_words, gallery_html, write_demo_report

METRICS = {
    "loss": 0.6,
    "val/order": 0.9,
    "val/exact": 0.1,
    "val/cider": 3.5,
    "val/count": 240.0,
    "val/blind_order": 0.35,
    "val/blind_exact": 0.0,
    "val/blind_cider": 1.1,
    "choice/accuracy": 0.5,
    "choice/chance": 0.23,
    "choice/accuracy_verb": 0.6,
    "choice/chance_verb": 0.2,
}


def test_numbers_stand_in_their_columns():
    columns = arranged(METRICS)
    assert columns["blind"] == {"val/order": 0.35, "val/exact": 0.0, "val/cider": 1.1}
    assert columns["chance"] == {"choice/accuracy": 0.23, "choice/accuracy_verb": 0.2}
    assert columns["captioner"]["val/order"] == 0.9 and "loss" not in columns["captioner"]
    words = closing_words(columns, "runs/x")
    assert "90.0%   (blind 35.0%)" in words and "50.0%   (chance 23.0%)" in words and "--run=runs/x" in words


def test_clips_are_shown_with_what_was_said_and_what_is_so(tmp_path):
    picture = np.zeros((8, 16, 3), np.uint8)
    shown = [Said(picture, "a <red> circle", "a red circle spins", False), Said(picture, "yes", "yes", True)]
    page = gallery_html(shown)
    assert page.count("<img") == 2 and "said: a &lt;red&gt; circle" in page and "true: a red circle spins" in page
    assert page.count('class="right"') == 1 and "not all right" in page
    write_demo_report(tmp_path, arranged(METRICS), shown)
    report = (tmp_path / "report.html").read_text()
    assert "90.0" in report and page in report and demo_caption.BLIND.strip("_") in report
