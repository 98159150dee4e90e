"""Every training that the claims need, by name: what is common to all, and the one thing that each changes.

Scenes of two events, whose order alone tells a scene from its twin, are "pairs"; single events are "events". All
trainings of pairs see the same corpus, take as many clips in a step, and learn with the same optimizer; each is a
function of scale and seed. Trainings that are compared have equal numbers of steps, of clips, or of operations, as
their claim says; where it is operations, they are counted (costs.py) and the steps follow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vidlang.serve.claims.costs import step_operations
from vidlang.serve.claims.trainings import Training

Section = dict[str, Any]

LAYERS = 3
SHORT, PAIR, LONG = 4, 8, 16  # frames
# Blocks of 9 tokens are the 3 x 3 patches of one moment; of the four, each block attends to itself and one other.
EDGES = {"local": 1, "random": 1, "block": 9}
KEEP = {"0": 0.7, "1": 0.7}
WIDTHS = ("d-768", "d-384", "d-192")  # AdaVid's names: all of the width, half, a quarter
MIXED = {"dec": "d-dec-high", "inc": "d-inc-high"}  # D to D/2 with depth, and the other way round
# Continued trainings draw other clips than those that they start from.
CONTINUED = 1
SEED_STEP = 100


@dataclass(frozen=True)
class Scale:
    """How large everything is. steps: of a training of pairs; others follow. chunks: seconds of short and long ones."""

    steps: int = 400
    batch_size: int = 32
    width: int = 64
    train_videos: int = 400
    val_videos: int = 200
    choice_videos: int = 40
    root: str = "data/claims"
    chunks: tuple[int, int] = (15, 120)
    quick: bool = False

    def at(self, root: str) -> Scale:
        """The same with its corpus in another folder."""
        return dataclasses.replace(self, root=root)


# Too short to decide anything, long enough to run through everything.
QUICK_SCALE = Scale(steps=120, chunks=(15, 60), quick=True)


def corpus(scale: Scale, annotations: str, split: str = "train", **changes: Any) -> Section:
    """A data section."""
    return {
        "name": "synthetic",
        "split": split,
        "root": scale.root,
        "annotations": annotations,
        "train_videos": scale.train_videos,
        "val_videos": scale.val_videos,
        "long_videos": 0,
        "scenes_per_video": 6,
        "scene_seconds": 2.0,
        "size": 64,
        "colours": 4,
        "shapes": 3,
        "verbs": 4,
        "seed": 0,
        **changes,
    }


def evaluation(name: str, prefix: str, data: Section, dials: Section | None = None) -> Section:
    """At the end of a training, on whole, centred clips."""
    return {
        "name": name,
        "prefix": prefix,
        "every": "0 steps",
        "data": data,
        "clip": {"times": {"name": "middle"}, "crop": {"name": "center"}, "fields": ()},
        "batch_size": 100,
        "dials": dials or {},
    }


def of_pairs(scale: Scale) -> tuple[Section, ...]:
    """Retrieval among held-out scenes, each beside its twin, and which of the twins' two captions is right."""
    held_out = corpus(scale, "pairs", "val")
    return evaluation("retrieval", "val", held_out), evaluation("multiple_choice", "order", held_out)


def at_widths(scale: Scale, presets: Sequence[str]) -> tuple[Section, ...]:
    """Retrieval at each of these widths; metrics are d_384/t2v_r1 and so on."""
    held_out = corpus(scale, "pairs", "val")
    return tuple(evaluation("retrieval", preset.replace("-", "_"), held_out, {"widths": preset}) for preset in presets)


def of_events(scale: Scale) -> tuple[Section, ...]:
    """Which of five narrations fits an event, four wrong ones from other videos or from the same one.

    The videos are of another corpus by the same rules: in the val videos of the first there are too few events.
    """
    asked = corpus(scale, "multiple_choice", train_videos=scale.choice_videos, val_videos=2, seed=1)
    return (evaluation("multiple_choice", "choice", asked),)


def stage(scale: Scale, steps: int, frames: int = PAIR, *, annotations: str = "pairs", **changes: Any) -> Section:
    """One stage from the keys that it shares with all others; `changes` replace some."""
    transformer = {"layers": LAYERS, "width": scale.width, "heads": 4, "mlp": 4 * scale.width, "dtype": "float32"}
    video = {
        "transformer": {**transformer, **changes.pop("transformer", {})},
        "tubelet": (2, 16, 16),
        "pool": "cls",
        "position_std": 0.3,  # of the usual 0.02, order is noticed late (configs/demo.py)
        "extend_positions": "linear",  # frames are spread over the clip, so a position is a share of it
        **changes.pop("video", {}),
    }
    text = {"vocab": 96, "max_length": 16, "transformer": {**transformer, "layers": 1}, "pool": "mean"}
    found: Section = {
        "name": annotations,
        "duration": f"{steps} steps",
        "batch_size": scale.batch_size,
        "model": {
            "name": "dual_encoder",
            "video": video,
            "text": {**text, "table_std": 0.2},
            "embed": 64,
            "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": True},
        },
        "data": corpus(scale, annotations),
        "clip": {
            "frames": frames,
            "size": 48,
            "times": {"name": "segments"},
            "crop": {"name": "random_resized", "scale": (0.7, 1.0), "ratio": (0.9, 1.1)},
            "text_length": 16,
            "pairs": "group",
            "fields": ("verbs", "nouns") if annotations == "narrations" else (),
        },
        "tokenizer": f"{scale.root}/tokenizer.json",
        "objective": {"name": "contrastive", "chunk": 64},
        "optimizer": {
            "learning_rate": 1.5e-3,
            "warmup": "10 percent",
            "schedule": "cosine",
            "weight_decay": 0.05,
            "clip_norm": 1.0,
            "b2": 0.98,
        },
        "checkpoint": {"every": "50 percent", "keep": 1},
        "evals": of_pairs(scale) if annotations == "pairs" else of_events(scale),
    }
    return found | changes


