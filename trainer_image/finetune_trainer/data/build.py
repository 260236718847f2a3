"""The way of the data: read, shape, tokenise and mask, split, pack, write."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune_api.outcome import LengthBin
from finetune_api.run_config import RunConfig
from finetune_trainer.batches import WIDTH_MULTIPLE
from finetune_trainer.data.collect import Collector, Tokenized
from finetune_trainer.data.examples import Examples, LongExamples
from finetune_trainer.data.formats import FormatName, Objective, choose_format, to_example
from finetune_trainer.data.masking import Array, Masker
from finetune_trainer.data.packing import one_each, pack
from finetune_trainer.data.records import Record, read_first, read_records
from finetune_trainer.data.samples import COUNT, one_line, render, write_samples
from finetune_trainer.data.store import EVAL, META, TRAIN, DataMeta, SplitMeta, write_split
from finetune_trainer.errors import ConfigurationError, ModelError
from finetune_trainer.logs import say, warn

BATCH = 512
"""Examples tokenised at once: enough for all cores, little memory."""

MANY_COPIES = 0.01
"""Share of examples that are copies of others from which on it is worth a warning."""


class Counts(Protocol):
    """What is told of the examples; see `collect.Tokenized`."""

    @property
    def format(self) -> FormatName:
        """Format of the data."""

    @property
    def truncated(self) -> int:
        """Examples that were cut."""

    @property
    def dropped(self) -> int:
        """Examples left out."""

    @property
    def split(self) -> int:
        """Examples that go on in another sequence."""

    @property
    def duplicates(self) -> int:
        """Copies of other examples."""

    @property
    def lengths(self) -> list[LengthBin]:
        """Histogram of the lengths before anything was cut."""


@dataclass(frozen=True)
class Built:
    """What was written."""

    meta: DataMeta
    found: Counts
    train_examples: int
    eval_examples: int
    samples: list[str]
    """A few examples, what is learned between ⟦ and ⟧."""


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
    directory.mkdir(parents=True)
    found = tokenize(
        read_records(files),
        run.dataset_format,
        Masker(tokenizer),
        length,
        run.long_examples,
        directory,
        run.objective,
    )
    check_vocabulary(found.largest_id, vocabulary_size)
    total = int(found.examples.lengths.sum())
    say(
        f"tokenised {found.count} examples ({found.format}), {total} tokens, "
        f"in {time.monotonic() - started:.1f} s"
    )
    _report_losses(found, length, run.long_examples)
    started = time.monotonic()
    train, held_out = split(found.count, run.eval_fraction, run.training.seed)
    samples = _samples(found.examples, held_out, tokenizer, directory)
    meta = _write(run, found.examples, held_out, vocabulary_size, directory, run_hash)
    (directory / META).write_text(meta.model_dump_json(by_alias=True, indent=2))
    say(
        f"{'packed' if run.training.packing else 'wrote'} {meta.train.sequences} sequences of "
        f"up to {meta.width} tokens, {efficiency(meta):.1%} of them real, "
        f"in {time.monotonic() - started:.1f} s; {meta.train.trained_tokens} tokens are learned; "
        f"{len(held_out)} examples are held out"
    )
    return Built(meta, found, len(train), len(held_out), samples)


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
    long_examples: LongExamples = "Truncate",
    scratch: Path | None = None,
    objective: Objective = "SFT",
) -> Tokenized:
    """Tokenise and mask every record, and see to those that are too long.

    Args:
        wanted: Format of the data, or `Auto` to tell it by the first record.
        length: Longest sequence in tokens.
        scratch: Where temporary files may be as large as the result.
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
    collected = Collector(length, long_examples, scratch)
    for batch in _batches(chain([first], stream)):
        examples = [to_example(record, name, masker.has_template) for record in batch]
        for tokens in masker.tokenize(examples):
            collected.add(tokens)
    return collected.result(name)


def split(count: int, fraction: float, seed: int) -> tuple[Array, Array]:
    """Which examples to train on and which are held out, both ascending; alike for the same seed.

    At least one example is held out where `fraction` > 0, and at least one is left to train on.
    """
    held = 0 if fraction <= 0 or count < 2 else min(max(1, round(count * fraction)), count - 1)
    chosen = np.zeros(count, dtype=bool)
    chosen[np.random.default_rng(seed).permutation(count)[:held]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def efficiency(meta: DataMeta) -> float:
    """Real tokens per token computed, 0 to 1."""
    rows = meta.train.sequences * meta.train.rows_per_sequence
    return meta.train.tokens / (rows * meta.width)


def _batches(records: Iterator[Record]) -> Iterator[list[Record]]:
    while batch := list(islice(records, BATCH)):
        yield batch


def _write(
    run: RunConfig,
    examples: Examples,
    held_out: Array,
    vocabulary_size: int,
    directory: Path,
    run_hash: str,
) -> DataMeta:
    """Both parts; all pieces of an example go into the same one."""
    length, lengths = run.training.sequence_length, examples.lengths
    is_held_out = np.isin(examples.documents, held_out)
    metas: dict[str, SplitMeta] = {}
    width = 0
    for name, chosen in ((TRAIN, ~is_held_out), (EVAL, is_held_out)):
        indices = np.flatnonzero(chosen)
        if not len(indices):
            continue
        mine = lengths[indices].tolist()
        rows = pack(mine, length) if run.training.packing else one_each(mine)
        width = max(width, *(sum(mine[i] for i in row) for row in rows))
        metas[name] = write_split(
            directory / name, examples, [indices[row].tolist() for row in rows]
        )
    return DataMeta(
        run_hash=run_hash,
        width=min(length, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE),
        vocabulary_size=vocabulary_size,
        train=metas[TRAIN],
        eval=metas.get(EVAL),
    )


def check_vocabulary(largest: int, vocabulary_size: int) -> None:
    """Refuse a tokenizer whose tokens the model does not know; raises ModelError."""
    if largest >= vocabulary_size:
        raise ModelError(
            f"the tokenizer makes token {largest}, but the model knows only {vocabulary_size} "
            "tokens; tokenizer and model do not belong together"
        )


def _report_losses(found: Tokenized, length: int, choice: LongExamples) -> None:
    if found.truncated:
        warn(
            f"{found.truncated} examples were cut at {length} tokens; a larger "
            "spec.training.sequenceLength, or spec.dataset.longExamples: Split, would keep them "
            "whole"
        )
    if found.split:
        say(f"{found.split} examples are longer than {length} tokens and were split")
    if found.dropped:
        why = "are too long or have" if choice == "Drop" else "have"
        warn(f"{found.dropped} examples {why} nothing left to learn and were left out")
    share = found.duplicates / found.count
    if share > MANY_COPIES:
        warn(
            f"{found.duplicates} of {found.count} examples ({share:.1%}) are exact copies of "
            "others, so they count more than once; remove them if that is not intended"
        )


def _samples(examples: Examples, held_out: Array, tokenizer: Any, directory: Path) -> list[str]:
    chosen = np.flatnonzero(~np.isin(examples.documents, held_out))[:COUNT]
    train = [examples[int(index)] for index in chosen]
    say(f"an example, learned between ⟦ and ⟧: {one_line(render(train[0], tokenizer))}")
    return write_samples(directory, train, tokenizer)
