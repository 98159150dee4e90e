"""LongViViT, Section 6.1: other ways to make a video encoder from an image encoder, each one variant.

    python -m launch.train --config=configs/longvivit_ablations.py:factorized --workdir=runs/factorized
    python -m launch.train --config=configs/longvivit_ablations.py:tubevit,tiny --workdir=runs/tubevit_tiny
    python -m launch.plan --config=configs/longvivit_ablations.py:frame_mean --stages=short

Stages: image, then short (configs/shortvivit.py) with one change, all ViT-B with BERT-medium at 16 frames:

    joint            nothing changed; the reference
    masked           three quarters of the tubelets masked
    factorized       attention over time in blocks of their own, copied from space: h + tanh(alpha) h_time, alpha 0
    temporal_only    the same, and only these blocks, the tubelets and the projections train
    frame_mean       frames encoded one by one, their vectors averaged (no tubelets)
    frame_attention  the same, pooled by a learned query
    adapters         MLP adapters of 384 behind each feed-forward, the rest frozen but tubelets and projections
    lora             updates of rank 64 in every linear map, the rest frozen but tubelets and projections
    last_layers      the last four layers, the rest frozen
    coarse_time      tubelets of 4 x 16 x 16
    coarse_space     tubelets of 2 x 32 x 32
    coarse_both      tubelets of 4 x 32 x 32
    tubevit          four kernels, with fixed positions, in one sequence
    mlm              an auxiliary loss of equal weight: 15 % of the words guessed by three layers that read the clip
    captioning       the same, but each next word is guessed from those before it; 25 % of the tubelets masked in both

The paper starts both matrices of an adapter at zero, which gives no gradient to either; here the second alone is zero.
It scales LoRA by 1 / alpha with alpha = 1 / 64, as printed; `lora_scale` is that factor. Its TubeViT attends within the
views (no public details): here all tubes are one sequence, as in the TubeViT paper, with that paper's kernels.
Pod: joint on v5e:8x8 (docs/scale.md).
Cost: `launch.plan` prints tokens, operations and memory of each; the paper's Figure 2 has memory against recall.
Result: in the paper masking and joint attention win, adapters and LoRA lag far behind on video (Figures 2 to 4).
"""

from typing import Any

import ml_collections

from configs import parts
from configs.eff_shortvivit import MASKED
from configs.imagevit import image_stage, model, tiny_image_stage
from configs.shortvivit import short_stage, tiny_mixture, tiny_short_stage
from vidlang.nn.stems import TUBEVIT

KINDS = (
    "joint",
    "masked",
    "factorized",
    "temporal_only",
    "frame_mean",
    "frame_attention",
    "adapters",
    "lora",
    "last_layers",
    "coarse_time",
    "coarse_space",
    "coarse_both",
    "tubevit",
    "mlm",
    "captioning",
)
# What is new for videos and what joins the towers; parameter-efficient variants train this and their own.
ALWAYS = ("^video_encoder/patch/", "^video_encoder/temporal$", "_projection/", "^log_scale$", "^text_encoder/")
JOINT: dict[str, Any] = {"tubelet": (2, 16, 16), "image_patch": (16, 16)}
FRAMES = {"tubelet": (1, 16, 16), "transformer": {"layout": "frames"}}
# TubeViT's views are of 32 frames; of 16, its longest tubes begin with the first.
VIEWS = tuple({"size": view.size, "stride": view.stride, "offset": (0, *view.offset[1:])} for view in TUBEVIT)
# Settings of the video tower in each variant.
VIDEO: dict[str, dict[str, Any]] = {
    "factorized": {**JOINT, "transformer": {"layout": "factorized"}},
    "temporal_only": {**JOINT, "transformer": {"layout": "factorized"}},
    "frame_mean": FRAMES,
    "frame_attention": {**FRAMES, "pool_frames": "attention"},
    "adapters": {**JOINT, "transformer": {"adapter": 384}},
    "lora": {**JOINT, "transformer": {"lora_rank": 64, "lora_scale": 64.0}},
    "last_layers": {**JOINT, "transformer": {"frozen_layers": 8}},
    "coarse_time": {**JOINT, "tubelet": (4, 16, 16)},
    "coarse_space": {"tubelet": (2, 32, 32), "image_patch": (32, 32)},
    "coarse_both": {"tubelet": (4, 32, 32), "image_patch": (32, 32)},
    "tubevit": {"views": VIEWS, "positions": "sincos"},
}
# What alone trains, where not everything does.
TRAINED = {
    "temporal_only": (*ALWAYS, "/time_"),
    "adapters": (*ALWAYS, "/adapter/"),
    "lora": (*ALWAYS, "/lora_"),
}
# Parameters that the image encoder has not, or has in another shape that nothing can be made of.
NEW = {
    "frame_mean": ("/temporal$",),
    "frame_attention": ("/frame_pool/", "/temporal$"),
    "adapters": ("/adapter/",),
    "lora": ("/lora_",),
    "coarse_space": ("patch/", "/spatial$"),
    "coarse_both": ("patch/", "/spatial$"),
    "tubevit": ("/views/", "/patch/", "/spatial$", "/temporal$"),
}
# The auxiliary losses of Table 7, and the fusion encoder that they need.
AUXILIARY: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("masked_lm", {"fusion": {"layers": 3}, "words": {"rate": 0.15, "mask_id": 103}}),
    "captioning": ("captioning", {"fusion": {"layers": 3, "causal": True}, "captions": True}),
}
# Frames one by one have no stem in time, and views none for stills: their mixture has no images.
WITHOUT_IMAGES = ("frame_mean", "frame_attention", "tubevit")


