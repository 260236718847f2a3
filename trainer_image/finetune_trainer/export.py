"""Stage 3, on CPU: `python -m finetune_trainer.export RUN_JSON`.

Turns what training left into the artefact, proves that it loads and learned something, and only
then puts it into its place.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from finetune_api.base import ApiModel
from finetune_api.outcome import ExportFacts, Outcome, PrepareFacts, TrainFacts
from finetune_api.run_config import (
    WORK_DATA,
    WORK_LOSSES,
    WORK_MODEL,
    WORK_PREPARE_FACTS,
    WORK_RESULT,
    WORK_TRAIN_FACTS,
    RunConfig,
)
from finetune_trainer import verify
from finetune_trainer.card import base_name, kind_of, model_card, training_json
from finetune_trainer.chart import draw, read_history
from finetune_trainer.data.store import TRAIN, read_split
from finetune_trainer.errors import ConfigurationError, InternalError
from finetune_trainer.logs import say
from finetune_trainer.lora import import_peft
from finetune_trainer.manifest import (
    PARTIAL,
    Manifest,
    check_manifest,
    check_replaceable,
    publish,
    write_manifest,
)
from finetune_trainer.outcome_file import load_run, stage

M = TypeVar("M", bound=ApiModel)

_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_PROBE_TOKENS = 32
_MAX_SHARD = "5GB"


def export(run: RunConfig) -> ExportFacts:
    """Write the artefact to `run.output_dir`; returns what was written.

    Raises:
        ConfigurationError: the output directory belongs to somebody else.
        ModelError: the training changed nothing.
        InternalError: what training left is missing or broken.
    """
    work, target = Path(run.work_dir), Path(run.output_dir)
    prepared = _facts(work / WORK_PREPARE_FACTS, PrepareFacts)
    trained = _facts(work / WORK_TRAIN_FACTS, TrainFacts)
    if trained.step < trained.total_steps:
        raise InternalError(
            f"training ended at step {trained.step} of {trained.total_steps}; it must be complete"
        )
    check_replaceable(target, run.output_uri)
    made = _scratch(target)
    try:
        tensors = _artefact(run, work, made, prepared.parameters)
        _describe(run, work, made, prepared, trained)
        manifest = write_manifest(made, run)
        publish(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    check_manifest(target)
    say(
        f"{run.output_uri}: {kind_of(run)}, {manifest.files} files, "
        f"{manifest.bytes / 1e6:.1f} MB, {manifest.digest}"
    )
    return _export_facts(manifest, tensors, trained)


def _artefact(run: RunConfig, work: Path, made: Path, parameters: int) -> int:
    """Write weights and tokenizer into `made` and prove them; returns the number of tensors."""
    started = time.monotonic()
    result, base = work / WORK_RESULT, work / WORK_MODEL
    verify.check_tensors(result)
    for path in base.iterdir():
        if path.name.startswith(_TOKENIZER):
            shutil.copyfile(path, made / path.name)
    probe = _probe(work)
    if run.lora is None:
        _copy_model(result, base, made)
        verify.check_changed(base, made)
        _prove_model(made, probe, None)
    else:
        verify.check_adapter(result, run.lora)
        for name in _ADAPTER:
            shutil.copyfile(result / name, made / name)
        before = _prove_adapter(base, made, probe, parameters)
        if run.merge:
            _merge(base, made)
            _prove_model(made, probe, before)
        else:
            _name_base(made / _ADAPTER[0], run, work)
    count = verify.check_tensors(made)
    say(f"wrote, reloaded and checked {count} tensors in {time.monotonic() - started:.1f} s")
    return count


def _prove_adapter(base: Path, adapter: Path, probe: Any, parameters: int) -> Any:
    """Load base and adapter anew; returns the base's logits, which the adapter must change."""
    import torch

    small = parameters <= verify.FULL_PRECISION_LIMIT
    model = _load(base, torch.float32 if small else "auto")
    peft = import_peft()
    model = peft.PeftModel.from_pretrained(model, adapter, local_files_only=True).eval()
    # Peft only warns of tensors for layers that the base does not have.
    loaded = set(peft.get_peft_model_state_dict(model, save_embedding_layers=False))
    strange = sorted(loaded ^ {name for name, _ in verify.tensors(adapter)})
    if strange:
        raise InternalError(
            f"the adapter does not belong to the base model: {', '.join(strange[:3])}"
        )
    tuned = verify.finite_logits(model, probe)
    with model.disable_adapter():
        before = verify.finite_logits(model, probe)
    verify.check_different(before, tuned)
    return before


