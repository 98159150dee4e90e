"""A plan is a pure function of the seed, the item and the attempt."""

import numpy as np

from vidlang.data.chunks import open_store
from vidlang.data.plan import ClipSpec, TrainPlanner


def test_plans_differ_with_seed_place_and_attempt(tiny_table):
    spec = ClipSpec(3, 16, {"name": "segments"}, {"name": "random_resized"}, 6)
    store = open_store(tiny_table.store)
    one, other = (TrainPlanner(tiny_table, store, spec, seed=seed) for seed in (1, 2))
    plans = [one(0, 4), one(1, 4), other(0, 4)]
    plans += [one.again(plans[0]), one.again(one.again(plans[0]))]
    assert len({plan.times_T.tobytes() for plan in plans}) == 5
    np.testing.assert_array_equal(one(0, 4).times_T, plans[0].times_T)
