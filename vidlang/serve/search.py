"""A run's evaluation set as embeddings, with pictures of its clips: what reports and search pages start from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.data.chunks import open_store
from vidlang.data.clips import ClipTable
from vidlang.data.crops import choose_crop
from vidlang.data.frames import choose_times
from vidlang.evals._embed import embed_clips, embed_texts
from vidlang.serve.gallery import GalleryRow, gallery_rows
from vidlang.train import build
from vidlang.train.evaluate import restore_model
from vidlang.train.predict import Predict
from vidlang.train.recipe import read_recipe
from vidlang.train.run_files import read_config


@dataclass(frozen=True)
class EmbeddedClips:
    """Clips of one table that could be read, their embeddings, those of their first texts and of some queries."""

    table: ClipTable
    rows: np.ndarray
    video_NE: np.ndarray
    text_NE: np.ndarray
    query_QE: np.ndarray

    def texts(self) -> list[str]:
        """The first text of every clip, in the order of the embeddings."""
        texts_N = self.table.column("texts")
        return [texts_N[row][0] for row in self.rows]

    def frames(self, position: int, *, count: int, height: int) -> np.ndarray:
        """A few whole frames of one clip, uint8 [T, H, W, C]."""
        return clip_frames(self.table, int(self.rows[position]), count=count, height=height)


def clip_frames(table: ClipTable, row: int, *, count: int, height: int) -> np.ndarray:
    """A few whole frames of a clip that can be read, uint8 [T, H, W, C]."""
    clip = table.row(row)
    assert table.store is not None  # its clips were decoded from there
    store = open_store(table.store)
    info = store.info(clip["video"])
    crop = choose_crop(None, info.height, info.width, name="full")
    times_T = choose_times(None, clip["start"], clip["end"], count, name="middle")
    width = max(2, round(info.width * height / info.height))
    return store.decode(clip["video"], times_T, crop, (height, width))


def evaluation_clips(workdir: str | Path, prefix: str = "") -> ClipTable:
    """The table of the evaluation called `prefix`, of the run's last stage; of its first evaluation if not given."""
    evals = read_recipe(read_config(workdir)).stages[-1].evals
    fitting = [evaluation for evaluation in evals if prefix in ("", evaluation.prefix)]
    if not fitting:
        known = ", ".join(evaluation.prefix for evaluation in evals) or "none"
        raise ValueError(f"{workdir} has no evaluation {prefix!r}; it has: {known}")
    return build.table(fitting[0].data, "data of an evaluation")


def embed_evaluation(workdir: str | Path, prefix: str = "val", *, queries: Sequence[str] = ()) -> EmbeddedClips:
    """Embeds the table of the evaluation called `prefix`, and `queries`, with the run's newest checkpoint."""
    model, params, stage = restore_model(workdir)
    by_prefix = {evaluation.prefix: evaluation for evaluation in stage.evals}
    if prefix not in by_prefix:
        raise ValueError(f"{workdir} has no evaluation {prefix!r}; it has: {', '.join(by_prefix) or 'none'}")
    mesh = make_mesh({"data": -1})
    with use_mesh(mesh):
        predict = Predict(model, mesh, dials=build.eval_dials(stage, by_prefix[prefix]))
        data = build.eval_data(stage, by_prefix[prefix], read_recipe(read_config(workdir)).runtime)
        video_NE, present_N = embed_clips(predict, data, params)
        rows = np.flatnonzero(present_N)
        texts_N = data.table.column("texts")
        texts = [texts_N[row][0] for row in rows] + list(queries)
        text_TE = embed_texts(predict, data, params, texts)
    return EmbeddedClips(data.table, rows, video_NE[rows], text_TE[: len(rows)], text_TE[len(rows) :])


def gallery(clips: EmbeddedClips, *, count: int, seed: int, frames: int = 3, height: int = 96) -> list[GalleryRow]:
    """What the model finds for `count` of the clips' own texts, drawn at random."""
    texts = clips.texts()
    return gallery_rows(
        clips.text_NE @ clips.video_NE.T,
        texts,
        np.arange(len(texts)),
        texts,
        lambda position: clips.frames(position, count=frames, height=height),
        count=count,
        seed=seed,
    )
