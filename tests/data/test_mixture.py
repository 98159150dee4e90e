"""A mixture deals its items out exactly, and each source gives what it would give alone."""

import itertools
import pickle
from dataclasses import replace

import grain
import numpy as np
import pytest
from PIL import Image

from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.mixture import Quotas, Source, mixture_stream, source_seed
from vidlang.data.pipeline import ClipSpec, train_stream
from vidlang.data.plan import TrainPlanner
from vidlang.data.stores.adopt import adopt
from vidlang.data.tokenizer import Tokenizer

SPEC = ClipSpec(3, 16, {"name": "segments"}, {"name": "random_resized"}, 6)
PAIRED = replace(SPEC, pairs="group")
SEED, BATCH = 7, 8


def take(sources, tokenizer, steps, **options):
    with mixture_stream(sources, tokenizer, **{"seed": SEED, "batch_size": BATCH} | options) as batches:
        return list(itertools.islice(batches, steps))


def rows(batches, name):
    return np.concatenate([batch[name] for batch in batches])


@pytest.fixture(scope="module")
def sources(tiny_table):
    """Three quarters of everything, and a quarter of the north, which weighs half as much."""
    north = tiny_table.only_videos(["north"])
    return [Source(tiny_table, SPEC, weight=3.0), Source(north, SPEC, weight=1.0, loss_weight=0.5)]


@pytest.fixture(scope="module")
def mixed(sources, tiny_tokenizer):
    return take(sources, tiny_tokenizer, 12)


@pytest.mark.parametrize("weights", [[1.0], [0.3, 0.7], [5, 3, 2, 1], [0.999, 0.001], [1 / 3, 1 / 3, 1 / 3]])
def test_quotas_are_exact_and_ranks_have_no_gap(weights):
    quotas = Quotas(weights, SEED)
    dealt = [quotas(unit) for unit in range(5000)]
    sources, ranks = map(np.array, zip(*dealt, strict=True))
    for source, weight in enumerate(weights):
        share = weight / sum(weights)
        assert ranks[sources == source].tolist() == list(range(int((sources == source).sum())))
        # At every item, not only at the ends of blocks, each source has had about its share.
        running = np.abs(np.cumsum(sources == source) - share * np.arange(1, 5001))
        assert running.max() <= 2.5
    assert [Quotas(weights, SEED)(unit) for unit in (4321, 17, 999)] == [dealt[unit] for unit in (4321, 17, 999)]
    again = pickle.loads(pickle.dumps(quotas))
    assert [again(unit) for unit in range(0, 5000, 37)] == dealt[::37]


def test_the_order_of_sources_is_drawn_from_the_seed():
    one, other = ([Quotas([0.5, 0.5], seed)(unit)[0] for unit in range(200)] for seed in (1, 2))
    assert one != other
    pairs = list(zip(one, one[1:], strict=False))
    assert min(pairs.count(pair) for pair in itertools.product((0, 1), repeat=2)) > 15


def test_rows_say_their_source_and_its_weight(mixed, sources):
    source_B, weight_B = rows(mixed, "source_B"), rows(mixed, "weight_B")
    assert (source_B.dtype, weight_B.dtype) == (np.int32, np.float32)
    assert (source_B == 1).sum() == pytest.approx(96 / 4, abs=2)
    np.testing.assert_array_equal(weight_B, np.where(source_B == 1, 0.5, 1.0))
    for batch in mixed:
        for source, row, video_THWC in zip(batch["source_B"], batch["index_B"], batch["video_BTHWC"], strict=True):
            number = ("north", "east", "south", "west").index(sources[source].table.cell(row, "video"))
            np.testing.assert_allclose(video_THWC[..., 0], 40 + 50 * number, atol=8)


def test_a_source_gives_what_it_gives_alone(mixed, sources, tiny_tokenizer):
    for k, source in enumerate(sources):
        seed = source_seed(SEED, k)
        with train_stream(source.table, tiny_tokenizer, SPEC, seed=seed, batch_size=4) as batches:
            alone = list(itertools.islice(batches, 24))
        for name in ("video_BTHWC", "text_BL", "index_B"):
            found = rows(mixed, name)[rows(mixed, "source_B") == k]
            np.testing.assert_array_equal(found, rows(alone, name)[: len(found)])


def test_a_mixture_of_one_is_the_plain_stream(tiny_table, tiny_tokenizer):
    for spec in (SPEC, PAIRED):
        one = take([Source(tiny_table, spec)], tiny_tokenizer, 5)
        with train_stream(tiny_table, tiny_tokenizer, spec, seed=SEED, batch_size=BATCH) as batches:
            for batch, expected in zip(one, itertools.islice(batches, 5), strict=True):
                assert batch.keys() - expected.keys() == {"source_B", "weight_B"}
                for name in expected:
                    np.testing.assert_array_equal(batch[name], expected[name])


def test_the_plain_stream_is_shuffled_rows_planned_by_place(tiny_table, tiny_tokenizer):
    """Streams that were trained on must not change: the definition, written out."""
    shuffle_seed = int(np.random.SeedSequence(SEED).generate_state(1)[0])
    order = grain.MapDataset.source(range(50)).shuffle(seed=shuffle_seed).repeat()
    planner = TrainPlanner(tiny_table, open_store(tiny_table.store), SPEC, SEED)
    with train_stream(tiny_table, tiny_tokenizer, SPEC, seed=SEED, batch_size=BATCH, start_step=6) as batches:
        batch = next(batches)
    for place, item in enumerate(range(48, 56)):
        plan = planner(item, int(order[item]))
        assert batch["index_B"][place] == order[item]
        np.testing.assert_array_equal(batch["text_BL"][place], tiny_tokenizer.encode([plan.text])[0])
        expected = planner.store.decode(plan.video, plan.times_T, plan.crop, (16, 16))
        np.testing.assert_array_equal(batch["video_BTHWC"][place], expected)


