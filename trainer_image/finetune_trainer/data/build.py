"""The way of the data: read, shape, tokenise and mask, split, pack, write."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from finetune_api.run_config import RunConfig
from finetune_trainer.data.formats import FormatName, Objective, choose_format, to_example
from finetune_trainer.data.masking import Masker, Tokens
from finetune_trainer.data.packing import one_each, pack
from finetune_trainer.data.records import Record, read_first, read_records
from finetune_trainer.data.samples import one_line, render, samples_text
from finetune_trainer.data.store import EVAL, META, TRAIN, DataMeta, SplitMeta, write_split
from finetune_trainer.errors import ConfigurationError, DataError, ModelError
from finetune_trainer.logs import say, warn

T = TypeVar("T")

BATCH = 512
"""Examples tokenised at once: enough for all cores, little memory."""

SAMPLES = "samples.txt"
WIDTH_MULTIPLE = 8


@dataclass(frozen=True)
class Tokenized:
    """All examples that have something to learn."""

    examples: list[Tokens]
    format: FormatName
    truncated: int
    """Examples that were cut at the sequence length."""
    dropped: int
    """Examples with nothing left to learn after that."""


@dataclass(frozen=True)
class Built:
    """What was written."""

    meta: DataMeta
    format: FormatName
    truncated: int


def build(
    run: RunConfig,
    files: list[tuple[str, Path]],
    tokenizer: Any,
    vocabulary_size: int,
    directory: Path,
    run_hash: str,
) -> Built:
    """Write the prepared data into `directory`.

    Args:
        files: Name for messages, and path.
        vocabulary_size: Rows of the model's embedding.
        directory: New; `store` says what it contains.

    Raises:
        DataError: an example is unusable, or none is left.
        ModelError: the tokenizer does not fit the model.
        ConfigurationError: the model has no chat template for a chat dataset.
    """
    started = time.monotonic()
    length = run.training.sequence_length
    found = tokenize(
        read_records(files), run.dataset_format, Masker(tokenizer), length, run.objective
    )
    check_vocabulary(found.examples, vocabulary_size)
    total = sum(len(example.ids) for example in found.examples)
    say(
        f"tokenised {len(found.examples)} examples ({found.format}), {total} tokens, "
        f"in {time.monotonic() - started:.1f} s"
    )
    _report_losses(found, length)
    write_samples(found.examples, tokenizer, directory)
    started = time.monotonic()
    train, held_out = split(found.examples, run.eval_fraction, run.training.seed)
    meta = _write(run, train, held_out, tokenizer, vocabulary_size, directory, run_hash)
    (directory / META).write_text(meta.model_dump_json(by_alias=True, indent=2))
    say(
        f"{'packed' if run.training.packing else 'wrote'} {meta.train.sequences} sequences of "
        f"{meta.width} tokens, {efficiency(meta):.1%} of them real, "
        f"in {time.monotonic() - started:.1f} s; {meta.train.trained_tokens} tokens are learned; "
        f"{len(held_out)} examples are held out"
    )
    return Built(meta=meta, format=found.format, truncated=found.truncated)


def check(files: list[tuple[str, Path]], wanted: str, objective: Objective = "SFT") -> None:
    """Read every example once, before anything expensive is done with the model.

    Raises:
        DataError: a file or an example is unusable; names the line.
        ConfigurationError: the data do not fit the objective.
    """
    first, records = read_first(files)
    name = choose_format(first, wanted, objective)
    for record in records:
        to_example(record, name, chat=True)


def tokenize(
    records: Iterable[Record],
    wanted: str,
    masker: Masker,
    length: int,
    objective: Objective = "SFT",
) -> Tokenized:
    """Tokenise, mask and truncate every record.

    Args:
        wanted: Format of the data, or `Auto` to tell it by the first record.
        length: Longest sequence in tokens.
    """
    stream = iter(records)
    first = next(stream)
    name = choose_format(first, wanted, objective)
    if name == "Chat" and not masker.has_template:
        raise ConfigurationError(
            "the dataset has format Chat, but the model's tokenizer has no chat template; use an "
            "instruction-tuned model, add chat_template.jinja to the model, or use a dataset of "
            "format Instruction or Text"
        )
    kept: list[Tokens] = []
    truncated = dropped = 0
    for batch in _batches(chain([first], stream)):
        examples = [to_example(record, name, masker.has_template) for record in batch]
        for tokens in masker.tokenize(examples):
            truncated += len(tokens.ids) > length
            cut = Tokens(tokens.where, tokens.ids[:length], tokens.learned[:length])
            if cut.learned[1:].any():
                kept.append(cut)
            else:
                dropped += 1
    if not kept:
        raise DataError(
            f"none of the {dropped} examples has anything to learn within "
            f"{length} tokens; raise spec.training.sequenceLength or shorten the prompts"
        )
    return Tokenized(kept, name, truncated, dropped)


def split(examples: list[T], fraction: float, seed: int) -> tuple[list[T], list[T]]:
    """The part to train on and the part held out, the same for the same seed.

    At least one example is held out where `fraction` > 0, and at least one is left to train on.
    """
    count = len(examples)
    held = 0 if fraction <= 0 or count < 2 else min(max(1, round(count * fraction)), count - 1)
    chosen = set(np.random.default_rng(seed).permutation(count)[:held].tolist())
    train = [example for index, example in enumerate(examples) if index not in chosen]
    return train, [examples[index] for index in sorted(chosen)]


def efficiency(meta: DataMeta) -> float:
    """Real tokens per token computed, 0 to 1."""
    rows = meta.train.sequences * meta.train.rows_per_sequence
    return meta.train.tokens / (rows * meta.width)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch


def _write(
    run: RunConfig,
    train: list[Tokens],
    held_out: list[Tokens],
    tokenizer: Any,
    vocabulary_size: int,
    directory: Path,
    run_hash: str,
) -> DataMeta:
    length = run.training.sequence_length
    rows, width = {}, 0
    for name, examples in ((TRAIN, train), (EVAL, held_out)):
        lengths = [len(example.ids) for example in examples]
        rows[name] = pack(lengths, length) if run.training.packing else one_each(lengths)
        width = max([width, *(sum(lengths[i] for i in row) for row in rows[name])])
    width = min(length, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
    pad = tokenizer.pad_token_id
    pad = tokenizer.eos_token_id if pad is None else pad
    metas: dict[str, SplitMeta] = {
        name: write_split(directory / name, examples, rows[name], width, pad)
        for name, examples in ((TRAIN, train), (EVAL, held_out))
        if examples
    }
    return DataMeta(
        run_hash=run_hash,
        width=width,
        pad_token_id=pad,
        vocabulary_size=vocabulary_size,
        train=metas[TRAIN],
        eval=metas.get(EVAL),
    )


def check_vocabulary(examples: list[Tokens], vocabulary_size: int) -> None:
    """Refuse a tokenizer whose tokens the model does not know; raises ModelError."""
    largest = max(int(example.ids.max()) for example in examples)
    if largest >= vocabulary_size:
        raise ModelError(
            f"the tokenizer makes token {largest}, but the model knows only {vocabulary_size} "
            "tokens; tokenizer and model do not belong together"
        )


def _report_losses(found: Tokenized, length: int) -> None:
    if found.truncated:
        warn(
            f"{found.truncated} examples were cut at {length} tokens; "
            "a larger spec.training.sequenceLength would keep them whole"
        )
    if found.dropped:
        warn(f"{found.dropped} examples have nothing left to learn after that and were left out")


def write_samples(examples: list[Tokens], tokenizer: Any, directory: Path) -> None:
    """Leave a few rendered examples in the new directory, and one in the log."""
    directory.mkdir(parents=True)
    (directory / SAMPLES).write_text(samples_text(examples, tokenizer), encoding="utf-8")
    say(f"an example, learned between ⟦ and ⟧: {one_line(render(examples[0], tokenizer))}")
