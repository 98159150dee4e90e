"""A batch is drawn and sent while a step runs, and what goes wrong with it is told when its turn has come."""

import jax
import numpy as np
import pytest

from vidlang.core.sharding import make_mesh
from vidlang.train.feed import Feed, shape_of


@pytest.fixture
def drawn():
    """Numbers of the batches that were drawn."""
    return []


def stream(drawn, fail_at=None):
    for number in range(10):
        drawn.append(number)
        if number == fail_at:
            raise ValueError(f"batch {number} is no batch")
        yield {"index_B": np.full(8, number), "broken_B": np.full(8, -1), "broken_kind_B": np.full(8, -1, np.int8)}


@pytest.fixture
def feed(drawn):
    def make(**options):
        return Feed(
            stream(drawn, **options), make_mesh({"data": -1}), lambda batch: {"seen": float(batch["index_B"][0])}
        )

    return make


def test_batches_come_in_order_each_with_its_counts(feed, drawn):
    batches = feed()
    for number in range(4):
        batch = batches.take()
        assert drawn == list(range(number + 1)), "nothing is drawn before it is asked for"
        assert set(batch.arrays) == {"index_B"} and batch.counts == {"seen": number}
        np.testing.assert_array_equal(batch.arrays["index_B"], np.full(8, number))


def test_one_is_drawn_ahead_and_then_taken(feed, drawn):
    batches = feed()
    batches.draw_ahead()
    batches.draw_ahead()
    assert drawn == [0]
    assert batches.take().counts == {"seen": 0.0} and batches.take().counts == {"seen": 1.0}
    assert drawn == [0, 1]


def test_a_failure_waits_for_its_turn(feed):
    batches = feed(fail_at=1)
    batches.take()
    batches.draw_ahead()
    with pytest.raises(ValueError, match="batch 1 is no batch"):
        batches.take()


def test_closing_forgets_the_batch_that_waits(feed, drawn):
    with feed() as batches:
        batches.draw_ahead()
    assert batches.take().counts == {"seen": 1.0} and drawn == [0, 1]


def test_shapes_differ_by_all_but_the_number_of_rows():
    one = {"video_BTHWC": np.zeros((2, 4, 8, 8, 3), np.uint8), "text_BL": np.zeros((2, 5), np.int32)}
    same = {name: jax.ShapeDtypeStruct((16, *array.shape[1:]), array.dtype) for name, array in reversed(one.items())}
    assert shape_of(one) == shape_of(same)
    for name, other in {"text_BL": np.zeros((2, 6), np.int32), "video_BTHWC": np.zeros((2, 4, 8, 8, 3))}.items():
        assert shape_of({**one, name: other}) != shape_of(one)
    assert shape_of({**one, "weight_B": np.zeros(2)}) != shape_of(one)
