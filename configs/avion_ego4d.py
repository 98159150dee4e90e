r"""AVION: contrastive pre-training on Ego4D in batches of 2,048 on one machine of eight GPUs.

    python -m launch.train --config=configs/avion_ego4d.py --workdir=runs/avion \
        '--config.stages[0].init_from=clip:weights/clip-vit-base-patch16'                    # ViT-B, 4 M narrations
    python -m launch.train --config=configs/avion_ego4d.py:llm --workdir=runs/avion_llm      # 35 M captions of LaViLa
    python -m launch.train --config=configs/avion_ego4d.py:vit_l,llm --workdir=runs/avion_l  # ViT-L, batches of 896
    python -m launch.train --config=configs/avion_ego4d.py:tiny --workdir=runs/avion_tiny

Model: CLIP's towers, joint attention over the tokens of four frames, positions in time beside those in space. What
makes the batch fit is memory: fused attention (`transformer.attention`), recomputed layers (`remat`), and
`micro.batches` where a card is smaller (docs/training.md). Decoding: 15 s chunks, the crop cut while decoding.
From the paper: AdamW at a fixed 3e-5 with decay 0.01, 5 epochs (10 with the language model's captions), crops of 50 to
100 % of the area, positions in time at random; its code starts them at zero (`model.video.temporal_std=0.0`).
From its code: temperature 0.07 fixed, 256 channels in common, and the exact GELU with weights that CLIP trained with
the quick one (`transformer.activation='quick_gelu'` is CLIP's).
It starts from CLIP's weights, without which it begins from nothing. Projections and temperature are new, as in its
code, and `init_allow` names that, the activation, and an epsilon that is not CLIP's either.
Data: data/ego4d with LaViLa's pickles and a store of the videos; data/epic for the zero-shot evaluation.
Pods: pretrain on v5e:4x8, vit_l pretrain on v5e:8x8 (docs/scale.md).
Cost: 18 h on 8 A5000 in the paper (130 GPU-hours); 33 h with the captions, 680 GPU-hours with ViT-L.
Result: EK-100 MIR zero-shot mAP 27.5 and nDCG 29.1 at 4 frames (31.1 and 31.9 with captions; ViT-L 36.4 and 35.1).
The tiny variant takes 30 s on two cores: the right scene among the first 5 of 32 for 53 % of texts (chance 16 %).
"""

from typing import Any

import ml_collections

from configs import parts

SIZES = ("vit_b", "vit_l")
EGO4D = {"root": "data/ego4d", "store": "data/ego4d/store", "bad_clips": "drop"}
EPIC = {"root": "data/epic", "store": "data/epic/store"}
BATCH = {"vit_b": 2_048, "vit_l": 896}
# What is not as in CLIP's weights.
NEW = ("_projection/", "^log_scale$", r"^(video|text)\.transformer\.(activation|epsilon)$", r"^video\.stem_epsilon$")


def video(size: str, **transformer: Any) -> parts.Section:
    """CLIP's image tower on clips."""
    letter = "L" if size == "vit_l" else "B"
    patch = {"B": 16, "L": 14}[letter]
    return {
        "transformer": {**parts.VIT[letter], "dtype": "bfloat16", "remat": "full", **transformer},
        "tubelet": (1, patch, patch),
        "pool": "cls",
        "stem_bias": False,
        "norm_stem": True,
        "temporal_std": 0.02,
        **parts.CLIP_PIXELS,
    }


def model(size: str, **transformer: Any) -> parts.Section:
    """CLIP with clips; `transformer` are further settings of the video tower's."""
    text = parts.TEXT["clip_L" if size == "vit_l" else "clip_B"]
    return {
        "name": "dual_encoder",
        "video": video(size, **transformer),
        "text": {
            "vocab": parts.VOCAB["clip"],
            "max_length": 77,
            "transformer": {**text, "causal": True, "epsilon": 1e-5, "dtype": "bfloat16"},
            "pool": "eos",
        },
        "embed": 256,
        "temperature": {"init": 0.07, "max_scale": 100.0, "learnable": False},
    }


def mir(every: str, frames: int = 4) -> parts.Section:
    """EK-100 multi-instance retrieval, on centred squares."""
    return {
        "name": "epic_mir",
        "prefix": "ek100",
        "every": every,
        "data": {"name": "epic_kitchens", "split": "mir_test", **EPIC},
        "clip": {"frames": frames, "times": {"name": "middle"}, "crop": {"name": "center"}, "fields": ()},
        "options": {"root": EPIC["root"]},
        "batch_size": 64,
        "at_start": True,
    }


def stage(size: str, split: str) -> parts.Section:
    """The pre-training."""
    return {
        "name": "pretrain",
        "duration": "5 epochs",
        "batch_size": BATCH[size],
        "model": model(size),
        "init_from": "",
        "init_allow": NEW,
        "data": {"name": "egoclip", "split": split, **EGO4D},
        "clip": {
            "frames": 4,
            "size": 224,
            "times": {"name": "segments"},
            "crop": {"name": "random_resized", "scale": (0.5, 1.0)},
            "text_length": 77,
            "pixels": "yuv420",
        },
        "tokenizer": "data/clip/tokenizer.json",
        "objective": {"name": "contrastive", "chunk": 256},
        "optimizer": {
            "learning_rate": 3e-5,
            "schedule": "constant",
            "weight_decay": 0.01,
            "clip_norm": None,
        },
        "checkpoint": {"every": "2 percent", "keep": 2, "best": "ek100/map"},
        "evals": (mir("20 percent"),),
    }


def tiny_stage(full: parts.Section) -> parts.Section:
    """Scenes of the corpus."""
    evals = [parts.tiny_eval("retrieval", "pairs"), parts.tiny_eval("multiple_choice", "pairs", "order")]
    return parts.tiny(full, data=parts.corpus("pairs"), evals=evals, steps=120, batch_size=32)


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage. Variants: vit_b (default), vit_l, llm, tiny."""
    chosen = parts.variant(words, (*SIZES, "llm"))
    full = stage(parts.one_of(chosen, SIZES), "lavila" if "llm" in chosen else "lavila_train")
    is_tiny = "tiny" in chosen
    mesh = parts.mesh(fsdp=4 if "vit_l" in chosen and not is_tiny else 1)
    return parts.recipe("avion_ego4d", [tiny_stage(full) if is_tiny else full], mesh=mesh)
