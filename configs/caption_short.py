r"""LongViViT, video to text: a frozen encoder of 16 frames speaks through a frozen language model.

    python -m launch.train --config=configs/caption_short.py --workdir=runs/caption_short \
        '--config.stages[0].init_from=("runs/shortvivit", "gpt2:weights/gpt2-medium:language")'
    python -m launch.train --config=configs/caption_short.py:vit_l,llama_1b --workdir=runs/caption_short_l \
        '--config.stages[0].init_from=("runs/shortvivit_l", "llama:weights/Llama-3.2-1B:language")'
    python -m launch.train --config=configs/caption_short.py:smollm_360m --workdir=runs/caption_smollm \
        '--config.stages[0].init_from=("runs/shortvivit", "llama:weights/SmolLM2-360M-Instruct:language")'
    python -m launch.train --config=configs/caption_short.py:tiny --workdir=runs/caption_short_tiny
    python -m launch.caption --run=runs/caption_short --video=my_video.mp4

One stage, caption: tokens of the encoder are averaged over time, a Perceiver resampler (3 layers of width 1024) makes
as many latents of them as a frame has tokens, and a cross-attention whose gate opens from zero lets each layer of the
language model read these. Only resampler and cross-attention train. `model.resampler=None` and `model.pool_time=False`
leave either out, `train_video` and `train_language` thaw the rest.
From the paper (Table 4, appendix A): 80 thousand steps of 128, AdamW at 4e-5 after 2,000 steps of warm-up, cosine,
decay 1e-4, gradients clipped at 1; 30 % of the tubelets masked in training and when captioning; a language model of
400 million or a billion parameters, which is not public: GPT-2 medium or SmolLM2 and Llama 3.2 stand for them here.
Data: VideoCC and images stand for the paper's mixture, which leaves HowTo100M's clips out here.
Pod: vit_l caption on v5e:4x8 (docs/scale.md).
Cost: the paper trained ViT-L with 400M for 15 hours on 16 TPUv3 chips, with 1B for two days on 64.
Result: zero-shot CIDEr in the paper, ViT-L with 400M: MSR-VTT 32.7, ActivityNet 25.2.
The tiny variant, an encoder and a language model trained first, takes a minute or two on two cores, too short to see:
it says the same whatever it is shown (CIDEr 0.85, and blind too). configs/demo_caption.py is the small one that sees.
"""

from typing import Any

import ml_collections

from configs import parts
from configs.imagevit import SIZES
from configs.imagevit import model as dual_encoder
from configs.shortvivit import BENCHMARKS, short_stage, tiny_short_stage, videos

# Language models by the names of their published weights; `tokenizer` is what each of them reads.
GPT2: dict[str, Any] = {"norm": "layer", "positions": "learned", "activation": "gelu_tanh", "epsilon": 1e-5}
GPT2 |= {"gated": False, "qkv_bias": True, "out_bias": True, "mlp_bias": True, "tied": True}
LLAMA: dict[str, Any] = {
    "norm": "rms",
    "positions": "rotary",
    "activation": "silu",
    "gated": True,
    "epsilon": 1e-5,
    "tied": True,
}
LLAMA3: dict[str, Any] = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 8192}
LANGUAGE: dict[str, dict[str, Any]] = {
    "gpt2_medium": {"layers": 24, "width": 1024, "heads": 16, "mlp": 4096, "vocab": 50_257, "max_length": 1024, **GPT2},
    "smollm_360m": {
        **{"layers": 32, "width": 960, "heads": 15, "kv_heads": 5, "mlp": 2560, "vocab": 49_152, "max_length": 2048},
        **{**LLAMA, "rotary_base": 100_000.0},
    },
    "llama_1b": {
        **{"layers": 16, "width": 2048, "heads": 32, "kv_heads": 8, "mlp": 8192, "vocab": 128_256, "max_length": 2048},
        **{**LLAMA, "rotary_base": 500_000.0, "rotary_scaling": LLAMA3},
    },
}
TOKENIZERS = {
    "gpt2_medium": {"path": "weights/gpt2-medium/tokenizer.json", "begin": "<|endoftext|>", "end": "<|endoftext|>"},
    # Its <|endoftext|> has id 0, which is padding here.
    "smollm_360m": {
        **{"path": "weights/SmolLM2-360M-Instruct/tokenizer.json"},
        **{"begin": "<|im_start|>", "end": "<|im_end|>"},
    },
    "llama_1b": {"path": "weights/Llama-3.2-1B/tokenizer.json", "begin": "<|begin_of_text|>", "end": "<|end_of_text|>"},
}
RESAMPLER = {"layers": 3, "width": 1024, "heads": 8, "mlp": 4096, "latents": 256}
MASKED = {"mask": 0.3}
DECODING = {"how": "beam", "beams": 4, "max_new": 32}
# What an encoder's run has beside the encoder.
LEFT = ("^text_encoder/", "_projection/", "^log_scale$")
NEW = ("^resampler/", "^cross/")


