"""Calls a function of a test file in this process, for a test that must not do so in its own.

python _apart.py FILE FUNCTION      arguments pickled on stdin, what it returns pickled on stdout
"""

import importlib.util
import pickle
import sys


def main():
    file, name = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("apart", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    args, kwargs = pickle.load(sys.stdin.buffer)
    sys.stdout.buffer.write(pickle.dumps(getattr(module, name)(*args, **kwargs)))


if __name__ == "__main__":
    main()
