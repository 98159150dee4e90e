"""One training step: what a state is, how it is born in shards, and how a batch changes it.

The step's randomness is a pure function of (seed, step), so a resumed run draws the masks that the interrupted one
would have drawn; what augmentation does to a clip is drawn from the same two numbers and the clip's place in the
batch. Parameters carry their logical axes only until the state is created; after `create_state` a state is
plain arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vidlang.core.config import call
from vidlang.core.sharding import Mesh, batch_sharding, replicated, tree_shardings
from vidlang.core.tree import path_name
from vidlang.ops.augment import NOTHING, Augmentation, augment
from vidlang.ops.dials import streams
from vidlang.ops.pixels import yuv420_to_rgb
from vidlang.train.micro import WHOLE, Micro, Task, gradients
from vidlang.train.optimizer import Optimizer

Fields = Mapping[str, jax.ShapeDtypeStruct]  # the global batch, without its values
# Bookkeeping of the host about broken clips.
HOST_ONLY = ("broken_B", "broken_kind_B")


@flax.struct.dataclass
class TrainState:
    """Everything a step changes; `step` counts the updates done, and is the number of the next batch."""

    step: jax.Array
    params: Any
    opt_state: Any


def pick_inputs(model: nn.Module, batch: Mapping[str, Any]) -> list[Any]:
    """The batch fields that the model is called with."""
    inputs: tuple[str, ...] = model.inputs
    missing = [name for name in inputs if name not in batch]
    if missing:
        raise ValueError(
            f"the model takes the batch fields {', '.join(inputs)}, but the batch has no {', '.join(missing)}; "
            f"it has: {', '.join(batch)}"
        )
    return [batch[name] for name in inputs]


def with_video(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch as models see it: clips that came as yuv_BTXW are video_BTHWC."""
    arrays = dict(batch)
    if "yuv_BTXW" in arrays:
        arrays["video_BTHWC"] = yuv420_to_rgb(arrays.pop("yuv_BTXW"))
    return arrays


def boxed_params(model: nn.Module, fields: Fields, key: Any) -> Any:
    """Fresh parameters in their boxes of logical names."""
    inputs = [
        jnp.zeros(field.shape, field.dtype) for field in pick_inputs(model, jax.eval_shape(with_video, dict(fields)))
    ]
    return model.init({"params": key}, *inputs, train=False)["params"]


def abstract_boxed(model: nn.Module, fields: Fields) -> Any:
    """Shapes and dtypes of the parameters in their boxes; nothing is computed."""
    return jax.eval_shape(lambda key: boxed_params(model, fields, key), jax.eval_shape(lambda: jax.random.key(0)))


def abstract_params(model: nn.Module, fields: Fields) -> Any:
    """The same without boxes."""
    return nn.unbox(abstract_boxed(model, fields))


def init_params(model: nn.Module, fields: Fields, mesh: Mesh, seed: int) -> Any:
    """Fresh parameters, each device computing only its own shards."""

    def boxed(key: jax.Array) -> Any:
        return boxed_params(model, fields, key)

    key = jax.random.key(seed)
    shardings = tree_shardings(jax.eval_shape(boxed, key), mesh)
    return jax.jit(lambda key: nn.unbox(boxed(key)), out_shardings=shardings)(key)


def state_shardings(boxed: Any, optimizer: Optimizer, mesh: Mesh) -> tuple[TrainState, TrainState]:
    """(the state as shapes, dtypes and shardings, the shardings alone) of parameters in boxes, themselves shapes."""
    state = jax.eval_shape(lambda params: with_moments(params, optimizer), boxed)
    shardings = tree_shardings(state, mesh)
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(state),
        shardings,
    )
    return abstract, shardings


def create_state(
    model: nn.Module,
    optimizer: Optimizer,
    fields: Fields,
    mesh: Mesh,
    seed: int,
    *,
    blank: Collection[str] = (),
    boxed: Any = None,
) -> TrainState:
    """A fresh state, born in shards: no device ever holds what is not its own. The same seed gives it on any mesh.

    blank: parameters that are read from files afterwards, by path: they are zeros, and nothing is drawn for them.
    boxed: the parameters as shapes in their boxes, where these are known.
    """
    _, shardings = state_shardings(abstract_boxed(model, fields) if boxed is None else boxed, optimizer, mesh)

    def born(key: jax.Array) -> TrainState:
        state: TrainState = nn.unbox(with_moments(boxed_params(model, fields, key), optimizer))
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.zeros_like(leaf) if path_name(path) in blank else leaf, state.params
        )
        return TrainState(state.step, params, state.opt_state)

    return jax.jit(born, out_shardings=shardings)(jax.random.key(seed))


