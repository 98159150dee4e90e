"""How every launcher starts and ends: absl flags in, and a user's mistake out as one sentence with exit code 2.

A traceback is for our mistakes, a sentence is for the user's. `--verbosity=1` prints the traceback as well.
"""

import ast
import functools
import logging as std_logging
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

USER_ERRORS = (ValueError, OSError, FloatingPointError)
# Between two lines of progress.
LINE_SECONDS = 10.0
ROOT = Path(__file__).resolve().parent.parent


class PathParser(flags.ArgumentParser):
    """A path, pattern or address; shells leave the "~" of --name=~/place as it is."""

    def parse(self, argument: str) -> str:
        """The path with the home folder in it."""
        return os.path.expanduser(argument)


PATH = PathParser()


def run(main: Callable[[list[str]], object], *, default_config: Path | None = None) -> None:
    """Parses the flags, calls `main(argv)` and leaves the process with its exit code.

    A default of the flag itself would be read, and fail, before anything here could answer.
    """
    app.run(_guarded(main), flags_parser=functools.partial(_parse, default_config=default_config))


def section(flag: str, text: str) -> dict[str, Any]:
    """A section of keys that a flag holds as Python writes it."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--{flag} must be a section as Python writes it, --{flag}=\"{{'key': 1}}\"; found {text!r}")
    return found


class ClipProgress:
    """Every few seconds a line about how many clips are done."""

    def __init__(self) -> None:
        self._start = self._shown = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Says it, if it is time."""
        now = time.monotonic()
        if now - self._shown >= LINE_SECONDS:
            self._shown = now
            print(f"{done} of {total} clips, {done / (now - self._start):.3g} a second", flush=True)


class OwnNews(std_logging.Filter):
    """Of what libraries log, only warnings get through: saving one checkpoint alone is twenty lines of news.

    Orbax also warns of every item of a checkpoint that was not asked for; what cannot be read raises anyway.
    """

    def filter(self, record: std_logging.LogRecord) -> bool:
        own = Path(record.pathname).is_relative_to(ROOT) and "site-packages" not in record.pathname
        enough = std_logging.ERROR if "orbax" in record.pathname else std_logging.WARNING
        return own or record.levelno >= enough or logging.get_verbosity() > logging.INFO


def _guarded(main: Callable[[list[str]], object]) -> Callable[[list[str]], None]:
    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            _leave(f"Unexpected argument {argv[1]!r}: every option is a flag, --name=value.")
        logging.get_absl_handler().addFilter(OwnNews())
        try:
            main(argv)
        except USER_ERRORS as error:
            _leave(_sentence(error))
        except KeyboardInterrupt:
            raise SystemExit(130) from None

    return guarded


def _parse(argv: list[str], default_config: Path | None = None) -> list[str]:
    """Parses the flags; a config file is read here, so its mistakes and those of its overrides end here too."""
    given = [i for i, argument in enumerate(argv) if re.fullmatch(r"--?config(=.*)?", argument, re.DOTALL)]
    if not given and default_config is not None:
        argv, given = [argv[0], f"--config={default_config}", *argv[1:]], [1]
    config = None
    if given and "config" in flags.FLAGS:
        last = argv[given[-1]]
        value = last.split("=", 1)[1] if "=" in last else "".join(argv[given[-1] + 1 : given[-1] + 2])
        config = _readable(value.split(":", 1)[0])
    try:
        rest = flags.FLAGS(argv)
        if config:
            getattr(flags.FLAGS["config"].value, "lock", None)  # raises where reading a file failed inside the config
        return rest
    except Exception as error:
        # Flags are read one by one, so --verbosity may not have been reached.
        if re.search(r"(^|\s)--?(v|verbosity)[=\s][1-9]", " ".join(argv)):
            logging.set_verbosity(logging.DEBUG)
        reason = _config_reason(error, config) if config else None
        reason = reason or _override_reason(error, argv)
        if reason is None and not isinstance(error, (*USER_ERRORS, flags.Error)):
            raise  # our mistake
        _leave(reason or str(error).strip().splitlines()[-1])


def _readable(path: str) -> str:
    """The path of a config file that can be opened; flags alone would notice only when the config is first used."""
    try:
        with open(path, encoding="utf-8"):
            return path
    except OSError as error:
        _leave(f"The config file cannot be read: {error.strerror}: {path!r}")


def _config_reason(error: BaseException, config: str) -> str | None:
    """Where and why a config file failed; None when the error came from elsewhere.

    Flags wrap what a config raises, some of it twice: the first error of the chain is the reason.
    """
    chain = [error]
    while (before := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(before)
    for each in reversed(chain):
        if isinstance(each, SyntaxError) and each.filename and Path(each.filename).resolve() == Path(config).resolve():
            return f"{config}, line {each.lineno}: {each.msg}"
        if isinstance(each, AttributeError) and str(each).endswith("has no attribute 'get_config'"):
            return f"{config} has no get_config(), the function that returns the config"
        frames = traceback.extract_tb(each.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(config).resolve()]
        if lines:
            return f"{config}, line {lines[-1]}: {type(each).__name__}: {' '.join(str(each).split())}"
    return None


def _override_reason(error: Exception, argv: list[str]) -> str | None:
    """What is wrong with an override like --config.seed=1; None when there is none, or it says so itself."""
    overrides = [argument.split("=", 1)[0] for argument in argv if re.match(r"--?(no)?config\.", argument)]
    if not overrides:
        return None
    section = re.search(r"(--?config\.\S+?)=.*Failed to parse .* as a ConfigDict", str(error), re.DOTALL)
    if section:
        name = section[1]
        all_of_it = f"{name}=\"{{'key': 1}}\""
        return f"{name} is a section of keys; give one of them, as in {name}.KEY=..., or all, as in {all_of_it}"
    indexed = " or ".join(override for override in overrides if "[" in override)
    if isinstance(error, IndexError) and indexed:
        return f"The override {indexed} names nothing in the config: the list has fewer items ({error})"
    if isinstance(error, AttributeError | KeyError | TypeError):
        reason = str(error).replace("\n", " ").replace("\\n", " ").strip("\"'").replace("\\'", "'")
        return f"An override --config.… names nothing in the config: {reason}"
    return None


def _sentence(error: Exception) -> str:
    """The error's own words; the operating system's come on several lines when a config file is missing."""
    return " ".join(str(error).split()) if isinstance(error, OSError) else str(error)


def _leave(sentence: str) -> NoReturn:
    logging.debug("The reason for leaving", exc_info=True)
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(2)
