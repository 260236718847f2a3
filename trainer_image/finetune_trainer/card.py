"""`README.md` of an artefact: what it is, and how it was made."""

from __future__ import annotations

import re
from typing import Any

from finetune_api.artefact import TRAINING_STATE, Sample, TrainingState, Verified
from finetune_api.outcome import PrepareFacts, TrainFacts
from finetune_api.run_config import PREFERENCES, RunConfig
from finetune_trainer.answers import TOO_LARGE
from finetune_trainer.perplexity import perplexity
from finetune_trainer.state import base_name, kind_of

_MAX_SHOWN = 1200
"""Characters of a prompt or an answer in the card."""


def model_card(run: RunConfig, state: TrainingState) -> str:
    """The model card, with the metadata that the Hugging Face Hub reads."""
    prepared, trained = state.prepare, state.train
    return f"""{_front_matter(run)}
# {run.name}

A {kind_of(run)} of `{base_name(run)}`, tuned on `{run.dataset.uri}` by the FineTuneJob
`{run.namespace}/{run.name}`.

![Loss over the training](loss_curve.png)

{_result(run, trained)}

## Use it

```python
{usage(run)}
```

## Before and after

{_samples(state.samples, prepared)}

## Training

| | |
|---|---|
| Base model | `{run.model.uri}`, revision {prepared.model_revision or "not versioned"}, \
{_millions(prepared.parameters)} parameters |
{_data(run, state)}
| Method | {_method(run)} |
{_settings(run, state)}
| Proof | {_proof(state.verified)} |
| Software | {", ".join(f"{name} {number}" for name, number in state.versions.items())} |

All of this for programs: `{TRAINING_STATE}`. Size and hash of every file: `manifest.json`.
"""


def usage(run: RunConfig) -> str:
    """Python that loads the artefact, to be run in its directory."""
    if run.tuning == "Full" or run.merge:
        return (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'model = AutoModelForCausalLM.from_pretrained(".", dtype="auto")'
        )
    if run.model.uri.startswith("hf://"):
        return (
            "from peft import AutoPeftModelForCausalLM\n"
            "from transformers import AutoTokenizer\n\n"
            'tokenizer = AutoTokenizer.from_pretrained(".")\n'
            'model = AutoPeftModelForCausalLM.from_pretrained(".", dtype="auto")'
        )
    name = base_name(run)
    if name.endswith(".gguf"):
        arguments = f'".", gguf_file="{name}", quantization_config=GgufConfig(dequantize=True)'
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig"
        note = f"  # with {name} beside this file"
    else:
        arguments, note = f'"{name}", dtype="auto"', "  # the directory of the base model"
        imports = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    return (
        f"from peft import PeftModel\n{imports}\n\n"
        'tokenizer = AutoTokenizer.from_pretrained(".")\n'
        f"base = AutoModelForCausalLM.from_pretrained({arguments}){note}\n"
        'model = PeftModel.from_pretrained(base, ".")'
    )


def _front_matter(run: RunConfig) -> str:
    adapter = run.lora is not None and not run.merge
    lines = ["---", f"library_name: {'peft' if adapter else 'transformers'}"]
    if run.model.uri.startswith("hf://"):  # the Hub knows no other names
        lines.append(f"base_model: {base_name(run)}")
        relation = "adapter" if adapter else "finetune"
        lines.append(f"base_model_relation: {relation}")
    if run.dataset.uri.startswith("hf://"):
        owner, name, *_ = run.dataset.uri.removeprefix("hf://").split("/")
        lines += ["datasets:", f"- {owner}/{name}"]
    lines += [
        "pipeline_tag: text-generation",
        "tags:",
        "- finetune-operator",
        "- deepspeed",
        f"- {run.objective.lower()}",
    ]
    if run.lora is not None:
        lines.append(f"- {run.tuning.lower()}")
    return "\n".join([*lines, "---"])


def _result(run: RunConfig, trained: TrainFacts) -> str:
    end = f"Training loss at the end: {trained.loss:.4f}."
    of_text = run.objective not in PREFERENCES
    rows = [
        row
        for row in (
            _change("Held-out", trained.eval_loss_before, trained.eval_loss_after, of_text),
            _change(
                "Retention set", trained.retention_loss_before, trained.retention_loss_after, True
            ),
        )
        if row
    ]
    if trained.eval_loss_after is None:
        end += " Nothing was held out."
    if trained.best_step is not None:
        end += f" The weights are those of step {trained.best_step}, the best on the held-out part."
    if trained.stopped_early:
        end += " Training ended early: the held-out loss no longer fell."
    if not rows:
        return end
    head = "| Examples | Loss before | after | Perplexity before | after |\n|---|---|---|---|---|"
    return "\n".join([head, *rows, "", end])