def training(name: str, seed: int, *stages: Section, start: Training | None = None, curriculum: str = "") -> Training:
    """The training of these stages; `seed` counts from 0."""
    config = {
        "name": name,
        "seed": SEED_STEP * seed + (CONTINUED if start else 0),
        "mesh": {"data": -1},
        "runtime": {"workers": 1, "log_every": 100},
        "curriculum": curriculum,
        "stages": stages,
    }
    return Training(name, seed, config, start)


def joint(scale: Scale, seed: int, name: str = "joint", steps: int | None = None, **changes: Any) -> Training:
    """Joint space-time attention on pairs, from scratch; others change one thing of it."""
    return training(name, seed, stage(scale, steps or scale.steps, **changes))


def frames(scale: Scale, seed: int) -> Training:
    """Frames encoded one by one and averaged: no tubelets, as there is no time in them."""
    return joint(scale, seed, "frames", video={"tubelet": (1, 16, 16)}, transformer={"layout": "frames"})


def events(scale: Scale, seed: int, name: str = "events", share: float = 1.0, **changes: Any) -> Training:
    """Single events with InfoNCE: what long clips start from."""
    steps = max(1, round(share * scale.steps))
    return training(name, seed, stage(scale, steps, SHORT, annotations="narrations", **changes))


def choosing(scale: Scale, seed: int, name: str, objective: str) -> Training:
    """Single events for a few steps: after all of them InfoNCE is right in 98 of 100 choices, which leaves no room."""
    return events(scale, seed, name, 0.15, objective={"name": objective, "chunk": 64})


def long(scale: Scale, seed: int, name: str = "long", **changes: Any) -> Training:
    """Pairs in twice the frames, after the single events."""
    return training(name, seed, stage(scale, scale.steps, LONG, **changes), start=events(scale, seed))


def long_scratch(scale: Scale, seed: int) -> Training:
    """The long clips alone, for as many operations as `events` and `long` have together."""
    both = [one.config["stages"][0] for one in (events(scale, seed), long(scale, seed))]
    short_cost, long_cost = (step_operations(each) for each in both)
    return joint(scale, seed, "long_scratch", scale.steps + round(scale.steps * short_cost / long_cost), frames=LONG)


def plain(scale: Scale, seed: int, name: str = "plain", **changes: Any) -> Training:
    """`joint` for as long again; the evaluations are at full width."""
    settings = {"evals": at_widths(scale, ("d-768",)), **changes}
    return training(name, seed, stage(scale, scale.steps, **settings), start=joint(scale, seed))


def adaptive(scale: Scale, seed: int, order: str) -> Training:
    """`joint`, then as long again with widths drawn anew in each step."""
    evals = at_widths(scale, (*WIDTHS, MIXED[order]))
    return plain(scale, seed, order, dials={"widths": {"name": order}}, evals=evals)


def separate(scale: Scale, seed: int, preset: str) -> Training:
    """A model of this width alone, for as many steps as `joint` and an adaptive training have together."""
    settings = {"dials": {"widths": preset}, "evals": at_widths(scale, (preset,))}
    return joint(scale, seed, f"separate_{preset}", 2 * scale.steps, **settings)


def hybrid(scale: Scale, seed: int) -> Training:
    """Sparse edges and pruned tokens from the first step on."""
    return joint(scale, seed, "hybrid", dials={"edges": EDGES, "keep": KEEP})


def staged(scale: Scale, seed: int) -> Training:
    """Half of the steps of `hybrid`, after dense ones on half the frames that cost as much as the other half."""
    last = stage(scale, scale.steps - scale.steps // 2, name="sparse", dials={"edges": EDGES, "keep": KEEP})
    first = stage(scale, 1, SHORT, name="dense", evals=())
    steps = max(1, round(scale.steps // 2 * step_operations(last) / step_operations(first)))
    return training("staged", seed, {**first, "duration": f"{steps} steps"}, last, curriculum="sparse_expansion")


def batches(scale: Scale, seed: int, factor: float) -> Training:
    """`joint` with batches of another size, for as many clips."""
    batch_size = round(scale.batch_size * factor)
    steps = scale.steps * scale.batch_size // batch_size
    return joint(scale, seed, f"batch_{batch_size}", steps, batch_size=batch_size)


TRAININGS: dict[str, Callable[[Scale, int], Training]] = {
    "joint": joint,
    "frames": frames,
    "events": events,
    "info_nce": lambda scale, seed: choosing(scale, seed, "info_nce", "contrastive"),
    "ego_nce": lambda scale, seed: choosing(scale, seed, "ego_nce", "ego_nce"),
    "long": long,
    "long_masked": lambda scale, seed: long(scale, seed, "long_masked", dials={"mask": 0.75}),
    "long_last": lambda scale, seed: long(
        scale, seed, "long_last", transformer={"frozen_layers": LAYERS - LAYERS // 3}
    ),
    "long_scratch": long_scratch,
    "plain": plain,
    "dec": lambda scale, seed: adaptive(scale, seed, "dec"),
    "inc": lambda scale, seed: adaptive(scale, seed, "inc"),
    "separate_half": lambda scale, seed: separate(scale, seed, "d-384"),
    "separate_quarter": lambda scale, seed: separate(scale, seed, "d-192"),
    "hybrid": hybrid,
    "staged": staged,
    "small_batch": lambda scale, seed: batches(scale, seed, 0.5),
    "large_batch": lambda scale, seed: batches(scale, seed, 2),
}
