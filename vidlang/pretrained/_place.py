"""Where a published text encoder goes in a stage's model: into its text tower and, if it has one, its fusion encoder.

SViTT and Singularity split a BERT: its first layers read the text alone, and the last ones the video too, through a
cross-attention in between that no text model has and that starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from vidlang.models.fusion import Words

TEXT, FUSION, HEAD = "text_encoder", "fusion_encoder", "word_head"
# Models that read the video through a fusion encoder, whose section has a default.
FUSED = ("fusion", "question_answering")


def place_text(params: Any, model: Mapping[str, Any]) -> Any:
    """The parameters of a text encoder where a stage's `model` section has them; from arrays, or from shapes.

    What guesses words goes only where the model guesses some.
    """
    text = model.get("text")
    if not isinstance(text, Mapping):
        raise ValueError(
            "a text encoder goes into a model with a section text, which this stage's model lacks; leave it out of "
            "init_from, or choose a model with texts"
        )
    tower = params[TEXT]
    layers, count, fused = tower["stack"]["layers"], text["transformer"]["layers"], _fusion_layers(model)
    published = jax.tree.leaves(layers, is_leaf=_is_leaf)[0].shape[0]
    if count + fused != published:
        also = f" and model.fusion.layers {fused}" if fused else ""
        raise ValueError(
            f"the published text encoder has {published} layers, and model.text.transformer.layers is {count}{also}; "
            f"give {published} in all, for one that is cut is another model"
        )
    found = {name: value for name, value in params.items() if name not in (TEXT, HEAD)}
    found[TEXT] = {**tower, "stack": {**tower["stack"], "layers": _rows(layers, 0, count)}}
    if fused:
        found[FUSION] = {"layers": _rows(layers, count, published)}
    if HEAD in params and _guesses(model):
        found[HEAD] = params[HEAD]
    return found


def _fusion_layers(model: Mapping[str, Any]) -> int:
    if "fusion" not in model and model.get("name") not in FUSED:
        return 0
    return int(model.get("fusion", {"layers": 3})["layers"])


def _guesses(model: Mapping[str, Any]) -> bool:
    """Whether the model guesses words, and so has a head for that."""
    words = Words(**model.get("words", {}))
    return model.get("name") == "fusion" and bool(words.rate or model.get("captions"))


def _rows(tree: Any, start: int, stop: int) -> Any:
    return jax.tree.map(lambda leaf: _cut(leaf, start, stop), tree, is_leaf=_is_leaf)


def _cut(leaf: Any, start: int, stop: int) -> Any:
    if stop - start == leaf.shape[0]:  # which may still be in its files
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((stop - start, *leaf.shape[1:]), leaf.dtype)
    return leaf[start:stop]


def _is_leaf(node: Any) -> bool:
    return not isinstance(node, Mapping)