def ablation(kind: str) -> parts.Section:
    """The short stage with the one change of a variant."""
    stage = short_stage("vit_b", name=kind, model=model("vit_b", **VIDEO.get(kind, JOINT)))
    stage["init_allow"] = NEW.get(kind, ())
    if kind in TRAINED:
        stage["optimizer"] = {**stage["optimizer"], "train_only": TRAINED[kind]}
    if kind == "masked":
        stage["dials"] = MASKED
    if kind in AUXILIARY:
        stage |= auxiliary(stage, kind)
    if kind in WITHOUT_IMAGES:
        stage["data"] = {**stage["data"], "sources": stage["data"]["sources"][:-1]}
    return stage


def auxiliary(stage: parts.Section, kind: str) -> parts.Section:
    """What an auxiliary loss changes: a fusion encoder, and for captions a text tower that reads from left to right."""
    name, settings = AUXILIARY[kind]
    built = {**stage["model"], "name": "fusion", **settings}
    if kind == "captioning":
        text = built["text"]
        built["text"] = {**text, "transformer": {**text["transformer"], "causal": True}, "pool": "eos"}
    new = ("^fusion_encoder/", "^match_head/", "^word_head/")
    both = ({**stage["objective"], "weight": 1.0}, {"name": name, "weight": 1.0})
    combined = {"name": "combined", "parts": both}
    return {"model": built, "init_allow": new, "objective": combined, "dials": {"mask": 0.25}}


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """Two stages: image, and the variant, joint unless another is named; tiny beside it."""
    chosen = parts.variant(words, KINDS)
    kind = parts.one_of(chosen, KINDS)
    stages = [image_stage("vit_b"), ablation(kind)]
    if "tiny" in chosen:
        stages = [tiny_image_stage(stages[0]), tiny_ablation(stages[1], kind)]
    return parts.recipe(f"longvivit_{kind}", stages)


def tiny_ablation(stage: parts.Section, kind: str) -> parts.Section:
    """Eight frames of 64 pixels; TubeViT's kernels at a third of their size."""
    data = tiny_mixture(8)
    if kind in WITHOUT_IMAGES:
        data = {**data, "sources": data["sources"][:1]}
    if kind == "tubevit":
        views = ({"size": (2, 16, 16), "stride": (4, 16, 16)}, {"size": (8, 8, 8), "stride": (8, 16, 16)})
        video = {**stage["model"]["video"], "views": views}
        stage = {**stage, "model": {**stage["model"], "video": video}}
    small = {**tiny_short_stage(stage), "data": data}
    if kind == "mlm":  # an id that no word of the corpus has
        small["model"] = {**small["model"], "words": {"rate": 0.15, "mask_id": 95}}
    return small
