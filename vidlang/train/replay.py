"""The batch of one step again, to be looked at: the stream of batches is a function of (seed, step) alone.

`guard` writes down which steps went wrong. To see such a step go wrong again, start the training again: it goes on
from the checkpoint before with the same batches.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from vidlang.core.config import did_you_mean
from vidlang.data.broken import describe
from vidlang.data.failures import KINDS
from vidlang.train import sources
from vidlang.train.recipe import Recipe


def replay(recipe: Recipe, workdir: str | Path, which: str) -> list[str]:
    """Draws the batch that `which` names, STEP of the newest stage begun or STAGE:STEP, and writes it as an .npz file.

    Returns lines about it: where it was written, then the name of each clip, and what was wrong with broken ones.
    """
    index, step = _find(recipe, Path(workdir), which)
    stage = recipe.stages[index]
    clips = sources.tables(stage)
    with sources.train_stream(recipe, index, clips, start_step=step) as stream:
        batch = {name: np.array(array) for name, array in next(stream).items()}
    path = Path(workdir) / recipe.folder(index) / f"batch_{step}.npz"
    np.savez(path, allow_pickle=False, **batch)
    places = batch.get("source_B", np.zeros_like(batch["index_B"]))
    names = [
        describe(clips[source], row) for source, row in zip(places.tolist(), batch["index_B"].tolist(), strict=True)
    ]
    for place in np.flatnonzero(batch["broken_B"] >= 0).tolist():
        names[place] += f", in place of row {batch['broken_B'][place]}: {KINDS[int(batch['broken_kind_B'][place])]}"
    return [f"step {step} of stage {stage.name}: {len(names)} clips, written to {path}", *names]


def _find(recipe: Recipe, workdir: Path, which: str) -> tuple[int, int]:
    """(number of the stage, step)"""
    parts = re.fullmatch(r"(?:([\w-]+):)?(\d+)", which)
    if parts is None:
        raise ValueError(f"--replay is a step, as in 120, or stage and step, as in warmup:120; found {which!r}")
    names = [stage.name for stage in recipe.stages]
    begun = [i for i in range(len(names)) if (workdir / recipe.folder(i)).is_dir()]
    if not begun:
        raise ValueError(f"no stage of this config was begun in {workdir}; give the --workdir of the training")
    if parts[1] is None:
        return begun[-1], int(parts[2])
    if parts[1] not in names or names.index(parts[1]) not in begun:
        known = [names[i] for i in begun]
        raise ValueError(
            f"--replay names the stage {parts[1]!r}{did_you_mean(parts[1], known)}; begun are: {', '.join(known)}"
        )
    return names.index(parts[1]), int(parts[2])