def _change(what: str, before: float | None, after: float | None, of_text: bool) -> str | None:
    """A row of the table; None where it was not measured. Only tokens have a perplexity."""
    if before is None or after is None:
        return None
    change = f" ({(after - before) / before:+.1%})" if before else ""
    words = [f"{perplexity(loss):.4g}" if of_text else "-" for loss in (before, after)]
    return f"| {what} | {before:.4f} | **{after:.4f}**{change} | {words[0]} | {words[1]} |"


def _data(run: RunConfig, state: TrainingState) -> str:
    prepared = state.prepare
    lost = f"{prepared.truncated_examples} truncated"
    for count, what in (
        (prepared.dropped_examples, "left out"),
        (prepared.split_examples, "split"),
        (prepared.duplicate_examples, "duplicates"),
    ):
        lost += f", {count} {what}" if count else ""
    rows = [
        f"| Data | `{run.dataset.uri}`, revision {prepared.dataset_revision or 'not versioned'}, "
        f"format {prepared.format} |",
        f"| Prepared data | {state.data_digest} |",
        f"| Examples | {prepared.examples} to train on, {prepared.eval_examples} held out, "
        f"{lost} |",
        f"| Tokens | {prepared.tokens}, of which {prepared.trained_tokens} are learned |",
    ]
    if run.evaluation.retention:
        source = run.evaluation.retention.uri
        rows.append(f"| Retention set | `{source}`, {prepared.retention_examples} examples |")
    return "\n".join(rows)


def _proof(verified: Verified) -> str:
    return (
        f"{verified.tensors} tensors reloaded; loss on {verified.examples} examples "
        f"{verified.loss_reloaded:.4f}, in training {verified.loss_in_training:.4f} "
        f"(allowed: {verified.tolerance:.2g} apart)"
    )


def _samples(samples: list[Sample], prepared: PrepareFacts) -> str:
    if not samples and prepared.parameters > TOO_LARGE:
        return "No answers: on a CPU a model of this size takes too long for them."
    if not samples:
        return "No answers: there is no prompt that is short enough."
    of = "that it was not trained on" if prepared.eval_examples else "of the training data"
    blocks = [f"What the model most likely answers to prompts {of}; answers are cut short."]
    for number, sample in enumerate(samples, 1):
        parts = (
            ("Prompt", sample.prompt),
            ("Expected", sample.expected),
            ("Before", sample.before),
            ("After", sample.after),
        )
        blocks.append(f"### Sample {number}")
        blocks += [f"{name}:\n\n{_quoted(text)}" for name, text in parts]
    return "\n\n".join(blocks)


def _quoted(text: str) -> str:
    """As a block that the text cannot end, whatever it contains."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    shown = text if len(text) <= _MAX_SHOWN else "... " + text[-_MAX_SHOWN:]
    return f"{fence}text\n{shown}\n{fence}"


def _method(run: RunConfig) -> str:
    objective: str = run.objective
    if run.preference is not None:
        objective += f" (beta {run.preference.beta:g})"
    if run.lora is None:
        return f"{objective}, all weights"
    lora = run.lora
    kind = run.tuning
    extras = [
        words for on, words in ((lora.use_dora, "DoRA"), (lora.use_rslora, "rank-stabilised")) if on
    ]
    more = f" ({', '.join(extras)})" if extras else ""
    whole = f", whole: {', '.join(lora.modules_to_save)}" if lora.modules_to_save else ""
    merged = ", merged into the base model" if run.merge else ""
    return (
        f"{objective}, {kind}{more} of rank {lora.rank}, alpha {lora.alpha}, "
        f"dropout {lora.dropout:g}, on {', '.join(lora.target_modules)}{whole}{merged}"
    )


def _settings(run: RunConfig, state: TrainingState) -> str:
    training, trained = run.training, state.train
    rows: list[tuple[str, Any]] = [
        ("Steps", f"{trained.step}, {training.global_batch_size} sequences each"),
        ("Sequence length", f"{training.sequence_length}, {_packed(training.packing)}"),
        (
            "Learning rate",
            f"{training.learning_rate:g}, {training.schedule}, "
            f"warm-up {training.warmup_fraction:.0%}, weight decay {training.weight_decay:g}",
        ),
        ("Precision", f"{training.precision}, DeepSpeed ZeRO stage {_zero(run, state)}"),
        ("Hardware", f"{run.num_nodes} x {run.num_proc_per_node} processes, {run.accelerator}"),
        (
            "Time",
            f"{trained.duration_seconds:.0f} s, {trained.tokens_per_second:.0f} tokens/s",
        ),
        ("Seed", training.seed),
    ]
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def _zero(run: RunConfig, state: TrainingState) -> str:
    decided = state.prepare.resolved or run
    return f"{decided.zero_stage}" + (
        "" if decided.offload == "None" else f", offload {decided.offload}"
    )


def _packed(packing: bool) -> str:
    return "several examples packed into one" if packing else "one example each"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
