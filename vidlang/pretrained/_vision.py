"""What image and video towers of published models have in common: their config.json, their stems, positions and layers.

An image model is read as a video tower of one frame, whose position in time is zero: `train.carry` makes a tower of
more frames from it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vidlang.core.config import call, is_section
from vidlang.models import video
from vidlang.nn.spec import TransformerSpec
from vidlang.ops.positions import Size2
from vidlang.ops.tubelets import Size3
from vidlang.pretrained._blocks import blocks, linear
from vidlang.pretrained._names import Rule, need, read_config
from vidlang.pretrained._tables import Fixed, Fused
from vidlang.pretrained._texts import activation_name, activation_of, need_plain

HERE = "video_encoder"
LAYERS = f"{HERE}/stack/layers"
HEAD = "label"
Section = dict[str, Any]
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size")
# What all towers know of config.json: the keys that are read, and those that only training or other tasks ask for.
READ = {*NEEDED, "hidden_act", "layer_norm_eps", "num_channels", "qkv_bias", "image_mean", "image_std"}
TRAINING = {"hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "drop_path_rate"}
NOTHING = {
    *(
        "model_type",
        "architectures",
        "transformers_version",
        "torch_dtype",
        "dtype",
        "auto_map",
        "id2label",
        "label2id",
    ),
    *("num_labels", "problem_type", "finetuning_task", "task_specific_params", "return_dict", "output_attentions"),
    *("output_hidden_states", "torchscript", "use_bfloat16", "tf_legacy_loss", "chunk_size_feed_forward", "prefix"),
    *("tokenizer_class", "tie_word_embeddings", "tie_encoder_decoder", "is_encoder_decoder", "gradient_checkpointing"),
    *("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id", "bad_words_ids"),
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores", "return_dict_in_generate"),
    *("forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens"),
}
PLAIN = {"pruned_heads": {}, "is_decoder": False, "add_cross_attention": False, "num_channels": 3}
PLAIN |= {"cross_attention_hidden_size": None}
# What of a tower decides how it is computed, trained or made from another, and not what it computes.
FREE = {"dtype", "remat", "scan", "attention", "groups", "frozen_layers", "drop_path", "lora_scale"}
FREE |= {"position_std", "temporal_std", "extend_positions", "inflate", "transformer", "parent", "name"}
FREE |= {"dropout", "head_std"}


def read(path: str | Path, types: Mapping[str, Any]) -> dict[str, Any]:
    """config.json of a folder, with what preprocessor_config.json beside it says pixels are normalised by."""
    folder = Path(path)
    config = read_config(folder, types)
    if not (beside := folder / "preprocessor_config.json").is_file():
        return config
    try:
        said = json.loads(beside.read_text(encoding="utf-8"))
        factor = float(said.get("rescale_factor", 1 / 255)) * 255
        shift = 1.0 if said.get("offset") else 0.0
        plain = not said.get("do_normalize", True)
        mean, std = ([0.0], [1.0]) if plain else (said["image_mean"], said["image_std"])
        found = {
            "image_mean": [round((shift + float(m)) / factor, 9) for m in mean],
            "image_std": [round(float(s) / factor, 9) for s in std],
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{beside} cannot be read: {error!r}; fetch it again, or leave it out for the usual") from None
    return {**config, **found}


def check_config(config: Mapping[str, Any], known: Collection[str]) -> None:
    """ValueError for a setting of config.json that is not known, or not known so; `known` are the family's own."""
    need(config, NEEDED)
    need_plain(config, PLAIN)
    strange = [key for key in config if key not in READ | TRAINING | NOTHING | PLAIN.keys() | set(known)]
    if strange := [key for key in strange if not key.startswith("_")]:
        raise ValueError(
            f"config.json has {', '.join(f'{key} {config[key]!r}' for key in strange)}, which this family does not "
            "know; give another model's folder, or take out what changes nothing"
        )


def transformer(config: Mapping[str, Any], what: str, epsilon: float) -> Section:
    """The sizes of the layers, and what they are made of; epsilon: where config.json says none."""
    return {
        "layers": config["num_hidden_layers"],
        "width": config["hidden_size"],
        "heads": config["num_attention_heads"],
        "mlp": config["intermediate_size"],
        "activation": activation_of(config.get("hidden_act", "gelu"), what),
        "epsilon": config.get("layer_norm_eps", epsilon),
    }


