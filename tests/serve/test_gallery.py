"""The gallery ranks as the metrics do, and its pictures show the frames they claim to."""

import numpy as np
import pytest

from vidlang.evals.metrics.ranking import ranks
from vidlang.serve.gallery import film_strip, gallery_rows


def clip(seed, frames=5, size=16):
    return np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), dtype=np.uint8)


def draw_gallery(similarity, text_video=None, count=100, seed=0):
    texts, videos = similarity.shape
    text_video = np.arange(texts) if text_video is None else text_video
    names = [f"caption {v}" for v in range(videos)]
    return gallery_rows(
        similarity, [f"text {t}" for t in range(texts)], text_video, names, clip, count=count, seed=seed
    )


def test_gallery_shows_the_best_first_and_the_rank_of_the_metric():
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 8, (30, 12)) / 8.0
    text_video = rng.integers(0, 12, 30)
    rows = draw_gallery(similarity, text_video)
    expected = ranks(similarity, text_video[:, None] == np.arange(12)[None])
    for t, row in enumerate(rows):
        assert row.query == f"text {t}" and row.rank == expected[t] and row.candidates == 12
        scores = [item.score for item in row.results]
        assert scores == sorted(similarity[t], reverse=True)[:5]
        places = [place for place, item in enumerate(row.results, start=1) if item.correct]
        assert places == ([row.rank] if row.rank <= 5 else []), "the right video stands at its rank"
        assert (row.right is None) == (row.rank <= 5)
        shown = row.right or row.results[row.rank - 1]
        assert shown.caption == f"caption {text_video[t]}"
        np.testing.assert_array_equal(shown.frames_THWC, clip(int(text_video[t])))
    assert any(row.right for row in rows) and any(row.rank == 1 for row in rows)


def test_gallery_gives_no_place_to_nan():
    similarity = np.array([[0.1, np.nan, 0.3], [np.nan, np.nan, 0.2]])
    first, second = draw_gallery(similarity)
    assert [item.caption for item in first.results] == ["caption 2", "caption 0", "caption 1"]
    assert second.rank == 3 and second.results[2].correct


def test_gallery_is_drawn_by_its_seed():
    similarity = np.random.default_rng(0).random((40, 40))
    drawn = [[row.query for row in draw_gallery(similarity, count=6, seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(drawn[0]) == 6


def test_gallery_says_what_does_not_fit():
    with pytest.raises(ValueError, match=r"found \(2, 3\), 3 text_video"):
        draw_gallery(np.zeros((2, 3)), text_video=np.arange(3))
    with pytest.raises(ValueError, match="rows of the 3 videos; found 3"):
        draw_gallery(np.zeros((2, 3)), text_video=np.array([0, 3]))


def test_film_strip_shows_first_middle_and_last_frame():
    frames = clip(0, frames=9, size=10)
    strip = film_strip(frames, gap=2)
    assert strip.shape == (10, 34, 3)
    for place, t in enumerate((0, 4, 8)):
        np.testing.assert_array_equal(strip[:, place * 12 : place * 12 + 10], frames[t])
    assert (strip[:, 10:12] == 255).all()
    assert film_strip(frames[:1]).shape == (10, 10, 3), "a single frame is shown once"


def test_film_strip_shrinks_large_frames_to_block_means():
    frames = clip(0, frames=1, size=230)
    strip = film_strip(frames, height=112)
    assert strip.shape == (115, 115, 3)
    np.testing.assert_allclose(strip[3, 7], frames[0, 6:8, 14:16].mean(axis=(0, 1)), atol=0.51)
