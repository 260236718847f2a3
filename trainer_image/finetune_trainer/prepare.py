"""Stage 1, on CPU: `python -m finetune_trainer.prepare RUN_JSON`.

Fetches and checks model and data, tokenises and packs, and leaves in the work directory everything
that training needs. No GPU waits for any of this. Run again, it returns at once if it is complete.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import sys
import time
from pathlib import Path

from pydantic import ValidationError

from finetune_api.outcome import MAX_LINEARS, Outcome, PrepareFacts
from finetune_api.run_config import (
    PREFERENCES,
    WORK_DATA,
    WORK_MODEL,
    WORK_PREPARE_FACTS,
    RunConfig,
)
from finetune_trainer.data.build import Built, build, check, efficiency
from finetune_trainer.data.build_pairs import build_pairs, check_pairs
from finetune_trainer.data.retention import build_retention
from finetune_trainer.data.store import META, DataMeta
from finetune_trainer.fit import attention, fit
from finetune_trainer.logs import say, warn
from finetune_trainer.lora import check_tuning
from finetune_trainer.model.base import load_tokenizer, prepare_model
from finetune_trainer.model.check import ModelInfo, check_length
from finetune_trainer.model.fit import check_lora
from finetune_trainer.objectives import needs_reference
from finetune_trainer.outcome_file import load_run, stage
from finetune_trainer.own import fetch
from finetune_trainer.run_check import check_directories, check_run
from finetune_trainer.sources import FetchedData, FetchedModel, fetch_data, fetch_model


def prepare(run: RunConfig) -> PrepareFacts:
    """Fill the work directory; returns what training and the status need to know.

    Raises:
        ModelError, DataError, ConfigurationError, OutOfMemoryError: what to mend, and where.
    """
    work = Path(run.work_dir)
    check_run(run)
    check_directories(run)
    done = _already_done(run)
    if done is not None:
        say(f"{work} is already prepared for this run: {done.total_steps} steps")
        return done
    started = time.monotonic()
    _clear(work)
    check_tuning(run)
    facts = _fill(run, work)
    _commit(work / WORK_PREPARE_FACTS, facts.model_dump_json(by_alias=True, indent=2))
    say(f"prepared {facts.total_steps} steps in {time.monotonic() - started:.1f} s")
    return facts


def _fill(run: RunConfig, work: Path) -> PrepareFacts:
    """Data first, as far as they can be checked without the model: it is the larger one."""
    data = fetch_data(run.dataset)
    paired = run.objective in PREFERENCES
    if paired:
        check_pairs(run, data.files)
    else:
        check(data.files, run.dataset_format, run.objective)
    wanted = run.evaluation.retention
    general = fetch_data(wanted, "retention") if wanted else None
    model = fetch_model(run.model, run.allow_remote_code)
    info = prepare_model(model.path, work / WORK_MODEL, run.model.uri, run.allow_remote_code)
    check_length(info, run.training.sequence_length)
    if run.lora is not None:
        check_lora(info.skeleton, run.lora, run.tuning == "QLoRA")
    fitted = fit(run, info.shape)
    tokenizer = load_tokenizer(work / WORK_MODEL, run.model.uri, run.allow_remote_code)
    make, place = build_pairs if paired else build, work / WORK_DATA
    built = make(run, data.files, tokenizer, info.vocabulary_size, place, run_hash(run))
    kept = 0
    if general is not None:
        size = info.vocabulary_size
        kept = build_retention(run, general.files, tokenizer, size, place).examples
    if needs_reference(run):
        from finetune_trainer.objectives.reference import write_reference

        write_reference(run)
    return _facts(run, info, model, data, built).model_copy(
        update={
            "resolved": fitted.resolved,
            "estimate": fitted.estimate,
            "shape": info.shape if len(info.shape.linears) <= MAX_LINEARS else None,
            "attention": attention(run),
            "retention_examples": kept,
        }
    )


def total_steps(run: RunConfig, sequences: int) -> int:
    """Optimizer steps of the run; the last batch of the last epoch is filled up."""
    training = run.training
    if training.max_steps is not None:
        return training.max_steps
    epochs = training.epochs or 1
    return max(1, math.ceil(epochs * sequences / training.global_batch_size))


def run_hash(run: RunConfig) -> str:
    """Identifies the run that the work directory was prepared for."""
    return hashlib.sha256(run.model_dump_json(by_alias=True).encode()).hexdigest()


def _already_done(run: RunConfig) -> PrepareFacts | None:
    """The facts of an earlier, complete preparation for the same run."""
    work = Path(run.work_dir)
    try:
        meta = DataMeta.model_validate_json((work / WORK_DATA / META).read_bytes())
        facts = PrepareFacts.model_validate_json((work / WORK_PREPARE_FACTS).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return facts if meta.run_hash == run_hash(run) else None


def _clear(work: Path) -> None:
    """Remove what an interrupted or other preparation left; the commit mark first."""
    (work / WORK_PREPARE_FACTS).unlink(missing_ok=True)
    for name in (WORK_DATA, WORK_MODEL):
        if (work / name).exists():
            say(f"removing the unfinished {work / name}")
            shutil.rmtree(work / name)


def _facts(
    run: RunConfig, info: ModelInfo, model: FetchedModel, data: FetchedData, built: Built
) -> PrepareFacts:
    train, found = built.meta.train, built.found
    batch = run.training.global_batch_size
    if train.sequences < batch:
        warn(
            f"there are only {train.sequences} sequences for a global batch of {batch}, so every "
            "step sees some of them more than once; lower spec.training.globalBatchSize or "
            "add data"
        )
    return PrepareFacts(
        parameters=info.parameters,
        architecture=info.architecture,
        model_revision=model.revision,
        dataset_revision=data.revision,
        format=found.format,
        examples=built.train_examples,
        eval_examples=built.eval_examples,
        tokens=train.tokens,
        trained_tokens=train.trained_tokens,
        sequences=train.sequences,
        truncated_examples=found.truncated,
        dropped_examples=found.dropped,
        split_examples=found.split,
        duplicate_examples=found.duplicates,
        lengths=found.lengths,
        samples=built.samples,
        packing_efficiency=efficiency(built.meta),
        total_steps=total_steps(run, train.sequences),
    )


def _commit(path: Path, text: str) -> None:
    """Write all of it or nothing: the file says that everything beside it is complete."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def main(argv: list[str]) -> int:
    """The entry point; a failure ends the process with the exit code of its class."""
    with stage("prepare") as finish:
        run = load_run(argv, "prepare")
        finish(Outcome(fetch=fetch(run)) if run.own_trainer else Outcome(prepare=prepare(run)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
