"""What the caption demo says of its numbers and shows of its clips."""

from types import SimpleNamespace

import numpy as np

from vidlang.data.clips import ClipTable
from vidlang.serve import demo_caption
from vidlang.serve.captions import Caption
from vidlang.serve.demo_caption import Said, arranged, closing_words, gallery, gallery_html, write_demo_report

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


def test_only_what_tells_both_events_in_their_order_is_right(monkeypatch, tmp_path):
    one, other = "a red circle spins", "a blue square grows"
    said = {  # of a clip where the one comes before the other, in either of two wordings
        "v0": (f"first {one} and after that {other}", True),
        "v1": (f"{one} then {other}", True),
        "v2": (f"first {other} and after that {one}", False),
        "v3": (f"first {one} and after that {one}", False),
        "v4": ("no sentence of the corpus", False),
    }
    told = [f"first {one} and after that {other}"]
    columns = {"video": list(said), "start": [0.0] * 5, "end": [1.0] * 5, "texts": [told] * 5}
    table = ClipTable.from_columns(columns)

    class Speaker:
        def __init__(self, workdir, **options):
            assert options["decoding"] == {"max_new": 20}

        def __call__(self, clips):
            for row in range(len(clips)):
                video = clips.cell(row, "video")
                yield Caption(video, 0.0, 1.0, said[video][0], -1.0, "", row)

    evaluation = SimpleNamespace(data={}, options={"decoding": {"max_new": 20}})
    recipe = SimpleNamespace(stages=[SimpleNamespace(evals=[evaluation])])
    monkeypatch.setattr(demo_caption, "Captioner", Speaker)
    monkeypatch.setattr(demo_caption, "read_recipe", lambda config: recipe)
    monkeypatch.setattr(demo_caption.build, "table", lambda data, what: table)
    monkeypatch.setattr(demo_caption, "clip_frames", lambda *_, **__: np.zeros((4, 8, 8, 3), np.uint8))
    shown = gallery(tmp_path, {}, count=8)
    assert [(each.said, each.right) for each in shown] == list(said.values())
    assert all(each.told == told[0] for each in shown)
    drawn = gallery(tmp_path, {}, count=2, seed=1)
    assert len(drawn) == 2 and [each.said for each in drawn] == [each.said for each in gallery(tmp_path, {}, 2, 1)]
