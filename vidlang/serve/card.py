"""The README.md of a portable folder: what the model is, how it came to be, what it reaches, how to use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vidlang.core.metrics import format_number

if TYPE_CHECKING:
    from vidlang.serve.loaded import Loaded

LICENCE = (
    "No licence comes with the weights by themselves. They follow from the data that they were trained on and from the "
    "weights that they started with: whoever passes them on says under which terms."
)


def card(model: Loaded, count: int, size: int) -> str:
    """Markdown of a model with `count` parameters, in `size` bytes."""
    about, source = model.about, model.about.source
    title = source.get("recipe") or source.get("family") or about.name
    parts = [
        f"# {title}\n\nA {about.name.replace('_', ' ')} of vidlang with {count:,} parameters, {size / 1e6:.1f} MB.",
        f"## Use\n\n```python\n{_use(model)}\n```",
        f"## Input\n\n{_input(model)}",
    ]
    if widths := _widths(model):
        parts.append(f"## Widths\n\n{widths}")
    parts.append(f"## Where it is from\n\n{_source(source)}")
    if metrics := source.get("metrics"):
        rows = "\n".join(f"| {name} | {format_number(value)} |" for name, value in metrics.items())
        parts.append(f"## Metrics\n\nThe last of its training, at full width.\n\n| | |\n|---|---|\n{rows}")
    parts.append(f"## Licence\n\n{LICENCE}")
    return "\n\n".join(parts) + "\n"


def _use(model: Loaded) -> str:
    lines = ["import vidlang", "", 'model = vidlang.load("FOLDER")']
    calls = {
        "similarity": 'model.similarity(["one.mp4", "two.mp4"], ["a sentence", "another"])  # cosines',
        "classify": 'model.classify("one.mp4")'
        if hasattr(model.model, "classify")
        else 'model.classify("one.mp4", labels=["one thing", "another"])',
        "caption": 'model.caption("one.mp4")',
        "embed_video": 'model.embed_video("one.mp4")',
        "embed_text": 'model.embed_text("a sentence")',
    }
    return "\n".join([*lines, *(line for name, line in calls.items() if name in model.methods)])


def _input(model: Loaded) -> str:
    spec, told = model.about.spec, []
    if spec is not None:
        frames = f"{spec.frames} frame{'s' if spec.frames > 1 else ''} of {spec.size} x {spec.size} pixels"
        told.append(f"{frames}: times {_json(spec.times)}, crop {_json(spec.crop)}.")
    if model.about.text_length:
        told.append(f"Texts of up to {model.about.text_length} tokens.")
    return " ".join(told) or "See config.json."


def _widths(model: Loaded) -> str:
    if not hasattr(model.model, "video_spec"):
        return ""
    spec = model.model.video_spec
    layers = spec.schedule or (spec.width,) * spec.layers
    told = f"Its video encoder has the widths {', '.join(map(str, layers))}"
    told += f", cut from {spec.full_width}" if spec.full_width else ""
    drawn = model.about.source.get("training", {}).get("dials", {}).get("widths")
    if isinstance(drawn, Mapping) and not spec.full_width:
        shares = ", ".join(format_number(share) for share in drawn.get("shares", (1.0, 0.75, 0.5, 0.25)))
        return f"{told}; it was trained to run at these shares of them: {shares}."
    return f"{told}."


def _source(source: Mapping[str, Any]) -> str:
    if "family" in source:
        return f"Converted from published {source['family']} weights, {source.get('files', '')}."
    if "recipe" not in source:
        return "Not known."
    told = [f"Recipe `{source['recipe']}`, stage `{source['stage']}`, step {source['step']}."]
    told.append(f"Data: `{_json(source.get('data', {}))}`.")
    told += [
        f"{name.replace('_', ' ').capitalize()}: `{_json(value)}`."
        for name, value in source.get("training", {}).items()
    ]
    return "\n".join(f"- {line}" for line in told)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
