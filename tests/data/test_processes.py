"""A helper process ends with the process that started it, even when that one is killed."""

import os
import signal
import subprocess
import sys
import time

SCRIPT = """
import os, time
from vidlang.data.processes import worker_pool
if __name__ == "__main__":
    with worker_pool(2) as pool:
        print(*pool.map(abs, [1, 2]), *pool._processes, flush=True)
        pool.submit(time.sleep, 600).result()
"""


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_helpers_end_with_a_killed_parent(repository, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    process = subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)
    one, two, *helpers = map(int, process.stdout.readline().split())
    assert (one, two, len(helpers)) == (1, 2, 2) and all(map(alive, helpers))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while any(map(alive, helpers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    left = [helper for helper in helpers if alive(helper)]
    for helper in left:
        os.kill(helper, signal.SIGKILL)
    assert not left
