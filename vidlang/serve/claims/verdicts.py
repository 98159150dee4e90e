"""When a claim counts as held: a rule about figures and their spread, written down before anything is measured.

A figure has one value for each seed. What a claim says becomes one figure and a bound: a difference of two figures,
paired by seed, must lie above 0 ("better") or above minus a margin ("no worse"); a ratio must lie above a number. It
is held when the figure's mean lies above the bound by more than BEYOND standard errors, not held when it lies below by
as much, and undecided in between. A claim of several parts is held when all of them are, and not held when one is not.

Two standard errors of three seeds are no proof: where nothing is different at all, a difference goes beyond them, to
one side or the other, about once in five. One seed has no spread, so it decides nothing; what is counted instead of
trained (operations, bytes of memory) has none either, and needs none.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
BEYOND = 2.0
# What "no worse", "matches" and "costs little" allow to be lost, of a share from 0 to 1.
LITTLE = 0.05
RULE = (
    f"A part of a claim is held when its figure's mean over seeds lies above the bound by more than {BEYOND:g} "
    "standard errors, not held when it lies below the bound by as much, undecided otherwise. Differences are paired by "
    f"seed. The bound is 0 for \u201cbetter\u201d and \u2212{LITTLE:g} for \u201cno worse\u201d (shares from 0 to 1). "
    "A claim is held when all its parts are, and not held when one of them is not."
)


@dataclass(frozen=True)
class Figure:
    """One quantity, a value for each seed. unit: "share" (from 0 to 1), "times", or a unit that is printed.

    counted: not measured but counted, so that it is the same for whatever seed.
    """

    name: str
    values: tuple[float, ...]
    unit: str = "share"
    counted: bool = False

    def __post_init__(self) -> None:
        if not self.values or not all(math.isfinite(value) for value in self.values):
            raise ValueError(f"the figure {self.name!r} needs finite values, at least one; found {self.values}")

    @property
    def mean(self) -> float:
        """Over seeds."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """Sample standard deviation over seeds; not a number for one seed, 0 for what is counted."""
        if self.counted:
            return 0.0
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.spread / math.sqrt(len(self.values))


@dataclass(frozen=True)
class Finding:
    """One part of a claim: what is asked, the figures that answer, and the figure that must lie above the bound."""

    what: str
    figures: tuple[Figure, ...]
    tested: Figure
    bound: float
    verdict: str


def better(what: str, one: Figure, other: Figure) -> Finding:
    """Whether `one` is above `other`."""
    return _finding(what, (one, other), difference(one, other), 0.0)


def no_worse(what: str, one: Figure, other: Figure, margin: float = LITTLE) -> Finding:
    """Whether `one` is at most `margin` below `other`."""
    return _finding(what, (one, other), difference(one, other), -margin)


def at_least(what: str, one: Figure, other: Figure, factor: float) -> Finding:
    """Whether `one` is more than `factor` times `other`."""
    return _finding(what, (one, other), ratio(one, other), factor)


def difference(one: Figure, other: Figure) -> Figure:
    """`one` less `other`, seed by seed."""
    pairs = _paired(one, other)
    return Figure(f"{one.name} \u2212 {other.name}", tuple(a - b for a, b in pairs), one.unit)


def ratio(one: Figure, other: Figure) -> Figure:
    """`one` in `other`s, seed by seed."""
    pairs = _paired(one, other)
    counted = one.counted and other.counted
    return Figure(f"{one.name} / {other.name}", tuple(a / b for a, b in pairs), "times", counted)


def decide(figure: Figure, bound: float) -> str:
    """The verdict on a figure that must lie above a bound."""
    if math.isnan(figure.error):
        return UNDECIDED
    if figure.mean - BEYOND * figure.error > bound:
        return HELD
    return NOT_HELD if figure.mean + BEYOND * figure.error < bound else UNDECIDED


def combine(findings: Sequence[Finding]) -> str:
    """The verdict on a claim from those on its parts."""
    verdicts = {finding.verdict for finding in findings}
    if NOT_HELD in verdicts:
        return NOT_HELD
    return HELD if verdicts == {HELD} else UNDECIDED


def _finding(what: str, figures: tuple[Figure, ...], tested: Figure, bound: float) -> Finding:
    return Finding(what, figures, tested, bound, decide(tested, bound))


def _paired(one: Figure, other: Figure) -> list[tuple[float, float]]:
    if len(one.values) != len(other.values):
        raise ValueError(
            f"{one.name!r} has {len(one.values)} values and {other.name!r} {len(other.values)}; they are compared seed "
            "by seed, so train both with the same seeds"
        )
    return list(zip(one.values, other.values, strict=True))
