"""What a GPU costs, as a profile says it and as a job's account keeps it."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints

from finetune_api.base import ApiModel

Money = Annotated[str, StringConstraints(max_length=16, pattern=r"^[0-9]{1,9}(\.[0-9]{1,6})?$")]


class Price(ApiModel):
    """What a GPU costs, for the estimates in the status; nobody is charged by it."""

    per_gpu_hour: Money
    """Price of one GPU for an hour, such as "2.50"."""

    currency: Annotated[str, StringConstraints(max_length=3, pattern=r"^[A-Z]{3}$")] = "EUR"
    """Currency, by ISO 4217."""
