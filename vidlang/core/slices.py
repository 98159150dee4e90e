"""Devices of several TPU slices, or of several machines, in the order that a mesh wants them.

Inside a slice devices have a fast network of their own (ICI; NVLink in a machine of GPUs); between slices is a slower
one (DCN). Only the axis "data" may cross it: its devices exchange gradients once a step, and all others exchange within
each layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def count_slices(devices: Sequence[Any], wanted: int) -> int:
    """Of how many slices a mesh over these devices is: as many as `wanted`, or 0 for those that the devices tell.

    TPUs say which slice they are in. Other devices do not, and are cut as they come, processes one after another.
    """
    if wanted < 0:
        raise ValueError(
            f"mesh.slices is the number of slices, from 1 on, or 0 for those that are found; found {wanted}"
        )
    found = {device.slice_index for device in devices if _is_tpu(device)}
    if found and wanted not in (0, len(found)):
        raise ValueError(
            f"mesh.slices is {wanted}, and the {len(devices)} TPU chips here are in {len(found)} slices; leave "
            "mesh.slices out, or start the run on as many"
        )
    return wanted or max(1, len(found))


def check_slices(slices: int, shape: Sequence[int], count: int) -> None:
    """ValueError where `count` devices, or the first axis of a mesh, do not divide into slices."""
    if count % slices:
        raise ValueError(f"mesh.slices is {slices}, which does not divide the {count} devices; choose a divisor")
    if shape[0] % slices:
        within = math.prod(shape[1:])
        raise ValueError(
            f"the mesh axis 'data' is {shape[0]}, which does not divide over {slices} slices: fsdp, tensor and context "
            f"take {within} devices together, and a slice has {count // slices}; make their product a divisor of that"
        )


def across(
    slices: int, shape: Sequence[int], devices: Sequence[Any], order: Callable[[tuple[int, ...], Any], np.ndarray]
) -> np.ndarray:
    """Devices as an array of `shape`, slices one after another along the first axis; `order` lays out each slice."""
    groups = _groups(slices, devices)
    within = (shape[0] // slices, *shape[1:])
    return np.concatenate([order(within, group) for group in groups])


def _groups(slices: int, devices: Sequence[Any]) -> list[list[Any]]:
    if all(_is_tpu(device) for device in devices):
        known = sorted({device.slice_index for device in devices})
        return [[device for device in devices if device.slice_index == each] for each in known]
    ordered = sorted(devices, key=lambda device: (device.process_index, device.id))
    size = len(ordered) // slices
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def _is_tpu(device: Any) -> bool:
    return bool(device.platform == "tpu") and hasattr(device, "slice_index")
