"""Which blocks of tokens attend to which: a sparse graph as data, built from local, random and global edges (SViTT)."""

from __future__ import annotations

import flax.struct
import jax


@flax.struct.dataclass
class BlockGraph:
    """For each block of queries, the blocks of keys that it attends to.

    index_QK: int32 [query blocks, slots]; -1 fills slots that hold no block, and no row holds a block twice. Tokens
    here are those after the global ones (cls): `tokens` of them, cut into blocks of `block`; the last may be partly
    empty. Global tokens attend to everything and everything attends to them; no graph lists them.
    """

    index_QK: jax.Array
    tokens: int = flax.struct.field(pytree_node=False)
    block: int = flax.struct.field(pytree_node=False)
