"""The pictures of docs/dials.md: a block graph, schedules of widths, what dials cost, and which tokens are pruned."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vidlang.core.config import call
from vidlang.cost.trace import matmul_flops
from vidlang.evals._embed import VIDEO_FIELDS
from vidlang.models.video import Model, grid_of
from vidlang.ops.dials import Dials, streams
from vidlang.ops.edges import Edges, draw, local_blocks
from vidlang.ops.tubelets import Size3
from vidlang.ops.widths import SHARES, WidthSampler, schedule
from vidlang.serve.png import encode_png
from vidlang.train import build
from vidlang.train.evaluate import restore_model
from vidlang.train.recipe import Runtime
from vidlang.train.step import with_video

INK, PALE, LOCAL, RANDOM, GLOBAL = "#333333", "#eeeeee", "#1f5fa8", "#e08a1e", "#7a4fa3"
VIT_B = {"layers": 12, "width": 768, "heads": 12, "mlp": 3072}
EDGES = Edges(1, 3, 56)
KEEP = ((3, 0.7), (6, 0.7), (9, 0.7))
SETTINGS: dict[str, dict[str, Any]] = {
    "all off": {},
    "widths d-dec": {"widths": "d-dec"},
    "width D/2": {"widths": "d-384"},
    "width D/4": {"widths": "d-192"},
    "mask 0.75": {"mask": 0.75},
    "edges (1, 5, 56)": {"edges": Edges(1, 5, 56)},
    "keep 0.7 x 3": {"keep": KEEP},
    "edges + keep": {"edges": Edges(1, 5, 56), "keep": KEEP},
    "all four": {"widths": "d-dec", "mask": 0.5, "edges": Edges(1, 5, 56), "keep": KEEP},
}


def svg(width: int, height: int, parts: Sequence[str]) -> str:
    """A picture that stands by itself."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12"><rect width="{width}" height="{height}" fill="#ffffff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def box(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A filled rectangle."""
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" fill="{fill}"/>'


def text(x: float, y: float, words: str, anchor: str = "start") -> str:
    """A line of text."""
    return f'<text x="{x:g}" y="{y:g}" fill="{INK}" text-anchor="{anchor}">{escape(words)}</text>'


def block_graph(frames: int = 4, patches: int = 196) -> str:
    """Which blocks of keys (columns) each block of queries (rows) attends to, cls first."""
    graph = draw(EDGES, jax.random.key(0), frames * patches)
    index_QK = np.asarray(graph.index_QK)
    blocks, cell, left, top = index_QK.shape[0], 18, 120, 40
    local_QK = np.asarray(local_blocks(blocks, EDGES.local))
    parts = [text(left, 24, f"{frames} x {patches} tokens in {blocks} blocks of {EDGES.block}, and cls")]
    for row in range(-1, blocks):
        for column in range(-1, blocks):
            fill = PALE
            if row < 0 or column < 0:
                fill = GLOBAL
            elif column in index_QK[row]:
                fill = LOCAL if column in local_QK[row] else RANDOM
            parts.append(box(left + (column + 1) * cell, top + (row + 1) * cell, cell - 2, cell - 2, fill))
    for line, (fill, words) in enumerate(((GLOBAL, "cls"), (LOCAL, "local"), (RANDOM, "random"))):
        parts += [box(10, top + 20 * line, 12, 12, fill), text(28, top + 11 + 20 * line, words)]
    return svg(left + (blocks + 1) * cell + 10, top + (blocks + 1) * cell + 10, parts)


