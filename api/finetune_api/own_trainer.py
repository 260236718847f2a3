"""`spec.trainer`: the user's own script on the same gang. See decision 0013."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel, rule, rules
from finetune_api.sources import ObjectName

RESERVED = ("PET_", "FINETUNE_", "KUBEFLOW_TRAINER_SERVER_")
"""Beginnings of the names of variables that the operator sets itself."""

Argument = Annotated[str, StringConstraints(max_length=16_384)]


class SecretKeyRef(ApiModel):
    """One value of a Secret in the job's namespace."""

    name: ObjectName
    """The Secret."""

    key: Annotated[str, StringConstraints(min_length=1, max_length=253)]
    """The key in it."""


class EnvVar(ApiModel):
    """One environment variable."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "has(self.value) != has(self.secretKeyRef)",
                "spec.trainer.env: give each variable either a value or a secretKeyRef",
            ),
            rule(
                " && ".join(f"!self.name.startsWith('{start}')" for start in RESERVED),
                "spec.trainer.env: names that begin with "
                f"{', '.join(RESERVED)} are set by the operator (rendezvous, paths, progress); "
                "remove the variable, or give it another name",
                ".name",
            ),
        )
    )

    name: Annotated[
        str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    ]
    """Its name. Names that begin with `PET_`, `FINETUNE_` or `KUBEFLOW_TRAINER_SERVER_` are the
    operator's own."""

    value: Annotated[str, StringConstraints(max_length=4096)] | None = None
    """Its value."""

    secret_key_ref: SecretKeyRef | None = None
    """Where its value is, if it is a secret."""


class OwnTrainer(ApiModel):
    """Your own script in place of the built-in training: on the same pods, with the same life
    cycle, rendezvous (`PET_*`, as torchrun reads them), restarts, volumes and progress endpoint."""

    image: Annotated[str, StringConstraints(min_length=1, max_length=512)] | None = None
    """Image of the training pods. Default: the profile's trainer image."""

    command: Annotated[list[Argument], Field(max_length=64)] = []
    """What each pod runs, such as `[torchrun, /etc/finetune/files/train.py]`. Default: the image's
    entry point."""

    args: Annotated[list[Argument], Field(max_length=256)] = []
    """Arguments of it. Default: the image's own, where there is no `command` either."""

    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Environment, after the profile's."""

    files_from: ObjectName | None = None
    """ConfigMap of the job's namespace whose keys are files in `/etc/finetune/files`: your
    script."""
