"""The log that a person reads in `kubectl logs`: one line per fact, the last ones remembered."""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections import deque

TAIL_LINES = 40
"""Lines kept for a failure's `log_tail`."""

_tail: deque[str] = deque(maxlen=TAIL_LINES)
_log = logging.getLogger("finetune_trainer")


class _TailHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        _tail.append(self.format(record))


def set_up() -> None:
    """Send our lines, and warnings of the libraries, to standard output and into the tail.

    Progress bars are switched off: in a pod's log each of their updates becomes a line.
    """
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    formatter = logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S")
    formatter.converter = time.gmtime  # the nodes of a gang may be in different time zones
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout), _TailHandler()]
    for handler in handlers:
        handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=handlers, force=True)
    _log.setLevel(logging.INFO)
    logging.captureWarnings(True)
    # What a library will change some day is for its developers, not for who tunes a model.
    for category in (FutureWarning, DeprecationWarning):
        warnings.filterwarnings("ignore", category=category)


def say(text: str) -> None:
    """Log one line of information."""
    _log.info("%s", text)


def warn(text: str) -> None:
    """Log one line that asks for attention."""
    _log.warning("warning: %s", text)


def tail() -> str | None:
    """The last lines logged; None where there are none."""
    return "\n".join(_tail) or None


def forget() -> None:
    """Empty the tail: a stage reports its own lines only."""
    _tail.clear()
