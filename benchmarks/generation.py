"""Tokens a second of a language model: greedy, nucleus and beam search with its cache, and greedy without one.

    python -m benchmarks.generation                    # GPT-2 small, a minute on two cores
    python -m benchmarks.generation --size=small       # in seconds

Weights are random and nothing ends a text, so that each row makes exactly --new tokens. Without the cache the same loop
runs the model over the whole text for every token; that its texts are the same is checked. All calls take turns, so
that a busy machine slows all of them alike. "start" is the prompt alone: the time to the first token.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from benchmarks._common import machine, take_turns
from vidlang.models.language import Model
from vidlang.nn.generation import Decoding, Generated, generate

GPT2 = {"norm": "layer", "epsilon": 1e-5, "positions": "learned", "activation": "gelu_tanh", "gated": False}
GPT2 |= {"qkv_bias": True, "out_bias": True, "mlp_bias": True, "max_length": 1024}
SIZES = {
    "gpt2": {"layers": 12, "width": 768, "heads": 12, "mlp": 3072, "vocab": 50257},
    "small": {"layers": 6, "width": 256, "heads": 4, "mlp": 1024, "vocab": 8192},
    "tiny": {"layers": 2, "width": 64, "heads": 2, "mlp": 128, "vocab": 512},
}

_SIZE = flags.DEFINE_enum("size", "gpt2", list(SIZES), "Shape of the language model.")
_ROWS = flags.DEFINE_integer("rows", 4, "Prompts side by side.")
_PROMPT = flags.DEFINE_integer("prompt", 16, "Tokens of the longest prompt; the others are shorter.")
_NEW = flags.DEFINE_integer("new", 32, "Tokens to make for each row.")
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls of each; the median is shown.")


@flax.struct.dataclass
class Texts:
    """All that is known without a cache: the texts so far, and how many tokens each has."""

    text_RL: jax.Array
    used_R: jax.Array

    def rows(self, parent_R: jax.Array, *, same_video: bool = False) -> Texts:
        """These rows, as `generate` asks."""
        del same_video
        return Texts(self.text_RL[parent_R], self.used_R[parent_R])


def without_cache(model: Model, variables: Any, prompt_BL: jax.Array, length_B: jax.Array, how: Decoding) -> Generated:
    """The same search, by a model that reads the whole text again for every token."""

    def ask(texts: Texts) -> tuple[jax.Array, Texts]:
        # The text so far as a prompt: its last token alone meets the head, and no cache is made, for none is asked for.
        found: Any = model.apply(variables, texts.text_RL, texts.used_R, room=0, method="start")
        return found[0], texts

    def start(prompt_BL: jax.Array, length_B: jax.Array) -> tuple[jax.Array, Texts]:
        return ask(Texts(jnp.pad(prompt_BL, ((0, 0), (0, how.max_new))), length_B))

    def advance(token_R: jax.Array, texts: Texts) -> tuple[jax.Array, Texts]:
        text_RL = texts.text_RL.at[jnp.arange(len(token_R)), texts.used_R].set(token_R)
        return ask(Texts(text_RL, texts.used_R + 1))

    return generate(start, advance, prompt_BL, length_B, how)


def main(argv: list[str]) -> None:
    del argv
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = Model(language={**GPT2, **SIZES[_SIZE.value], "dtype": dtype})
    rng = np.random.default_rng(0)
    length_B = rng.integers(1, _PROMPT.value + 1, _ROWS.value).astype(np.int32)
    length_B[0] = _PROMPT.value
    prompt_BL = rng.integers(1, model.vocab, (_ROWS.value, _PROMPT.value)).astype(np.int32)
    init = functools.partial(model.init, train=False)
    variables = nn.unbox(jax.jit(init)(jax.random.key(0), prompt_BL))
    print(f"{machine()}\n{jax.device_count()} x {jax.devices()[0].device_kind}, {dtype}")
    print(f"{_SIZE.value}: {_ROWS.value} prompts of up to {_PROMPT.value} tokens, {_NEW.value} new ones each")

    settings = {how: Decoding(how, max_new=_NEW.value, beams=4) for how in ("greedy", "nucleus", "beam")}
    searches: dict[str, Callable[..., Any]] = {
        how: functools.partial(_with_cache, model, settings=chosen) for how, chosen in settings.items()
    }
    searches["greedy, no cache"] = lambda variables, prompt_BL, length_B: without_cache(
        model, variables, prompt_BL, length_B, settings["greedy"]
    )
    searches["start"] = functools.partial(model.apply, room=_NEW.value, method="start")
    calls = [functools.partial(jax.jit(search), variables, prompt_BL, length_B) for search in searches.values()]
    same = (calls[0]().tokens_BSN == calls[3]().tokens_BSN).mean()
    print(f"{same:.1%} of the tokens are the same with and without the cache")
    seconds = take_turns(calls, _REPEATS.value)
    made = _ROWS.value * _NEW.value
    print(f"{'':<18}{'seconds':>9}{'tokens/s':>10}{'ms a step':>11}{'speed':>8}")
    for name, took in zip(searches, seconds, strict=True):
        if name == "start":
            print(f"{name:<18}{took:>9.3f}")
            continue
        step, speed = 1e3 * took / _NEW.value, seconds[3] / took
        print(f"{name:<18}{took:>9.3f}{made / took:>10.1f}{step:>11.2f}{speed:>7.1f}x")


def _with_cache(
    model: Model, variables: Any, prompt_BL: jax.Array, length_B: jax.Array, *, settings: Decoding
) -> Generated:
    found: Any = model.apply(variables, prompt_BL, length_B, settings=settings, method="generate")
    return found


if __name__ == "__main__":
    app.run(main)
