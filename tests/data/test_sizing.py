"""The sizing rule: the published example comes out, and each shortage is told with its remedy."""

import dataclasses

import pytest

from vidlang.data.sizing import Sizing

# The example of the paper that the rule comes from: 1,024 clips, 1 Mb/s, a step of 4 s, an SSD of 500 MB/s.
PUBLISHED = Sizing(1024, 4.0, 1.0, 15.0, 500.0, clips_per_core=10, cores=48, chunks_per_clip=1.0)


def test_the_published_example_allows_chunks_of_sixteen_seconds():
    assert PUBLISHED.longest_chunk == pytest.approx(500e6 * 4 / (1024 * 1e6 / 8))
    assert int(PUBLISHED.longest_chunk) == 15
    assert "will not wait" in PUBLISHED.report()


def test_chunks_of_the_longest_length_need_exactly_the_disk():
    edge = dataclasses.replace(PUBLISHED, chunk_seconds=PUBLISHED.longest_chunk)
    assert edge.disk_needed == pytest.approx(edge.disk)


def test_a_step_of_the_fastest_length_is_just_fed():
    for change in ({"cores": 4}, {"disk": 80.0}, {"bitrate": 3.0, "hosts": 2}):
        sizing = dataclasses.replace(PUBLISHED, **change)
        edge = dataclasses.replace(sizing, step_seconds=sizing.fastest_step)
        assert max(edge.disk_needed / edge.disk, edge.cores_needed / edge.cores) == pytest.approx(1)


def test_hosts_share_the_work():
    two = dataclasses.replace(PUBLISHED, hosts=2)
    assert two.disk_needed == PUBLISHED.disk_needed / 2
    assert two.cores_needed == PUBLISHED.cores_needed / 2


@pytest.mark.parametrize(("change", "words"), [({"disk": 80.0}, "at most 2 s"), ({"cores": 10}, "or 26 cores")])
def test_a_shortage_says_what_to_change(change, words):
    report = dataclasses.replace(PUBLISHED, **change).report()
    assert words in report and "will not wait" not in report


def test_a_number_that_is_none_is_refused():
    with pytest.raises(ValueError, match="disk must be above 0, found 0"):
        dataclasses.replace(PUBLISHED, disk=0)
