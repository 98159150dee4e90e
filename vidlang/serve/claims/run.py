"""Runs claims one after another, and writes what is known after each: claims.json and report.html in the workdir.

workdir/claims.json       every claim with its verdict, its parts, their figures and the values behind them
workdir/report.html       the same to read
workdir/runs/             trainings, by the hash of their config; claims share them
workdir/benchmarks/       what the benchmark of loading measured
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidlang.serve.claims.catalogue import Claim, choose
from vidlang.serve.claims.lab import Lab
from vidlang.serve.claims.machine import machine
from vidlang.serve.claims.page import render
from vidlang.serve.claims.recipes import Scale
from vidlang.serve.claims.trainings import SECONDS, Training, is_done, plan, run_missing
from vidlang.serve.claims.verdicts import RULE, Figure, Finding, combine
from vidlang.serve.report import write_page
from vidlang.train.stages import write_json

CLAIMS, REPORT = "claims.json", "report.html"


def run_claims(workdir: str | Path, *, scale: Scale, seeds: int, only: str = "") -> dict[str, Any]:
    """Tests the chosen claims with seeds 0 to `seeds` - 1, and returns what claims.json says."""
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1; found {seeds}")
    workdir, chosen, lab = Path(workdir), choose(only), Lab(Path(workdir), scale, seeds)
    workdir.mkdir(parents=True, exist_ok=True)
    needed = plan(training for claim in chosen for training in trainings_of(claim, lab))
    done = sum(is_done(training, workdir) for training in needed)
    print(f"{len(chosen)} claims need {len(needed)} trainings, of which {done} are done", flush=True)
    report: dict[str, Any] = {**header(scale, seeds), "claims": []}
    began = time.monotonic()
    for claim in chosen:
        print(f"claim {claim.number}, {claim.name}", flush=True)
        run_missing(trainings_of(claim, lab), workdir)
        report["claims"].append(answer(claim, lab))
        report["minutes"] = (time.monotonic() - began) / 60
        write_json(workdir / CLAIMS, report)
        write_page(workdir / REPORT, render(report))
    return report


def trainings_of(claim: Claim, lab: Lab) -> list[Training]:
    """What a claim compares, for all seeds; `plan` adds what these start from."""
    return [training for name in claim.trainings for training in lab.trainings(name)]


def header(scale: Scale, seeds: int) -> dict[str, Any]:
    """What all figures of a report have in common."""
    return {
        "quick": scale.quick,
        "seeds": list(range(seeds)),
        "scale": {**dataclasses.asdict(scale), "chunks": list(scale.chunks)},
        "rule": RULE,
        "machine": machine(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def answer(claim: Claim, lab: Lab) -> dict[str, Any]:
    """All that is known of a claim, its trainings done."""
    findings = claim.measure(lab)
    trainings = [_training(each, lab.workdir) for each in plan(trainings_of(claim, lab))]
    return {
        "number": claim.number,
        "name": claim.name,
        "source": claim.source,
        "statement": claim.statement,
        "test": claim.test,
        "verdict": combine(findings),
        "parts": [_part(finding) for finding in findings],
        "trainings": trainings,
    }


def table(report: Mapping[str, Any]) -> str:
    """A line for each claim, for the console."""
    lines = [f"{claim['number']:>3}  {claim['verdict']:<9}  {claim['statement']}" for claim in report["claims"]]
    return "\n".join(lines)


def _part(finding: Finding) -> dict[str, Any]:
    return {
        "what": finding.what,
        "verdict": finding.verdict,
        "figures": [_figure(each) for each in finding.figures],
        "tested": _figure(finding.tested),
        "bound": finding.bound,
    }


def _figure(figure: Figure) -> dict[str, Any]:
    """None stands for the spread of one seed: JSON has no number for it."""
    spreads = {"spread": figure.spread, "standard_error": figure.error}
    return {
        "name": figure.name,
        "unit": figure.unit,
        "counted": figure.counted,
        "values": list(figure.values),
        "mean": figure.mean,
        **{name: None if math.isnan(value) else value for name, value in spreads.items()},
    }


def _training(training: Training, workdir: Path) -> dict[str, Any]:
    path = training.folder(workdir) / SECONDS
    seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"] if path.is_file() else None
    stages: Sequence[Mapping[str, Any]] = training.config["stages"]
    return {
        "name": training.name,
        "seed": training.seed,
        "run": training.key,
        "starts_from": training.start.key if training.start else None,
        "duration": ", ".join(stage["duration"] for stage in stages),
        "seconds": seconds,
    }
