"""All four dials in one training: a single model that is then measured at every width, sparse and dense.

    python -m launch.train --config=configs/dials.py --workdir=runs/dials
    python -m launch.evaluate --workdir=runs/dials
    python -m launch.plan --config=configs/dials.py

Data: the demo's corpus and held-out videos (configs/demo.py). In training each step draws a schedule of widths that
never widens with depth (AdaVid), masks a quarter of the tubelets (LongViViT), attends along a graph drawn anew in each
layer, and prunes after the second and third of four layers to 70 % (SViTT). Evaluations show what the one checkpoint
gives: everything off, sparse at full width, and sparse at the widths of AdaVid's table.
Cost: 28 minutes for 900 steps, evaluations and the corpus, on two CPU cores that other work shared; 3 GiB of memory.
Result: text to video R@5 0.66 dense, 0.66 sparse, 0.69 at d-dec, 0.60 at D/2, 0.30 at D/4; order 1.00, 1.00, 1.00,
0.99, 0.77 (chance 0.02 and 0.50).
"""

from typing import Any

import ml_collections

from configs import demo

EDGES = {"local": 1, "random": 2, "block": 8}  # of eight blocks of eight tokens
PREFIXES = {"retrieval": "val", "multiple_choice": "order"}
KEEP = {"1": 0.7, "2": 0.7}
# Name of an evaluation -> its dials, beside what the stage's own leave on.
MEASURED: dict[str, dict[str, Any]] = {
    "dense": {"edges": None, "keep": {}},
    "sparse": {},
    "d_dec": {"widths": "d-dec"},
    "d_384": {"widths": "d-384"},
    "d_192": {"widths": "d-192"},
}


def get_config() -> ml_collections.ConfigDict:
    """One stage: the demo's, with a cls token and its dials turned."""
    config = demo.get_config().unlock()
    stage = config.stages[0]
    stage.name, stage.duration = "adaptive", "900 steps"
    stage.model.video.pool = "cls"
    stage.model.video.transformer = ml_collections.ConfigDict({**stage.model.video.transformer, "layers": 4})
    stage.dials = ml_collections.ConfigDict(
        {"mask": 0.25, "widths": {"name": "dec", "full": 0.1}, "edges": EDGES, "keep": KEEP}
    )
    held_out = stage.evals[0].data
    stage.evals = tuple(
        ml_collections.ConfigDict(
            {**demo.evaluation(kind, f"{name}_{PREFIXES[kind]}", held_out), "every": "300 steps", "dials": dials}
        )
        for name, dials in MEASURED.items()
        for kind in PREFIXES
    )
    stage.checkpoint.best = "dense_val/t2v_r1"
    config.name = "dials"
    return config.lock()
