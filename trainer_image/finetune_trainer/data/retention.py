"""The retention set: general examples that the model should not forget, never trained on."""

from __future__ import annotations

from itertools import chain, islice
from pathlib import Path
from typing import Any

from finetune_api.run_config import WORK_RETENTION, RunConfig
from finetune_trainer.data.build import tokenize
from finetune_trainer.data.formats import detect
from finetune_trainer.data.masking import Masker
from finetune_trainer.data.packing import one_each, pack
from finetune_trainer.data.records import read_records
from finetune_trainer.data.store import SplitMeta, write_split
from finetune_trainer.errors import DataError
from finetune_trainer.logs import say

_FIELD = "spec.evaluation.retention"


def build_retention(
    run: RunConfig,
    files: list[tuple[str, Path]],
    tokenizer: Any,
    vocabulary_size: int,
    directory: Path,
) -> SplitMeta:
    """Write the split `retention`: the first `retentionMaxExamples` examples, cut where too long.

    Args:
        files: Name for messages, and path.
        vocabulary_size: Rows of the model's embedding.
        directory: Of all prepared data, which exists.

    Raises:
        DataError: an example is unusable, or is a pair of answers; names the field.
    """
    length = run.training.sequence_length
    try:
        stream = read_records(files)
        first = next(stream)
        if str(detect(first)) == "Preference":
            raise DataError(
                f"{first.where} is a pair of answers, which has no loss of its own; give text, "
                "instructions or conversations"
            )
        records = islice(chain([first], stream), run.evaluation.retention_max_examples)
        found = tokenize(records, "Auto", Masker(tokenizer), length)
        if found.largest_id >= vocabulary_size:
            raise DataError(
                f"it contains token {found.largest_id}, but the model knows only "
                f"{vocabulary_size} tokens"
            )
    except DataError as exc:
        told = str(exc).replace("spec.dataset.uri", f"{_FIELD}.uri")
        raise DataError(f"the retention set ({_FIELD}): {told}") from exc
    lengths = found.examples.lengths.tolist()
    rows = pack(lengths, length) if run.training.packing else one_each(lengths)
    meta = write_split(directory / WORK_RETENTION, found.examples, rows)
    say(
        f"retention set: {meta.examples} examples ({found.format}), {meta.tokens} tokens, "
        f"of which {meta.trained_tokens} are judged"
    )
    return meta
