"""Several processes, on one host or many, find each other before the first array, agree, and leave together.

`join` reads from the environment whether there are others:

    VIDLANG_COORDINATOR=host:port VIDLANG_PROCESSES=4 VIDLANG_PROCESS=0     set by launch.local and by hand
    VIDLANG_CLUSTER=auto                                                    JAX looks: Cloud TPU, Kubernetes, SLURM, MPI
    more than one task in a step of srun                                    as auto

VIDLANG_LOCAL_DEVICES=0,1 are the GPUs of this process, VIDLANG_JOIN_SECONDS (300) how long to wait for the others, and
VIDLANG_HEARTBEAT_SECONDS (100) after how long a silent process is given up: then the others stop as well.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging as std_logging
import multiprocessing
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import jax
from absl import logging

from vidlang.core import versions
from vidlang.core.meeting import Place, differences, hello, meet

OWN = ("VIDLANG_COORDINATOR", "VIDLANG_PROCESSES", "VIDLANG_PROCESS")
LOCAL, CLUSTER = "VIDLANG_LOCAL_DEVICES", "VIDLANG_CLUSTER"
JOIN_SECONDS, HEARTBEAT_SECONDS = "VIDLANG_JOIN_SECONDS", "VIDLANG_HEARTBEAT_SECONDS"
# How long processes that all make the same mistake wait for each other to tell it.
LEAVE_SECONDS = 5.0
# The exit code of a process that lost another, and how JAX says so.
LOST = 75
# Fetching an array makes a ValueError of it, whose text begins as all of XLA's.
BY_XLA = re.compile(r"[A-Z_]{5,}: ")
BROKEN_OFF = re.compile("gloo|nccl|heartbeat|unavailable|deadline_exceeded|connection", re.IGNORECASE)
# Where processes that leave say so.
LEFT = "vidlang/left"
# One wait inside JAX's client, which lets no signal through.
SLICE_MS = 1000

_agreements = itertools.count()


def join() -> None:
    """Connects this process with the others that the environment names; nothing where it names none.

    Before the first use of a device. Every process runs the same code and packages then, or none goes on.
    """
    found = _place()
    if found is None or jax.distributed.is_initialized():
        return
    place, devices = found
    seconds, heartbeat = _seconds(JOIN_SECONDS, 300), _seconds(HEARTBEAT_SECONDS, 100)
    meet(place, versions.facts(), seconds)
    # Signals are agreed on by the loop itself; JAX's own service would swallow those that come before it.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        place.address,
        place.processes,
        place.process,
        local_device_ids=devices,
        cluster_detection_method="deactivate",
        initialization_timeout=seconds,
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=heartbeat,
    )
    logging.info("%s, joined at %s (%s)", place.name, place.address, place.source)


def agree(facts: Mapping[str, str]) -> None:
    """ValueError, the same in every process, unless all processes know the same `facts`; all call it in one order.

    Not by arrays: processes with other devices or another mesh could not exchange any.
    """
    client, process, processes = _client()
    if client is None or processes == 1:
        return
    folder = f"vidlang/agree/{_count_agreement()}"
    client.key_value_set(f"{folder}/{process}", json.dumps(hello(process, facts)))
    if process == 0:
        known = {other: json.loads(_wait(client, f"{folder}/{other}")) for other in range(processes)}
        client.key_value_set(f"{folder}/answer", json.dumps(differences(known)))
    if answer := json.loads(_wait(client, f"{folder}/answer")):
        raise ValueError(answer)


def _count_agreement() -> int:
    return next(_agreements)


def parts(what: str, value: Any, depth: int = 1) -> dict[str, str]:
    """Facts about a nested value, each called by its path, so that a difference has a name."""
    inner: dict[str, Any] = {}
    if isinstance(value, Mapping):
        inner = {f"{what}.{key}": part for key, part in value.items()}
    elif isinstance(value, (list, tuple)):
        inner = {f"{what}[{i}]": part for i, part in enumerate(value)}
    if not depth or not inner:
        return {what: json.dumps(value, sort_keys=True, default=str)}
    return {path: fact for name, part in inner.items() for path, fact in parts(name, part, depth - 1).items()}


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Around everything that a process does: however it ends, it ends now, with its exit code, and the others learn it.

    Alone, this does nothing. Python's own way out would wait minutes for the others, who wait for an array from here.
    """
    code, lost = 0, False
    try:
        yield
    except BaseException as end:
        if not jax.distributed.is_initialized():
            raise
        lost = lost_another(end)
        code = _exit_code(end)
    if not jax.distributed.is_initialized():
        return
    # However this was told, it is nobody's mistake here, and launchers may start all again.
    code = LOST if lost else code
    _farewell(code)
    for child in multiprocessing.active_children():
        child.terminate()
    std_logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # With gloo on a crowded machine, JAX was seen to spin for ever when Python had ended.
    os._exit(code)


def _exit_code(end: BaseException) -> int:
    """The exit code that an exception means, told on stderr as Python would."""
    if isinstance(end, SystemExit):
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return int(end.code or 0)
    if isinstance(end, KeyboardInterrupt):
        return 130
    traceback.print_exception(end)
    return 1


def lost_another(end: BaseException | None) -> bool:
    """Whether an exception began with an exchange of arrays that another process broke off."""
    while end is not None:
        told = isinstance(end, jax.errors.JaxRuntimeError) or BY_XLA.match(str(end))
        if told and BROKEN_OFF.search(str(end)):
            return True
        end = end.__cause__ or end.__context__
    return False


