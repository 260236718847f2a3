"""How the program ends: exit codes, and the errors that lead to them."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """Exit codes. `run` ends with those of the trainer instead (`finetune_api.outcome.ExitCode`:
    10 to 14, 143, 203 to 205) where one of its stages failed."""

    OK = 0
    FAILED = 1
    """The API server refused, or something else did not work; the message says what."""
    USAGE = 2
    """The command line is wrong."""
    INVALID = 3
    """The manifest is wrong."""
    NOT_FOUND = 4
    """There is no such job, file, pod or result."""
    NO_CLUSTER = 5
    """No cluster is configured, it does not answer, or finetune-operator is not installed in it."""
    JOB_FAILED = 6
    """A job that was watched to its end has failed."""
    CORRUPT = 7
    """What was fetched is not what the job wrote."""
    TIMEOUT = 8
    """It took longer than `--timeout`."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CliError(Exception):
    """What ends a command: a message for people, and the exit code."""

    def __init__(self, message: str, code: int = Exit.FAILED) -> None:
        super().__init__(message)
        self.code = code
