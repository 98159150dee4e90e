"""What claims need, what they share, what their page shows; and one claim from the corpus to its verdict."""

import json
from html import escape
from xml.etree import ElementTree

import pytest

from vidlang.core.config import differing_keys
from vidlang.serve.claims import bench, catalogue, page, recipes, run, trainings
from vidlang.serve.claims.catalogue import CLAIMS, choose
from vidlang.serve.claims.costs import step_operations
from vidlang.serve.claims.lab import Lab
from vidlang.serve.claims.recipes import TRAININGS, Scale
from vidlang.serve.claims.trainings import Training, plan
from vidlang.serve.claims.verdicts import HELD, UNDECIDED, Figure, at_least, better
from vidlang.train.check import check_recipe
from vidlang.train.recipe import read_recipe

SCALE = Scale(steps=20, batch_size=16, width=32, train_videos=24, val_videos=4, choice_videos=4, root="nowhere")


def lab(tmp_path, seeds=2):
    return Lab(tmp_path, SCALE, seeds)


def only_differences(name, other):
    """Which keys of two trainings of one seed differ, but for what they are called."""
    one, two = (TRAININGS[each](SCALE, 0).config for each in (name, other))
    found = {key.split(".", 1)[-1].partition("[")[0] for key in differing_keys(dict(one), dict(two))}
    return found - {"name"}


def test_claims_are_twelve_and_ask_for_trainings_that_there_are():
    assert [claim.number for claim in CLAIMS] == list(range(1, 13))
    named = {name for claim in CLAIMS for name in claim.trainings}
    assert set(TRAININGS) - named == {"events"}, "single events are what long clips start from"


def test_trainings_that_claims_share_are_planned_once(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes, "step_operations", lambda stage: stage["clip"]["frames"])
    wanted = [training for claim in CLAIMS for training in run.trainings_of(claim, lab(tmp_path))]
    planned = plan(wanted)
    assert len(planned) == 2 * len(TRAININGS), "for each seed one of each name"
    assert len({training.key for training in planned}) == len(planned)
    places = {training.key: place for place, training in enumerate(planned)}
    starts = [training for training in planned if training.start is not None]
    assert {training.name for training in starts} == {"long", "long_masked", "long_last", "plain", "dec", "inc"}
    assert all(places[training.start.key] < places[training.key] for training in starts)


def test_equal_trainings_have_one_name_and_different_ones_have_not():
    config = {"name": "one", "seed": 0, "stages": ({"name": "s"},)}
    one, renamed = Training("one", 0, config), Training("two", 0, {**config, "name": "two"})
    assert one.key == renamed.key
    others = [
        Training("one", 1, {**config, "seed": 1}),
        Training("one", 0, config, start=one),
        Training("one", 0, config, start=Training("start", 1, {**config, "seed": 1})),
    ]
    assert len({one.key, *(other.key for other in others)}) == 4


@pytest.mark.parametrize(
    ("name", "other", "differs"),
    [
        ("frames", "joint", {"model.video.tubelet", "model.video.transformer.layout"}),
        ("long_masked", "long", {"dials"}),
        ("long_last", "long", {"model.video.transformer.frozen_layers"}),
        ("long_scratch", "long", {"duration", "seed"}),
        ("ego_nce", "info_nce", {"objective.name"}),
        ("hybrid", "joint", {"dials"}),
        ("large_batch", "small_batch", {"batch_size", "duration"}),
    ],
)
def test_what_is_compared_differs_in_one_thing(name, other, differs):
    assert only_differences(name, other) == differs


def test_equal_clips_and_equal_operations_are_equal():
    def stages(name):
        found = TRAININGS[name](SCALE, 0).config["stages"]
        return [(int(stage["duration"].split()[0]), stage) for stage in found]

    clips = [steps * stage["batch_size"] for name in ("small_batch", "large_batch") for steps, stage in stages(name)]
    assert clips == [SCALE.steps * SCALE.batch_size] * 2
    for one, other in (("staged", ("hybrid",)), ("long_scratch", ("events", "long"))):
        whole = [
            sum(steps * step_operations(stage) for name in names for steps, stage in stages(name))
            for names in ((one,), other)
        ]
        dearest = max(step_operations(stage) for _, stage in stages(one))
        assert abs(whole[0] - whole[1]) <= dearest, "equal to less than a step"


def test_a_training_finds_its_start_beside_itself(tmp_path):
    long = TRAININGS["long"](SCALE, 1)
    assert long.runnable(tmp_path)["stages"][0]["init_from"] == str(tmp_path / "runs" / long.start.key)
    assert "init_from" not in long.config["stages"][0], "its name is the same in any folder"


def test_only_chooses_by_number_or_by_name():
    assert [claim.name for claim in choose("1")] == ["video_first"]
    assert [claim.number for claim in choose("width")] == [5, 6, 7]
    assert choose("") == list(CLAIMS)
    with pytest.raises(ValueError, match="matches no claim; there are: 1 video_first, 2 masking"):
        choose("mask_ing")
    with pytest.raises(ValueError, match="no regular expression"):
        choose("(")


