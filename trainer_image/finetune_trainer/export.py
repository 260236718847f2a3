"""Stage 3, on CPU: `python -m finetune_trainer.export RUN_JSON`.

Turns what training left into the artefact, proves that it loads and learned something, and only
then puts it into its place.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from finetune_api.artefact import TRAINING_STATE, TrainingState, Verified
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
from finetune_trainer.card import model_card
from finetune_trainer.chart import draw, read_history
from finetune_trainer.errors import InternalError
from finetune_trainer.logs import say
from finetune_trainer.manifest import (
    Manifest,
    check_manifest,
    check_replaceable,
    publish,
    scratch,
    write_manifest,
)
from finetune_trainer.model.adapters import import_peft
from finetune_trainer.outcome_file import load_run, stage
from finetune_trainer.own import export_found
from finetune_trainer.proof import (
    Evidence,
    Proof,
    load,
    prove_adapter,
    prove_merged,
    prove_model,
)
from finetune_trainer.state import base_name, data_digest, kind_of, training_state

M = TypeVar("M", bound=ApiModel)

_TOKENIZER = ("tokenizer", "special_tokens", "added_tokens", "vocab", "merges", "chat_template")
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_MAX_SHARD = "5GB"


def export(run: RunConfig) -> ExportFacts:
    """Write the artefact to `run.output_dir`; returns what was written.

    Raises:
        ConfigurationError: the output directory belongs to somebody else.
        ModelError: the training changed nothing.
        InternalError: what training left is missing or broken, or the artefact, loaded anew, does
            not compute what training computed.
    """
    work, target = Path(run.work_dir), Path(run.output_dir)
    prepared = _facts(work / WORK_PREPARE_FACTS, PrepareFacts)
    trained = _facts(work / WORK_TRAIN_FACTS, TrainFacts)
    if not trained.complete:
        raise InternalError(
            f"training ended at step {trained.step} of {trained.total_steps}; it must be complete"
        )
    check_replaceable(target, run.output_uri)
    verify.check_tensors(work / WORK_RESULT)
    evidence = Evidence.read(run, prepared.parameters)
    made = scratch(target)
    try:
        tensors, proof = _artefact(run, work, made, evidence)
        verified = Verified(
            tensors=tensors,
            examples=len(evidence.told.examples),
            loss_in_training=evidence.told.loss,
            loss_reloaded=proof.loss,
            tolerance=proof.tolerance,
        )
        state = training_state(
            run, prepared, trained, data_digest(work / WORK_DATA), verified, proof.samples
        )
        _describe(run, work, made, state)
        manifest = write_manifest(made, run)
        publish(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    check_manifest(target)
    say(
        f"{run.output_uri}: {kind_of(run)}, {manifest.files} files, "
        f"{manifest.bytes / 1e6:.1f} MB, {manifest.digest}"
    )
    return _export_facts(manifest, verified, trained)


def _artefact(run: RunConfig, work: Path, made: Path, evidence: Evidence) -> tuple[int, Proof]:
    """Write weights and tokenizer into `made` and prove them; returns the number of tensors."""
    started = time.monotonic()
    result, base = work / WORK_RESULT, work / WORK_MODEL
    for path in base.iterdir():
        if path.name.startswith(_TOKENIZER):
            shutil.copyfile(path, made / path.name)
    if run.lora is None:
        _copy_model(result, base, made, run.allow_remote_code)
        proof = prove_model(evidence, made)
    else:
        verify.check_adapter(result, run.lora)
        for name in _ADAPTER:
            shutil.copyfile(result / name, made / name)
        proof = prove_adapter(evidence, made)
        if run.merge:
            _merge(base, made, run.allow_remote_code)
            proof = prove_merged(evidence, made, proof)
        else:
            _name_base(made / _ADAPTER[0], run, work)
    count = verify.check_tensors(made)
    say(
        f"wrote, reloaded and checked {count} tensors in {time.monotonic() - started:.1f} s; loss "
        f"of {len(evidence.told.examples)} examples {proof.loss:.4f}, in training "
        f"{evidence.told.loss:.4f}"
    )
    return count, proof


def _merge(base: Path, made: Path, allow_code: bool) -> None:
    """Replace the adapter in `made` by the whole model, in the number format of the base."""
    whole = load(base, "auto", allow_code)
    model = import_peft().PeftModel.from_pretrained(whole, made, local_files_only=True)
    model = model.merge_and_unload(safe_merge=True)  # safe: refuses weights that are not finite
    model.save_pretrained(made, max_shard_size=_MAX_SHARD)
    for name in _ADAPTER:
        (made / name).unlink()


def _copy_model(result: Path, base: Path, made: Path, allow_code: bool) -> None:
    if allow_code:  # the model's own code belongs to it
        for path in base.glob("*.py"):
            shutil.copyfile(path, made / path.name)
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


def _describe(run: RunConfig, work: Path, made: Path, state: TrainingState) -> None:
    draw(read_history(work / WORK_LOSSES), f"{run.namespace}/{run.name}", made / "loss_curve.png")
    (made / "README.md").write_text(model_card(run, state), encoding="utf-8")
    text = json.dumps(state.to_json_dict(), indent=2, ensure_ascii=False) + "\n"
    (made / TRAINING_STATE).write_text(text, encoding="utf-8")
    for path in made.iterdir():
        path.chmod(0o644)


def _facts(path: Path, kind: type[M]) -> M:
    try:
        return kind.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as exc:
        raise InternalError(f"{path.name} of an earlier stage cannot be read: {exc}") from exc


def _export_facts(manifest: Manifest, verified: Verified, trained: TrainFacts) -> ExportFacts:
    return ExportFacts(
        digest=manifest.digest,
        bytes=manifest.bytes,
        files=manifest.files,
        tensors=verified.tensors,
        reproduced_loss=verified.loss_reloaded,
        eval_loss_before=trained.eval_loss_before,
        eval_loss_after=trained.eval_loss_after,
    )


def main(argv: list[str]) -> int:
    """The entry point; a failure ends the process with the exit code of its class."""
    with stage("export") as finish:
        run = load_run(argv, "export")
        finish(Outcome(export=export_found(run) if run.own_trainer else export(run)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
