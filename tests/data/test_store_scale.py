"""Names without objects: millions of videos open at once, and are found as a dictionary would find them."""

import subprocess
import sys
import threading

import numpy as np
import pyarrow as pa
import pytest

from vidlang.data.chunks import open_store
from vidlang.data.stores.index import INDEX_SCHEMA, ContentHash, write_header
from vidlang.data.stores.names import Names

COUNT = 2_000_000


@pytest.mark.parametrize("piece", [1, 3, 1000])
@pytest.mark.parametrize("ordered", [True, False])
def test_names_are_a_list_with_quick_look_up(piece, ordered):
    rng = np.random.default_rng(0)
    known = sorted({"".join(rng.choice(list("ab/ü𝄞\uffee"), rng.integers(0, 7))) for _ in range(400)})
    if not ordered:
        known = [known[n] for n in rng.permutation(len(known))]
    names = Names(pa.chunked_array([known[a : a + piece] for a in range(0, len(known), piece)], pa.string()))
    assert names == known and known == list(names) and len(names) == len(known)
    assert names != known[:-1] and names != ["x", *known[1:]] and names != "x"
    assert names[3] == known[3] and names[-1] == known[-1] and names[5:20:3] == known[5:20:3]
    assert pa.array(names, pa.string()).to_pylist() == known
    places = {name: place for place, name in enumerate(known)}
    asked = known + [name + "b" for name in known] + ["", "zzz"]
    expected = [places.get(name, -1) for name in asked]
    assert [names.find(name) for name in asked] == expected
    for form in (asked, pa.array(asked), pa.chunked_array([asked[:7], asked[7:]])):
        assert names.find_many(form).tolist() == expected
    assert names.find_many(asked[:2]).tolist() == expected[:2] and names.find_many([]).tolist() == []
    assert known[0] in names and "zzz" not in names and None not in names and 3 not in names
    for place in (len(known), -len(known) - 1):
        with pytest.raises(IndexError):
            names[place]


def test_threads_put_names_in_order_once():
    known = [f"{n:06d}" for n in np.random.default_rng(0).permutation(30_000)]
    names, found = Names(pa.chunked_array([known])), {}

    def look(first):
        found[first] = [names.find(name) for name in known[first::500]]

    threads = [threading.Thread(target=look, args=(first,)) for first in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert all(places == list(range(first, 30_000, 500)) for first, places in found.items())


@pytest.fixture(scope="module")
def huge(tmp_path_factory):
    """The index of a store of two million videos; it has no shard."""
    folder = tmp_path_factory.mktemp("huge")
    order = np.random.default_rng(0).permutation(COUNT)
    with pa.OSFile(str(folder / "index.arrow"), "wb") as file, pa.ipc.new_file(file, INDEX_SCHEMA) as writer:
        for first in range(0, COUNT, 20_000):
            count = min(20_000, COUNT - first)
            edges = pa.array(np.arange(count + 1, dtype=np.int32))
            columns = [
                pa.array(np.char.add("video_", order[first : first + count].astype(str)).tolist()),
                pa.array(np.arange(first, first + count)),
                pa.array(np.ones(count, np.int32)),
                pa.array(np.full(count, 30.0)),
                pa.array(np.full(count, 64, np.int32)),
                pa.array(np.full(count, 48, np.int32)),
                pa.array(np.full(count, 300)),
                pa.array(np.full(count, 10.0)),
                pa.ListArray.from_arrays(edges, pa.array(np.full(count, 300, np.int32))),
                pa.ListArray.from_arrays(edges, pa.array(["0" * 32] * count)),
            ]
            writer.write_batch(pa.record_batch(columns, schema=INDEX_SCHEMA))
    write_header(folder, videos=COUNT, content_hash="0", settings={}, shards={"shard": COUNT})
    return folder


@pytest.mark.slow
def test_two_million_videos_open_in_seconds_and_cost_a_worker_little(huge):
    program = f"""
import time
from pathlib import Path
from vidlang.data.chunks import open_store
def own():  # without the pages of mapped files, which all workers share
    line = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")][0]
    return int(line.split()[1]) * 1000
before = own()
start = time.perf_counter()
store = open_store({str(huge)!r})
assert len(store) == {COUNT} and "hours" in repr(store)
opened = time.perf_counter() - start
for name in ("video_0", "video_1999999", "video_777"):
    assert store.info(name).frames == 300 and store.videos[store.videos.find(name)] == name
assert "video_2000000" not in store
looked = time.perf_counter() - start
cost = (own() - before) / 1e6
print(f"opened {{opened:.2f}} s, first look-up after {{looked:.2f}} s, {{cost:.0f}} MB of its own")
assert opened < 5 and looked < 30 and cost < 80
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)


@pytest.mark.slow
def test_two_million_videos_are_looked_up_and_described_at_once(huge):
    store = open_store(huge)
    found = store.contains_many([f"video_{n}" for n in range(0, 2 * COUNT, 40)])
    assert found.tolist() == [n < COUNT for n in range(0, 2 * COUNT, 40)]
    infos = store.infos()
    assert set(infos) == {"fps", "width", "height", "frames", "duration"}
    assert all(len(column) == COUNT for column in infos.values()) and infos["frames"].sum() == 300 * COUNT


def test_content_hash_is_that_of_rows_in_any_order_of_columns():
    row = {name: name for name in INDEX_SCHEMA.names}
    one, other = ContentHash(), ContentHash()
    one.add(row)
    other.add(dict(reversed((row | {"file": ["where"], "modified_ns": [1]}).items())))
    assert one.hexdigest() == other.hexdigest()
