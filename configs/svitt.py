r"""SViTT: sparse edges and sparse nodes, over clips that get longer while both get sparser.

    python -m launch.train --config=configs/svitt.py --workdir=runs/svitt \
        '--config.stages[0].init_from=("beit:weights/beit-base-patch16-224:video_encoder", "bert:weights/bert-base")'
    python -m launch.train --config=configs/svitt.py:dense --workdir=runs/svitt_dense   # the first was hybrid
    python -m launch.train --config=configs/svitt.py:edge --workdir=runs/svitt_edge
    python -m launch.train --config=configs/svitt.py:node --workdir=runs/svitt_node
    python -m launch.train --config=configs/svitt.py:tiny --workdir=runs/svitt_tiny
    python -m launch.plan --config=configs/svitt.py

Model: BEiT-B with relative positions in space and time, nine layers of BERT for the text alone and three that also
attend to the video. Objectives: contrastive (equal captions share the target), matching with hard negatives, and masked
words (half of them), each with weight 1.
Edges (K_l, K_r, G) = (1, 3, 56); after layers 4, 7 and 10 the tokens go on that cls attends to most: 0.7, 0.6, 0.5 of
them at 4, 8, 16 frames (the paper says "decreasing"; these fit the operations of its Table 2); in the fusion encoder a
tenth by what the text attends to. One graph serves the batch, drawn anew in training, and fixed when evaluating.
From the paper: WebVid-2.5M. From its code: 10 epochs of batches of 256, AdamW at 3e-5 with decay 0.02, an epoch of
warm-up, cosine to a hundredth, crops of 50 to 100 %, mirrored, learned temperature between 0.001 and 0.5. What follows
the paper where its code does otherwise: cls tokens are compared (code: the mean of the clip's tokens,
`model.video.pool`), negatives come from the whole batch (code: 32 clips of one GPU), pruning by text is on (off in the
released configs). How long the later stages last is not printed: as long as the first.
It starts from BEiT's and BERT's weights, of which the last three layers go into the fusion encoder; `init_allow` names
what is new beside them. Without weights it begins from nothing.
Data: data/webvid with a store (vidlang/datasets/webvid.py); MSR-VTT and DiDeMo for the zero-shot evaluations.
Pods: frames_4 on v5e:4x8, frames_16 on v5e:8x8 (docs/scale.md).
Cost: 93.9, 166.4, 296.2 GFLOP a clip at 4, 8, 16 frames (dense 139.9, 291.3, 627.8; docs/cost.md); 8 GPUs of 48 GB.
Result: DiDeMo zero-shot R@1 / mean of recalls in the paper, hybrid: 29.3 / 48.8 at 4 frames, 31.0 / 51.5 at 8, 31.4 /
52.2 at 16; dense 28.8 / 48.3 at 4, 29.6 / 49.3 at 8.
The tiny variant takes 3 minutes on two cores, too short to learn much: the right scene among the first 5 of 32 for
19 % of texts (chance 16 %).
"""

from typing import Any

import ml_collections

from configs import parts

KINDS = ("hybrid", "dense", "edge", "node")
EDGES = {"local": 1, "random": 3, "block": 56}
# Frames -> share of the tokens that goes on after each pruning; one frame is dense.
KEEP = {1: None, 4: 0.7, 8: 0.6, 16: 0.5}
PRUNED_AFTER = ("3", "6", "9")
MASK_ID = 103  # of BERT's tokenizer
# What neither BEiT nor BERT has, and BEiT's norm of a mean that is not taken.
NEW = (
    *("^video_encoder/(pooled_)?norm/", "_projection/", "^log_scale$", "^match_head/"),
    r"^fusion_encoder/layers/cross_attention",
)
WEBVID = {"root": "data/webvid", "store": "data/webvid/store", "bad_clips": "drop"}


