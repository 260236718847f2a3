"""Log lines: text for people, JSON for collectors; both with the job and the attempt."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

FIELDS = ("job", "attempt")


class TextFormatter(logging.Formatter):
    """`2026-11-22 05:54:11 INFO team-a/docs Running: training`."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        job = getattr(record, "job", None)
        return text.replace(" - ", f" {job} ", 1) if job else text.replace(" - ", " ", 1)


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


def configure(form: str) -> None:
    """Everything to standard error; Kopf's own chatter from WARNING up."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if form == "json"
        else TextFormatter("%(asctime)s %(levelname)s - %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("kopf").setLevel(logging.WARNING)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
