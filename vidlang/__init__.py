"""vidlang: one video-language encoder with four dials, trained under one loop.

Reading order: `configs/demo.py` (a recipe), `vidlang/train/stages.py` and `vidlang/train/loop.py` (how it runs),
`vidlang/models/dual_encoder.py` (what it trains), `vidlang/data/pipeline.py` (what it sees).

The folders are floors and imports go only downward:
core < ops < nn < models, pretrained < objectives < evals < train < serve; `data` and `datasets` stand beside them and
never import jax.

Shape letters, everywhere: B batch, T frames, H W pixels, C channels, N video tokens, M kept tokens, Q latents, L text
tokens, S keys, D width, A heads, K head size, F mlp, E embedding, V vocabulary. A name says its shape: `video_BTHWC`,
`x_BND`, `text_BL`; letters mean the logical size, never the size of one device's shard.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vidlang.serve.loaded import Loaded


def load(
    path: str | Path,
    *,
    family: str | None = None,
    step: int | None = None,
    widths: Any = None,
    device: Any = None,
    dtype: str | None = None,
    tokenizer: str | Mapping[str, Any] | None = None,
) -> Loaded:
    """A trained model in hand, from a run, a portable folder, or published files and their family; see docs/load.md.

    widths: cut to a preset of widths, to one width or one a layer. device: "cpu", "gpu:1", ...; all that there are if
    not given. dtype: what it computes in. tokenizer: its path, if not where the files say.
    """
    # Here, so that whoever imports a part of vidlang, as processes that decode do, imports no jax for it.
    from vidlang.serve import load as serve_load

    return serve_load.load(
        path, family=family, step=step, widths=widths, device=device, dtype=dtype, tokenizer=tokenizer
    )
