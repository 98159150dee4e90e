"""Dials are hashable, off by default, and refuse what makes no sense."""

import dataclasses

import pytest

from vidlang.ops.dials import OFF, Dials


def test_everything_is_off_by_default() -> None:
    assert Dials() == OFF and OFF.mask == 0.0


def test_equal_dials_are_one_jit_key() -> None:
    assert hash(Dials(0.5)) == hash(Dials(mask=0.5)) and Dials(0.5) != Dials(0.25)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Dials().mask = 0.5  # type: ignore[misc]


@pytest.mark.parametrize("mask", [1.0, -0.1, float("nan"), "0.5", True, None])
def test_impossible_mask_is_named(mask: object) -> None:
    with pytest.raises(ValueError, match=r"mask is .*\[0, 1\)"):
        Dials(mask=mask)  # type: ignore[arg-type]


def test_unknown_dial_is_an_error() -> None:
    with pytest.raises(TypeError, match="mesk"):
        Dials(mesk=0.5)  # type: ignore[call-arg]
