"""What can go wrong in a stage, sorted by whose problem it is.

The message says what is wrong, where, and how to mend it: a person reads it in `kubectl get ftj`.
"""

from __future__ import annotations

from typing import ClassVar

from finetune_api.outcome import FailureClass


class TrainerError(Exception):
    """A failure that was foreseen; its message is for people, so no traceback is printed."""

    failure_class: ClassVar[FailureClass]


class ConfigurationError(TrainerError):
    """The run's settings do not fit the model, the data or the place of the output."""

    failure_class = "Configuration"


class DataError(TrainerError):
    """The dataset cannot be fetched, read or used."""

    failure_class = "Data"


class ModelError(TrainerError):
    """The model cannot be fetched, loaded or trusted."""

    failure_class = "Model"


class OutOfMemoryError(TrainerError):
    """The model and its training state do not fit into the accelerator's memory."""

    failure_class = "OutOfMemory"


class DivergedError(TrainerError):
    """The loss or the weights are no longer finite."""

    failure_class = "Diverged"


class StoppedError(TrainerError):
    """Ended on request (SIGTERM); the platform starts the stage again."""

    failure_class = "Stopped"


class HangError(TrainerError):
    """No progress for too long."""

    failure_class = "Hang"


class PeerLostError(TrainerError):
    """Another process of the gang went away: never the cause, always an effect."""

    failure_class = "PeerLost"


class InternalError(TrainerError):
    """The platform's problem: what an earlier stage left is missing or broken."""

    failure_class = "Internal"
