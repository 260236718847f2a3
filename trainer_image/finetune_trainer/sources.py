"""Where model and data come from: a mounted path, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

from finetune_api.run_config import SourceConfig
from finetune_trainer.data.records import SUFFIXES
from finetune_trainer.errors import DataError, ModelError, TrainerError
from finetune_trainer.logs import say
from finetune_trainer.reach import forbidden, only_public

T = TypeVar("T")
Kind = Literal["model", "dataset", "retention"]

_FIELDS: dict[Kind, str] = {
    "model": "spec.model",
    "dataset": "spec.dataset",
    "retention": "spec.evaluation.retention",
}

RETRY_WAITS = (2.0, 8.0)
"""Seconds before the second and third try, where the Hub does not answer or is overloaded."""

_MODEL_EXTRAS = (".json", ".jinja", ".model", ".txt")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".h5", ".msgpack")
_HUB = re.compile(r"hf://(\w[\w.-]*/\w[\w.-]*)(?:/([\w.-]+(?:/[\w.-]+)*))?", re.ASCII)
_DOTS = re.compile(r"/\.{1,2}(/|$)")
_TRAIN = re.compile(r"(^|[/_.-])train")
_METADATA = ("dataset_info.json", "dataset_infos.json", "state.json")


@dataclass(frozen=True)
class FetchedModel:
    """A model on disk."""

    path: Path
    """A directory, or one GGUF file."""

    revision: str | None
    """Commit of an `hf://` model."""


@dataclass(frozen=True)
class FetchedData:
    """A dataset on disk."""

    files: list[tuple[str, Path]]
    """Name for messages, and path, in the order to read them in."""

    revision: str | None
    """Commit of an `hf://` dataset."""


def fetch_model(source: SourceConfig, allow_code: bool = False) -> FetchedModel:
    """Find or download the base model; raises ModelError with what to do.

    Args:
        allow_code: Fetch the Python code that comes with it, too.
    """
    if source.path is not None:
        path = Path(source.path)
        if not path.exists():
            raise ModelError(
                f"{source.uri}: there is nothing at this path; check spec.model.uri and that the "
                "claim contains the model"
            )
        return FetchedModel(path, None)
    repo, _ = _hub_parts(source, "model")
    commit, names = _listing(source, repo, "model")
    chosen = choose_model_files(names, source.uri, allow_code)
    return FetchedModel(_download(source, repo, commit, chosen, "model"), commit)


def fetch_data(source: SourceConfig, kind: Kind = "dataset") -> FetchedData:
    """Find or download the dataset; raises DataError with what to do.

    Of a retention set only the first file is downloaded: some hundred examples are enough.
    """
    if source.path is not None:
        return FetchedData(_local_data(source, Path(source.path), kind), None)
    repo, file = _hub_parts(source, kind)
    commit, names = _listing(source, repo, kind)
    chosen = choose_data_files(names, file, source.uri, _FIELDS[kind])
    if kind == "retention":
        chosen = chosen[:1]
    root = _download(source, repo, commit, chosen, kind)
    return FetchedData([(name, root / name) for name in chosen], commit)


def choose_model_files(names: list[str], uri: str, allow_code: bool = False) -> list[str]:
    """The files of a model worth having: weights in one safe format, configuration, tokenizer.

    Raises:
        ModelError: there are no safetensors and not exactly one GGUF file.
    """
    top = sorted(name for name in names if "/" not in name)
    weights = [name for name in top if name.endswith(".safetensors")]
    # Some repositories hold the same weights twice, under the names of another program.
    weights = [name for name in weights if name.startswith("model")] or weights
    if not weights:
        weights = [name for name in top if name.endswith(".gguf")]
        if len(weights) != 1:
            raise ModelError(f"{uri} {_no_weights(names, weights)}")
    kept = (*_MODEL_EXTRAS, ".py") if allow_code else _MODEL_EXTRAS
    extras = [name for name in top if name.endswith(kept)]
    return sorted({*weights, *extras})


def choose_data_files(
    names: list[str], file: str | None, uri: str, field: str = _FIELDS["dataset"]
) -> list[str]:
    """The named file, or the only one, or all of the train split.

    Args:
        field: Where the manifest says `uri`, for messages.

    Raises:
        DataError: the file is not there, or it is not clear which ones are meant.
    """
    if file is not None:
        if file not in names:
            raise DataError(f"{uri}: there is no file {file}; the repository has {_some(names)}")
        return [file]
    readable = sorted(
        name
        for name in names
        if PurePosixPath(name).suffix in SUFFIXES
        and PurePosixPath(name).name not in _METADATA
        and not PurePosixPath(name).name.lower().startswith(("readme", "license", "."))
    )
    if not readable:
        raise DataError(
            f"{uri} has no file that can be read ({', '.join(SUFFIXES)}), only {_some(names)}; "
            "convert it to JSON lines or Parquet"
        )
    train = [name for name in readable if _TRAIN.search(name)]
    if len(readable) > 1 and not train:
        raise DataError(
            f"{uri} has several files and none is named train: {_some(readable)}; "
            f"name one in {field}.uri"
        )
    return train or readable


def _no_weights(names: list[str], ggufs: list[str]) -> str:
    if ggufs:
        return f"has {len(ggufs)} GGUF files ({_some(ggufs)}); use a repository with one of them"
    if any(name.endswith(_PICKLES) for name in names):
        return (
            "has weights only in a format that can run code when it is read "
            "(.bin, .pt and the like); convert them to safetensors"
        )
    return f"has neither safetensors nor a GGUF file, only {_some(names)}; give a model"


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:8])
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{shown}{more}" if names else "no files"


def _local_data(source: SourceConfig, path: Path, kind: Kind) -> list[tuple[str, Path]]:
    if not path.exists():
        raise DataError(
            f"{source.uri}: there is nothing at this path; check {_FIELDS[kind]}.uri and that the "
            "claim or ConfigMap contains the file"
        )
    if path.is_file():
        # The name in the URI, not that of the mount, is what the reader of a message knows.
        name = PurePosixPath(source.uri).name if "/" in source.uri else path.name
        return [(name, path)]
    names = [
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and not any(p.startswith(".") for p in file.relative_to(path).parts)
    ]
    return [
        (name, path / name) for name in choose_data_files(names, None, source.uri, _FIELDS[kind])
    ]


def _hub_parts(source: SourceConfig, kind: Kind) -> tuple[str, str | None]:
    """`owner/name` and the file inside, if any."""
    match = _HUB.fullmatch(source.uri)
    if not match or _DOTS.search(source.uri):
        raise _error(kind)(
            f"{_FIELDS[kind]}.uri {source.uri} is not mounted and is no hf://owner/name; "
            "operator and trainer image must be of the same release"
        )
    return match.group(1), match.group(2)


def _listing(source: SourceConfig, repo: str, kind: Kind) -> tuple[str, list[str]]:
    """Commit and file names of a repository at the revision asked for."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=_endpoint(), token=_token(kind))
    info = _ask(
        lambda: api.repo_info(
            repo, repo_type=_repo_type(kind), revision=source.revision, timeout=30
        ),
        source,
        kind,
    )
    return info.sha, [sibling.rfilename for sibling in info.siblings or []]