def pixels(config: Mapping[str, Any], mean: tuple[float, ...], std: tuple[float, ...]) -> Section:
    """What pixels are normalised by: what was found, or the family's usual."""

    def short(values: Any) -> tuple[float, ...]:
        found = tuple(float(value) for value in values)
        return found[:1] if len(set(found)) == 1 else found

    return {"mean": short(config.get("image_mean", mean)), "std": short(config.get("image_std", std))}


def pair(size: Any, what: str) -> Size2:
    """(height, width) of a setting that gives one number or both."""
    found = tuple(size) if isinstance(size, list | tuple) else (size, size)
    if len(found) != 2 or not all(isinstance(n, int) and n > 0 for n in found):
        raise ValueError(f"config.json has {what} {size!r}; it is a number of pixels, or (height, width)")
    return found


def kind_of(config: Mapping[str, Any], kinds: Mapping[str, str]) -> str:
    """What the files are, by the class that config.json names; the first of the kinds where it names none."""
    named = (config.get("architectures") or list(kinds))[0]
    if named not in kinds:
        raise ValueError(f"config.json is of a {named}; this family reads {', '.join(kinds)}")
    return kinds[named]


def whole(tower: Section, config: Mapping[str, Any], kind: str) -> Section:
    """The model's section: a tower, or a classifier over it."""
    if kind != "classifier":
        return {"video": tower}
    # Two are the library's usual, and left out of config.json.
    count = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    if count < 2:
        raise ValueError(f"config.json has {count} labels; a classifier has two or more")
    return {"name": "classifier", "video": tower, "heads": {HEAD: count}}


def of_section(section: Mapping[str, Any], what: str) -> tuple[video.Model, TransformerSpec]:
    """The video tower of a model's section, and its stack."""
    if not is_section(section.get("video")):
        raise ValueError(f"a {what} is written from a section with the key video; found {', '.join(section)}")
    tower: video.Model = call(video.Model, section["video"], what="model.video", parent=None)
    return tower, tower.video_spec


def config_common(section: Mapping[str, Any], clip: Size3, what: str, classes: Mapping[str, str]) -> dict[str, Any]:
    """What config.json says of every tower; classes: the names of the real classes, by the section's name."""
    tower, s = of_section(section, what)
    name = section.get("name", "")
    if name not in classes:
        raise ValueError(f"model.name is {name!r}; {what} folders are of {', '.join(map(repr, classes))}")
    config: dict[str, Any] = {
        "architectures": [classes[name]],
        "num_hidden_layers": s.layers,
        "hidden_size": s.width,
        "num_attention_heads": s.heads,
        "intermediate_size": s.mlp,
        "hidden_act": activation_name(s.activation),
        "layer_norm_eps": s.epsilon,
        "image_size": clip[1],
        "patch_size": tower.tubelet[1],
        "num_channels": 3,
        "image_mean": list(tower.mean),
        "image_std": list(tower.std),
    }
    if clip[1] != clip[2] or tower.tubelet[1] != tower.tubelet[2]:
        raise ValueError(f"{what} is of squares; found clips {clip} and tubelets {tower.tubelet}, so pad or crop them")
    if name == "classifier":
        heads = dict(section["heads"])
        if list(heads) != [HEAD]:
            raise ValueError(f"model.heads is {heads}; a {what} folder has one head, called {HEAD!r}")
        labels = range(heads[HEAD])
        config["id2label"] = {str(i): f"LABEL_{i}" for i in labels}
        config["label2id"] = {f"LABEL_{i}": i for i in labels}
    return config


def check_counterpart(given: Mapping[str, Any], written: Mapping[str, Any], what: str) -> None:
    """ValueError that names what a section says and `written`, the section of its config.json, does not."""
    here, there = _settings(given), _settings(written)
    problems = [
        f"model.{key} is {here.get(key)!r}, and in a {what} folder {there.get(key)!r}"
        for key in {**here, **there}
        if here.get(key) != there.get(key)
    ]
    if problems:
        raise ValueError(f"{'; '.join(problems)}: its config.json has no counterpart of that")


