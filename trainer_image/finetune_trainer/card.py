"""`README.md` and `training.json`: what the artefact is, and how it was made."""

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

from finetune_api.outcome import PrepareFacts, TrainFacts
from finetune_api.run_config import RunConfig

_LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "safetensors", "tokenizers")


def base_name(run: RunConfig) -> str:
    """What the base model is called outside this cluster: `owner/name`, or its file's name."""
    scheme, _, rest = run.model.uri.partition("://")
    return rest if scheme == "hf" else PurePosixPath(rest or scheme).name


def kind_of(run: RunConfig) -> str:
    """What the artefact is, in two words."""
    if run.tuning == "Full":
        return "full model"
    return "merged model" if run.merge else "LoRA adapter"


def versions() -> dict[str, str]:
    """Versions of the libraries that made the artefact."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def training_json(run: RunConfig, prepared: PrepareFacts, trained: TrainFacts) -> str:
    """The run's facts for programs. Paths inside the pods are left out: nobody can use them."""
    described = run.to_json_dict()
    for key in ("workDir", "outputDir", "uid"):
        described.pop(key)
    for source in ("model", "dataset"):
        described[source].pop("path", None)
    content = {
        "schemaVersion": 1,
        "kind": kind_of(run),
        "baseModel": base_name(run),
        "run": described,
        "prepare": prepared.to_json_dict(),
        "train": trained.to_json_dict(),
        "versions": versions(),
    }
    return json.dumps(content, indent=2) + "\n"


def model_card(run: RunConfig, prepared: PrepareFacts, trained: TrainFacts) -> str:
    """The model card, with the metadata that the Hugging Face Hub reads."""
    data_revision = prepared.dataset_revision or "not versioned"
    model_revision = prepared.model_revision or "not versioned"
    return f"""{_front_matter(run)}
# {run.name}

A {kind_of(run)} of [`{base_name(run)}`], tuned on `{run.dataset.uri}` by the FineTuneJob
`{run.namespace}/{run.name}`.

![Loss over the training](loss_curve.png)

{_result(trained)}

## Use it

```python
{usage(run)}
```

## Training

| | |
|---|---|
| Base model | `{run.model.uri}`, revision {model_revision}, \
{_millions(prepared.parameters)} parameters |
| Data | `{run.dataset.uri}`, revision {data_revision}, format {prepared.format} |
| Examples | {prepared.examples} to train on, {prepared.eval_examples} held out, \
{prepared.truncated_examples} truncated |
| Tokens | {prepared.tokens}, of which {prepared.trained_tokens} are learned |
| Method | {_method(run)} |
{_settings(run, trained)}
| Software | {", ".join(f"{name} {number}" for name, number in versions().items())} |

All of this for programs: `training.json`. Size and hash of every file: `manifest.json`.
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
    adapter = run.tuning == "LoRA" and not run.merge
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
        "- sft",
    ]
    if run.tuning == "LoRA":
        lines.append("- lora")
    return "\n".join([*lines, "---"])


def _result(trained: TrainFacts) -> str:
    before, after = trained.eval_loss_before, trained.eval_loss_after
    if before is None or after is None:
        return f"Training loss at the end: **{trained.loss:.4f}**. Nothing was held out."
    change = (after - before) / before * 100 if before else 0.0
    return (
        f"Loss on held-out examples: **{before:.4f}** before, **{after:.4f}** after "
        f"({change:+.1f} %). Training loss at the end: {trained.loss:.4f}."
    )


def _method(run: RunConfig) -> str:
    if run.lora is None:
        return f"{run.objective}, all weights"
    modules = ", ".join(run.lora.target_modules)
    merged = ", merged into the base model" if run.merge else ""
    return (
        f"{run.objective}, LoRA of rank {run.lora.rank}, alpha {run.lora.alpha}, "
        f"dropout {run.lora.dropout:g}, on {modules}{merged}"
    )


def _settings(run: RunConfig, trained: TrainFacts) -> str:
    training = run.training
    rows: list[tuple[str, Any]] = [
        ("Steps", f"{trained.step}, {training.global_batch_size} sequences each"),
        ("Sequence length", f"{training.sequence_length}, {_packed(training.packing)}"),
        (
            "Learning rate",
            f"{training.learning_rate:g}, {training.schedule}, "
            f"warm-up {training.warmup_fraction:.0%}, weight decay {training.weight_decay:g}",
        ),
        ("Precision", f"{training.precision}, DeepSpeed ZeRO stage {run.zero_stage}"),
        ("Hardware", f"{run.num_nodes} x {run.num_proc_per_node} processes, {run.accelerator}"),
        (
            "Time",
            f"{trained.duration_seconds:.0f} s, {trained.tokens_per_second:.0f} tokens/s",
        ),
        ("Seed", training.seed),
    ]
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def _packed(packing: bool) -> str:
    return "several examples packed into one" if packing else "one example each"


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} billion" if count >= 1e9 else f"{count / 1e6:.1f} million"
