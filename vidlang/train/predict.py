"""What evaluators get in their hands: a trained model as a function from host rows to host rows, and when to run them.

`predict("embed_video", params, video_BTHWC=...)` calls that method of the model on all devices of the mesh. Each
process that has some of these gives its own rows and gets the rows of all of them, those of process 0 first. Clips may
come as yuv_BTXW; the method gets video_BTHWC.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils

from vidlang.core.config import call, load_module, steps
from vidlang.core.sharding import Mesh, batch_sharding, batch_ways, processes_of, put_batch, to_host
from vidlang.ops.dials import OFF, Dials, streams
from vidlang.train import build
from vidlang.train.recipe import Runtime, Stage
from vidlang.train.step import with_video


class Predict:
    """A model's methods, jitted once each, on the batch axes of a mesh."""

    def __init__(
        self, model: nn.Module, mesh: Mesh, *, dials: Dials = OFF, before: Callable[[], None] | None = None
    ) -> None:
        """`before` runs before each call; it may raise, for example to leave a long evaluation."""
        self._model, self._mesh, self._dials, self._before = model, mesh, dials, before
        self._jitted: dict[tuple[str, Hashable], Any] = {}
        self._others: dict[Dials, Predict] = {dials: self}

    def at(self, dials: Dials) -> Predict:
        """The same model at other dials; asked for the same ones twice, nothing is compiled twice."""
        if dials not in self._others:
            self._others[dials] = Predict(self._model, self._mesh, dials=dials, before=self._before)
        return self._others[dials]

    def __call__(self, method: str, params: Any, settings: Hashable = None, /, **host_arrays: np.ndarray) -> Any:
        """[rows of all processes, ...] of `model.method(**host_arrays)`, or a tree of these.

        Numbers come as float32, whole ones as they are. `settings`, where given, go to the method, which is compiled
        once for each of them.
        """
        if self._before is not None:
            self._before()
        if (method, settings) not in self._jitted:
            self._jitted[method, settings] = self._compile(method, settings)
        rows = {name: array.shape[0] for name, array in host_arrays.items()}
        if len(set(rows.values())) != 1:
            raise ValueError(f"{method} needs arrays with equally many rows; found {rows}")
        count = next(iter(rows.values()))
        processes = processes_of(self._mesh)
        multiple = -(-batch_ways(self._mesh) // processes)
        padded = {name: _pad_rows(array, -count % multiple) for name, array in host_arrays.items()}

        def own(x: np.ndarray) -> np.ndarray:
            by_process = x.reshape(processes, -1, *x.shape[1:])[:, :count]
            found = by_process.reshape(processes * count, *x.shape[1:])
            return found if found.dtype.kind in "iu" else found.astype(np.float32)

        return jax.tree.map(own, to_host(self._jitted[method, settings](params, put_batch(padded, self._mesh))))

    def require(self, *methods: str) -> None:
        """ValueError unless the model has these methods: evaluators ask before anything is trained."""
        lacking = [name for name in methods if not hasattr(self._model, name)]
        if lacking:
            raise ValueError(
                f"the model {type(self._model).__module__} has no method {lacking[0]!r}, which is needed here"
            )

    def gather(self, host_array: np.ndarray) -> np.ndarray:
        """The rows of all processes, in the order of `__call__`."""
        if jax.process_count() == 1:
            return np.asarray(host_array)
        return np.asarray(multihost_utils.process_allgather(host_array, tiled=True)).astype(host_array.dtype)

    def _compile(self, method: str, settings: Hashable) -> Any:
        self.require(method)
        takes_dials = "dials" in inspect.signature(getattr(self._model, method)).parameters
        options: dict[str, Any] = {"dials": self._dials} if takes_dials else {}
        if settings is not None:
            options["settings"] = settings

        def apply(params: Any, arrays: Mapping[str, jax.Array]) -> Any:
            # What dials draw at inference, they draw the same each time.
            bound = self._model.bind({"params": params}, rngs=streams(jax.random.key(0)))
            return getattr(bound, method)(**with_video(arrays), **options)

        return jax.jit(apply, out_shardings=batch_sharding(self._mesh))


class Evaluations:
    """The evaluators of a stage, each built once and run when its step has come."""

    def __init__(self, stage: Stage, predict: Predict, runtime: Runtime, *, total: int) -> None:
        self._stage, self._predict, self._runtime, self._total = stage, predict, runtime, total
        self._built: dict[int, Any] = {}
        self._every = [steps(evaluation.every, batch_size=stage.batch_size, total=total) for evaluation in stage.evals]

    def due(self, step: int) -> list[int]:
        """Which evaluators run before step `step`; all of them run at the end."""
        return [
            i
            for i, (evaluation, every) in enumerate(zip(self._stage.evals, self._every, strict=True))
            if is_due(step, every, self._total) or (step == 0 and evaluation.at_start)
        ]

    def prepare(self) -> None:
        """Builds every evaluator, so that a wrong option stops the run now and not at its first evaluation."""
        for i in self.all():
            with _named(self._stage.evals[i].label):
                self._evaluator(i)

    def run(self, which: list[int], params: Any, step: int) -> dict[str, float]:
        """Metrics of these evaluators, named prefix/metric."""
        results: dict[str, float] = {}
        for i in which:
            with _named(f"{self._stage.evals[i].label} at step {step}"):
                metrics = self._evaluator(i).run(params)
            prefix = self._stage.evals[i].prefix
            results |= {f"{prefix}/{name}": float(value) for name, value in metrics.items()}
        return results

    def all(self) -> list[int]:
        """Every evaluator."""
        return list(range(len(self._stage.evals)))

    def _evaluator(self, i: int) -> Any:
        if i not in self._built:
            evaluation = self._stage.evals[i]
            data = build.eval_data(self._stage, evaluation, self._runtime)
            data.batches()  # checks what a clip is; nothing is decoded before the first batch is asked for
            evaluator = load_module("evals", evaluation.name).Evaluator
            predict = self._predict.at(build.eval_dials(self._stage, evaluation))
            self._built[i] = call(evaluator, evaluation.options, what="options", predict=predict, data=data)
        return self._built[i]


@contextlib.contextmanager
def _named(where: str) -> Iterator[None]:
    """Says which evaluation an error came from; a user's mistake stays a ValueError."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    except Exception as error:
        raise RuntimeError(f"{where} failed: {type(error).__name__}: {error}") from error


def is_due(step: int, every: int, total: int) -> bool:
    """True at the end, and after every `every` steps; 0 means at the end only."""
    return step == total or (every > 0 and step > 0 and step % every == 0)


def _pad_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """The array with its last row repeated; an array without rows cannot be."""
    if not len(array):
        raise ValueError("predict was called with no rows")
    return np.concatenate([array, np.repeat(array[-1:], rows, axis=0)]) if rows else array
