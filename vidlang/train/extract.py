"""A trained model over all clips of a table, and what it makes of them kept in a feature store (docs/features.md).

One pass decodes each clip once and encodes it at every width that is asked for. Each piece of the store is filled into
whole batches by itself, so that its numbers do not depend on which pieces are still to be made, or on who makes the
others; with that, a run that was killed, or shared out over machines, leaves the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vidlang.core.sharding import make_mesh, use_mesh
from vidlang.data.broken import BrokenClips
from vidlang.data.features.cuts import Cuts, Piece, segments
from vidlang.data.features.writer import FeatureWriter
from vidlang.data.pipeline import ClipSpec, eval_batches
from vidlang.evals._embed import VIDEO_FIELDS
from vidlang.train import build
from vidlang.train.evaluate import EVERY_DEVICE, choose_checkpoint
from vidlang.train.predict import Predict
from vidlang.train.recipe import Extraction, Stage, read_recipe
from vidlang.train.saved import read_note, restore_params

# How clips are looked at unless `clip` says another: all moments alike, the middle of the picture.
LOOK: Mapping[str, Any] = {"times": {"name": "middle"}, "crop": {"name": "center"}}
LOOK_KEYS = ("size", "pixels", "times", "crop")
Encoder = Callable[[Mapping[str, np.ndarray]], np.ndarray]


@dataclass(frozen=True)
class Part:
    """Which pieces of a store one process makes: every `count`-th, from `number` on."""

    number: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"part {self.number} of {self.count} does not exist; parts are numbered from 0")

    def of_process(self) -> Part:
        """What this JAX process does of it: they share no arrays, only the work."""
        return Part(self.number * jax.process_count() + jax.process_index(), self.count * jax.process_count())

    @classmethod
    def read(cls, text: str) -> Part:
        """From i/n, as launchers are told."""
        number, slash, count = text.partition("/")
        if not (slash and number.isdigit() and count.isdigit()):
            raise ValueError(f"--part must be i/n, as in --part=0/4; found {text!r}")
        return cls(int(number), int(count))


@dataclass
class Report:
    """Clips that were encoded here, those of them that could not be read, and how many there were to do."""

    total: int
    done: int = 0
    broken: int = 0


def stage_of(run: str | Path, step: int | None = None) -> Stage:
    """The stage that a run, a stage folder or a checkpoint was trained in."""
    note = read_note(*choose_checkpoint(run, step))
    return read_recipe(note["config"]).stages[note["stage"]]


def extract(
    run: str | Path,
    cuts: Cuts,
    out: str | Path,
    *,
    variants: Mapping[str, Mapping[str, Any]],
    frames: int,
    clip: Mapping[str, Any] = LOOK,
    batch_size: int = 8,
    dtype: str = "float16",
    part: Part = Part(),  # noqa: B008, it is frozen
    workers: int = 0,
    step: int | None = None,
    max_broken_share: float = 0.05,
    progress: Callable[[Report], None] | None = None,
) -> Report:
    """Makes what the store `out` still lacks of this part.

    variants: for each the dials it is encoded at, on top of those that the run is evaluated at. frames: of a segment or
    window. clip: how clips are looked at, on top of `LOOK` and the run's own size and pixels. batch_size: clips at a
    time, of which each has all its segments. Several JAX processes share the part, each on its own devices.
    """
    part = part.of_process()
    folder, step = choose_checkpoint(run, step)
    note = read_note(folder, step)
    stage = read_recipe(note["config"]).stages[note["stage"]]
    spec = _clip_spec(stage, clip, cuts.each * frames)
    dials = {name: build.inference_dials(stage, section) for name, section in variants.items()}
    writer = FeatureWriter(out, cuts, frames=frames)
    model = {"stage": stage.name, "step": step, "config": note["fingerprint"]}
    look = {name: getattr(spec, name) for name in LOOK_KEYS}
    for name, section in variants.items():
        writer.begin(name, {**model, "dials": dict(section), "clip": look, "dtype": dtype})
    mine = cuts.pieces[part.number :: part.count]
    lacking = {piece: [name for name in variants if not writer.has(name, piece.file)] for piece in mine}
    lacking = {piece: names for piece, names in lacking.items() if names}
    report = Report(sum(piece.rows for piece in lacking))
    if not _anybody(bool(lacking)):
        return report
    # By all processes or none, for reading a checkpoint they wait for each other.
    mesh = make_mesh(EVERY_DEVICE, jax.local_devices())
    network, params = build.model(stage), restore_params(folder, step, mesh)
    if not lacking:
        return report
    table = cuts.clips.select(_filled_up(lacking, batch_size))
    broken = BrokenClips(table, max_broken_share)
    with use_mesh(mesh):
        predict = Predict(network, mesh)
        encoders = {name: _encoder(predict.at(found), params, cuts.each) for name, found in dials.items()}
        batches = eval_batches(table, None, spec, batch_size=batch_size, workers=workers, broken=broken)
        for piece, names in lacking.items():
            found = _encode(batches, piece.rows, cuts.each, {name: encoders[name] for name in names}, batch_size)
            for name, features_VD in found.items():
                writer.write(name, piece.file, features_VD, dtype)
            report.done += piece.rows
            report.broken += int(np.isnan(features_VD[:: cuts.each, 0]).sum())
            if progress is not None:
                progress(report)
        next(batches, None)  # the end of the pass, which says whether too many were broken
    return report


def _anybody(lacks: bool) -> bool:
    """Whether it is so in any process."""
    return lacks if jax.process_count() == 1 else bool(multihost_utils.process_allgather(np.bool_(lacks)).any())


def make(wanted: Extraction, run: str, *, workers: int) -> Report:
    """What a stage wants extracted before it begins, by the parameters of a run; the report is of this process."""
    table = build.table(wanted.data, "data of extract")
    cuts = segments(table, count=wanted.segments, shard_rows=wanted.shard_rows)
    variants = {width: {"widths": width} for width in wanted.widths} or {"full": {}}
    how: dict[str, Any] = {"frames": wanted.frames, "batch_size": wanted.batch_size, "workers": workers}
    report = extract(run, cuts, wanted.out, variants=variants, **how)
    wait_for_others(wanted.out)
    return report


def wait_for_others(out: str | Path) -> None:
    """Returns when each JAX process has made its share of a store."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"the features {out} are made")


