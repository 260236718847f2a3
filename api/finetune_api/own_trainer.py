"""`spec.trainer`: the user's own script on the same gang. See decision 0013."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field, StringConstraints

from finetune_api.base import ApiModel, rule, rules
from finetune_api.sources import ObjectName

RESERVED = ("PET_", "FINETUNE_", "KUBEFLOW_TRAINER_SERVER_")
"""Beginnings of the names of variables that the operator sets itself."""

MAX_WORDS = 65_536
"""Characters of all arguments, and of all variables: the job, what it started with and its pods all
hold them, and the API server takes a megabyte of each."""

Argument = Annotated[str, StringConstraints(max_length=16_384)]


class SecretKeyRef(ApiModel):
    """One value of a Secret in the job's namespace."""

    name: ObjectName
    """The Secret."""

    key: Annotated[
        str, StringConstraints(min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$")
    ]
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

    model_config = ConfigDict(
        json_schema_extra=rules(
            rule(
                "((has(self.command) ? self.command : []) + (has(self.args) ? self.args : []))"
                f".map(word, word.size()).sum() <= {MAX_WORDS}",
                f"spec.trainer.command and args have more than {MAX_WORDS} characters together; "
                "put the script into a ConfigMap and name it in spec.trainer.filesFrom",
            ),
            rule(
                "!has(self.env) || self.env.map(one, has(one.value) ? one.value.size() : 0).sum()"
                f" <= {MAX_WORDS}",
                f"spec.trainer.env: the values have more than {MAX_WORDS} characters together; put "
                "them into a ConfigMap and name it in spec.trainer.filesFrom",
            ),
        )
    )

    image: (
        Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^\S+$")] | None
    ) = None
    """Image of the training pods. Default: the profile's trainer image."""

    command: Annotated[list[Argument], Field(max_length=64)] = []
    """What each pod runs, such as `[torchrun, /etc/finetune/files/train.py]`. Default: the image's
    entry point."""

    args: Annotated[list[Argument], Field(max_length=256)] = []
    """Arguments of it. Default: the image's own, where there is no `command` either."""

    env: Annotated[list[EnvVar], Field(max_length=64)] = []
    """Environment, in place of the profile's where the names are the same."""

    files_from: ObjectName | None = None
    """ConfigMap of the job's namespace whose keys are files in `/etc/finetune/files`: your
    script."""
