"""The claims: what a paper says, how it is tested here, which trainings that takes, and what is compared.

None is tuned until it holds; docs/claims.md says what was looked at before the tests were fixed. A recall is at 1, the
mean of both ways, among held-out scenes that all have a twin which only the order of events tells from them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from vidlang.serve.claims import bench
from vidlang.serve.claims.lab import Lab
from vidlang.serve.claims.recipes import MIXED, WIDTHS
from vidlang.serve.claims.verdicts import Finding, at_least, better, no_worse

ORDER = ("order/accuracy",)
INTRA = ("choice/accuracy_intra",)
MASKED = {"mask": 0.75}


@dataclass(frozen=True)
class Claim:
    """A claim of a paper and its test. trainings: names in recipes.TRAININGS; measure: its parts, these being done."""

    number: int
    name: str
    source: str
    statement: str
    test: str
    trainings: tuple[str, ...]
    measure: Callable[[Lab], list[Finding]]


def video_first(lab: Lab) -> list[Finding]:
    """Claim 1."""
    return [
        better("recall among scenes and their twins", lab.recall("joint"), lab.recall("frames")),
        better("which event came first", lab.share("joint", ORDER), lab.share("frames", ORDER)),
    ]


def masking(lab: Lab) -> list[Finding]:
    """Claim 2."""
    whole, masked = lab.memory("all tubelets", 16), lab.memory("a quarter of them", 16, dials=MASKED)
    return [
        no_worse("recall", lab.recall("long_masked", "masked"), lab.recall("long", "all tubelets")),
        at_least("memory of ViT-B's train step at 16 frames, one clip", whole, masked, 2.0),
    ]


def short_to_long(lab: Lab) -> list[Finding]:
    """Claim 3."""
    scratch = lab.recall("long_scratch", "long alone")
    return [better("recall at equal operations", lab.recall("long", "short, then long"), scratch)]


def last_layers(lab: Lab) -> list[Finding]:
    """Claim 4."""
    return [no_worse("recall", lab.recall("long_last", "last third"), lab.recall("long", "all layers"))]


def one_model_many_widths(lab: Lab) -> list[Finding]:
    """Claim 5."""
    return [
        no_worse(
            f"recall at {words} of the width",
            lab.recall("dec", "adaptive", [prefix]),
            lab.recall(f"separate_{words}", "trained alone", [prefix]),
        )
        for words, prefix in (("half", "d_384"), ("quarter", "d_192"))
    ]


def decreasing_widths(lab: Lab) -> list[Finding]:
    """Claim 6."""
    figures = []
    for order, mixed in MIXED.items():
        prefixes = [preset.replace("-", "_") for preset in (*WIDTHS, mixed)]
        figures.append(lab.recall(order, prefixes=prefixes))
    return [better("mean recall at four settings of equal operations", *figures)]


def full_width(lab: Lab) -> list[Finding]:
    """Claim 7."""
    adaptive, plain = (lab.recall(name, label, ["d_768"]) for name, label in (("dec", "adaptive"), ("plain", "plain")))
    return [no_worse("recall at full width", adaptive, plain)]


def hybrid_sparsity(lab: Lab) -> list[Finding]:
    """Claim 8."""
    return [
        no_worse("recall", lab.recall("hybrid"), lab.recall("joint", "dense")),
        at_least("operations of the video encoder", lab.operations("joint", "dense"), lab.operations("hybrid"), 1.0),
    ]


def staged_expansion(lab: Lab) -> list[Finding]:
    """Claim 9."""
    return [better("recall at equal operations", lab.recall("staged"), lab.recall("hybrid", "single stage"))]


def ego_nce(lab: Lab) -> list[Finding]:
    """Claim 10."""
    return [
        better(
            "choice within the video", lab.share("ego_nce", INTRA, "EgoNCE"), lab.share("info_nce", INTRA, "InfoNCE")
        )
    ]


def large_batches(lab: Lab) -> list[Finding]:
    """Claim 11."""
    large, small = lab.recall("large_batch", "batches of twice"), lab.recall("small_batch", "batches of half")
    return [better("recall at equal clips", large, small)]


def loading(lab: Lab) -> list[Finding]:
    """Claim 12."""
    rates = lab.throughput()
    return [
        at_least("short chunks", rates[bench.SHORT_CHUNKS], rates[bench.LONG_CHUNKS], 1.0),
        at_least("decoding and cropping at once", rates[bench.MERGED], rates[bench.SHORT_CHUNKS], 1.0),
    ]


CLAIMS = (
    Claim(
        1,
        "video_first",
        "LongViViT, Table 1 and Section 6.1",
        "Joint attention over space and time beats frames that are encoded one by one and averaged, where the order of "
        "events matters.",
        "Both from scratch on scenes of two events, equal steps. Frames one by one cannot know the order: theirs is "
        "what the events alone give.",
        ("joint", "frames"),
        video_first,
    ),
    Claim(
        2,
        "masking",
        "LongViViT, abstract and Figure 2",
        "Masking up to 75 % of the tubelets in training costs little recall and saves two to three times the memory.",
        "Scenes in 16 frames, after single events, with all tubelets or a quarter of them. Memory is the compiler's "
        "plan for ViT-B at 16 frames of 256 pixels, for CPU.",
        ("long", "long_masked"),
        masking,
    ),
    Claim(
        3,
        "short_to_long",
        "LongViViT, Sections 3.1 and 6.1",
        "Training on short clips first and adapting to long ones beats training on long ones alone.",
        "Single events in 4 frames, then scenes in 16, against scenes in 16 frames from scratch, for equal operations.",
        ("long", "long_scratch"),
        short_to_long,
    ),
    Claim(
        4,
        "last_layers",
        "LongViViT, Section 6.1 and Figure 5",
        "In the long stage, training the last four of twelve layers is as good as training all.",
        "The last of three layers, all before it frozen as the short stage left them, against all of them.",
        ("long", "long_last"),
        last_layers,
    ),
    Claim(
        5,
        "one_model_many_widths",
        "AdaVid, Figure 1 and Section 1",
        "One adaptive model replaces models that are trained for each width.",
        "An adaptive model at half and at a quarter of the width, against models that were trained at these widths "
        "alone, each for as many steps as the adaptive one and what it started from.",
        ("dec", "separate_half", "separate_quarter"),
        one_model_many_widths,
    ),
    Claim(
        6,
        "decreasing_widths",
        "AdaVid, Figure 3 and Section 4.3",
        "Widths that fall with depth in training are better than widths that rise.",
        "Two adaptive trainings from the same start. Each is measured at full, half and a quarter of the width, and at "
        "its own mixture (D to D/2, or D/2 to D).",
        ("dec", "inc"),
        decreasing_widths,
    ),
    Claim(
        7,
        "full_width",
        "AdaVid, Table 2",
        "At full width an adaptive model is no worse than one that was trained plainly (in the paper, better).",
        "From the same start and for equal steps, with widths drawn or full throughout.",
        ("dec", "plain"),
        full_width,
    ),
    Claim(
        8,
        "hybrid_sparsity",
        "SViTT, Tables 1 and 2",
        "Sparse attention together with pruned tokens is no worse than dense, for fewer operations.",
        "Both from scratch on scenes in 8 frames, equal steps. Operations are counted as the paper does.",
        ("joint", "hybrid"),
        hybrid_sparsity,
    ),
    Claim(
        9,
        "staged_expansion",
        "SViTT, Table 3",
        "Stages in which clips get longer and the model sparser beat a single stage.",
        "Dense on 4 frames, then hybrid on 8, against hybrid on 8 from the start, for equal operations.",
        ("hybrid", "staged"),
        staged_expansion,
    ),
    Claim(
        10,
        "ego_nce",
        "SViTT-Ego, Table 1",
        "EgoNCE is better than InfoNCE at choosing among narrations of the same video.",
        "Single events, each beside another of its scene, equal steps. Five narrations of one video of another corpus, "
        "of which one fits the event.",
        ("ego_nce", "info_nce"),
        ego_nce,
    ),
    Claim(
        11,
        "large_batches",
        "AVION, Figure 6 and Section 5.4",
        "Larger batches make a better model.",
        "Batches of twice and of half the usual size, for equal clips and at the same learning rate, as in the paper.",
        ("large_batch", "small_batch"),
        large_batches,
    ),
    Claim(
        12,
        "loading",
        "AVION, Table 4 and Figure 5",
        "Short chunks, and decoding and cropping at once, raise the throughput of training.",
        "benchmarks/chunk_length.py, once for each seed: clips of 4 frames through two processes, end to end.",
        (),
        loading,
    ),
)


def choose(only: str) -> list[Claim]:
    """The claims whose number, or a part of whose name, this pattern matches; all for ""."""
    try:
        pattern = re.compile(only)
    except re.error as error:
        raise ValueError(f"--only is no regular expression: {error}; found {only!r}") from error
    chosen = [claim for claim in CLAIMS if pattern.fullmatch(f"{claim.number}") or pattern.search(claim.name)]
    if not chosen:
        known = ", ".join(f"{claim.number} {claim.name}" for claim in CLAIMS)
        raise ValueError(f"--only={only!r} matches no claim; there are: {known}")
    return chosen