def width_schedules(layers: int = 12, width: int = 768) -> str:
    """Presets of AdaVid's table, one draw of the sampler, and the mean of what it draws."""
    head = width // 12
    rows = {
        name: schedule(name, layers=layers, width=width, head_size=head) for name in ("d-dec", "d-dec-low", "d-inc")
    }
    draws = [
        width * np.asarray(SHARES)[np.asarray(WidthSampler("dec")(jax.random.key(seed), layers).index_L)]
        for seed in range(200)
    ]
    rows |= {"one draw of dec": tuple(draws[1]), "mean of 200 draws": tuple(np.mean(draws, axis=0))}
    bar, tall, left = 22, 60, 150
    parts = [text(left, 20, f"width of each of {layers} layers, of D = {width}")]
    for line, (name, widths) in enumerate(rows.items()):
        base = 40 + (line + 1) * (tall + 14) - 14
        parts.append(text(left - 10, base - tall / 2, name, "end"))
        for layer, d in enumerate(widths):
            high = tall * d / width
            parts += [
                box(left + layer * bar, base - tall, bar - 3, tall - high, PALE),
                box(left + layer * bar, base - high, bar - 3, high, LOCAL),
            ]
    return svg(left + layers * bar + 10, 40 + len(rows) * (tall + 14), parts)


def costs(frames: Sequence[int] = (4, 16)) -> str:
    """What each setting leaves of the multiply-adds of ViT-B, forward and backward."""
    left, wide, step = 150, 300, 20
    parts, top = [], 30
    for count in frames:
        shares = _shares(count)
        parts.append(text(left, top, f"operations of ViT-B, {count} x 196 tokens, of all off"))
        for name, share in shares.items():
            top += step
            parts += [
                text(left - 10, top + 4, name, "end"),
                box(left, top - 7, wide, 13, PALE),
                box(left, top - 7, wide * share, 13, LOCAL),
                text(left + wide + 8, top + 4, f"{share:.2f}"),
            ]
        top += 2 * step
    return svg(left + wide + 60, top - step + 6, parts)


def _shares(frames: int) -> dict[str, float]:
    model = Model({**VIT_B, "attention": "reference"}, tubelet=(1, 16, 16), pool="cls")
    video = jax.ShapeDtypeStruct((1, frames, 224, 224, 3), jnp.uint8)

    def init(key: jax.Array) -> Any:
        return model.init(key, jnp.zeros(video.shape, video.dtype), train=False)

    params = nn.unbox(jax.eval_shape(init, jax.random.key(0)))

    def operations(dials: Dials) -> int:
        def loss(params: Any, video_BTHWC: jax.Array) -> jax.Array:
            output: Any = model.apply(params, video_BTHWC, train=True, dials=dials, rngs=streams(jax.random.key(0)))
            return output.pooled_BD.sum()

        return matmul_flops(jax.grad(loss), params, video)

    found = {name: operations(Dials(**options)) for name, options in SETTINGS.items()}
    return {name: count / found["all off"] for name, count in found.items()}


@dataclass(frozen=True)
class Pruned:
    """A clip and what pruning leaves of it. strips: what each row of the picture shows, from the top."""

    picture: np.ndarray
    strips: tuple[str, ...]


def pruned_clip(path: str | Path, clip: int) -> Pruned:
    """One clip of a stage's first evaluation, pruned as there; `path` is a run (its last stage) or a stage's folder."""
    model, params, stage = restore_model(path)
    if not stage.evals:
        raise ValueError(f"stage {stage.name!r} of {path} has no evals, and so no held-out clip to draw")
    evaluation = stage.evals[0]
    dials = build.eval_dials(stage, evaluation)
    if not prunes(model, dials):
        raise ValueError(f"stage {stage.name!r} of {path} has no dial keep below 1 to draw: {dials}")
    data = build.eval_data(stage, evaluation, Runtime(workers=0, eval_workers=0))
    for batch in data.batches():
        places = np.flatnonzero(batch["valid_B"] & (batch["index_B"] == clip))
        if len(places):
            video = with_video({name: batch[name][places[:1]] for name in VIDEO_FIELDS if name in batch})
            if "video_BTHWC" not in video:
                raise ValueError(f"{evaluation.label} of {path} sees features of clips, which cannot be drawn")
            shown_THWC = np.asarray(video["video_BTHWC"])[0]
            if not reads_to_prune(model, dials):
                return pruned_tokens(model, params, shown_THWC, dials)
            texts = data.table.column("texts")[clip]
            if not texts:
                raise ValueError(f"clip {clip} of {evaluation.label} has no text that could prune it; take another")
            return pruned_tokens(model, params, shown_THWC, dials, data.encode_texts(texts[:1])[0], texts[0])
    raise ValueError(f"there is no clip {clip} in {evaluation.label} of {path}; it has {len(data.table)}")


