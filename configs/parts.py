"""What recipes share: sizes of published towers, how a config is put together, and how a recipe becomes tiny.

No recipe itself. A recipe says at full size what its paper says; its variant `:tiny` is the same list of stages, of the
same dials, objectives and freezing, on the embedded corpus, small enough for two CPU cores. `tiny` makes one from the
other, so that what the tiny variant shows is shown of the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vidlang.core.config import did_you_mean

# layers, width, heads, hidden units of the mlp
VIT = {
    "B": {"layers": 12, "width": 768, "heads": 12, "mlp": 3072},
    "L": {"layers": 24, "width": 1024, "heads": 16, "mlp": 4096},
}
# The encoders of text: CLIP's beside each ViT, BERT's sizes, and DistilBERT.
TEXT = {
    "clip_B": {"layers": 12, "width": 512, "heads": 8, "mlp": 2048},
    "clip_L": {"layers": 12, "width": 768, "heads": 12, "mlp": 3072},
    "bert_medium": {"layers": 8, "width": 512, "heads": 8, "mlp": 2048},
    "bert_base": {"layers": 12, "width": 768, "heads": 12, "mlp": 3072},
    "distilbert": {"layers": 6, "width": 768, "heads": 12, "mlp": 3072},
}
VOCAB = {"clip": 49_408, "bert": 30_522}
CLIP_PIXELS = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
IMAGENET_PIXELS = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}

# The embedded corpus of tiny variants: one for all of them, made once.
TINY_ROOT = "data/tiny"
TINY_LAYERS = 4
TINY = {"width": 64, "heads": 4, "mlp": 256, "dtype": "float32", "remat": "none", "groups": 1}
Section = dict[str, Any]


def variant(text: str, known: Sequence[str]) -> set[str]:
    """The words of "configs/name.py:word,word"; "" is the recipe as its paper has it."""
    words = {word.strip() for word in text.split(",") if word.strip()}
    for word in sorted(words):
        if word not in (*known, "tiny"):
            hint = did_you_mean(word, (*known, "tiny"))
            raise ValueError(f"unknown variant {word!r}{hint}; there are: {', '.join((*known, 'tiny'))}")
    return words


def one_of(words: set[str], known: Sequence[str]) -> str:
    """The word of a variant that is one of these; the first of them where none is said."""
    found = [word for word in known if word in words]
    if len(found) > 1:
        raise ValueError(f"the variants {' and '.join(found)} exclude each other; choose one of {', '.join(known)}")
    return found[0] if found else known[0]


def mesh(*, fsdp: int = 1) -> Section:
    """All devices along the batch; `fsdp` of them share one copy of the state."""
    return {"data": -1, "fsdp": fsdp, "tensor": 1, "context": 1, "slices": 0}


def recipe(name: str, stages: Sequence[Section], **others: Any) -> ml_collections.ConfigDict:
    """The locked config of these stages; `others` are its keys mesh, seed and runtime, where they are not the usual."""
    config: Section = {
        "name": name,
        "seed": 0,
        "mesh": mesh(),
        "runtime": {"workers": -1, "log_every": 50, "compile_cache": "", "wandb": ""},
        **others,
        "stages": tuple(_stage(stage) for stage in stages),
    }
    return ml_collections.ConfigDict(config).lock()


def _stage(stage: Section) -> ml_collections.ConfigDict:
    evals = tuple(ml_collections.ConfigDict(evaluation) for evaluation in stage.get("evals", ()))
    # Said in every stage, so that a flag can change it: --config.stages[0].guard.skip=3.
    return ml_collections.ConfigDict({"guard": {"skip": 0, "spike": 3.0}, **stage, "evals": evals})


def without(section: Mapping[str, Any], *keys: str) -> Section:
    """The section less these keys."""
    return {key: value for key, value in section.items() if key not in keys}


def corpus(annotations: str, split: str = "train") -> Section:
    """A data section of the tiny corpus."""
    return {
        "name": "synthetic",
        "split": split,
        "root": TINY_ROOT,
        "annotations": annotations,
        "train_videos": 48,
        "val_videos": 32,
        "long_videos": 6,
        "scenes_per_video": 4,
        "scene_seconds": 3.0,
        "long_seconds": 36.0,
        "colours": 6,
        "shapes": 4,
        "verbs": 6,
        "seed": 0,
    }


def tiny(
    stage: Section,
    *,
    data: Section,
    evals: Sequence[Section] = (),
    frames: int = 4,
    steps: int = 40,
    batch_size: int = 16,
    learning_rate: float = 1e-3,
    **changes: Any,
) -> Section:
    """The stage in small, on `data` of the corpus and measured by `evals`; `changes` replace whole keys of it.

    Towers get four layers of width 64; dials that name layers name those at the same depth, and blocks of 56 tokens
    become blocks of 8. Everything else of the recipe stays as it is.
    """
    clip = {**stage["clip"], "frames": frames, "size": 64}
    if "text_length" in clip:
        clip["text_length"] = 16
    optimizer = {**stage["optimizer"], "learning_rate": learning_rate}
    if "warmup" in optimizer:
        optimizer["warmup"] = "10 percent"
    layers = stage["model"]["video"]["transformer"]["layers"] if "video" in stage["model"] else TINY_LAYERS
    small = {
        **stage,
        "duration": f"{steps} steps",
        "batch_size": batch_size,
        "model": tiny_model(stage["model"]),
        "dials": tiny_dials(stage.get("dials", {}), layers),
        "data": data,
        "clip": clip,
        # Mirrored, what slides left slides right; in the negative, what is red is another colour.
        "augment": without(stage.get("augment", {}), "flip", "rand"),
        "tokenizer": f"{TINY_ROOT}/tokenizer.json" if stage["tokenizer"] else "",
        "optimizer": optimizer,
        "checkpoint": {"every": "50 percent", "keep": 2},
        "evals": tuple(evals),
    }
    return {**small, **changes}


def tiny_model(model: Section) -> Section:
    """A model section with small towers, vocabulary and joint space; its other settings stay.

    Positions and words start large: from the usual small ones, order is noticed only after many more steps.
    """
    small: Section = {}
    for name, value in model.items():
        if name == "transformer" and isinstance(value, Mapping):
            small[name] = _tiny_transformer(value)
        elif isinstance(value, Mapping):
            small[name] = tiny_model(dict(value))
        else:
            small[name] = {"vocab": 96, "max_length": 16, "embed": 32}.get(name, value)
    if "tubelet" in model and model.get("positions", "learned") == "learned":
        small["position_std"] = 0.3
    if "vocab" in model:
        small["table_std"] = 0.2
    return small


def _tiny_transformer(transformer: Mapping[str, Any]) -> Section:
    small = {**transformer, **TINY, "layers": min(TINY_LAYERS, transformer["layers"])}
    for name, most in {"adapter": 16, "lora_rank": 4}.items():
        if transformer.get(name):
            small[name] = min(most, transformer[name])
    if frozen := transformer.get("frozen_layers"):
        small["frozen_layers"] = frozen * TINY_LAYERS // transformer["layers"]
    return small


def tiny_dials(dials: Mapping[str, Any], layers: int) -> Section:
    """The dials of a tower of `layers` layers, for one of four."""
    small = dict(dials)
    if keep := dials.get("keep"):
        small["keep"] = {str((int(layer) + 1) * TINY_LAYERS // layers - 1): rate for layer, rate in keep.items()}
    if edges := dials.get("edges"):
        small["edges"] = {**edges, "block": 8}
    return small


def tiny_eval(name: str, annotations: str, prefix: str = "val", **others: Any) -> Section:
    """An evaluation on held-out clips of the tiny corpus, at the end of a stage."""
    return {
        "name": name,
        "prefix": prefix,
        "every": "100 percent",
        "data": corpus(annotations, "val"),
        "clip": {"times": {"name": "middle"}, "crop": {"name": "center"}},
        "batch_size": 16,
        **others,
    }
