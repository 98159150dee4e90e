"""How every launcher starts and ends: absl flags in, and a user's mistake out as one sentence with exit code 2.

A traceback is for our mistakes, a sentence is for the user's. `--verbosity=1` prints the traceback as well.
"""

import logging as std_logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from absl import app, flags, logging

USER_ERRORS = (ValueError, OSError, FloatingPointError)
ROOT = Path(__file__).resolve().parent.parent


def run(main: Callable[[list[str]], object]) -> None:
    """Parses the flags, calls `main(argv)` and leaves the process with its exit code."""
    app.run(_guarded(main), flags_parser=_parse)


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


def _parse(argv: list[str]) -> list[str]:
    """Parses the flags; a config file is read here, so its overrides fail here too."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # ml_collections puts the traceback of a config file that raises into its message: the last line is the reason.
        _leave(str(error).strip().splitlines()[-1])
    except (AttributeError, KeyError, IndexError, TypeError) as error:
        if not any(argument.lstrip("-").startswith("config.") for argument in argv):
            raise  # a mistake inside the config file: its traceback is what helps
        reason = str(error).replace("\n", " ").replace("\\n", " ").strip("\"'").replace("\\'", "'")
        _leave(f"An override --config.… names nothing in the config: {reason}")
    except USER_ERRORS as error:
        _leave(_sentence(error))


def _sentence(error: Exception) -> str:
    """The error's own words; the operating system's come on several lines when a config file is missing."""
    return " ".join(str(error).split()) if isinstance(error, OSError) else str(error)


def _leave(sentence: str) -> NoReturn:
    logging.debug("The reason for leaving", exc_info=True)
    print(f"error: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(2)
