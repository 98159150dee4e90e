"""A dual encoder small enough to train in a test, with four heads, so that its width can be chosen."""

from vidlang.train import stages

# Verbs times colours times shapes of the corpus.
CLASSES = 10 * 8 * 6
TRANSFORMER = {"layers": 2, "width": 32, "heads": 4, "mlp": 32, "dtype": "float32"}


def recipe(corpus, *, duration="2 steps"):
    """A config of a stage that draws widths, and evaluates from another crop than it trains with."""
    stage = {
        "name": "short",
        "duration": duration,
        "batch_size": 8,
        "model": {
            "name": "dual_encoder",
            "video": {"transformer": TRANSFORMER, "tubelet": (2, 8, 8), "position_std": 0.3},
            "text": {"vocab": 128, "max_length": 12, "transformer": TRANSFORMER, "pool": "mean", "table_std": 0.3},
            "embed": 16,
            "temperature": {"init": 0.1, "max_scale": 100.0, "learnable": True},
        },
        "dials": {"mask": 0.25, "widths": {"name": "dec", "shares": (1.0, 0.5)}},
        "data": {**corpus, "split": "train"},
        "clip": {
            "frames": 4,
            "size": 16,
            "times": {"name": "segments"},
            "crop": {"name": "random_resized"},
            "text_length": 12,
        },
        "tokenizer": f"{corpus['root']}/tokenizer.json",
        "objective": {"name": "contrastive", "chunk": 8},
        "optimizer": {"learning_rate": 0.01},
        "checkpoint": {"every": "1 steps", "keep": 3},
        "evals": (
            {
                "name": "retrieval",
                "every": "50 percent",
                "data": {**corpus, "split": "val"},
                "clip": {"times": {"name": "middle"}, "crop": {"name": "center", "share": 0.75}},
                "batch_size": 8,
            },
        ),
    }
    return {"name": "tiny_dual", "seed": 0, "stages": (stage,)}


def train_dual(workdir, corpus, **options):
    """A run of two steps, each with a checkpoint."""
    stages.train(recipe(corpus, **options), workdir)
    return workdir


def train_classifier(workdir, corpus):
    """A run of two steps of a classifier of events of the same clips."""
    config = recipe({**corpus, "annotations": "classes"})
    (stage,) = config["stages"]
    stage |= {
        "model": {"name": "classifier", "video": stage["model"]["video"], "heads": {"label": CLASSES}},
        "clip": {**stage["clip"], "text_length": 0, "fields": ("label",)},
        "tokenizer": "",
        "objective": {"name": "classification", "heads": {"label": CLASSES}},
        "evals": (),
    }
    stages.train(config, workdir)
    return workdir
