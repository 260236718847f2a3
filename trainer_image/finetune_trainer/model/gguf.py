"""Turns a GGUF file into safetensors, once: training needs plain weights.

Quantised weights are unpacked to bfloat16, so the result is the model as the file's users know it.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from finetune_trainer.errors import ModelError
from finetune_trainer.logs import say, warn
from finetune_trainer.model.files import link_or_copy

ENV_CACHE = "FINETUNE_CACHE_DIR"
_VERSION = "1"
"""Part of the cache's key: raise it when the conversion changes."""

_PRE_KEY = "tokenizer.ggml.pre"
_EXACT = ("default", "gpt-2", "smollm")
"""Ways to split text into words that are reproduced exactly."""


def convert(file: Path, target: Path, uri: str) -> None:
    """Write the model of a GGUF file into the new directory `target`, with its tokenizer.

    Raises:
        ModelError: the file is broken or of an architecture that cannot be converted.
    """
    cache = os.environ.get(ENV_CACHE)
    if not cache:
        _convert(file, target, uri)
        return
    kept = Path(cache) / f"gguf-{_digest(file)[:32]}-v{_VERSION}"
    if kept.is_dir():
        say(f"{uri} was converted before, taken from the cache")
    else:
        kept.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=kept.parent, prefix=".partial-"))
        try:
            _convert(file, scratch / "model", uri)
            _publish(scratch / "model", kept)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    target.mkdir(parents=True)
    for path in sorted(kept.iterdir()):
        link_or_copy(path, target / path.name)


def _publish(made: Path, kept: Path) -> None:
    """Rename into place; another job may have been faster with the same file."""
    try:
        made.rename(kept)
    except OSError:
        if not kept.is_dir():
            raise


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _convert(file: Path, target: Path, uri: str) -> None:
    started = time.monotonic()
    try:
        with _parsed_once():
            model, tokenizer = _load(file)
    except MemoryError:
        raise
    except Exception as exc:  # a foreign file: whatever the libraries trip over is its fault
        text = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
        raise ModelError(
            f"{uri}: the GGUF file cannot be converted: {text}; use a directory with safetensors"
        ) from exc
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # other stages may run as another user of the same group
    say(f"converted {uri} from GGUF to safetensors in {time.monotonic() - started:.1f} s")


def _load(file: Path) -> tuple[Any, Any]:
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    directory, name = str(file.parent), file.name
    tokenizer = AutoTokenizer.from_pretrained(
        directory, gguf_file=name, trust_remote_code=False, local_files_only=True
    )
    _split_digits(tokenizer, gguf.GGUFReader(directory + "/" + name))
    model = AutoModelForCausalLM.from_pretrained(
        directory,
        gguf_file=name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
        local_files_only=True,
    )
    for key, value in model.state_dict().items():
        if not torch.isfinite(value).all():
            raise ValueError(f"{key} has values that are not finite")
    return model, tokenizer


def _split_digits(tokenizer: Any, reader: Any) -> None:
    """Split text into words as the original tokenizer does, which GGUF only names.

    Transformers rebuilds that step as GPT-2's, whatever the name is.
    """
    from tokenizers import pre_tokenizers  # type: ignore[import-not-found,unused-ignore]

    field = reader.get_field(_PRE_KEY)
    named = field.contents() if field is not None else "default"
    if named == "smollm":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif named not in _EXACT:
        warn(
            f"the GGUF file names the tokenizer {named}, which is rebuilt only approximately; "
            "a directory with safetensors and tokenizer.json is exact"
        )


@contextmanager
def _parsed_once() -> Iterator[None]:
    """Parse the file once. Transformers does it again for tokenizer, configuration and weights,
    at about 5 s each, because the vocabulary is read element by element in Python."""
    import gguf

    original = gguf.GGUFReader
    gguf.GGUFReader = functools.cache(original)
    try:
        yield
    finally:
        gguf.GGUFReader = original