def _merge(base: Path, made: Path) -> None:
    """Replace the adapter in `made` by the whole model, in the number format of the base."""
    model = import_peft().PeftModel.from_pretrained(
        _load(base, "auto"), made, local_files_only=True
    )
    model = model.merge_and_unload(safe_merge=True)  # safe: refuses weights that are not finite
    model.save_pretrained(made, max_shard_size=_MAX_SHARD)
    for name in _ADAPTER:
        (made / name).unlink()


def _prove_model(made: Path, probe: Any, before: Any | None) -> None:
    """Load a whole model anew and compute with it."""
    logits = verify.finite_logits(_load(made, "auto"), probe)
    if before is not None:
        verify.check_different(before, logits)


def _load(directory: Path, dtype: Any) -> Any:
    """A model with every tensor in its place; raises InternalError."""
    from transformers import AutoModelForCausalLM

    model, loading = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=dtype,
        output_loading_info=True,
        trust_remote_code=False,
        local_files_only=True,
    )
    verify.check_loads(model, loading)
    return model.eval()


def _copy_model(result: Path, base: Path, made: Path) -> None:
    for path in result.iterdir():
        if path.suffix in (".json", ".safetensors"):
            shutil.copyfile(path, made / path.name)
    settings = "generation_config.json"
    if (base / settings).exists() and not (made / settings).exists():
        shutil.copyfile(base / settings, made / settings)


def _name_base(path: Path, run: RunConfig, work: Path) -> None:
    """Name the base as the world knows it: training saw it under a path of its pod."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_name(run)
    prepared = _facts(work / WORK_PREPARE_FACTS, PrepareFacts)
    config["revision"] = prepared.model_revision
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _probe(work: Path) -> Any:
    """The first tokens of the training data, [1, up to 32]: what the model must be able to read."""
    import torch

    row = read_split(work / WORK_DATA, TRAIN)["input_ids"][0, :_PROBE_TOKENS]
    return torch.tensor(row.astype("int64")).unsqueeze(0)


def _describe(
    run: RunConfig, work: Path, made: Path, prepared: PrepareFacts, trained: TrainFacts
) -> None:
    draw(read_history(work / WORK_LOSSES), f"{run.namespace}/{run.name}", made / "loss_curve.png")
    (made / "README.md").write_text(model_card(run, prepared, trained), encoding="utf-8")
    (made / "training.json").write_text(training_json(run, prepared, trained), encoding="utf-8")
    for path in made.iterdir():
        path.chmod(0o644)


def _scratch(target: Path) -> Path:
    """A new directory beside the target, or in it where it is the root of a volume."""
    parent = target if target.is_mount() else target.parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for left in parent.glob(f"{PARTIAL}{target.name}-*"):
            shutil.rmtree(left, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=parent, prefix=f"{PARTIAL}{target.name}-"))
    except PermissionError as exc:
        raise ConfigurationError(
            f"the place of the output cannot be written ({exc.filename}); check that the claim of "
            "spec.output.uri is writable for the profile's group (fsGroup)"
        ) from exc
    made.chmod(0o755)
    return made


def _facts(path: Path, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise InternalError(f"{path.name} of an earlier stage cannot be read: {exc}") from exc


def _export_facts(manifest: Manifest, tensors: int, trained: TrainFacts) -> ExportFacts:
    return ExportFacts(
        digest=manifest.digest,
        bytes=manifest.bytes,
        files=manifest.files,
        tensors=tensors,
        eval_loss_before=trained.eval_loss_before,
        eval_loss_after=trained.eval_loss_after,
    )


def main(argv: list[str]) -> int:
    """The entry point; a failure ends the process with the exit code of its class."""
    with stage("export") as finish:
        finish(Outcome(export=export(load_run(argv, "export"))))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
