"""A partner is any other member of the group, each as likely, found in a file that workers map."""

import os
import pickle
from collections import Counter

import numpy as np
import pytest

from vidlang.data import groups as groups_file
from vidlang.data.clips import ClipTable
from vidlang.data.groups import Groups
from vidlang.data.pipeline import ClipSpec, train_stream

PAIRED = ClipSpec(3, 16, {"name": "segments"}, {"name": "center"}, 6, pairs="group")


def table_of(group_R, store=None):
    rows = len(group_R)
    columns = {
        "video": ["north"] * rows,
        "start": [0.0] * rows,
        "end": [1.0] * rows,
        "texts": [["first"]] * rows,
        "group": group_R,
    }
    return ClipTable.from_columns(columns, store=store)


@pytest.fixture
def groups_of(tmp_path):
    return lambda group_R: Groups.of(table_of(group_R), lambda: str(tmp_path))


def test_partner_is_uniform_over_the_other_members(groups_of):
    group_R = [7, 3, 7, 7, 3, 9]
    groups, rng = groups_of(group_R), np.random.default_rng(0)
    others = {0: [2, 3], 1: [4], 2: [0, 3], 3: [0, 2], 4: [1], 5: [0, 1, 2, 3, 4]}  # 9 is alone: anyone
    for row, expected in others.items():
        counts = Counter(groups.partner(row, group_R[row], rng) for _ in range(1200))
        assert sorted(counts) == expected
        assert min(counts.values()) > 0.8 * 1200 / len(expected)


def plain_partner(group_R, row, rng):
    """The definition: the rows in order of their group, this one left out, one drawn among those of its group."""
    order = sorted(range(len(group_R)), key=lambda r: (group_R[r], r))
    members = [r for r in order if group_R[r] == group_R[row] and r != row] or [r for r in order if r != row]
    return members[int(rng.integers(len(members)))]


def test_partners_are_those_of_the_plain_definition(groups_of):
    group_R = np.random.default_rng(1).integers(-(2**62), 2**62, 40)[np.random.default_rng(2).integers(0, 40, 300)]
    groups = groups_of(group_R)
    for row in range(300):
        one, other = (np.random.default_rng((5, row)) for _ in range(2))
        assert groups.partner(row, int(group_R[row]), one) == plain_partner(group_R.tolist(), row, other)


def test_lonely_rows_are_told_and_only_lonely_rows_are_an_error(groups_of, caplog):
    groups_of([1, 1, 2])
    assert "1 of 3 clips are alone in their group" in caplog.text
    with pytest.raises(ValueError, match="each of 3 clips is alone"):
        groups_of([1, 2, 3])


def test_a_saved_table_is_sorted_once(tmp_path, monkeypatch):
    table = table_of([1, 2, 1, 2]).save(tmp_path / "clips.arrow")
    Groups.of(table, lambda: pytest.fail("beside the table"))
    monkeypatch.setattr(groups_file, "_write", lambda *arguments: pytest.fail("sorted a second time"))
    again = pickle.loads(pickle.dumps(Groups.of(table, str)))
    assert sorted(os.listdir(tmp_path)) == ["clips.arrow", "clips.arrow.groups"]
    assert [again.partner(row, group, np.random.default_rng(0)) for row, group in enumerate((1, 2, 1, 2))] == [
        2,
        3,
        0,
        1,
    ]


def test_another_table_of_the_same_name_is_sorted_anew(tmp_path):
    for group_R, partner in (([1, 2, 1, 2], 2), ([1, 1, 2, 2], 1)):
        table = table_of(group_R).save(tmp_path / "clips.arrow")
        assert Groups.of(table, str).partner(0, 1, np.random.default_rng(0)) == partner
    whole = (tmp_path / "clips.arrow.groups").read_bytes()
    for cut in (whole[:9], whole[:-1], b"\2" + whole[1:]):
        (tmp_path / "clips.arrow.groups").write_bytes(cut)
        assert Groups.of(table, str).partner(0, 1, np.random.default_rng(0)) == 1
        assert (tmp_path / "clips.arrow.groups").read_bytes() == whole


def test_a_folder_that_cannot_be_written_gets_no_file(tmp_path, monkeypatch):
    table = table_of([1, 1]).save(tmp_path / "clips.arrow")
    monkeypatch.setattr(groups_file.os, "access", lambda path, mode: False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Groups.of(table, lambda: str(elsewhere))
    assert len(list(elsewhere.iterdir())) == 1 and not (tmp_path / "clips.arrow.groups").exists()


def test_files_of_a_table_in_memory_go_with_its_stream(make_table, make_store, tiny_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    table = make_table(make_store())
    with train_stream(table, tiny_tokenizer, PAIRED, seed=0, batch_size=4) as batches:
        index_B = next(batches)["index_B"]
        folder, lock = sorted(tmp_path.iterdir())
        assert folder.name.startswith("vidlang-") and lock.name == f"{folder.name}-lock"
    assert (index_B[0::2] // 3 == index_B[1::2] // 3).all()
    assert not list(tmp_path.iterdir())
