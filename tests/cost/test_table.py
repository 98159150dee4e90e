"""Rows of a plan: what is counted, what is refused, which are best."""

import pytest

from vidlang.cost.collectives import Total
from vidlang.cost.table import Request, Row, mark, render, rows


def plan(recipe, **request):
    return {row.setting: row for row in rows(recipe, 0, Request(**request))}


@pytest.mark.slow
def test_a_dial_lowers_every_count_and_freezing_that_of_the_step(recipe):
    found = plan(recipe(), only="off|widths d-dec|^last")
    assert not any(row.reason for row in found.values())
    off = found.pop("off")
    last = found.pop("last 1 layers")
    assert found and off.tokens == (64, 64)
    for row in found.values():
        assert row.step_flops < off.step_flops and row.parameters == off.parameters, row.setting
        assert all(row.flops[name] < off.flops[name] for name in off.flops), row.setting
    # Freezing spares a part of the backward pass only.
    assert last.flops == off.flops and 0.5 * off.step_flops < last.step_flops < 0.8 * off.step_flops


def test_true_operations_are_those_of_the_formula_and_of_what_it_leaves_out(recipe):
    row = plan(recipe(), only="^off$")["off"]
    words, embed, tokens, width = 8, 8, 64, 64
    text = words * 24 * width**2 + 4 * words**2 * width
    stem = 2 * tokens * (2 * 8 * 8 * 3) * width
    cls = 4 * (24 * width**2 + 4 * (2 * tokens + 1) * width)
    assert row.flops["true"] == row.flops["adavid"] + text + stem + cls + 2 * 2 * width * embed


@pytest.mark.slow
def test_a_setting_that_the_model_refuses_is_listed_with_its_words(recipe):
    found = plan(recipe(video={"pool": "mean"}), only="^keep")
    assert "set video.pool='cls'" in found["keep 0.7 x 3"].reason
    text = render(list(found.values()), ["true"])
    assert "not for this model:\nkeep 0.7 x 3: the dial keep ranks tokens" in text


def test_frames_that_the_tubelets_do_not_divide_are_a_reason_too(recipe):
    found = plan(recipe(), frames=(7,), only="^off")
    assert "7" in found["off"].reason


def test_a_pattern_that_no_setting_has_is_an_error(recipe):
    with pytest.raises(ValueError, match="no setting is called like 'of off'; there are: off, mask 0.5,"):
        plan(recipe(), only="of off")


def row(setting, forward, step, fits, frames=8):
    return Row("s", frames, setting, flops={"true": forward}, step_flops=step, fits=fits)


def test_the_best_of_those_that_fit_computes_the_most():
    found = mark(
        [
            row("off", 10, 30, False),
            row("mask", 5, 15, True),
            row("width", 6, 18, True),
            row("edges, last layers", 8, 12, True),
            row("mask and width", 4, 18, True),
            row("mask", 5, 15, True, frames=16),
            row("off", 10, 30, None, frames=32),
        ]
    )
    assert [(each.setting, each.frames) for each in found if each.best] == [("width", 8), ("mask", 16)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "tubelet"), [("divided", (2, 8, 8)), ("factorized", (2, 8, 8)), ("frames", (1, 8, 8))]
)
def test_layouts_are_counted_as_they_run(recipe, layout, tubelet):
    changed = recipe(frames=4, transformer={"layout": layout}, video={"pool": "mean", "tubelet": tubelet})
    found = plan(changed, only="^off|mask 0.5")
    times, width = 4 // tubelet[0], 64
    for setting, places in (("off", 16), ("mask 0.5", 8)):
        assert not found[setting].reason
        attentions, keys = (1, places) if layout == "frames" else (2, places + times)
        tokens = times * places
        linear = tokens * (8 * attentions * width**2 + 4 * width * 256)
        assert found[setting].flops["adavid"] == 4 * (linear + 4 * tokens * keys * width)
    # Of the whole model, masking changes only the stack; what it really computes falls by what the formula says.
    fall = {name: found["off"].flops[name] - found["mask 0.5"].flops[name] for name in ("adavid", "true")}
    assert fall["true"] == fall["adavid"]


def test_what_devices_send_stands_below_the_table():
    exchanges = (
        Total("all-reduce", 4, False, 3, 8_000_000, 12e6),
        Total("all-reduce", 2, True, 1, 1_000_000, 1e6),
        Total("collective-permute", 0, False, 2, 500_000, 5e5),
    )
    flops = {"true": 1e9}
    row = Row("short", 4, "off", (8, 8), flops, 1e12, 5, 5, 10**9, 0.5, exchanges, (0.9, 1.0))
    lines = render([row, Row("short", 4, "keep", reason="no cls")], ["true"]).splitlines()
    start = lines.index("a device sends in a step:")
    assert lines[start + 1 : start + 5] == [
        "off: 13.5 MB; 90 to 100 % of a step is its own work",
        "  all-reduce among 4 devices: 3 of 8 MB in all, 12 MB sent",
        "  all-reduce among 2 slices: 1 of 1 MB in all, 1 MB sent",
        "  collective-permute to one other: 2 of 0.5 MB in all, 0.5 MB sent",
    ]
    assert lines[-1] == "keep: no cls"
