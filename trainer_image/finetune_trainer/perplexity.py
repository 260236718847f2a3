"""Losses of texts in words: beside the nats, the perplexity that people know."""

from __future__ import annotations

import math

_LARGEST = 1e6


def perplexity(loss: float) -> float:
    """From how many equally likely tokens the model chooses: e to the power of the loss."""
    return math.exp(min(loss, 700.0))


def shown(loss: float, digits: int = 3) -> str:
    """As in `2.314 (perplexity 10.1)`."""
    value = perplexity(loss)
    number = f"{value:.3g}" if value < 1000 else f"{value:.0f}"
    return f"{loss:.{digits}f} (perplexity {number if value < _LARGEST else 'over a million'})"


def sentence(what: str, loss: float, before: float | None = None, of_text: bool = True) -> str:
    """One line for the log.

    Args:
        what: As in `held-out loss`.
        before: The loss before the first step, where it is known.
        of_text: The loss is one of tokens; that of preferences has no perplexity.
    """
    show = shown if of_text else "{:.3f}".format
    then = "" if before is None else f", before training {show(before)}"
    return f"{what} {show(loss)}{then}"
