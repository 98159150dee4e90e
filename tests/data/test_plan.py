"""A partner is any other member of the group, each as likely."""

import pickle
from collections import Counter

import numpy as np
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.plan import ClipSpec, Groups, TrainPlanner


def test_partner_is_uniform_over_the_other_members():
    group_R = np.array([7, 3, 7, 7, 3, 9])
    groups, rng = Groups(group_R), np.random.default_rng(0)
    others = {0: [2, 3], 1: [4], 2: [0, 3], 3: [0, 2], 4: [1], 5: [0, 1, 2, 3, 4]}  # 9 is alone: anyone
    for row, expected in others.items():
        counts = Counter(groups.partner(row, rng) for _ in range(1200))
        assert sorted(counts) == expected
        assert min(counts.values()) > 0.8 * 1200 / len(expected)


def test_lonely_rows_are_told_and_only_lonely_rows_are_an_error(caplog):
    Groups(np.array([1, 1, 2])).check()
    assert "1 of 3 clips are alone in their group" in caplog.text
    with pytest.raises(ValueError, match="each of 3 clips is alone"):
        Groups(np.array([1, 2, 3])).check()


def test_groups_are_not_sent_to_workers(tiny_table):
    spec = ClipSpec(3, 16, {"name": "segments"}, {"name": "center"}, 6, pairs="group")
    planner = TrainPlanner(tiny_table, open_store(tiny_table.store), spec, seed=1)
    again = pickle.loads(pickle.dumps(planner))
    assert "_groups" in planner.__dict__ and "_groups" not in again.__dict__
    for index in (0, 1, 101):
        one, other = planner(index, 4), again(index, 4)
        assert (one.row, one.text, one.crop) == (other.row, other.text, other.crop)
        np.testing.assert_array_equal(one.times_T, other.times_T)


def test_plans_differ_with_seed_place_and_attempt(tiny_table):
    spec = ClipSpec(3, 16, {"name": "segments"}, {"name": "random_resized"}, 6)
    store = open_store(tiny_table.store)
    one, other = (TrainPlanner(tiny_table, store, spec, seed=seed) for seed in (1, 2))
    plans = [one(0, 4), one(1, 4), other(0, 4)]
    plans += [one.again(plans[0]), one.again(one.again(plans[0]))]
    assert len({plan.times_T.tobytes() for plan in plans}) == 5
    np.testing.assert_array_equal(one(0, 4).times_T, plans[0].times_T)
