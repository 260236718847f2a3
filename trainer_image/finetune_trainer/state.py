"""`training_state.json`: the facts of a run, gathered for programs and for the model card."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Literal

from finetune_api.artefact import Sample, TrainingState, Verified
from finetune_api.outcome import PrepareFacts, TrainFacts
from finetune_api.run_config import RunConfig

_LIBRARIES = ("torch", "transformers", "peft", "deepspeed", "safetensors", "tokenizers")


def base_name(run: RunConfig) -> str:
    """What the base model is called outside this cluster: `owner/name`, or its file's name."""
    scheme, _, rest = run.model.uri.partition("://")
    return rest if scheme == "hf" else PurePosixPath(rest or scheme).name


def kind_of(run: RunConfig) -> Literal["LoRA adapter", "merged model", "full model"]:
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


def data_digest(directory: Path) -> str:
    """`sha256:` and the hash of the prepared data: of the names and contents of all arrays.

    The same data, tokenizer, seed and lengths give the same digest on every machine.
    """
    whole = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.suffix in (".npy", ".bin")):
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        whole.update(f"{path.relative_to(directory).as_posix()} {content}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def training_state(
    run: RunConfig,
    prepared: PrepareFacts,
    trained: TrainFacts,
    digest: str,
    verified: Verified,
    samples: list[Sample],
) -> TrainingState:
    """The run's facts. Paths inside the pods are left out: nobody can use them."""
    described = run.to_json_dict()
    for key in ("workDir", "outputDir", "uid"):
        described.pop(key)
    for source in (described["model"], described["dataset"], _retention(described)):
        source.pop("path", None)
    return TrainingState(
        kind=kind_of(run),
        base_model=base_name(run),
        data_digest=digest,
        run=described,
        prepare=prepared,
        train=trained,
        verified=verified,
        samples=samples,
        versions=versions(),
    )


def _retention(described: dict[str, dict[str, dict[str, str]]]) -> dict[str, str]:
    return described.get("evaluation", {}).get("retention", {})
