"""Before JAX connects processes, they meet: one address, one line from each, one answer for all.

JAX ends a process that waited in vain by abort, with no word about who is missing. So process 0 listens first where
JAX will listen later, until every other process has said who it is and which code it runs, or the time is over. What
is wrong (somebody missing, two with one number, another code) is told to all who came, as the same sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from absl import logging

# A connection that says nothing for so long is none of ours.
HELLO_SECONDS = 5.0
# Longest word that is shown as it is, beside its digest.
SHOWN = 100
HELLO_BYTES = 1 << 16


@dataclass(frozen=True)
class Place:
    """Which process this is, of how many, and where all of them meet."""

    address: str
    processes: int
    process: int
    # How errors say where these three come from.
    source: str

    @property
    def name(self) -> str:
        """The process for people."""
        return f"process {self.process} of {self.processes} on {socket.gethostname()}"


def digest(facts: Mapping[str, str]) -> dict[str, list[str]]:
    """Each fact as its digest, and as itself where it is short."""
    return {
        name: [hashlib.sha256(value.encode()).hexdigest()[:16], value if len(value) <= SHOWN else ""]
        for name, value in facts.items()
    }


def differences(known: Mapping[int, Mapping[str, Any]]) -> str:
    """What processes do not agree on, as one sentence; empty when they do. `known` is {process: its `hello`}."""
    known = dict(sorted(known.items()))
    first, found = known[0], []
    for name in dict.fromkeys(name for said in known.values() for name in said["facts"]):
        mine = first["facts"].get(name)
        others = [process for process, said in known.items() if said["facts"].get(name) != mine]
        if others:
            told = known[others[0]]
            more = f" (and {len(others) - 1} more)" if len(others) > 1 else ""
            theirs = _shown(told["facts"].get(name))
            found.append(
                f"{name} is {_shown(mine)} on process 0 ({first['host']}) and {theirs} on process {others[0]} "
                f"({told['host']}){more}"
            )
    if not found:
        return ""
    return (
        f"the processes do not agree: {'; '.join(found)}. Start all of them by the same command, with the same "
        "checkout, packages and data"
    )


def hello(process: int, facts: Mapping[str, str]) -> dict[str, Any]:
    """What a process says about itself."""
    return {"process": process, "host": socket.gethostname(), "facts": digest(facts)}


def meet(place: Place, facts: Mapping[str, str], seconds: float) -> None:
    """Returns when all processes have come and agree on `facts`; else a ValueError, the same in all who came."""
    said = {**hello(place.process, facts), "processes": place.processes}
    if place.processes == 1:
        return
    answer = _receive(place, said, seconds) if place.process == 0 else _call(place, said, seconds)
    if answer:
        raise ValueError(answer)


def _receive(place: Place, own: dict[str, Any], seconds: float) -> str:
    """Process 0: waits for the others, and gives all of them the answer."""
    known, lines, deadline = {0: own}, [], time.monotonic() + seconds
    with contextlib.ExitStack() as stack:
        server, answer = stack.enter_context(_listen(place)), ""
        while len(known) < place.processes and not answer:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                line = stack.enter_context(server.accept()[0])
            except TimeoutError:
                answer = _missing(place, known, seconds)
                continue
            if (said := _read(line)) is None:
                line.close()
                continue
            lines.append(line)
            answer = _wrong_place(place, said, known)
            known[said["process"]] = said
        answer = answer or differences(known)
        for line in lines:
            with contextlib.suppress(OSError):  # one that has gone meanwhile needs no answer
                line.sendall(json.dumps({"answer": answer}).encode() + b"\n")
    return answer


def _listen(place: Place) -> socket.socket:
    port = int(place.address.rsplit(":", 1)[1])
    try:
        if socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):  # IPv6 that is known, and switched off
                return socket.create_server(("", port), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True)
        return socket.create_server(("", port), backlog=1024)
    except OSError as error:
        raise ValueError(
            f"{place.name} cannot wait for the others at {place.address} ({error.strerror}): another program may "
            f"listen there, perhaps an earlier run; stop it or choose another port ({place.source})"
        ) from error


def _wrong_place(place: Place, said: Mapping[str, Any], known: Mapping[int, Mapping[str, Any]]) -> str:
    """What is wrong with the place that a process takes; empty when nothing is."""
    process, count, host = said["process"], said["processes"], said["host"]
    if count != place.processes:
        return (
            f"process {process} on {host} counts {count} processes, and process 0 on {known[0]['host']} counts "
            f"{place.processes}; start all with one number"
        )
    if process in known:
        return (
            f"two processes say that they are process {process} of {place.processes}, on {known[process]['host']} "
            f"and {host}; number them from 0 to {place.processes - 1}"
        )
    return ""


def _missing(place: Place, known: Mapping[int, Mapping[str, Any]], seconds: float) -> str:
    gone = [str(process) for process in range(place.processes) if process not in known]
    shown = ", ".join(gone[:8]) + (f" and {len(gone) - 8} more" if len(gone) > 8 else "")
    here = ", ".join(f"{process} ({said['host']})" for process, said in sorted(known.items())[:8])
    return (
        f"after {seconds:g} s, {len(gone)} of {place.processes} processes have not come to {place.address}: {shown}; "
        f"here are {here}. See whether they were started and can reach that address ({place.source})"
    )


def _call(place: Place, own: dict[str, Any], seconds: float) -> str:
    """Any other process: tells process 0 that it is here, and waits for the answer."""
    host, port = place.address.rsplit(":", 1)
    deadline, failure = time.monotonic() + seconds, ""
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=min(left, 10.0)) as line:
                line.sendall(json.dumps(own).encode() + b"\n")
                # Process 0 may have begun to wait later than this one.
                line.settimeout(seconds + HELLO_SECONDS)
                with line.makefile("rb") as answers:
                    if answer := answers.readline():
                        return json.loads(answer)["answer"]
                failure = "process 0 went away before it answered"
        except OSError as error:  # names that are not known yet, and ports where nobody listens yet
            failure = error.strerror or str(error)
        time.sleep(min(0.2, max(0.0, left)))
    return (
        f"{place.name} did not meet process 0 at {place.address} within {seconds:g} s ({failure}). See whether process "
        f"0 was started and can be reached there ({place.source})"
    )


def _read(line: socket.socket) -> dict[str, Any] | None:
    """What a process says when it comes; None from whoever else may knock at a port."""
    line.settimeout(HELLO_SECONDS)
    try:
        with line.makefile("rb") as words:
            said = json.loads(words.readline(HELLO_BYTES))
        if {"process", "processes", "host", "facts"} <= set(said) and isinstance(said["process"], int):
            return said
        logging.info("somebody at the port of the meeting said what no process says")
    except (OSError, ValueError, TypeError) as error:
        logging.info("somebody at the port of the meeting was not understood: %s", error)
    return None


def _shown(fact: list[str] | None) -> str:
    if fact is None:
        return "unknown"
    return repr(fact[1]) if fact[1] else f"something with the digest {fact[0]}"
