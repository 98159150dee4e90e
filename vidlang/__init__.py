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