def _download(source: SourceConfig, repo: str, commit: str, names: list[str], kind: Kind) -> Path:
    from huggingface_hub import snapshot_download

    started = time.monotonic()
    path = _ask(
        lambda: snapshot_download(
            repo,
            repo_type=_repo_type(kind),
            revision=commit,
            allow_patterns=[re.sub(r"([*?\[])", r"[\1]", name) for name in names],
            token=_token(kind),
            endpoint=_endpoint(),
            cache_dir=_cache(),
        ),
        source,
        kind,
    )
    root = Path(path)
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        raise _error(kind)(f"{source.uri}: {_some(missing)} did not arrive; try again")
    size = sum((root / name).stat().st_size for name in names)
    seconds = time.monotonic() - started
    what = f"{len(names)} files, {size / 1e6:.1f} MB"
    say(f"fetched {source.uri} at {commit}: {what}, in {seconds:.1f} s")
    return root


def _ask(call: Callable[[], T], source: SourceConfig, kind: Kind) -> T:
    """Call the Hub, again where that may help; raises ModelError or DataError."""
    for wait in (*RETRY_WAITS, None):
        try:
            with only_public():
                return call()
        except Exception as exc:  # the library's errors have no common base but this
            if wait is None or not _is_transient(exc):
                raise _explain(exc, source, kind) from exc
            say(f"the Hub did not answer ({type(exc).__name__}), trying again in {wait:g} s")
            time.sleep(wait)
    raise AssertionError("the last wait is None")


def _is_transient(exc: Exception) -> bool:
    if isinstance(exc, ValueError) or forbidden(exc):  # a name or a token that is refused
        return False
    status = _status(exc)
    return status is None or status == 429 or status >= 500


def _status(exc: Any) -> int | None:
    status = getattr(getattr(exc, "response", None), "status_code", None)
    cause = exc.__cause__
    return _status(cause) if status is None and cause is not None else status


def _explain(exc: Exception, source: SourceConfig, kind: Kind) -> TrainerError:
    revision = source.revision or "main"
    status, name = _status(exc), type(exc).__name__
    field = _FIELDS[kind]
    secret = f"{field}.secretRef"
    what = f"{source.uri} at revision {revision}"
    refusal = forbidden(exc)
    if refusal is not None:
        text = f"{what}: {refusal}"
    elif name == "GatedRepoError":
        text = (
            f"{what} is gated; accept its terms on the Hub and give a token of that account "
            f"in {secret}"
        )
    elif name == "RevisionNotFoundError":
        text = f"{source.uri} has no revision {revision}; correct {field}.revision"
    elif status in (401, 404):
        known = (
            "is not known to" if _token(kind) else "is not known to, or not open without token on,"
        )
        text = (
            f"{what} {known} {_endpoint() or 'the Hub'} (HTTP {status}); check {field}.uri, "
            f"and for a private repository the token in {secret}"
        )
    elif status == 403:
        text = f"{what}: access is denied (HTTP 403); the token in {secret} needs read access to it"
    elif status is not None:
        text = f"{what}: the Hub answered HTTP {status}; try again later"
    else:
        text = (
            f"{what}: cannot reach {_endpoint() or 'the Hub'} ({name}: {exc}); check the network, "
            "the profile's egress rules and the endpoint (HF_ENDPOINT)"
        )
    return _error(kind)(text)


def _error(kind: Kind) -> type[TrainerError]:
    return ModelError if kind == "model" else DataError


def _repo_type(kind: Kind) -> str:
    return "model" if kind == "model" else "dataset"


def _token(kind: Kind) -> str | None:
    own = None if kind == "model" else os.environ.get(f"HF_TOKEN_{kind.upper()}")
    return own or os.environ.get("HF_TOKEN") or None


def _endpoint() -> str | None:
    """Read at every call: the library reads it once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


def _cache() -> str | None:
    home = os.environ.get("HF_HOME")
    return str(Path(home) / "hub") if home else None
