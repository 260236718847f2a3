"""The way of preference data: read, shape, tokenise, pair up, split, write."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from finetune_api.run_config import RunConfig
from finetune_trainer.batches import WIDTH_MULTIPLE
from finetune_trainer.data.build import Built, check_vocabulary, split
from finetune_trainer.data.formats import choose_format
from finetune_trainer.data.masking import Masker, Tokens
from finetune_trainer.data.pairs import JudgedData, pair_up, tokenize, write_pairs
from finetune_trainer.data.preferences import read_preferences
from finetune_trainer.data.records import read_first, read_records
from finetune_trainer.data.samples import COUNT, one_line, render, write_samples
from finetune_trainer.data.store import EVAL, META, TRAIN, DataMeta
from finetune_trainer.errors import ConfigurationError
from finetune_trainer.logs import say, warn


def build_pairs(
    run: RunConfig,
    files: list[tuple[str, Path]],
    tokenizer: Any,
    vocabulary_size: int,
    directory: Path,
    run_hash: str,
) -> Built:
    """Write the prepared preference data into `directory`; as `data.build.build`.

    A sequence of the facts is a pair of `data.pairs`: what `spec.training.globalBatchSize` counts.

    Raises:
        DataError: an example is unusable, or none is left.
        ModelError: the tokenizer does not fit the model.
        ConfigurationError: the settings, the model or the data do not fit the objective.
    """
    started = time.monotonic()
    found = _read(run, files, Masker(tokenizer))
    length = run.training.sequence_length
    pairs = pair_up(found.examples, length)
    check_vocabulary(max(int(a.ids.max()) for pair in pairs for a in pair), vocabulary_size)
    _report(run, found, length, time.monotonic() - started)
    directory.mkdir(parents=True)
    parts = _parts(run, pairs, found)
    train = [pair[0] for pair in parts[TRAIN][0][:COUNT]]
    samples = write_samples(directory, train, tokenizer)
    say(f"an example, learned between ⟦ and ⟧: {one_line(render(train[0], tokenizer))}")
    metas = {name: write_pairs(directory / name, *part) for name, part in parts.items() if part[0]}
    width = max(len(answer.ids) for pair in pairs for answer in pair)
    meta = DataMeta(
        run_hash=run_hash,
        width=min(length, -(-width // WIDTH_MULTIPLE) * WIDTH_MULTIPLE),
        vocabulary_size=vocabulary_size,
        train=metas[TRAIN],
        eval=metas.get(EVAL),
    )
    (directory / META).write_text(meta.model_dump_json(by_alias=True, indent=2))
    say(f"wrote {meta.train.sequences} pairs; {len(parts[EVAL][0])} are held out")
    return Built(meta, found, len(parts[TRAIN][0]), len(parts[EVAL][0]), samples)


def check_pairs(run: RunConfig, files: list[tuple[str, Path]]) -> None:
    """Read every example once, before anything expensive is done with the model.

    Raises:
        DataError, ConfigurationError: an example is unusable, or does not fit the objective.
    """
    first, records = read_first(files)
    choose_format(first, run.dataset_format, run.objective)
    for _ in read_preferences(records, run.objective, chat=True):
        pass


def _read(run: RunConfig, files: list[tuple[str, Path]], masker: Masker) -> JudgedData:
    if run.long_examples == "Split":
        raise ConfigurationError(
            "spec.dataset.longExamples: Split is only for text; use Truncate or Drop"
        )
    examples = read_preferences(read_records(files), run.objective, masker.has_template)
    return tokenize(examples, masker, run.training.sequence_length, run.long_examples)


def _parts(
    run: RunConfig, pairs: list[tuple[Tokens, Tokens]], found: JudgedData
) -> dict[str, tuple[list[tuple[Tokens, Tokens]], list[bool | None]]]:
    """The pairs to train on and those held out, with what is desirable."""
    both = zip((TRAIN, EVAL), split(len(pairs), run.eval_fraction, run.training.seed), strict=True)
    return {
        name: ([pairs[i] for i in chosen], [found.examples[i].desirable for i in chosen])
        for name, chosen in both
    }


def _report(run: RunConfig, found: JudgedData, length: int, seconds: float) -> None:
    say(f"tokenised {len(found.examples)} examples (Preference) in {seconds:.1f} s")
    if run.training.packing:
        say(f"{run.objective} compares whole answers, so spec.training.packing is not used")
    if found.truncated:
        warn(
            f"{found.truncated} examples were cut at {length} tokens; "
            "a larger spec.training.sequenceLength would keep them whole"
        )
    if found.dropped:
        warn(
            f"{found.dropped} examples were left out: too long, or nothing to tell apart within "
            f"{length} tokens"
        )
