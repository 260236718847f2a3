"""When a job has used up what its profile lets it use: GPU-hours, and what they cost.

The account in the status says what was held until a moment and what is held since (`usage.py`), so
the moment at which a limit is reached is known as long as that does not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from finetune_api.price import Price
from finetune_api.profile import FineTuneProfileSpec
from finetune_api.profile_limits import ProfileLimits
from finetune_api.usage import Usage
from finetune_operator.observe import seconds


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a profile lets a job use, as it was when the job started."""

    profile_name: str
    limits: ProfileLimits
    price: Price | None

    @classmethod
    def of(cls, profile_name: str, profile: FineTuneProfileSpec) -> Allowance:
        """From the profile of a job's snapshot."""
        return cls(profile_name, profile.limits, profile.price)


def used_up(usage: Usage | None, allowance: Allowance | None) -> list[tuple[float, str]]:
    """When each limit is reached, in seconds since the epoch, and what is said then; a limit that
    nothing gets nearer to is left out."""
    if allowance is None or usage is None or usage.unit != "GPU":
        return []
    found = []
    for held, says, limit in _limits(allowance):
        left = held - usage.held_seconds
        if left > 0 and not usage.holding:
            continue
        at = seconds(usage.time) + (left / usage.holding if left > 0 else 0)
        found.append((at, f"{says} (limits.{limit} of profile '{allowance.profile_name}')"))
    return found


def _limits(allowance: Allowance) -> list[tuple[float, str, str]]:
    """Seconds of one GPU that may be held, what is said of it, and the limit."""
    limits, price = allowance.limits, allowance.price
    found: list[tuple[float, str, str]] = []
    if limits.max_gpu_hours is not None:
        hours = limits.max_gpu_hours
        found.append((hours * 3600.0, f"the job has held {hours} GPU-hours", "maxGpuHours"))
    if limits.max_cost is not None and price is not None and Decimal(price.per_gpu_hour):
        affordable = Decimal(limits.max_cost) / Decimal(price.per_gpu_hour) * 3600
        cost = f"{limits.max_cost} {price.currency}"
        found.append((float(affordable), f"the job has cost {cost}", "maxCost"))
    return found
