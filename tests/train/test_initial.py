"""A state filled from files: theirs where they have it, fresh elsewhere, on any mesh, one parameter at a time."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from tests.train.test_origins import SECTION, weights
from vidlang.core.sharding import use_mesh
from vidlang.core.tree import flatten_paths
from vidlang.models.language import Model
from vidlang.pretrained import gpt2
from vidlang.pretrained._names import Leaf, Rule, left_in_files
from vidlang.train.initial import awaited, take_params
from vidlang.train.optimizer import make_optimizer
from vidlang.train.origins import Weights
from vidlang.train.step import abstract_params, create_state

FIELDS = {"text_BL": jax.ShapeDtypeStruct((8, 8), np.int32)}
STAGE = SimpleNamespace(model={"name": "language", "language": SECTION}, init_allow=("norm",))
MODEL = Model(language=SECTION)


def optimizer():
    return make_optimizer(abstract_params(MODEL, FIELDS), total_steps=1, batch_size=8, learning_rate=1e-3)


@pytest.mark.parametrize("axes", [{"data": 8}, {"data": 2, "fsdp": 4}, {"fsdp": 4, "tensor": 2}])
def test_what_files_give_is_theirs_on_every_mesh(axes, tmp_path, mesh_of):
    theirs = weights(tmp_path / "gpt2")
    files = Weights("gpt2", str(tmp_path / "gpt2"))
    with use_mesh(mesh := mesh_of(**axes)):
        blank = awaited([files], STAGE, abstract_params(MODEL, FIELDS))
        assert blank == flatten_paths({"language": theirs}).keys()
        state = create_state(MODEL, optimizer(), FIELDS, mesh, 0, blank=blank)
        layouts = jax.tree.map(lambda leaf: leaf.sharding, state.params)
        assert not any(leaf.any() for leaf in jax.tree.leaves(state.params))
        state, report = take_params(state, [files], (), STAGE, FIELDS, mesh)
        jax.tree.map(np.testing.assert_array_equal, state.params, {"language": theirs})
        assert jax.tree.map(lambda leaf: leaf.sharding, state.params) == layouts
        assert f"gpt2 weights {tmp_path / 'gpt2'}: {len(blank)} parameters loaded" in report


@pytest.mark.slow
def test_what_is_not_awaited_is_born_as_ever(mesh_of):
    with use_mesh(mesh := mesh_of(data=8)):
        usual = create_state(MODEL, optimizer(), FIELDS, mesh, 3).params["language"]
        some = create_state(MODEL, optimizer(), FIELDS, mesh, 3, blank=["language/words/table"]).params["language"]
    assert usual["words"]["table"].any() and not some["words"]["table"].any()
    for params in (usual, some):
        del params["words"]
    jax.tree.map(np.testing.assert_array_equal, usual, some)


def test_a_leaf_reads_the_part_that_is_asked_for():
    rng, asked = np.random.default_rng(0), []

    class Tensors(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    tensors = Tensors({f"h.{i}.w": rng.normal(size=(4, 6)) for i in range(5)} | {"one": rng.normal(size=(3, 2))})
    stack = Leaf(tensors, Rule("layers/w", "h.{}.w", (6, 4), 5, lambda x: x.T))
    whole = np.stack([tensors[f"h.{i}.w"].T for i in range(5)]).astype(np.float32)
    asked.clear()
    for index in [(slice(1, 3), slice(0, 2)), (slice(None), slice(2, None), slice(1, 3)), (4,), (slice(2, 2),), ...]:
        np.testing.assert_array_equal(stack[index], whole[index])
        assert stack[index].dtype == np.float32
    asked.clear()
    assert stack[1:3].shape == (2, 6, 4) and asked == ["h.1.w", "h.2.w"]
    np.testing.assert_array_equal(np.asarray(stack), whole)
    one = Leaf(tensors, Rule("one", "one", (3, 2)))
    np.testing.assert_array_equal(one[1:, :1], tensors["one"][1:, :1].astype(np.float32))
    assert stack.shape == (5, 6, 4) and stack.ndim == 3


def test_files_are_read_when_a_parameter_is_asked_for(tmp_path):
    theirs = weights(tmp_path / "gpt2")
    with left_in_files():
        left = gpt2.load(tmp_path / "gpt2")
    assert all(isinstance(leaf, Leaf) for leaf in jax.tree.leaves(left))
    jax.tree.map(np.testing.assert_array_equal, jax.tree.map(np.asarray, left), theirs)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(gpt2.load(tmp_path / "gpt2")))
