"""Every full-size recipe's train step, compiled for the TPU pod that it is meant for, without a TPU: does it fit?

    python -m benchmarks.pods --json=pods.json               # all, minutes each; goes on from the file
    python -m benchmarks.pods --json=pods.json --only=longvivit
    python -m benchmarks.pods --json=pods.json --print       # the table of what is there
    python -m benchmarks.pods --scaling                      # planned: 8 to 4,096 devices

`_pods.PODS` says which pod and mesh. Memory and exchanges are of the compiled program; times are estimates
(docs/scale.md).
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import app, flags

from benchmarks._pods import PODS, row_of, scaling, table

JSON = flags.DEFINE_string("json", "", "File of the rows: those that it has are not compiled again.")
ONLY = flags.DEFINE_string("only", "", "Only pods in whose name this is.")
PRINT = flags.DEFINE_bool("print", False, "Compile nothing.")
SCALING = flags.DEFINE_bool("scaling", False, "Print the planned table of weak scaling instead.")


def main(argv: list[str]) -> None:
    """Compiles what the file lacks, one after another, and prints the table."""
    del argv
    if SCALING.value:
        print(scaling())
        return
    path = Path(JSON.value) if JSON.value else None
    known = {row["name"]: row for row in json.loads(path.read_text())} if path is not None and path.exists() else {}
    chosen = [pod for pod in PODS if ONLY.value in pod.name]
    for pod in () if PRINT.value else chosen:
        if pod.name in known:
            continue
        known[pod.name] = row_of(pod)
        if path is not None:
            path.write_text(json.dumps(list(known.values()), indent=1))
        print(table([known[pod.name]]).splitlines()[-1], flush=True)
    print(table([known[pod.name] for pod in chosen if pod.name in known]))


if __name__ == "__main__":
    app.run(main)