def _clip_spec(stage: Stage, clip: Mapping[str, Any], frames: int) -> ClipSpec:
    """What is decoded of a clip."""
    if unknown := [name for name in clip if name not in LOOK_KEYS]:
        raise ValueError(f"clip has {unknown[0]!r}; an extraction's has only {', '.join(LOOK_KEYS)}")
    own = {name: stage.clip[name] for name in ("size", "pixels") if name in stage.clip}
    return build.clip_spec({**LOOK, **own, **clip, "frames": frames})


def _filled_up(pieces: Iterable[Piece], batch_size: int) -> np.ndarray:
    """The rows of these pieces, each in batches of its own; the last of a piece is filled up with its last row."""
    rows = []
    for piece in pieces:
        batches = -(-piece.rows // batch_size)
        rows.append(piece.first + np.minimum(np.arange(batches * batch_size), piece.rows - 1))
    return np.concatenate(rows)


def _encoder(predict: Predict, params: Any, each: int) -> Encoder:
    """From a batch of clips to the vectors of their parts [clips * each, D]; NaN where a clip could not be read."""

    def encode(batch: Mapping[str, np.ndarray]) -> np.ndarray:
        clips = {name: batch[name] for name in VIDEO_FIELDS if name in batch}
        parts = {name: x.reshape(len(x) * each, x.shape[1] // each, *x.shape[2:]) for name, x in clips.items()}
        features_VD: np.ndarray = predict("embed_video", params, **parts)
        if not np.isfinite(features_VD).all():
            raise ValueError(
                "the model's embeddings of clips are not finite; take a checkpoint from before it diverged"
            )
        return np.where(np.repeat(batch["valid_B"], each)[:, None], features_VD, np.nan)

    return encode


def _encode(
    batches: Iterator[Mapping[str, np.ndarray]],
    rows: int,
    each: int,
    encoders: Mapping[str, Encoder],
    batch_size: int,
) -> dict[str, np.ndarray]:
    """The vectors of the piece that comes next, by each encoder."""
    found: dict[str, list[np.ndarray]] = {name: [] for name in encoders}
    for _ in range(-(-rows // batch_size)):
        batch = next(batches)
        for name, encode in encoders.items():
            found[name].append(encode(batch))
    return {name: np.concatenate(parts)[: rows * each] for name, parts in found.items()}