def _farewell(code: int) -> None:
    """Waits for those who leave as well: for all of them after success, shortly after a mistake."""
    client, process, _ = _client()
    try:
        if code == 0 or code > 128:
            jax.distributed.shutdown()
            return
        why = ": it lost another process, see the logs of the others" if code == LOST else ""
        goodbye = f"process {process} on {socket.gethostname()} leaves with exit code {code}{why}"
        print(goodbye, file=sys.stderr)
        client.key_value_set(f"{LEFT}/{process}", goodbye)
        client.wait_at_barrier("vidlang/leaving", int(LEAVE_SECONDS * 1000))
        # Where process 0 is just gone, JAX ends the others by abort, which they may not have come to leave.
        jax.distributed.shutdown()
    except Exception as error:
        # JAX's errors have no common class; the others have gone, or go on until they notice.
        print(f"left without the others: {str(error).splitlines()[0]}", file=sys.stderr)


def _client() -> tuple[Any, int, int]:
    """(JAX's line to the coordinator, this process, how many); the line has no public name."""
    from jax._src.distributed import global_state

    return global_state.client, global_state.process_id, global_state.num_processes


def _wait(client: Any, key: str) -> str:
    """The value of a key, once it is there. Where another process leaves meanwhile, this one does too.

    One that dies instead ends this one by its missing heartbeat.
    """
    while True:
        try:
            return client.blocking_key_value_get(key, SLICE_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        leave_after_others()


def leave_after_others() -> None:
    """Ends this process when another has said that it leaves after a mistake: nothing will come from there."""
    client, _, processes = _client()
    if client is None or processes == 1:
        return
    for _, goodbye in client.key_value_dir_get(LEFT):
        print(f"not waiting any longer: {goodbye}", file=sys.stderr)
        raise SystemExit(LOST)


def _place() -> tuple[Place, list[int] | None] | None:
    """Where this process stands, and the devices that it may use (None: all); None when it is alone."""
    given = [name for name in OWN if os.environ.get(name)]
    if given and len(given) < len(OWN):
        lacking = [name for name in OWN if name not in given]
        raise ValueError(
            f"the environment has {' and '.join(given)}, and lacks {' and '.join(lacking)}; set all three, as in "
            "VIDLANG_COORDINATOR=host0:1234 VIDLANG_PROCESSES=2 VIDLANG_PROCESS=0, or none"
        )
    if given:
        return _own_place(), _local_devices()
    cluster, tasks = os.environ.get(CLUSTER, ""), os.environ.get("SLURM_STEP_NUM_TASKS", "")
    if cluster not in ("", "auto", "none"):
        raise ValueError(f"{CLUSTER} is 'auto' (find the others) or 'none' (there are none); found {cluster!r}")
    in_srun = "SLURM_PROCID" in os.environ and tasks.isdigit() and int(tasks) > 1
    if cluster == "none" or not (cluster or in_srun):
        return None
    return _detected(f"SLURM_STEP_NUM_TASKS={tasks}" if in_srun else f"{CLUSTER}=auto")


def _own_place() -> Place:
    address, processes, process = (os.environ[name] for name in OWN)
    source = " ".join(f"{name}={os.environ[name]}" for name in OWN)
    if not re.fullmatch(r".+:\d{1,5}", address):
        raise ValueError(f"VIDLANG_COORDINATOR is host:port, as in host0:1234; found {address!r}")
    if not processes.isdigit() or not process.isdigit() or not int(process) < int(processes):
        raise ValueError(
            "VIDLANG_PROCESSES is how many processes there are and VIDLANG_PROCESS the number of this one, from 0; "
            f"found {processes!r} and {process!r}"
        )
    return Place(address, int(processes), int(process), source)


def _detected(source: str) -> tuple[Place, list[int] | None]:
    """What JAX finds out by itself, which it keeps for itself; here it is asked before it connects."""
    from jax._src.clusters import ClusterEnv

    try:
        found = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, _local_devices(), None, _seconds(JOIN_SECONDS, 300)
        )
    except Exception as error:
        # A metadata server, a Kubernetes API and a name server have no error in common.
        raise ValueError(f"the other processes cannot be found ({source}): {error}") from error
    address, processes, process, devices = found
    if address is None or processes is None or process is None:
        raise ValueError(
            f"{source}, and JAX finds neither Cloud TPU, Kubernetes, SLURM nor MPI here; set {', '.join(OWN)} instead"
        )
    # Of one task a node, JAX would use one GPU.
    if os.environ.get("SLURM_STEP_NUM_TASKS", "1") == os.environ.get("SLURM_STEP_NUM_NODES") and not _local_devices():
        devices = None
    return Place(address, processes, process, source), None if devices is None else list(devices)


def _local_devices() -> list[int] | None:
    text = os.environ.get(LOCAL, "")
    if not text:
        return None
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise ValueError(f"{LOCAL} is the numbers of this process's GPUs, as in 0,1; found {text!r}")
    return [int(number) for number in text.split(",")]


def _seconds(name: str, default: int) -> int:
    text = os.environ.get(name, "") or str(default)
    if not text.isdigit() or not int(text):
        raise ValueError(f"{name} is a whole number of seconds, at least 1; found {text!r}")
    return int(text)
