"""What is erased is one box of noise in all frames, as large and as often as its settings say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidlang.core.sharding import batch_sharding, make_mesh, put_batch, use_mesh
from vidlang.ops.augment import Augmentation, augment
from vidlang.ops.erasing import Erase, erase

HOW = Erase(probability=0.5)
LEVEL = 7  # of all pixels: noise is rarely that dark


@pytest.fixture(scope="module")
def erased():
    """512 clips of two frames."""
    keys = jax.random.split(jax.random.key(2), 512)
    clips = np.full((512, 2, 24, 40, 3), LEVEL, np.uint8)
    return np.asarray(jax.jit(lambda clips: erase(clips, keys, HOW))(clips))


def boxes(erased):
    """(rows, columns) that are noise, of each clip that has any."""
    touched = (erased != LEVEL).any(axis=(1, 4))
    return [(one.any(axis=1), one.any(axis=0)) for one in touched if one.any()]


def test_a_box_is_whole_and_the_same_in_all_frames(erased):
    for clip in erased[(erased != LEVEL).any(axis=(1, 2, 3, 4))][:40]:
        noise = (clip != LEVEL).any(axis=-1)
        box = noise.any(axis=(0, 2))[:, None] & noise.any(axis=(0, 1))[None]
        assert (np.diff(np.flatnonzero(box.any(axis=1))) == 1).all() and noise[:, box].mean() > 0.9
        assert not noise[:, ~box].any()
        assert not np.array_equal(clip[0], clip[1]), "each frame has noise of its own"


def test_as_many_and_as_large_as_asked(erased):
    found = boxes(erased)
    assert len(found) / 512 == pytest.approx(0.5, abs=0.08)
    sizes = np.array([(rows.sum(), columns.sum()) for rows, columns in found], float)
    area, aspect = sizes.prod(axis=1) / (24 * 40), sizes[:, 0] / sizes[:, 1]
    assert area.min() > 0.01 and area.max() < 0.36 and aspect.min() > 0.2 and aspect.max() < 5
    assert area.max() > 0.28 and aspect.max() > 2 and aspect.min() < 0.5
    starts = np.array([(np.argmax(rows), np.argmax(columns)) for rows, columns in found])
    assert starts.min(axis=0).tolist() == [0, 0]
    assert any(rows[-1] for rows, _ in found) and any(columns[-1] for _, columns in found)


def test_noise_is_standard_after_normalisation():
    mean, std = np.array([0.5, 0.4, 0.6]), np.array([0.10, 0.05, 0.12])  # nothing lies beyond 0 and 255
    how = Erase(1.0, area=(0.5, 0.6), aspect=(0.9, 1.1), mean=tuple(mean), std=tuple(std))
    clips = jnp.full((4, 2, 64, 64, 3), -1.0)
    found = np.asarray(erase(clips, jax.random.split(jax.random.key(0), 4), how))
    noise = (found[found[..., 0] >= 0] / 255 - mean) / std
    assert len(noise) > 16_000 and found.dtype == np.float32
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.03)


def test_where_no_box_fits_nothing_is_erased():
    clips = np.full((16, 1, 4, 40, 3), LEVEL, np.uint8)
    tall = Erase(1.0, area=(0.3, 0.3), aspect=(3.0, 3.0))
    found = erase(jnp.asarray(clips), jax.random.split(jax.random.key(0), 16), tall)
    np.testing.assert_array_equal(found, clips)


def test_eight_devices_erase_as_one():
    batch = {"video_BTHWC": np.random.default_rng(0).integers(0, 256, (8, 2, 12, 10, 3), dtype=np.uint8)}
    key, how = jax.random.key(4), Augmentation(erase=HOW)
    alone = augment(batch, key, how)["video_BTHWC"]
    assert alone.dtype == np.uint8
    mesh = make_mesh({"data": 4, "fsdp": 2})
    with use_mesh(mesh):
        shared = jax.jit(lambda batch: augment(batch, key, how), out_shardings=batch_sharding(mesh))
        np.testing.assert_array_equal(jax.device_get(shared(put_batch(batch, mesh)))["video_BTHWC"], alone)
    untouched = [np.array_equal(one, other) for one, other in zip(alone, batch["video_BTHWC"], strict=True)]
    assert 0 < sum(untouched) < 8