def model() -> parts.Section:
    """Both towers and the fusion encoder."""
    beit: parts.Section = {**parts.VIT["B"], "relative_positions": True, "layer_scale": 0.1, "epsilon": 1e-12}
    beit |= {"dtype": "bfloat16", "remat": "full"}
    bert = {**parts.TEXT["bert_base"], "layers": 9, "norm": "post", "epsilon": 1e-12, "dtype": "bfloat16"}
    return {
        "name": "fusion",
        "video": {"transformer": beit, "tubelet": (1, 16, 16), "pool": "cls", "positions": "none"},
        "text": {
            "vocab": 30_528,
            "max_length": 512,
            "transformer": bert,
            "pool": "cls",
            "norm_embeddings": True,
            "token_types": 2,
            "final_norm": False,
        },
        "embed": 256,
        "video_projection": {"bias": True},
        "text_projection": {"bias": True},
        "temperature": {"init": 0.07, "min_scale": 2.0, "max_scale": 1000.0, "learnable": True},
        "fusion": {"layers": 3},
        "matching": {"hard": True, "chunk": 64},
        "words": {"rate": 0.5, "mask_id": MASK_ID},
    }


def dials(kind: str, frames: int) -> parts.Section:
    """How sparse a stage is."""
    found: dict[str, Any] = {}
    rate = KEEP[frames]
    if kind in ("edge", "hybrid") and frames > 1:
        found["edges"] = EDGES
    if kind in ("node", "hybrid") and rate is not None:
        found |= {"keep": {layer: rate for layer in PRUNED_AFTER}, "keep_text": {"1": 0.1}}
    return found


def objective(contrastive: parts.Section) -> parts.Section:
    """The three losses, with weight 1 each."""
    named = (contrastive, {"name": "matching"}, {"name": "masked_lm"})
    return {"name": "combined", "parts": tuple({"weight": 1.0, **part} for part in named)}


def retrieval(name: str, split: str, frames: int) -> parts.Section:
    """Zero-shot, the best 128 looked at again by the fusion encoder."""
    return {
        "name": "retrieval",
        "prefix": name,
        "every": "0 steps",
        "data": {"name": name, "split": split, "root": f"data/{name}", "store": f"data/{name}/store"},
        "clip": {"frames": frames, "times": {"name": "middle"}, "crop": {"name": "full"}},
        "options": {"rerank": 128},
        "batch_size": 32,
    }


def stage(kind: str, frames: int) -> parts.Section:
    """Clips of so many frames."""
    return {
        "name": f"frames_{frames}",
        "duration": "10 epochs",
        "batch_size": 256,
        "model": model(),
        "dials": dials(kind, frames),
        "data": {"name": "webvid", "split": "train", **WEBVID},
        "clip": {
            "frames": frames,
            "size": 224,
            "times": {"name": "segments"},
            "crop": {"name": "random_resized", "scale": (0.5, 1.0)},
            "text_length": 32,
        },
        "augment": {"flip": 0.5},
        "tokenizer": "data/bert-base-uncased/tokenizer.json",
        "objective": objective({"name": "contrastive", "targets": "equal_texts"}),
        "optimizer": {
            "learning_rate": 3e-5,
            "warmup": "10 percent",
            "schedule": "cosine",
            "final_learning_rate": 3e-7,
            "weight_decay": 0.02,
            "clip_norm": None,
        },
        "checkpoint": {"every": "5 percent", "keep": 2},
        "evals": (retrieval("msrvtt", "test1k", frames), retrieval("didemo", "test", frames)),
    }


def tiny_stage(full: parts.Section, frames: int, **changes: Any) -> parts.Section:
    """Scenes of the corpus; its tokenizer has no [MASK], so an id that no word has stands for it."""
    evals = [
        parts.tiny_eval("retrieval", "pairs", options={"rerank": 8}),
        parts.tiny_eval("multiple_choice", "pairs", "order"),
    ]
    small = parts.tiny(full, data=parts.corpus("pairs"), frames=frames, **{"evals": evals, **changes})
    model = {**small["model"], "words": {"rate": 0.5, "mask_id": 95}, "matching": {"hard": True, "chunk": 0}}
    return {**small, "model": model}


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """Four stages: frames_1, frames_4, frames_8, frames_16. Variants: hybrid (default), dense, edge, node, tiny."""
    chosen = parts.variant(words, KINDS)
    kind = parts.one_of(chosen, KINDS)
    stages = {frames: stage(kind, frames) for frames in KEEP}
    stages[1] |= {"init_from": (), "init_allow": NEW}
    if "tiny" in chosen:
        stages = {frames: tiny_stage(full, frames, steps=30) for frames, full in stages.items()}
    return parts.recipe("svitt", list(stages.values()), curriculum="sparse_expansion")
