"""Times on many devices, and which exchanges a mesh implies: arithmetic that can be done by hand."""

import pytest

from vidlang.cost.cards import CARDS, Card
from vidlang.cost.collectives import Collective
from vidlang.cost.exchanges import Exchange
from vidlang.cost.program import StepMemory
from vidlang.cost.scale import StepTime, compiled_time, planned_time, unexpected, weak_scaling
from vidlang.cost.shape import Leaf, Shape

# 100 operations, 10 bytes of memory, 4 within and 1 between slices, each a second.
CARD = Card(100.0, 50.0, 1.0, 10.0, 4.0, 1.0)
SHAPE = Shape((Leaf("stack/layers/kernel", 64.0, frozenset({"fsdp"}), 1.0, 2.0),), rows=2, towers=(), joint=0)


def test_a_step_waits_for_all_its_bytes_or_hides_them():
    took = StepTime(alone=6.0, within=3.0, between=1.0)
    assert (took.shortest, took.longest) == (6.0, 10.0)
    assert took.efficiency == (0.6, 1.0)
    assert StepTime(6.0, 12.0, 0.0).efficiency == (pytest.approx(1 / 3), 0.5)


def test_a_compiled_step_takes_what_it_sends_over_each_network():
    exchanges = (Collective("all-reduce", 2, 8), Collective("all-reduce", 2, 3, between_slices=True))
    memory = StepMemory(10, 10, 10, 0, 4, exchanges)
    took = compiled_time(CARD, "bfloat16", 400.0, memory, utilisation=0.5)
    assert took == StepTime(alone=8.0, within=8 / 4, between=3.0)
    with pytest.raises(ValueError, match="nothing is known of this card's links"):
        compiled_time(Card(1.0, 1.0, 1.0, 1.0), "bfloat16", 1.0, memory)


def test_planned_exchanges_take_their_ring_and_slices_their_part():
    found = [Exchange("gradients", "all-reduce", ("data",), 16.0)]
    assert planned_time(CARD, 1.0, found, {"data": 4}) == StepTime(1.0, 2 * 16 * 3 / 4 / 4, 0.0)
    # Two slices of two: each device has summed one half, and exchanges that with its counterpart.
    assert planned_time(CARD, 1.0, found, {"data": 4, "slices": 2}).between == 2 * 16 * (1 / 2) / 2


def test_data_parallel_efficiency_levels_off_and_slices_cost_something():
    pods = [{"data": n, "slices": max(1, n // 256)} for n in (1, 8, 256, 4096)]
    found = weak_scaling(CARD, SHAPE, 10.0, pods)
    assert [devices for devices, _, _ in found] == [1, 8, 256, 4096]
    own = [took.efficiency[0] for _, _, took in found]
    assert own[0] == 1.0 and own == sorted(own, reverse=True)
    assert found[2][2].between == 0.0 < found[3][2].between
    assert found[3][2].within < 2 * 64 / 4  # never more than twice the gradients


@pytest.mark.parametrize(
    ("mesh", "one", "expected"),
    [
        ({"data": 8}, Collective("all-reduce", 8, 100), False),
        ({"data": 8}, Collective("all-reduce", 4, 100), True),
        ({"data": 8}, Collective("all-gather", 8, 100), True),
        ({"data": 8}, Collective("all-gather", 8, 10), False),  # rows that are paired
        ({"data": 8}, Collective("all-gather", 8, 10, times=4), True),
        ({"data": 8}, Collective("all-to-all", 8, 1), True),
        ({"data": 8}, Collective("collective-permute", 0, 21), True),
        ({"data": 8}, Collective("collective-permute", 0, 20), False),  # clips that are mixed
        ({"data": 8}, Collective("collective-permute", 0, 20, times=2), True),
        ({"data": 2, "fsdp": 4}, Collective("all-gather", 4, 100), False),
        ({"data": 2, "fsdp": 4}, Collective("reduce-scatter", 8, 100), False),
        ({"data": 2, "fsdp": 4}, Collective("reduce-scatter", 3, 100), True),
        ({"data": 4, "fsdp": 2, "slices": 2}, Collective("all-reduce", 2, 1, between_slices=True), False),
    ],
)
def test_a_mesh_implies_some_exchanges_and_no_others(mesh, one, expected):
    # Rows of 8 bytes are paired, and 40 bytes of clips mixed: 5 bytes a device, 20 as float32.
    shape = Shape((), rows=1, towers=(), joint=1, mixed=40.0)
    assert shape.pair_bytes == 8.0
    assert bool(unexpected([one], mesh, shape)) == expected


def test_clips_that_nobody_mixes_do_not_travel():
    assert unexpected([Collective("collective-permute", 0, 1)], {"data": 8}, Shape((), rows=1, towers=(), joint=1))


def test_every_tpu_knows_its_links():
    assert all(CARDS[name].link > CARDS[name].dcn > 0 for name in CARDS)