def _settings(section: Mapping[str, Any]) -> dict[str, Any]:
    """All settings that change what is computed, by path, those that are not said too."""
    found: dict[str, Any] = {}
    for key, value in section.items():
        if key == "video":
            tower, s = of_section(section, "tower")
            found |= {f"video.{k}": v for k, v in _fields(tower).items()}
            found |= {f"video.transformer.{k}": v for k, v in _fields(s).items()}
            found["video.cls"] = tower.has_cls
        elif key == "decoder":
            found |= {f"{key}.{k}": v for k, v in _fields(call(TransformerSpec, value, what="model.decoder")).items()}
        elif key not in FREE - {"name"}:
            found[key] = dict(value) if isinstance(value, Mapping) else value
    return found


def _fields(x: Any) -> dict[str, Any]:
    values = {field.name: getattr(x, field.name) for field in dataclasses.fields(x) if field.name not in FREE}
    return {name: tuple(value) if isinstance(value, list | tuple) else value for name, value in values.items()}


def stem(name: str, tubelet: Size3, width: int, *, flat: bool) -> list[Rule]:
    """Rules of a convolution whose stride is its size; flat: of single frames, as theirs has no axis of time."""
    turn: Callable[[np.ndarray], np.ndarray] = lambda x: x.transpose(2, 3, 4, 1, 0)  # noqa: E731
    back: Callable[[np.ndarray], np.ndarray] = lambda x: x.transpose(4, 3, 0, 1, 2)  # noqa: E731
    if flat:
        turn, back = lambda x: x.transpose(2, 3, 1, 0)[None], lambda x: x[0].transpose(3, 2, 0, 1)
    kernel = Rule(f"{HERE}/patch/kernel", f"{name}.weight", (*tubelet, 3, width), 0, turn, back)
    return [kernel, Rule(f"{HERE}/patch/bias", f"{name}.bias", (width,))]


def token(path: str, name: str, width: int) -> Rule:
    """The rule of one learned token, [1, 1, D]."""
    return Rule(path, name, (width,), 0, lambda x: x.reshape(x.shape[-1:]), lambda x: x[None, None])


def rows(path: str, name: str, count: int, width: int) -> Rule:
    """The rule of a table, [1, N, D]."""
    return Rule(path, name, (count, width), 0, lambda x: x.reshape(x.shape[-2:]), lambda x: x[None])


def cls_and_places(name: str, path: str, count: int, width: int) -> tuple[list[Rule], list[Fused]]:
    """The rules of one table of positions, of which the first is that of cls, called cls_position here."""
    cls, places = f"{name}.cls", f"{name}.places"
    rules = [token(f"{HERE}/cls_position", cls, width), rows(path, places, count, width)]
    return rules, [Fused(name, {cls: 1, places: count}, 0, 1)]


def layers(
    names: Mapping[str, str], s: TransformerSpec, biases: Mapping[str, str], *, here: str = LAYERS
) -> tuple[list[Rule], list[Fixed]]:
    """Rules of the stacked layers, as `_blocks.blocks` takes them, and what the published ones have not.

    biases: of attention parts whose bias has a name of its own, or "" for none.
    """
    rules = blocks(here, {part: name for part, name in names.items() if part not in biases}, s)
    fixed = []
    shape = (s.heads, s.head_size)
    for part, bias in biases.items():
        rules += linear(f"{here}/{part}", names[part], (s.width,), shape, s.layers, bias=False)
        path = f"{here}/{part}/bias"
        if bias:
            rules.append(Rule(path, bias, shape, s.layers, lambda x: x.reshape(shape), lambda x: x.reshape(-1)))
        else:
            why = "published models have none; set it to zero"
            fixed.append(Fixed(path, (s.layers, *shape), 0.0, why, inert=part.endswith("key")))
    return rules, fixed


def without_bias(config: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """The attention's maps without a bias, for `layers`, where config.json says that they have none."""
    ends = ("/query", "/key", "/value")
    return {} if config.get("qkv_bias", True) else {part: "" for part in names if part.endswith(ends)}


def no_time(width: int) -> Fixed:
    """An image's position in time."""
    return Fixed(
        f"{HERE}/temporal", (1, width), 0.0, "an image has no position in time; add it to video_encoder/spatial"
    )


def head(section: Mapping[str, Any], name: str, width: int) -> list[Rule]:
    """Rules of the classifier's head, where there is one."""
    return [r for label, n in section.get("heads", {}).items() for r in linear(f"head_{label}", name, (width,), (n,))]