def prunes(model: Any, dials: Dials) -> bool:
    """Whether any token is dropped for what attends to it."""
    return bool(_below_one(dials.keep)) or reads_to_prune(model, dials)


def reads_to_prune(model: Any, dials: Dials) -> bool:
    """Whether a text decides which tokens go on, in a model that tells them."""
    return bool(_below_one(dials.keep_text)) and hasattr(model, "kept")


def _below_one(keep: Sequence[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    return tuple(pair for pair in keep if pair[1] < 1.0)


def pruned_tokens(
    model: Any, params: Any, video_THWC: np.ndarray, dials: Dials, text_L: np.ndarray | None = None, words: str = ""
) -> Pruned:
    """A clip's frames, and below them the tokens that are left after each pruning under the dials.

    `model` has a part `video_encoder` with a cls token. Where it has `kept` and the dial keep_text prunes, what the
    text, as ids and as `words`, leaves comes last.
    """
    encoder = call(Model, model.video, what="model.video", parent=None)
    grid = grid_of(encoder, video_THWC.shape[:3])
    if grid is None:
        raise ValueError("views of a clip share no grid of tokens that could be drawn on its frames")
    variables, rngs, video = {"params": params}, streams(jax.random.key(0)), video_THWC[None]

    def left(keep: Sequence[tuple[int, float]]) -> np.ndarray:
        def encode(module: Any, video: jax.Array) -> Any:
            return module.video_encoder(video, train=False, dials=dataclasses.replace(dials, keep=keep)).kept_BM

        return np.asarray(model.apply(variables, video, method=encode, rngs=rngs))[0]

    pictures, strips = [_strip(video_THWC)], ["the clip"]

    def add(kept_M: np.ndarray, after: str) -> None:
        pictures.append(_strip(_shown(video_THWC, kept_M, grid)))
        strips.append(f"{after}: {len(kept_M)} of {math.prod(grid)} tokens")

    pairs = _below_one(dials.keep)
    for count, (layer, rate) in enumerate(pairs, start=1):
        add(left(pairs[:count]), f"after layer {layer}, which keeps {rate:g}")
    if text_L is not None and reads_to_prune(model, dials):
        kept_M, pairs = left(pairs), _below_one(dials.keep_text)
        tokens_BND = model.apply(variables, video, dials=dials, method="video_tokens", rngs=rngs)
        for count, (layer, rate) in enumerate(pairs, start=1):
            read = Dials(keep_text=pairs[:count])
            by_text_M = np.asarray(model.apply(variables, tokens_BND, text_L[None], dials=read, method="kept"))[0]
            add(kept_M[by_text_M], f"after “{words}” was read in fusion layer {layer}, which keeps {rate:g}")
    return Pruned(np.concatenate(pictures), tuple(strips))


def _shown(video_THWC: np.ndarray, kept_M: np.ndarray, grid: Size3) -> np.ndarray:
    """The clip with all but these tokens pale."""
    seen = np.zeros(math.prod(grid), bool)
    seen[kept_M] = True
    seen_THW = seen.reshape(grid)
    for axis in range(3):
        seen_THW = seen_THW.repeat(video_THWC.shape[axis] // grid[axis], axis)
    return np.where(seen_THW[..., None], video_THWC, (video_THWC // 5 + 200).astype(np.uint8))


def _strip(video_THWC: np.ndarray, gap: int = 4) -> np.ndarray:
    """The frames side by side on white."""
    padded = np.pad(video_THWC, ((0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)


def write(folder: str | Path, pruned: np.ndarray | None = None) -> list[Path]:
    """Writes the pictures that need no model, and the one of pruned tokens where it is given."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in {"block_graph": block_graph(), "widths": width_schedules(), "costs": costs()}.items():
        written.append(folder / f"{name}.svg")
        written[-1].write_text(picture, encoding="utf-8")
    if pruned is not None:
        twice = pruned.repeat(2, 0).repeat(2, 1)
        written.append(folder / "pruned.png")
        written[-1].write_bytes(encode_png(twice))
    return written