def model(size: str, language: str, **video: Any) -> parts.Section:
    """Encoder and language model, joined."""
    return {
        "name": "captioner",
        "video": dual_encoder(size, **video)["video"],
        "language": {**LANGUAGE[language], "dtype": "bfloat16", "remat": "full"},
        "resampler": RESAMPLER,
        "cross": {"every": 1},
        "pool_time": True,
    }


def captioning(name: str, split: str, clip: parts.Section, decoding: parts.Section, **data: Any) -> parts.Section:
    """Captions of a set's clips by beam search, masked as in training."""
    return {
        "name": "captioning",
        "prefix": name,
        "every": "25 percent",
        "data": {"name": name, "split": split, "root": f"data/{name}", "store": f"data/{name}/store", **data},
        "clip": {"prompt": "", **clip},
        "dials": MASKED,
        "options": {"decoding": decoding},
        "batch_size": 32,
    }


def caption_stage(size: str, language: str, frames: int = 16, **changes: Any) -> parts.Section:
    """Training the new parts on captions; `changes` replace keys of the stage."""
    before = short_stage(size)
    times = {"frames": frames, "times": {"name": "fps", "rate": 1.0, "past": "spread"}}
    return {
        **before,
        "name": "caption",
        "duration": "80000 steps",
        "batch_size": 128,
        "model": model(size, language, tubelet=(2, 16, 16), image_patch=(16, 16)),
        "init_from": (),
        "init_allow": (*LEFT, *NEW),
        "dials": MASKED,
        "data": videos(frames, "videocc"),
        "clip": {**before["clip"], **times, "text_length": 64},
        "tokenizer": TOKENIZERS[language],
        "objective": {"name": "captioning"},
        "optimizer": {
            "learning_rate": 4e-5,
            "warmup": "2000 steps",
            "schedule": "cosine",
            "weight_decay": 1e-4,
            "clip_norm": 1.0,
        },
        "checkpoint": {"every": "2000 steps", "keep": 2},
        "evals": tuple(captioning(name, split, times, DECODING) for name, split in BENCHMARKS.items()),
        **changes,
    }


def tiny_caption(stage: parts.Section, encoder: str, **changes: Any) -> list[parts.Section]:
    """[a language model that learns the corpus's sentences, the stage in small on it and on the stage `encoder`]."""
    evals = [
        parts.tiny_eval("captioning", "pairs", clip=TINY_LOOK, options={"decoding": TINY_DECODING, **TINY_OPTIONS}),
        parts.tiny_eval("likelihood_choice", "multiple_choice", "choice", clip=TINY_LOOK),
    ]
    settings: dict[str, Any] = {"data": parts.corpus("pairs"), "evals": evals, "frames": 8, "steps": 60, **changes}
    text_length = settings.pop("text_length", 24)
    small = parts.tiny(stage, **settings)
    language = {
        **{key: small[key] for key in ("tokenizer", "optimizer", "checkpoint", "data")},
        "name": "language",
        "duration": "60 steps",
        "batch_size": 32,
        "model": {"name": "language", "language": TINY_LANGUAGE},
        "clip": {"frames": 0, "text_length": text_length, "prompt": small["clip"].get("prompt")},
        "objective": {"name": "captioning"},
        "init_from": "scratch",
        "evals": (),
    }
    if "sources" in small["data"]:
        raise ValueError("a tiny language model learns from one table")
    section = {**small["model"], "language": TINY_LANGUAGE}
    if section.get("resampler") is not None:
        section["resampler"] = TINY_RESAMPLER
    clip = {**small["clip"], "text_length": text_length}
    return [language, {**small, "model": section, "clip": clip, "init_from": (f"stage:{encoder}", "before")}]


TINY_LANGUAGE: dict[str, Any] = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "mlp": 128, "vocab": 96}
TINY_LANGUAGE |= {**LLAMA, "max_length": 256, "dtype": "float32"}
TINY_RESAMPLER = {"layers": 2, "width": 64, "heads": 4, "mlp": 128, "latents": 16}
TINY_LOOK = {"times": {"name": "middle"}, "crop": {"name": "center"}, "prompt": ""}
TINY_DECODING = {"max_new": 20}
TINY_OPTIONS = {"parse": "synthetic", "blind": True}


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage. Variants: vit_b (default), vit_l; gpt2_medium (default), smollm_360m, llama_1b; tiny, of three."""
    chosen = parts.variant(words, (*SIZES, *LANGUAGE))
    size, language = parts.one_of(chosen, SIZES), parts.one_of(chosen, tuple(LANGUAGE))
    stage = caption_stage(size, language)
    if "tiny" not in chosen:
        return parts.recipe("caption_short", [stage])
    before = tiny_short_stage(short_stage(size), steps=40, evals=())
    return parts.recipe("caption_short", [before, *tiny_caption(stage, "short")])
