"""The exchanges between devices that a compiled program holds: which kind, how often in a step, over how many bytes.

They are read from the text that the compiler gives of its program. A loop's body counts as often as the loop runs,
which the compiler writes beside it; of a conditional's branches the dearest counts. A device's own slice of the bytes
never travels, so what a device sends is less than what the exchange is about: `Collective.sent` is by the ring that
both TPUs and GPUs use.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}

_COMPUTATION = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{\s*$")
_OPERATION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|async_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|true_computation=%([\w.\-]+), false_computation=%([\w.\-]+)")
# Between TPU slices the host carries the data; the program only hands it over.
_MEGASCALE = re.compile(r'_xla_megascale_target="\{([^}]*)\}[^"]*",_xla_megascale_transfer_type="(\w+)"')
# A TPU's program names an exchange where it starts, beside what is computed meanwhile, and where it ends; it is one.
_GOING_ON, _DONE = "async_collective_fusion", "async-collective-done"
# And this is a sum of which each device keeps its own part.
_SCATTERED = "all-reduce-scatter"
_BODY = re.compile(r"\bbody=%([\w.\-]+)")
_CONDITION = re.compile(r"\bcondition=%([\w.\-]+)")
_TRIPS = re.compile(r'"?known_trip_count"?\s*[:=]\s*\{\s*"?n"?\s*[:=]\s*"?(\d+)')
_LISTED = re.compile(r"replica_groups=\{\{([0-9,]*)\}")
_COUNTED = re.compile(r"replica_groups=\[\d+,(\d+)\]")
_MESHED = re.compile(r"replica_groups=mesh\[([^\]]*)\].*? \{('[^}]*)\}")


@dataclass(frozen=True)
class Collective:
    """One exchange: its kind, over how many devices, about how many bytes, and how often in a step.

    bytes: of the whole array that the devices of one group put together, share or sum. groups_of: their number; 0 for
    pairs of devices, each of which sends to one other. between_slices: over the slow network.
    """

    kind: str
    groups_of: int
    bytes: int
    times: int = 1
    between_slices: bool = False

    @property
    def sent(self) -> float:
        """Bytes that one device sends in a step."""
        return self.times * sent(self.kind, self.bytes, self.groups_of)


def sent(kind: str, size: float, ways: int) -> float:
    """Bytes that each of `ways` devices sends for one exchange of `size` bytes, around a ring."""
    if kind == "collective-permute":
        return size
    if ways <= 1:
        return 0.0
    return (2 if kind == "all-reduce" else 1) * size * (ways - 1) / ways


def read(text: str) -> list[Collective]:
    """All exchanges of a compiled program, equal ones as one."""
    computations, entry = _computations(text)
    counts: dict[Collective, int] = {}
    for found in _walk(entry, computations, {}):
        one = dataclasses.replace(found, times=1)
        counts[one] = counts.get(one, 0) + found.times
    return sorted(
        (dataclasses.replace(one, times=times) for one, times in counts.items()),
        key=lambda one: (KINDS.index(one.kind), -one.sent),
    )


@dataclass(frozen=True)
class Total:
    """All exchanges of a kind among groups of one size: how many, bytes they are about, bytes that a device sends."""

    kind: str
    groups_of: int
    between_slices: bool
    times: int
    bytes: int
    sent: float


def by_kind(found: Sequence[Collective]) -> list[Total]:
    """Totals of a step, those that send most first."""
    groups: dict[tuple[str, int, bool], list[Collective]] = {}
    for one in found:
        groups.setdefault((one.kind, one.groups_of, one.between_slices), []).append(one)
    totals = [
        Total(
            *key,
            sum(one.times for one in ones),
            sum(one.times * one.bytes for one in ones),
            sum(one.sent for one in ones),
        )
        for key, ones in groups.items()
    ]
    return sorted(totals, key=lambda total: -total.sent)


def in_words(program: Any) -> str:
    """What a device sends in a step of this compiled program, by kind, those that send most first."""
    totals = by_kind(read(str(program.as_text())))
    whole = sum(total.sent for total in totals)
    kinds = ", ".join(f"{_among(total)} {total.sent / 1e6:,.1f}" for total in totals)
    return f"each device sends {whole / 1e6:,.1f} MB in a step{f': {kinds}' if kinds else ''}"


def _among(total: Total) -> str:
    return f"{total.kind} over {total.groups_of}" if total.groups_of else total.kind


@dataclass(frozen=True)
class _Operation:
    name: str
    shape: str
    code: str
    rest: str


def _computations(text: str) -> tuple[dict[str, list[_Operation]], str]:
    computations: dict[str, list[_Operation]] = {}
    entry, inside = "", None
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            inside = computations.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif inside is not None and (operation := _OPERATION.match(line)):
            inside.append(_Operation(operation[1], operation[2], operation[3], operation[4]))
    if not entry:
        raise ValueError("this is no text of a compiled program: it has no ENTRY; pass compiled.as_text()")
    return computations, entry


Known = dict[str, list[Collective]]


def _walk(name: str, computations: Mapping[str, Sequence[_Operation]], known: Known) -> list[Collective]:
    """What runs when the computation of this name runs once."""
    if name not in known:
        shapes = {operation.name: operation.shape for operation in computations.get(name, ())}
        known[name] = [
            found for operation in computations.get(name, ()) for found in _of(operation, shapes, computations, known)
        ]
    return known[name]


def _of(
    operation: _Operation, shapes: Mapping[str, str], computations: Mapping[str, Sequence[_Operation]], known: Known
) -> Iterator[Collective]:
    kind = operation.code.removesuffix("-start")
    if kind in KINDS:
        yield _exchange(kind, operation, shapes)
        return
    if operation.code == "send" and (between := _MEGASCALE.search(operation.rest)):
        kind, ways = between[2].lower().replace("_", "-"), len(between[1].split(","))
        given = _size(shapes.get(_operands(operation)[0], ""))
        yield Collective(kind, ways, given * (ways if kind == "all-gather" else 1), between_slices=True)
        return
    if operation.code.endswith(("-done", "-update")):
        return
    if operation.code == "while":
        trips = _trips(operation, computations)
        for found in _walk(_one(_BODY, operation), computations, known):
            yield dataclasses.replace(found, times=found.times * trips)
        return
    if operation.code == "conditional" and (branches := _BRANCHES.search(operation.rest)):
        names = re.findall(r"%([\w.\-]+)", branches[1]) if branches[1] else [branches[2], branches[3]]
        yield from max((_walk(name, computations, known) for name in names), key=_total)
        return
    for name in _CALLED.findall(operation.rest):
        if name.startswith(_GOING_ON) or operation.name.startswith(_DONE):
            continue
        for found in _walk(name, computations, known):
            kind = "reduce-scatter" if name.startswith(_SCATTERED) else found.kind
            yield dataclasses.replace(found, kind=kind)


def _exchange(kind: str, operation: _Operation, shapes: Mapping[str, str]) -> Collective:
    ways = _ways(operation.rest)
    given = sum(_size(shapes.get(name, "")) for name in _operands(operation))
    if kind == "all-gather":
        return Collective(kind, ways, given * ways)
    if kind == "collective-permute":
        return Collective(kind, 0, given)
    return Collective(kind, ways, given)


def _operands(operation: _Operation) -> list[str]:
    return re.findall(r"%([\w.\-]+)", operation.rest.split(")", 1)[0])


def _ways(rest: str) -> int:
    """Devices in each group of an exchange, from any of the three ways in which groups are written."""
    if found := _LISTED.search(rest):
        return len(found[1].split(","))
    if found := _COUNTED.search(rest):
        return int(found[1])
    if found := _MESHED.search(rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return 0


def _trips(operation: _Operation, computations: Mapping[str, Sequence[_Operation]]) -> int:
    """How often a loop runs: as the compiler says, or else by what its condition compares its counter with."""
    if found := _TRIPS.search(operation.rest):
        return int(found[1])
    condition, body = (computations.get(_one(pattern, operation), ()) for pattern in (_CONDITION, _BODY))
    limits = [number for each in condition if (number := _number(each)) is not None]
    places = [int(found[1]) for each in condition if (found := re.search(r"\bindex=(\d+)", each.rest))]
    step = _step(body, places[0]) if len(places) == 1 else 0
    if len(limits) == 1 and step:
        return -(-limits[0] // step)
    if _walk(_one(_BODY, operation), computations, {}):
        raise ValueError(
            f"the loop {operation.name} exchanges data between devices, and the program does not say how often it "
            "runs; its exchanges cannot be counted"
        )
    return 0


def _step(body: Sequence[_Operation], place: int) -> int:
    """By how much a loop's body counts on: its counter is the element at this place of what it returns."""
    named = {each.name: each for each in body}
    returned = _operands(body[-1]) if body and body[-1].code == "tuple" else []
    counter = named.get(returned[place]) if place < len(returned) else None
    while counter is not None and counter.code in ("copy", "bitcast"):
        counter = named.get(_operands(counter)[0])
    if counter is None or counter.code != "add":
        return 0
    steps = [number for name in _operands(counter) if name in named and (number := _number(named[name])) is not None]
    return steps[0] if len(steps) == 1 else 0


def _number(operation: _Operation) -> int | None:
    found = re.match(r"(\d+)\)", operation.rest) if operation.code == "constant" else None
    return int(found[1]) if found else None


def _one(pattern: re.Pattern[str], operation: _Operation) -> str:
    found = pattern.search(operation.rest)
    return found[1] if found else ""


def _size(shape: str) -> int:
    """Bytes of an array, or of all arrays of a tuple."""
    return sum(
        math.prod(int(part) for part in sizes.split(",") if part) * _bits(dtype) // 8
        for dtype, sizes in _ARRAY.findall(shape)
    )


def _bits(dtype: str) -> int:
    if dtype in BITS:
        return BITS[dtype]
    found = re.match(r"[a-z]+?(\d+)", dtype)
    return int(found[1]) if found else 0


def _total(found: Sequence[Collective]) -> float:
    return sum(one.sent for one in found)
