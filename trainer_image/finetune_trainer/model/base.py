"""The base model in the work directory: safetensors, configuration, tokenizer, chat template."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from finetune_trainer.errors import ModelError
from finetune_trainer.logs import say
from finetune_trainer.model.check import ModelInfo, inspect_model, weight_files
from finetune_trainer.model.files import install
from finetune_trainer.model.fit import check_finite
from finetune_trainer.model.gguf import convert
from finetune_trainer.sources import choose_model_files


def prepare_model(source: Path, target: Path, uri: str, allow_code: bool = False) -> ModelInfo:
    """Check the model at `source` and make it available in the new directory `target`.

    Args:
        source: A directory in the layout of transformers, a GGUF file, or a directory with one.
        uri: What the person who reads a message knows it by.
        allow_code: Python code that came with the model may run.

    Raises:
        ModelError: it cannot be read, trusted or tuned; the message says why.
    """
    started = time.monotonic()
    gguf = _gguf(source, uri)
    if gguf is not None:
        convert(gguf, target, uri)
        info = inspect_model(target, uri)
    else:
        info = inspect_model(source, uri, allow_code)
        install(source, weight_files(source, uri), target, allow_code)
        check_finite(target, weight_files(target, uri), uri)
    say(
        f"model {uri}: {info.architecture}, {info.parameters / 1e6:.1f} million parameters, "
        f"ready in {time.monotonic() - started:.1f} s"
    )
    return info


def load_tokenizer(directory: Path, uri: str, allow_code: bool = False) -> Any:
    """The tokenizer of a model in the work directory; raises ModelError."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(
            directory, trust_remote_code=allow_code, local_files_only=True
        )
    except Exception as exc:  # a foreign file: whatever the library trips over is its fault
        text = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ModelError(
            f"{uri}: the tokenizer cannot be loaded: {text}; the model needs tokenizer.json and "
            "tokenizer_config.json, and no code of its own"
        ) from exc


def _gguf(source: Path, uri: str) -> Path | None:
    """The one GGUF file, where the model is one."""
    if source.is_file():
        if source.suffix == ".gguf":
            return source
        raise ModelError(f"{uri} is a file, but no .gguf; give a directory or a GGUF file")
    names = [path.name for path in source.iterdir() if path.is_file()]
    chosen = choose_model_files(names, uri)
    found = [name for name in chosen if name.endswith(".gguf")]
    return source / found[0] if found else None
