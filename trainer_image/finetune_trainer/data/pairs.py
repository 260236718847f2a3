"""Preference data from tokens to arrays: where an answer starts, what it is compared with, on disk.

Two sequences belong together. DPO and ORPO: the chosen and the rejected answer to a prompt. KTO:
an answer, and to the same prompt the answer of another example, from which the distance between
the model and its reference is estimated.

`work_dir/data/{train,eval}` hold them one after the other: `tokens.bin`, uint32 [tokens], whose
highest bit says that the token belongs to the answer; `examples.npy`, int64 [2 * pairs + 1], where
each sequence starts, and the end; `sequences.npy`, int64 [pairs + 1], 0, 2, 4 and so on; for KTO
`desirable.npy`, bool [pairs]; and `reference.npy`, float32 [2 * pairs], see `objectives.reference`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import xor
from pathlib import Path
from typing import Literal

import numpy as np

from finetune_api.outcome import LengthBin
from finetune_trainer.data.examples import copies, digest
from finetune_trainer.data.formats import FormatName
from finetune_trainer.data.lengths import histogram
from finetune_trainer.data.masking import Array, Masker, Tokens
from finetune_trainer.data.preferences import Preference
from finetune_trainer.data.store import SplitMeta, write_split
from finetune_trainer.errors import DataError

DESIRABLE = "desirable.npy"
_LOOK_BACK = 64
"""Examples among which one with another prompt is looked for."""
BATCH = 512
"""Examples tokenised at once."""


@dataclass(frozen=True)
class Judged:
    """One tokenised example."""

    answers: tuple[Tokens, ...]
    """Prompt and answer, the answer learned: chosen and rejected; of KTO the only one."""
    desirable: bool | None


@dataclass(frozen=True)
class JudgedData:
    """All examples that can be learned from."""

    examples: list[Judged]
    truncated: int
    dropped: int
    duplicates: int
    """Examples whose answers are those of an earlier one."""
    lengths: list[LengthBin]
    """Histogram of the longer answer of each, with its prompt, before anything was cut."""
    split: int = 0
    """Answers are never split."""
    format: FormatName = "Preference"


def tokenize(
    preferences: Iterable[Preference],
    masker: Masker,
    length: int,
    long_examples: Literal["Truncate", "Drop"],
) -> JudgedData:
    """Tokenise every example; leave out those with nothing to learn within `length` tokens.

    Raises:
        DataError: nothing is left.
    """
    kept: list[Judged] = []
    lengths, digests = array("q"), array("Q")
    truncated = dropped = 0
    stream = iter(preferences)
    while batch := list(islice(stream, BATCH)):
        for example in _tokenize_batch(batch, masker):
            lengths.append(max(len(answer.ids) for answer in example.answers))
            long = lengths[-1] > length
            cut = tuple(
                Tokens(answer.where, answer.ids[:length], answer.learned[:length])
                for answer in example.answers
            )
            if (long and long_examples == "Drop") or not _can_be_learned(cut):
                dropped += 1
                continue
            truncated += long
            kept.append(Judged(cut, example.desirable))
            digests.append(reduce(xor, (digest(answer) for answer in example.answers)))
    if not kept:
        raise DataError(
            f"none of the {dropped} examples has anything to learn within {length} tokens; raise "
            "spec.training.sequenceLength or shorten the prompts"
        )
    return JudgedData(
        kept, truncated, dropped, copies(digests), histogram(np.array(lengths, dtype=np.int64))
    )


def _can_be_learned(answers: tuple[Tokens, ...]) -> bool:
    """Something of every answer is left, and the two still differ."""
    if not all(answer.learned[1:].any() for answer in answers):
        return False
    return len({answer.ids.tobytes() for answer in answers}) == len(answers)


def _tokenize_batch(batch: Sequence[Preference], masker: Masker) -> list[Judged]:
    """The answer starts where the tokens of prompt and answer leave those of the prompt alone.

    A token that crosses that border belongs to the answer, and what `chosen` and `rejected` have
    in common before it is the same for both: as in TRL.
    """
    texts = [text for preference in batch for text in _texts(preference, masker)]
    ids = iter(masker.encode(texts, lead=not masker.has_template))
    found = []
    for preference in batch:
        prompt = next(ids)
        whole = [next(ids) for _ in preference.answers]
        start = min(_shared(prompt, sequence) for sequence in whole)
        answers = tuple(
            Tokens(preference.where, sequence, np.arange(len(sequence)) >= start)
            for sequence in whole
        )
        found.append(Judged(answers, preference.desirable))
    return found


def _texts(preference: Preference, masker: Masker) -> list[str]:
    """The prompt by itself, and with every answer."""
    prompt, where = preference.prompt, preference.where
    if isinstance(prompt, str):
        ended = (prompt + str(answer) for answer in preference.answers)
        return [prompt, *(t if t.endswith(masker.end) else t + masker.end for t in ended)]
    answers = [masker.render(where, prompt + list(a), ask=False) for a in preference.answers]  # type: ignore[arg-type]
    return [masker.render(where, prompt, ask=True), *answers]


def _shared(first: Array, second: Array) -> int:
    """Tokens at the beginning that are the same."""
    count = min(len(first), len(second))
    different = np.flatnonzero(first[:count] != second[:count])
    return int(different[0]) if different.size else count


def pair_up(examples: list[Judged], length: int) -> list[tuple[Tokens, Tokens]]:
    """The two sequences of every example, see above.

    The other example of KTO is the one before it, of those with another prompt: the same for every
    size of batch and gang, and known when the data are prepared. TRL takes the one before it in a
    micro-batch.
    """
    pairs = []
    for index, example in enumerate(examples):
        first = example.answers[0]
        if len(example.answers) == 2:
            pairs.append((first, example.answers[1]))
            continue
        other = _other(examples, index)
        ids = np.concatenate([_prompt(first), other.ids[_start(other) :]])[:length]
        learned = np.arange(len(ids)) >= _start(first)
        pairs.append((first, Tokens(first.where, ids, learned)))
    return pairs


def _other(examples: list[Judged], index: int) -> Tokens:
    prompt = _prompt(examples[index].answers[0])
    for back in range(1, min(len(examples), _LOOK_BACK)):
        found = examples[index - back].answers[0]
        if not np.array_equal(_prompt(found), prompt):
            return found
    return examples[index - 1].answers[0]  # they all have the same prompt


def _start(answer: Tokens) -> int:
    return int(np.argmax(answer.learned))


def _prompt(answer: Tokens) -> Array:
    return answer.ids[: _start(answer)]


def write_pairs(
    directory: Path, pairs: list[tuple[Tokens, Tokens]], desirable: list[bool | None]
) -> SplitMeta:
    """Write one part of the data into the new directory: every pair is a sequence of two."""
    flat = [answer for pair in pairs for answer in pair]
    meta = write_split(directory, flat, [(2 * i, 2 * i + 1) for i in range(len(pairs))])
    if desirable[0] is not None:
        np.save(directory / DESIRABLE, np.array(desirable, dtype=bool))
    return meta.model_copy(update={"examples": len(pairs), "rows_per_sequence": 2})
