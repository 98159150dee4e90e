"""Attention along a block graph and its gradients, written out in numpy float64: the oracle of the kernels' tests."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from vidlang.ops.edges import BlockGraph


class Case:
    """A graph, as lists of key blocks with -1 for an empty slot, and seeded q, k, v and the output's gradient."""

    def __init__(self, globals: int, tokens: int, block: int, head: int, index: list[list[int]]) -> None:
        self.globals, self.tokens, self.block = globals, tokens, block
        self.index = np.array(index, np.int32)
        rng = np.random.default_rng(0)
        self.arrays = [rng.normal(size=(2, globals + tokens, 2, head)) for _ in range(4)]

    def graph(self) -> BlockGraph:
        return BlockGraph(jnp.asarray(self.index), tokens=self.tokens, block=self.block)

    def inputs(self, dtype: jnp.dtype = jnp.float32) -> list[jax.Array]:
        return [jnp.asarray(x, dtype) for x in self.arrays]

    def allowed(self) -> np.ndarray:
        """[N, N], True where a query may attend to a key."""
        block_of = np.arange(self.tokens) // self.block
        inner = (block_of[None, :, None] == self.index[block_of][:, None, :]).any(-1)
        allowed = np.ones((self.globals + self.tokens,) * 2, bool)
        allowed[self.globals :, self.globals :] = inner
        return allowed

    def by_hand(self, dtype: jnp.dtype = jnp.float32) -> list[np.ndarray]:
        """The output and the gradients of q, k and v, for inputs rounded to `dtype`."""
        q, k, v, do = (np.asarray(x.astype(jnp.float32), np.float64).swapaxes(1, 2) for x in self.inputs(dtype))
        scale = q.shape[-1] ** -0.5
        logits = np.where(self.allowed(), q @ k.swapaxes(2, 3) * scale, -np.inf)
        top = logits.max(-1, keepdims=True)
        weights = np.exp(logits - np.where(np.isfinite(top), top, 0))
        weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-300)  # a query without keys: zeros
        dweights = do @ v.swapaxes(2, 3)
        dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True)) * scale
        turned = weights.swapaxes(2, 3)
        found = [weights @ v, dlogits @ k, dlogits.swapaxes(2, 3) @ q, turned @ do]
        return [x.swapaxes(1, 2) for x in found]


def part_block() -> Case:
    """One global token, a last block that is partly empty, and an empty slot."""
    return Case(1, 37, 16, 16, [[0, 2], [1, -1], [0, 2]])


CASES = {
    "cls, a part block, an empty slot": part_block(),
    "blocks of 56, no cls": Case(0, 100, 56, 8, [[1, 0], [1, -1]]),
    "a block without any key, an unseen block": Case(0, 40, 16, 20, [[0, -1, 1], [-1, -1, -1], [1, 0, -1]]),
    "two global tokens, small blocks": Case(2, 17, 5, 16, [[0, 3], [1, 3], [2, 3], [-1, 3]]),
    "only cls to see": Case(1, 16, 8, 16, [[-1], [-1]]),
}