def make_train_step(
    model: nn.Module,
    optimizer: Optimizer,
    objective: Callable[..., Any],
    options: Mapping[str, Any],
    *,
    dials: Any,
    seed: int,
    augmentation: Augmentation = NOTHING,
    micro: Micro = WHOLE,
    skips: bool = False,
    what: str = "objective",
) -> Callable[[TrainState, Mapping[str, jax.Array]], tuple[TrainState, dict[str, jax.Array]]]:
    """The function (state, batch) -> (next state, scalars). `options` are the objective's own settings.

    skips: a step whose loss or gradient is no number changes nothing but its number, and its scalar `skipped` is 1.
    """

    def train_step(state: TrainState, batch: Mapping[str, jax.Array]) -> tuple[TrainState, dict[str, jax.Array]]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        batch = augment(with_video(batch), key, augmentation)
        trained, frozen = optimizer.split(state.params)
        task = Task(
            model,
            lambda trained: optimizer.join(trained, frozen),
            lambda outputs, batch: call(objective, options, what=what, outputs=outputs, batch=batch),
            lambda batch: pick_inputs(model, batch),
            dials,
            streams(key),
        )
        (loss, scalars), grads = gradients(task, trained, batch, micro)
        updates, opt_state = optimizer.transform.update(grads, state.opt_state, trained)
        params = optimizer.join(optax.apply_updates(trained, updates), frozen)
        metrics = {
            "loss": loss,
            **scalars,
            "grad_norm": optax.tree.norm(grads),
            "learning_rate": optimizer.schedule(state.step),
        }
        if skips:
            fine = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["grad_norm"])
            params, opt_state = _kept_unless(fine, (params, opt_state), (state.params, state.opt_state))
            metrics["skipped"] = 1.0 - fine
        return TrainState(state.step + 1, params, opt_state), metrics

    return train_step


def _kept_unless(fine: jax.Array, new: Any, old: Any) -> Any:
    """`new` where all is `fine`, else `old`; but learning rates follow the number of the step, whatever it did."""

    def is_schedule(node: Any) -> bool:
        return isinstance(node, optax.ScaleByScheduleState)

    def pick(new: Any, old: Any) -> Any:
        return new if is_schedule(new) else jnp.where(fine, new, old)

    return jax.tree.map(pick, new, old, is_leaf=is_schedule)


def trace_step(train_step: Callable[..., Any], state: TrainState, fields: Fields, mesh: Mesh) -> jax.stages.Traced:
    """The step traced for these shapes and shardings; compiled, it consumes the state that it is given."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    batch = {
        name: jax.ShapeDtypeStruct(field.shape, field.dtype, sharding=batch_sharding(mesh))
        for name, field in fields.items()
    }
    jitted = jax.jit(train_step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    return jitted.trace(state, batch)


def device_fields(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What of a host batch goes to the devices: not the bookkeeping of broken clips, and no 64-bit numbers."""
    return {name: _narrow(name, array) for name, array in batch.items() if name not in HOST_ONLY}


def on_device(dtype: Any) -> np.dtype:
    """The type that numbers of this type have on the devices."""
    return np.dtype(jax.dtypes.canonicalize_dtype(dtype))


def _narrow(name: str, array: np.ndarray) -> np.ndarray:
    """64-bit numbers as 32-bit ones; ValueError where whole numbers would wrap around."""
    dtype = on_device(array.dtype)
    if dtype != array.dtype and dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        for value in (array.max(), array.min()):
            if not limits.min <= value <= limits.max:
                raise ValueError(
                    f"the batch field {name} holds {value}, and devices get whole numbers from {limits.min} to "
                    f"{limits.max}; number what it names from 0 on, or leave the column out of clip.fields"
                )
    return array.astype(dtype, copy=False)


def with_moments(params: Any, optimizer: Optimizer) -> TrainState:
    """A state before its first step. Moments of boxed parameters inherit their axes, and with these the shards."""
    trained, _ = optimizer.split(params)
    return TrainState(jnp.zeros([], jnp.int32), params, optimizer.transform.init(trained))
