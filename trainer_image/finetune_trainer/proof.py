"""Loads an artefact anew and proves it: whole, sound, and computing what training computed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetune_api.artefact import Sample, Verification
from finetune_api.run_config import WORK_MODEL, WORK_VERIFICATION, RunConfig
from finetune_trainer import verify
from finetune_trainer.answers import Prompt, answers, new_tokens, prompts
from finetune_trainer.errors import InternalError
from finetune_trainer.model.adapters import import_peft
from finetune_trainer.model.base import load_tokenizer
from finetune_trainer.verify import FULL_PRECISION_LIMIT

_PROBE_TOKENS = 32


@dataclass(frozen=True)
class Evidence:
    """What a result is judged by, read from the work directory."""

    run: RunConfig
    base: Path
    told: Verification
    asked: list[Prompt]
    tokenizer: Any
    parameters: int

    @classmethod
    def read(cls, run: RunConfig, parameters: int) -> Evidence:
        """Raises InternalError where training has not left it."""
        work = Path(run.work_dir)
        try:
            text = (work / WORK_VERIFICATION).read_bytes()
            told = Verification.model_validate_json(text)
        except (OSError, ValueError) as exc:
            raise InternalError(f"{WORK_VERIFICATION} of the training cannot be read: {exc}") from (
                exc
            )
        tokenizer = load_tokenizer(work / WORK_MODEL, run.model.uri, run.allow_remote_code)
        asked = prompts(told.examples) if new_tokens(parameters) else []
        return cls(run, work / WORK_MODEL, told, asked, tokenizer, parameters)

    @property
    def small(self) -> bool:
        """Whether the model is compared in 32 bits, which most CPUs compute faster too."""
        return self.parameters <= FULL_PRECISION_LIMIT

    @property
    def probe(self) -> Any:
        """The first tokens of an example, [1, up to 32]."""
        import torch

        return torch.tensor([self.told.examples[0].ids[:_PROBE_TOKENS]])

    def load(self, directory: Path) -> Any:
        """A model of transformers in the number format to prove it in."""
        import torch

        dtype = torch.float32 if self.small else "auto"
        return load(directory, dtype, self.run.allow_remote_code)

    def answered(self, model: Any) -> list[str]:
        """Answers to the prompts."""
        return answers(model, self.tokenizer, self.asked, new_tokens(self.parameters))

    def reproduced(self, model: Any, sixteen_bit: bool) -> tuple[float, float]:
        """The loss that the model has now, and the tolerance; InternalError if it is another."""
        allowed = verify.tolerance(self.told, self.run.tuning, sixteen_bit or not self.small)
        loss = verify.loss_of(model, self.told)
        verify.check_reproduced(loss, self.told, allowed)
        return loss, allowed


@dataclass(frozen=True)
class Proof:
    """What was found."""

    loss: float
    tolerance: float
    base_logits: Any
    """Of the base model on the probe; a merged model must differ from them, too."""
    samples: list[Sample]


def prove_adapter(evidence: Evidence, adapter: Path) -> Proof:
    """Load base and adapter anew.

    Raises:
        InternalError: tensors are missing or strange, or the loss is another.
        ModelError: it changes nothing.
    """
    peft = import_peft()

    model = peft.PeftModel.from_pretrained(
        evidence.load(evidence.base), adapter, local_files_only=True
    ).eval()
    _check_taken_over(model, adapter)
    tuned = verify.finite_logits(model, evidence.probe)
    with model.disable_adapter():
        before = verify.finite_logits(model, evidence.probe)
        untuned = evidence.answered(model)
    verify.check_different(before, tuned)
    loss, allowed = evidence.reproduced(model, sixteen_bit=False)
    samples = _samples(evidence, untuned, evidence.answered(model))
    return Proof(loss, allowed, before, samples)


def prove_merged(evidence: Evidence, merged: Path, unmerged: Proof) -> Proof:
    """Load a merged model anew; raises as `prove_adapter`."""
    model = evidence.load(merged)
    verify.check_different(unmerged.base_logits, verify.finite_logits(model, evidence.probe))
    loss, allowed = evidence.reproduced(model, verify.sixteen_bit(merged))
    return replace(unmerged, loss=loss, tolerance=allowed)


def prove_model(evidence: Evidence, tuned: Path) -> Proof:
    """Load a whole tuned model anew; raises as `prove_adapter`."""
    verify.check_changed(evidence.base, tuned)
    untuned: list[str] = []
    if evidence.asked:  # one model after the other: there need not be memory for both
        untuned = evidence.answered(evidence.load(evidence.base))
    model = evidence.load(tuned)
    verify.finite_logits(model, evidence.probe)
    loss, allowed = evidence.reproduced(model, sixteen_bit=False)
    samples = _samples(evidence, untuned, evidence.answered(model))
    return Proof(loss, allowed, None, samples)


def load(directory: Path, dtype: Any, allow_code: bool) -> Any:
    """A model with every tensor in its place; raises InternalError."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    model, loading = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=dtype,
        output_loading_info=True,
        trust_remote_code=allow_code,
        local_files_only=True,
    )
    verify.check_loads(model, loading)
    return model.eval()


def _check_taken_over(model: Any, adapter: Path) -> None:
    """Peft only warns of tensors for layers that the base does not have."""
    import torch

    loaded = import_peft().get_peft_model_state_dict(model, save_embedding_layers=False)
    files = dict(verify.tensors(adapter))
    strange = sorted(set(loaded) ^ set(files))
    strange += [
        name
        for name in sorted(set(loaded) & set(files))
        if not torch.equal(loaded[name].float(), files[name].float())
    ]
    if strange:
        raise InternalError(
            f"the adapter does not belong to the base model: {', '.join(strange[:3])}"
        )


def _samples(evidence: Evidence, before: list[str], after: list[str]) -> list[Sample]:
    def text(ids: list[int]) -> str:
        return str(evidence.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    return [
        Sample(prompt=text(asked.ids), expected=text(asked.expected), before=old, after=new)
        for asked, old, new in zip(evidence.asked, before, after, strict=True)
    ]
