"""The folder in which a store grows, and the memory of a run that may be killed at any moment.

    STORE.partial/lock            held by the one process that works here
    STORE.partial/run.json        settings and inputs: a run with others must not go on here
    STORE.partial/inputs.jsonl    the list of videos; they are numbered by their place in it
    STORE.partial/spool/          videos that are cut (spool.py)
    STORE.partial/journal.jsonl   one line for each shard that is in the store, with its rows of the index
    STORE.partial/parts/          files of the store that are being written
    STORE.partial/store/          the store, without index and header until all is done

What counts as done is what the journal says; a file that it does not name is written again, to the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from vidlang.data import folders
from vidlang.data.cutting import spool
from vidlang.data.cutting.inputs import Input
from vidlang.data.cutting.spool import Failure, Outcome
from vidlang.data.cutting.target import Target
from vidlang.data.stores.record_writer import sync


class Work:
    """What is done and what is left of one run; `open` first, in a folder that is owned."""

    def __init__(self, target: Target, videos: list[Input], settings: Mapping[str, Any]) -> None:
        self.root, self.target, self.videos = target.work, target, videos
        root = self.root
        self.spool, self.store = root / "spool", root / "store"
        self._settings = json.loads(json.dumps(settings, default=str))
        self._journal = root / "journal.jsonl"
        self.written: set[int] = set()  # numbers of the videos that are in the store
        self.outcomes: dict[int, Outcome] = {}  # of those that are in the spool, and of all that failed
        self.spooled = 0  # bytes of chunks in the spool
        self.lines = 0
        self.retried: list[int] = []  # videos that failed and are to be tried again

    def open(self, *, retry_failed: bool) -> None:
        """Takes up what an earlier run left, or begins; ValueError when that run was another one."""
        if folders.is_begun(self.root):
            self._mend_inputs()
            self._compare(retry_failed)
        else:
            folders.clear(self.root)
        self._write_run()
        for folder in (self.spool, self.store):
            folder.mkdir(exist_ok=True)
        self._read_journal()
        if retry_failed:
            for number in list(spool.entries(self.spool)):
                outcome = spool.load(self.spool, number, verify=False)
                if outcome is not None and outcome.failure:
                    self.retried.append(number)
        self.collect(verify=True)

    def collect(self, *, verify: bool) -> None:
        """Takes up what is in the spool; what is damaged, or in the store already, is removed from it."""
        for number in list(spool.entries(self.spool)):
            if number in self.outcomes:
                continue
            outcome = spool.load(self.spool, number, verify=verify and number not in self.written)
            if outcome is None or number in self.written:
                spool.remove(self.spool, number)
            else:
                self.add(number, outcome)

    def add(self, number: int, outcome: Outcome) -> None:
        """Notes what became of a video."""
        self.outcomes[number] = outcome
        self.spooled += outcome.size

    def drop(self, number: int) -> None:
        """Takes a video out of the spool."""
        spool.remove(self.spool, number)
        self.spooled -= self.outcomes.pop(number).size

    def missing(self) -> Iterator[int]:
        """The numbers of the videos that are still to be cut."""
        return (n for n in range(len(self.videos)) if n not in self.written and n not in self.outcomes)

    def failures(self) -> list[Failure]:
        """The videos that could not be cut, in order."""
        found = sorted((number, outcome.failure) for number, outcome in self.outcomes.items() if outcome.failure)
        return [failure for _, failure in found if failure is not None]

    def log(self, line: dict[str, Any]) -> None:
        """Notes videos (`numbers`, with their `rows`) as in the store, and frees their place in the spool."""
        with open(self._journal, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._count(line)
        for number in line["numbers"]:
            self.drop(number)

    def journal(self) -> Iterator[dict[str, Any]]:
        """The lines of the journal in order of the videos, one at a time: together they may not fit in memory."""
        places = []
        if not self._journal.exists():
            return
        with open(self._journal, "rb") as file:
            place = 0
            for text in file:
                places.append((json.loads(text)["numbers"][0], place))
                place += len(text)
            for _, place in sorted(places):
                file.seek(place)
                yield json.loads(file.readline())

    def forget(self, keep: Iterable[dict[str, Any]]) -> None:
        """Makes these lines all that the journal says."""
        part = self._journal.with_name("journal.part")
        with open(part, "w") as file:
            file.writelines(json.dumps(line) + "\n" for line in keep)
        sync(part)
        os.replace(part, self._journal)
        self._read_journal()

    def _count(self, line: dict[str, Any]) -> None:
        self.written.update(line["numbers"])
        self.lines += 1

    def _read_journal(self) -> None:
        """Reads the journal up to the first line that is torn or names a file that is not there; drops the rest."""
        self.written, self.lines = set(), 0
        if not self._journal.exists():
            return
        good = 0
        with open(self._journal, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text) if text.endswith(b"\n") else {"files": None}
                except ValueError:
                    break
                if line["files"] is None or any(not self.target.has(*each) for each in line["files"].items()):
                    break
                self._count(line)
                good += len(text)
        os.truncate(self._journal, good)

    def _write_run(self) -> None:
        lines = "".join(json.dumps(asdict(video)) + "\n" for video in self.videos).encode()
        run = {"settings": self._settings, "inputs": hashlib.sha256(lines).hexdigest()}
        texts = {"inputs.jsonl": lines, "run.json": json.dumps(run, indent=1).encode() + b"\n"}
        for name, text in texts.items():
            (self.root / f"{name}.part").write_bytes(text)
            sync(self.root / f"{name}.part")
        # This first, for a folder without it is not ours; the other one is found by its digest.
        for name in ("run.json", "inputs.jsonl"):
            os.replace(self.root / f"{name}.part", self.root / name)

    def _mend_inputs(self) -> None:
        """Gives the list of videos its name when a kill left the run that it belongs to without it."""
        part, run = self.root / "inputs.jsonl.part", json.loads((self.root / "run.json").read_bytes())
        if part.exists() and hashlib.sha256(part.read_bytes()).hexdigest() == run["inputs"]:
            os.replace(part, self.root / "inputs.jsonl")

    def _compare(self, retry_failed: bool) -> None:
        """Raises when the run that began here had other settings or inputs."""
        try:
            run = json.loads((self.root / "run.json").read_text())
            lines = (self.root / "inputs.jsonl").read_text().splitlines()
            then = {video["name"]: video for video in map(json.loads, lines)}
            before = dict(_flat(run["settings"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{str(self.root)!r} is damaged: {error}; begin anew with --restart") from error
        now = dict(_flat(self._settings))
        differences = [
            f"{name} was {before.get(name)!r} and is {now.get(name)!r}"
            for name in {**before, **now}
            if before.get(name) != now.get(name)
        ]
        differences += self._other_inputs(then, retry_failed)
        if differences:
            raise ValueError(
                f"{str(self.root)!r} holds an unfinished run that differs from this one: {'; '.join(differences)}; "
                "run it again as it was, or begin anew with --restart"
            )

    def _other_inputs(self, then: dict[str, dict[str, Any]], retry_failed: bool) -> list[str]:
        now = {video.name: json.loads(json.dumps(asdict(video))) for video in self.videos}
        changed = [name for name in now if name in then and now[name] != then[name]]
        if retry_failed:
            # A file that failed may have been mended since.
            bad = {n for n in spool.entries(self.spool) if (o := spool.load(self.spool, n, verify=False)) and o.failure}
            mended = {self.videos[number].name for number in bad if number < len(self.videos)}
            changed = [name for name in changed if name not in mended]
        parts = {
            "new": [name for name in now if name not in then],
            "gone": [name for name in then if name not in now],
            "changed": changed,
        }
        return [f"{len(names)} of the videos are {what}, {names[0]!r} first" for what, names in parts.items() if names]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
