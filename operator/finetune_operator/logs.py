"""Log lines: text for people, JSON for collectors; both with the job, the attempt and the reason.

The job and the attempt come from what the process is doing (`about`), so that a line of a library
has them too. The reason is one word, the same in every line of its kind: what to search for.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

FIELDS = ("job", "attempt", "reason")
LIBRARY = "Library"
"""Reason of a line that is not ours."""


@dataclass(slots=True)
class _Subject:
    job: str
    attempt: int | None = None


_subject: ContextVar[_Subject | None] = ContextVar("subject", default=None)


@contextmanager
def about(key: tuple[str, str]) -> Iterator[None]:
    """Lines of this task from here on are about this job (namespace and name)."""
    token = _subject.set(_Subject("/".join(key)))
    try:
        yield
    finally:
        _subject.reset(token)


def of_attempt(attempt: int | None) -> None:
    """... and about this attempt of it."""
    subject = _subject.get()
    if subject is not None:
        subject.attempt = attempt


class _Context(logging.Filter):
    """Gives each line what it is about."""

    def filter(self, record: logging.LogRecord) -> bool:
        subject = _subject.get()
        if subject is not None:
            record.job = getattr(record, "job", subject.job)
            record.attempt = getattr(record, "attempt", subject.attempt)
        record.reason = getattr(record, "reason", LIBRARY)
        return True


class TextFormatter(logging.Formatter):
    """`2026-11-22 05:54:11 INFO team-a/docs attempt 1 Running: training`."""

    def format(self, record: logging.LogRecord) -> str:
        job, attempt = getattr(record, "job", None), getattr(record, "attempt", None)
        parts = [job or "", "" if attempt is None or not job else f"attempt {attempt}"]
        record.about = "".join(f"{part} " for part in parts if part)
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        found |= {f: value for f in FIELDS if (value := getattr(record, f, None)) is not None}
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found)


def handler(form: str) -> logging.Handler:
    """Standard error, in that form."""
    found = logging.StreamHandler(sys.stderr)
    found.addFilter(_Context())
    text = "%(asctime)s %(levelname)s %(about)s%(reason)s: %(message)s"
    found.setFormatter(
        JsonFormatter() if form == "json" else TextFormatter(text, "%Y-%m-%d %H:%M:%S")
    )
    return found


def configure(form: str) -> None:
    """Everything to standard error; Kopf's own chatter from WARNING up."""
    logging.basicConfig(level=logging.INFO, handlers=[handler(form)], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