@pytest.mark.parametrize("mixing", ["items", "batches"])
def test_processes_and_steps_do_not_change_a_mixture(sources, tiny_tokenizer, mixing):
    whole = take(sources, tiny_tokenizer, 6, mixing=mixing)
    shares = [
        take(sources, tiny_tokenizer, 2, mixing=mixing, start_step=4, process_index=p, process_count=2) for p in (0, 1)
    ]
    for i, expected in enumerate(whole[4:]):
        for name in expected:
            np.testing.assert_array_equal(np.concatenate([share[i][name] for share in shares]), expected[name])


@pytest.mark.slow
def test_workers_do_not_change_a_mixture_of_tables_in_memory(sources, mixed, tiny_tokenizer):
    assert sources[1].table.path is None
    for batch, expected in zip(take(sources, tiny_tokenizer, 4, workers=1), mixed, strict=False):
        for name in expected:
            np.testing.assert_array_equal(batch[name], expected[name])


def test_pairs_stay_together_beside_a_source_without(tiny_table, tiny_tokenizer):
    sources = [Source(tiny_table, PAIRED), Source(tiny_table, SPEC)]
    batches = take(sources, tiny_tokenizer, 12)
    index_PB, source_PB = (rows(batches, name).reshape(-1, 2) for name in ("index_B", "source_B"))
    assert (source_PB[:, 0] == source_PB[:, 1]).all()
    paired = index_PB[source_PB[:, 0] == 0]
    assert (paired[:, 0] // 3 == paired[:, 1] // 3).all() and (paired[:, 0] != paired[:, 1]).all()
    assert 20 <= len(paired) <= 28
    plain = index_PB[source_PB[:, 0] == 1].ravel()
    assert sorted(plain[:40]) == sorted(set(plain[:40]))  # no row twice within an epoch


def test_whole_batches_may_have_shapes_of_their_own(tiny_table, tiny_tokenizer):
    image = replace(SPEC, frames=1, size=32, text_length=4, fields=("label",))
    sources = [Source(tiny_table, SPEC, weight=2), Source(tiny_table, image, name="images")]
    tokenizers = [tiny_tokenizer, Tokenizer(tiny_tokenizer.path, 4)]
    batches = take(sources, tokenizers, 24, mixing="batches")
    shapes = [(BATCH, 3, 16, 16, 3), (BATCH, 1, 32, 32, 3)]
    for batch in batches:
        (source,) = set(batch["source_B"].tolist())
        assert batch["video_BTHWC"].shape == shapes[source]
        assert batch["text_BL"].shape == (BATCH, (6, 4)[source])
        assert ("label_B" in batch) == (source == 1)
    assert sum(batch["source_B"][0] == 1 for batch in batches) == pytest.approx(8, abs=1)
    with pytest.raises(ValueError, match="Sources 0 and images .* clip.frames is 3 and 1.*mixing='batches'"):
        take(sources, tokenizers, 1)


def test_an_image_among_videos_stands_still(tiny_table, tiny_tokenizer, tmp_path):
    (tmp_path / "files").mkdir()
    for k in range(3):
        Image.fromarray(np.full((48, 64, 3), 60 + 60 * k, np.uint8)).save(tmp_path / "files" / f"{k}.png")
    adopt(tmp_path / "files", tmp_path / "store", "images")
    names = list(open_store(tmp_path / "store").videos)
    columns = {"video": names, "start": [0.0] * 3, "end": [1.0] * 3, "texts": [["first 1"]] * 3}
    images = ClipTable.from_columns(columns, store=tmp_path / "store")
    for batch in take([Source(tiny_table, SPEC), Source(images, SPEC)], tiny_tokenizer, 4):
        for source, row, video_THWC in zip(batch["source_B"], batch["index_B"], batch["video_BTHWC"], strict=True):
            if source == 1:
                np.testing.assert_allclose(video_THWC.astype(float), 60 + 60 * row, atol=2)
        assert (batch["broken_B"] == -1).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"weight": 0.0}, "weight of a source must be above 0, found 0.0"),
        ({"weight": float("nan")}, "weight of a source must be above 0"),
        ({"loss_weight": -1.0}, "loss weight of a source must be at least 0"),
    ],
)
def test_wrong_sources_are_named(tiny_table, wrong, message):
    with pytest.raises(ValueError, match=message):
        Source(tiny_table, SPEC, **wrong)


def test_wrong_mixtures_are_named(tiny_table, sources, tiny_tokenizer):
    with pytest.raises(ValueError, match="at least one source"):
        take([], tiny_tokenizer, 1)
    with pytest.raises(ValueError, match="unknown mixing 'item'.*did you mean 'items'"):
        take(sources, tiny_tokenizer, 1, mixing="item")
    with pytest.raises(ValueError, match="mixture of 2 sources takes one tokenizer or one each, found 3"):
        take(sources, [tiny_tokenizer] * 3, 1)
    with pytest.raises(ValueError, match="smallest share of a source is 1e-05"):
        take([sources[0], Source(tiny_table, SPEC, weight=1e-6)], tiny_tokenizer, 1)
    with pytest.raises(ValueError, match="for evaluation"):
        take([Source(tiny_table, replace(SPEC, views=2))], tiny_tokenizer, 1)