def test_throughput_is_a_batch_for_each_step_and_its_wait():
    """Steps of 0.05 s that make up a fifth of the time come every 0.25 s, each with 16 clips."""
    assert bench.end_to_end({"waits": 0.8}) == pytest.approx(16 / 0.25)


def test_throughput_is_measured_once(tmp_path, monkeypatch):
    calls = []

    def measure(path, chunks):
        calls.append(chunks)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = {"60 s, default, crop after": 0.9, "15 s, default, crop after": 0.8, "15 s, default, fused": 0.5}
        path.write_text(json.dumps({"ladder": [{"name": name, "waits": waits} for name, waits in rows.items()]}))

    monkeypatch.setattr(bench, "_run", measure)
    first, second = (bench.throughput(tmp_path, (15, 60), 0) for _ in range(2))
    assert calls == [(15, 60)] and first == second
    assert list(first.values()) == pytest.approx([32.0, 64.0, 160.0])


def claim_of(findings):
    return catalogue.Claim(
        3, "name", "A paper, Table 1", "This is <b> better", "By this test.", (), lambda lab: findings
    )


def report(tmp_path, findings, *, quick=False):
    scale = Scale(quick=quick)
    answered = run.answer(claim_of(findings), Lab(tmp_path, scale, 2))
    return {**run.header(scale, 2), "claims": [answered], "minutes": 1.0}


def test_the_page_shows_every_value_the_verdict_and_the_machine(tmp_path):
    findings = [
        better("recall of ViT-B", Figure("ours", (0.5, 0.625)), Figure("theirs", (0.25, 0.375))),
        at_least("memory", Figure("all", (10.0,), "GB", True), Figure("few", (4.0,), "GB", True), 2.0),
    ]
    found = report(tmp_path, findings)
    assert found["claims"][0]["verdict"] == HELD
    shown = page.render(found)
    for text in (
        "50.0",
        "62.5",
        "37.5",
        "2.5",
        "\u2713 held",
        "This is &lt;b&gt; better",
        "A paper, Table 1",
        "Recall of ViT-B",
    ):
        assert text in shown, text
    for text in (escape(found["rule"]), found["machine"]["jax"], found["machine"]["processor"]):
        assert text in shown
    assert "<b> better" not in shown
    ElementTree.fromstring(shown[shown.index("<main>") : shown.index("</main>")] + "</main>")
    assert "://" not in shown.replace("http://www.w3.org", ""), "the page loads nothing"
    assert "quick" not in shown.split("<footer>")[0].split("<h2>Rule")[0].lower()
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_quick_run_with_one_seed_says_so_and_decides_nothing(tmp_path):
    finding = better("recall", Figure("ours", (0.5,)), Figure("theirs", (0.25,)))
    found = report(tmp_path, [finding], quick=True)
    assert found["claims"][0]["verdict"] == UNDECIDED
    assert found["claims"][0]["parts"][0]["tested"]["spread"] is None
    json.dumps(found, allow_nan=False)
    shown = page.render(found)
    assert "This is a quick run" in shown and "one seed" in shown and "? undecided" in shown


@pytest.mark.slow
def test_trainings_are_such_as_train_would_begin():
    """In shapes: what a typo or a dial that does not fit the model would end with, an hour into the claims."""
    for name in ("staged", "inc", "long_last", "ego_nce"):  # a stage of each kind: others differ in numbers
        check_recipe(read_recipe(TRAININGS[name](SCALE, 0).config))


@pytest.mark.slow
def test_a_claim_from_the_corpus_to_its_verdict_and_not_twice(tmp_path, monkeypatch):
    scale = Scale(
        steps=2, batch_size=8, width=32, train_videos=24, val_videos=4, choice_videos=4, root=str(tmp_path / "data")
    )
    found = run.run_claims(tmp_path / "claims", scale=scale, seeds=1, only="video_first")
    assert json.loads((tmp_path / "claims" / "claims.json").read_text()) == found
    (claim,) = found["claims"]
    recall, order = claim["parts"]
    assert [len(figure["values"]) for figure in (*recall["figures"], *order["figures"])] == [1] * 4
    folders = [each["run"] for each in claim["trainings"]]
    assert len(folders) == 2 and claim["verdict"] == UNDECIDED, "one seed decides nothing"
    metrics = [json.loads((tmp_path / "claims" / "runs" / name / "metrics.json").read_text()) for name in folders]
    means = [(each["val/t2v_r1"] + each["val/v2t_r1"]) / 2 for each in metrics]
    assert sum((figure["values"] for figure in recall["figures"]), []) == pytest.approx(means)
    assert "Joint attention" in (tmp_path / "claims" / "report.html").read_text()

    def never(*arguments):
        raise AssertionError("a finished training is not run again")

    monkeypatch.setattr(trainings, "train", never)
    again = run.run_claims(tmp_path / "claims", scale=scale, seeds=1, only="video_first")
    assert again["claims"] == found["claims"]
