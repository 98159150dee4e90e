r"""AdaVid-Agg: a light transformer over the features of an adaptive encoder, one embedding for minutes of video.

    python -m launch.train --config=configs/adavid_agg.py --workdir=runs/agg \
        '--config.stages[0].init_from=runs/adavid'
    python -m launch.train --config=configs/adavid_agg.py:tiny --workdir=runs/agg_tiny

Before the stage begins, the encoder of configs/adavid_egovlp.py goes over all clips: 16 segments of 4 frames, at seven
presets of widths, kept in stores (docs/features.md; `python -m launch.extract --part=i/n` shares that work among
machines, into the same stores). Training draws one preset for each item, so that the aggregator reads them all;
evaluations name one. Text tower and projection go on from that encoder.
From the paper: 12 layers, InfoNCE, 10 epochs in batches of 256, AdamW at 1e-5 with decay 0.1, narrations of seconds and
summaries of five minutes, mixed. Not printed, and chosen here: width 512 in 8 heads, the mean of the segments' tokens,
temperature 0.05, constant rate, a narration's seconds cut into 16 segments like a summary's minutes, and the weights
of the mixture: as the tables are long.
Data: data/ego4d with egoclip.csv, egosummary_full.csv, summarymcq_full.json and a store of the videos.
Cost: 293e10 operations to encode a long video at d-768, 75e10 at d-384, 20e10 at d-192; the aggregator's are few.
Result: SummaryMCQ 95.4 % in the paper; R@1 / 5 / 10 among 1,500 long videos 16.6 / 50.3 / 66.5; EgoSchema 40.9 %.
The tiny variant takes 65 s on two cores: the right scene first of 32 for 39 % of texts at d-768, 44 % at d-dec, 25 % at
d-384, 6 % at d-192 (chance 3 %).
"""

from typing import Any

import ml_collections

from configs import parts
from configs.adavid_egovlp import EGO4D, PRESETS, model
from configs.adavid_egovlp import stage as adaptive_stage
from configs.adavid_egovlp import tiny_stage as tiny_adaptive

SEGMENTS, FRAMES = 16, 4
WIDTHS = PRESETS["dec"]
SOURCES: dict[str, parts.Section] = {
    "narrations": {"name": "egoclip", "split": "train", **EGO4D},
    "summaries": {"name": "egosummary", "split": "train", **EGO4D},
}
TESTS: dict[str, parts.Section] = {
    "summarymcq": {"name": "egomcq", "split": "summarymcq", **EGO4D},
    "videos": {"name": "egosummary", "split": "videos_val", **EGO4D},
}
MEASURED = ("d-768", "d-384", "d-192")
PROTOCOLS = {"summarymcq": "egomcq", "videos": "retrieval"}


def aggregator(features: int) -> parts.Section:
    """The aggregator beside AdaVid-EgoVLP's text tower."""
    before = model()
    return {
        "name": "aggregator",
        "features": features,
        "segments": SEGMENTS,
        "transformer": {"layers": 12, "width": 512, "heads": 8, "mlp": 2_048, "dtype": "bfloat16"},
        "text": before["text"],
        "text_projection": before["text_projection"],
        "embed": before["embed"],
        "temperature": before["temperature"],
    }


def of_features(store: str, variants: tuple[str, ...], width: int = 256) -> parts.Section:
    """The clip section of clips that were encoded."""
    return {"features": {"store": store, "variants": variants, "segments": SEGMENTS, "width": width}}


def stage(root: str = "data/ego4d/features") -> parts.Section:
    """The training over features."""
    tables = {**SOURCES, **TESTS}
    evals = tuple(
        {
            "name": PROTOCOLS[name],
            "prefix": f"{name}_{preset.replace('-', '_')}",
            "every": "20 percent",
            "data": data,
            "clip": of_features(f"{root}/{name}", (preset,)),
            "batch_size": 256,
        }
        for name, data in TESTS.items()
        for preset in MEASURED
    )
    return {
        "name": "aggregate",
        "duration": "10 epochs",
        "batch_size": 256,
        "model": aggregator(features=256),
        "init_from": "",
        "init_allow": ("^video_encoder/", "^video_projection/", "^aggregator/"),
        "extract": tuple(
            {
                "data": data,
                "out": f"{root}/{name}",
                "segments": SEGMENTS,
                "frames": FRAMES,
                "widths": WIDTHS if name in SOURCES else MEASURED,
            }
            for name, data in tables.items()
        ),
        "data": {
            "mixing": "items",
            "sources": tuple(
                {"name": name, "data": data, "weight": weight, "clip": of_features(f"{root}/{name}", WIDTHS)}
                for (name, data), weight in zip(SOURCES.items(), (38.0, 1.0), strict=True)
            ),
        },
        "clip": {"text_length": 32},
        "tokenizer": "data/distilbert-base-uncased/tokenizer.json",
        "objective": {"name": "contrastive", "direction_reduction": "mean"},
        "optimizer": {"learning_rate": 1e-5, "schedule": "constant", "weight_decay": 0.1, "clip_norm": None},
        "checkpoint": {"every": "5 percent", "keep": 2, "best": "summarymcq_d_768/accuracy"},
        "evals": evals,
    }


def tiny_stage(full: parts.Section, width: int = 32) -> parts.Section:
    """The corpus's scenes in segments of two frames, four presets mixed."""
    root, widths = f"{parts.TINY_ROOT}/features", ("d-768", "d-384", "d-192", "d-dec")
    tables = {"train": parts.corpus("pairs"), "val": parts.corpus("pairs", "val")}
    segments, frames = 4, 4
    extract = tuple(
        {"data": data, "out": f"{root}/{name}", "segments": segments, "frames": frames, "widths": widths}
        for name, data in tables.items()
    )
    evals = tuple(
        parts.tiny_eval(
            "retrieval",
            "pairs",
            preset.replace("-", "_"),
            clip={"features": {**of_features(f"{root}/val", (preset,), width)["features"], "segments": segments}},
        )
        for preset in widths
    )
    features = {**of_features(f"{root}/train", widths, width)["features"], "segments": segments}
    small: dict[str, Any] = {
        **full,
        "duration": "150 steps",
        "batch_size": 32,
        "model": {**parts.tiny_model(full["model"]), "features": width, "segments": segments},
        "extract": extract,
        "data": parts.corpus("pairs"),
        "clip": {"features": features, "text_length": 16},
        "tokenizer": f"{parts.TINY_ROOT}/tokenizer.json",
        "optimizer": {**full["optimizer"], "learning_rate": 1e-3, "clip_norm": 1.0},
        "checkpoint": {"every": "50 percent", "keep": 2},
        "evals": evals,
    }
    return small


def get_config(words: str = "") -> ml_collections.ConfigDict:
    """One stage, two where it is tiny: there the adaptive training comes first. Variant: tiny."""
    chosen = parts.variant(words, ())
    if "tiny" not in chosen:
        return parts.recipe("adavid_agg", [stage()])
    return parts.recipe("adavid_agg", [tiny_adaptive(adaptive_stage("dec"), "dec", evals=()), tiny_stage(stage())])
