"""Every full-size recipe's train step, compiled for the TPU pod that it is meant for, without a TPU: does it fit?

    python -m benchmarks.pods                    # what benchmarks/pods.json lacks, or what has changed since
    python -m benchmarks.pods --only=longvivit
    python -m benchmarks.pods --again            # all of it, about a minute each
    python -m benchmarks.pods --print            # the table of what is there
    python -m benchmarks.pods --scaling          # planned: 8 to 4,096 devices

`_pods.PODS` says which pod. It needs libtpu (the extra `plan`; `make pods` brings it), goes on where it was stopped,
and ends with 1 if a row does not fit or exchanges what its mesh does not imply. Memory and exchanges are of the
compiled program; times are estimates (docs/scale.md).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from absl import app, flags

from benchmarks._pods import PODS, ROWS, fingerprint, is_sound, read_rows, row_of, scaling, table

JSON = flags.DEFINE_string("json", str(ROWS), "File of the rows: those made from the recipe as it is now are kept.")
ONLY = flags.DEFINE_string("only", "", "Only pods in whose name this is.")
AGAIN = flags.DEFINE_bool("again", False, "Compile also what the file has.")
PRINT = flags.DEFINE_bool("print", False, "Compile nothing.")
SCALING = flags.DEFINE_bool("scaling", False, "Print the planned table of weak scaling instead.")


def main(argv: list[str]) -> None:
    """Compiles what the file lacks, one after another, and prints the table."""
    del argv
    if SCALING.value:
        print(scaling())
        return
    path = Path(JSON.value)
    known = read_rows(path)
    chosen = [pod for pod in PODS if ONLY.value in pod.name]
    if not chosen:
        raise app.UsageError(f"no pod's name holds {ONLY.value!r}; there are: {'; '.join(pod.name for pod in PODS)}")
    for pod in () if PRINT.value else chosen:
        is_known = pod.name in known and known[pod.name]["fingerprint"] == fingerprint(pod)
        if is_known and not AGAIN.value:
            continue
        known[pod.name] = row_of(pod)
        rows = [known[each.name] for each in PODS if each.name in known]
        path.write_text(json.dumps(rows, indent=1) + "\n")
        print(table([known[pod.name]]).splitlines()[-1], flush=True)
    rows = [known[pod.name] for pod in chosen if pod.name in known]
    print(table(rows))
    if not all(is_sound(row) for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    app.run(main)
