"""What lies beside the weights for programs: `training_state.json`, and what export checks them by.

`training_state.json` is one `TrainingState`. Every fact in it has its definition elsewhere
(`RunConfig`, `PrepareFacts`, `TrainFacts`) or here.
"""

from __future__ import annotations

from typing import Any, Literal

from finetune_api.base import ApiModel
from finetune_api.outcome import PrepareFacts, TrainFacts

TRAINING_STATE = "training_state.json"
"""In the artefact: `TrainingState`."""


class ProofExample(ApiModel):
    """One example by itself, and its loss with the final weights."""

    ids: list[int]
    """Its tokens, up to the last learned one."""
    learned: list[int]
    """Places of the learned tokens in it, ascending; at least one, and never the first token."""
    loss: float
    """Sum over the learned tokens, in nats."""


class Verification(ApiModel):
    """What training leaves so that export can prove the reloaded model (`verify.json`)."""

    held_out: bool
    """The examples were not trained on."""
    examples: list[ProofExample]
    precision: Literal["BF16", "FP32"]
    """What the losses were computed in."""

    @property
    def loss(self) -> float:
        """Mean over all their learned tokens, in nats."""
        learned = sum(len(example.learned) for example in self.examples)
        return sum(example.loss for example in self.examples) / learned


class Verified(ApiModel):
    """What export has found: the files, loaded anew on a CPU, compute what training computed."""

    tensors: int
    """Tensors that were reloaded and found finite and non-empty."""
    examples: int
    """Examples whose loss was computed again."""
    loss_in_training: float
    """Their mean loss with the final weights, in nats per learned token."""
    loss_reloaded: float
    """The same, computed from the files."""
    tolerance: float
    """How far the two may be apart, in nats."""


class Sample(ApiModel):
    """One prompt from the held-out part, answered by the base model and by the tuned one."""

    prompt: str
    expected: str
    """How the data go on."""
    before: str
    """Answer of the base model: the most likely tokens, few of them."""
    after: str
    """Answer of the tuned model."""


class TrainingState(ApiModel):
    """How an artefact was made, for programs."""

    schema_version: Literal[2] = 2
    kind: Literal["LoRA adapter", "merged model", "full model"]
    base_model: str
    """`owner/name` on the Hugging Face Hub, or the name of the file or directory."""
    data_digest: str
    """`sha256:` and the hash of the prepared data: tokens, labels and positions of all splits."""
    run: dict[str, Any]
    """The resolved `RunConfig` without the paths of its pods."""
    prepare: PrepareFacts
    train: TrainFacts
    verified: Verified
    samples: list[Sample]
    """Up to three; empty where the model is too large to answer on a CPU."""
    versions: dict[str, str]
    """Of the libraries that made the artefact."""
