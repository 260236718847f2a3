"""What prepare and export do where the job brings its own trainer (`spec.trainer`).

Prepare fetches model and data and looks into the model only; what the data mean is the script's
business. Export takes what the script has left in the result directory, reads every tensor of it,
and cannot prove more: it does not know what the result is to compute. See decision 0013.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from finetune_api.outcome import ExportFacts, FetchFacts
from finetune_api.run_config import (
    WORK_CHECKPOINTS,
    WORK_DATASET,
    WORK_MODEL,
    WORK_RESULT,
    RunConfig,
)
from finetune_trainer import verify
from finetune_trainer.errors import ConfigurationError, InternalError, ModelError
from finetune_trainer.logs import say
from finetune_trainer.manifest import (
    check_manifest,
    check_replaceable,
    publish,
    scratch,
    write_manifest,
)
from finetune_trainer.model.base import prepare_model
from finetune_trainer.run_check import check_directories
from finetune_trainer.sources import fetch_data, fetch_model

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
"""Of the files in a result, those that hold weights."""


def fetch(run: RunConfig) -> FetchFacts:
    """Bring model and data into the work directory, and make room for checkpoints and result.

    Raises:
        ModelError, DataError, ConfigurationError: what to mend, and where.
    """
    check_directories(run)
    work = Path(run.work_dir)
    data = fetch_data(run.dataset)
    model = fetch_model(run.model, run.allow_remote_code)
    for name in (WORK_MODEL, WORK_DATASET):
        shutil.rmtree(work / name, ignore_errors=True)
    info = prepare_model(model.path, work / WORK_MODEL, run.model.uri, run.allow_remote_code)
    size = 0
    for name, path in data.files:
        target = work / WORK_DATASET / Path(name).name
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            raise ConfigurationError(
                f"{run.dataset.uri} has two files that are called {target.name}; name one of them"
            )
        shutil.copyfile(path, target)
        size += target.stat().st_size
    for name in (WORK_RESULT, WORK_CHECKPOINTS):
        (work / name).mkdir(exist_ok=True)
    say(f"{len(data.files)} files of {run.dataset.uri}, {size / 1e6:.1f} MB, as they are")
    return FetchFacts(
        parameters=info.parameters,
        architecture=info.architecture,
        model_revision=model.revision,
        dataset_revision=data.revision,
        files=len(data.files),
        bytes=size,
    )


def export_found(run: RunConfig) -> ExportFacts:
    """Put what the script has left into its place.

    Raises:
        ConfigurationError: the place belongs to somebody else.
        ModelError: there is nothing, no weights, or tensors that are empty or not finite.
    """
    result, target = Path(run.work_dir) / WORK_RESULT, Path(run.output_dir)
    check_replaceable(target, run.output_uri)
    count = _check(result)
    made = scratch(target)
    try:
        shutil.copytree(result, made, dirs_exist_ok=True)
        manifest = write_manifest(made, run)
        publish(made, target)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    check_manifest(target)
    say(
        f"{run.output_uri}: {manifest.files} files, {manifest.bytes / 1e6:.1f} MB, "
        f"{manifest.digest}; {count} tensors read, what they compute is not proven"
    )
    return ExportFacts(
        digest=manifest.digest, bytes=manifest.bytes, files=manifest.files, tensors=count
    )


def _check(result: Path) -> int:
    """The number of tensors in safetensors files; what other weights hold is not looked at."""
    found = sorted(path for path in result.rglob("*") if path.is_file()) if result.is_dir() else []
    where = "the script must leave its result in $FINETUNE_RESULT_DIR"
    if not found:
        raise ModelError(f"all workers ended without an error, and left no file: {where}")
    if not any(path.suffix in WEIGHTS for path in found):
        names = ", ".join(path.name for path in found[:3])
        raise ModelError(f"there are no weights among what was left ({names}): {where}")
    count = 0
    for directory in sorted({path.parent for path in found if path.suffix == ".safetensors"}):
        try:
            count += verify.check_tensors(directory)
        except InternalError as exc:
            raise ModelError(str(exc)) from exc
    return count
