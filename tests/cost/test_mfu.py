"""The share of a card's peak: the card is known by its device, and the operations are those of the step."""

import types

import jax
import jax.numpy as jnp
import pytest

from vidlang.cost import mfu
from vidlang.cost.cards import CARDS


@pytest.mark.parametrize(
    ("kind", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA A100-SXM4-40GB", "A100-40"),
        ("NVIDIA A100-SXM4-80GB", "A100-80"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA RTX A5000", "A5000"),
        ("NVIDIA GeForce RTX 4090", "RTX4090"),
        ("TPU v4", "v4"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5p", "v5p"),
        ("TPU v5", "v5p"),
        ("TPU v6 lite", "v6e"),
    ],
)
def test_cards_by_their_devices(kind, card):
    assert mfu.card_of(kind) is CARDS[card]


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 PCIe", "TPU v4 lite", "NVIDIA GeForce RTX 4090 Laptop GPU"])
def test_other_devices_have_no_peak_here(kind):
    assert mfu.card_of(kind) is None


def test_it_is_the_operations_of_the_step_over_all_devices(monkeypatch):
    def step(state, batch):
        return state @ batch["x_BD"].T

    traced = jax.make_jaxpr(step)(jnp.ones((4, 8)), {"x_BD": jax.ShapeDtypeStruct((16, 8), jnp.float32)})
    assert mfu.ideal_seconds(traced) is None
    monkeypatch.setattr(mfu.jax, "devices", lambda: [types.SimpleNamespace(device_kind="TPU v4")])
    seconds = mfu.ideal_seconds(traced)
    assert seconds == pytest.approx(2 * 4 * 8 * 16 / (275e12 * 8))
