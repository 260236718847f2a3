"""The prepared arrays: what training reads is exactly what the examples say."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_builders import CHATML, a_run, questions, tiny_tokenizer, write_jsonl

from finetune_trainer.data.build import Built, build, split
from finetune_trainer.data.masking import Tokens
from finetune_trainer.data.samples import one_line, render
from finetune_trainer.data.store import DataMeta, SplitMeta, read_split, write_split
from finetune_trainer.errors import ConfigurationError, DataError, ModelError

pytestmark = pytest.mark.trainer

VOCABULARY = 512


def tokens(ids: list[int], learned: list[int]) -> Tokens:
    return Tokens("d line 1", np.array(ids, dtype=np.int32), np.array(learned, dtype=bool))


def built(tmp_path: Path, template: str | None = CHATML, **changes: Any) -> Built:
    data = write_jsonl(tmp_path / "d.jsonl", *changes.pop("records", questions(20)))
    run = a_run(tmp_path, tmp_path, data, **changes)
    target = tmp_path / "data"
    return build(run, [(data.name, data)], tiny_tokenizer(template), VOCABULARY, target, "hash")


def test_a_row_holds_its_examples_and_the_padding_as_segments(tmp_path: Path) -> None:
    examples = [tokens([11, 12, 13], [1, 1, 1]), tokens([21, 22], [0, 1])]
    found = write_split(tmp_path / "data/train", examples, [[0, 1]], width=8, pad=2)
    arrays = read_split(tmp_path / "data", "train")
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "input_ids": [[11, 12, 13, 21, 22, 2, 2, 2]],
        # The first token of an example follows from nothing that belongs to it.
        "labels": [[-100, 12, 13, -100, 22, -100, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1, 2]],
    }
    assert {array.dtype.name for array in arrays.values()} == {"int32"}
    assert found == SplitMeta(examples=2, sequences=1, tokens=5, trained_tokens=3)


def test_no_example_is_lost_or_changed_by_packing(tmp_path: Path) -> None:
    built(tmp_path)
    segments = []
    for part in ("train", "eval"):
        arrays = read_split(tmp_path / "data", part)
        for ids, positions in zip(arrays["input_ids"], arrays["position_ids"], strict=True):
            starts = [*np.flatnonzero(positions == 0).tolist(), len(ids)]
            segments += [ids[a:b].tolist() for a, b in pairwise(starts)]
    tokenizer = tiny_tokenizer()
    expected = [
        tokenizer.apply_chat_template(
            [
                {"role": "user", "content": record["prompt"]},
                {"role": "assistant", "content": record["completion"]},
            ],
            return_dict=True,
        )["input_ids"]
        for record in questions(20)
    ]
    padding = [segment for segment in segments if set(segment) == {2}]
    assert sorted(s for s in segments if s not in padding) == sorted(expected)


def test_the_description_counts_what_the_arrays_contain(tmp_path: Path) -> None:
    found = built(tmp_path)
    arrays = read_split(tmp_path / "data", "train")
    held_out = read_split(tmp_path / "data", "eval")
    meta = DataMeta.model_validate_json((tmp_path / "data/meta.json").read_bytes())
    assert found.meta == meta
    assert meta.train.examples == 16
    assert meta.train.sequences == len(arrays["input_ids"])
    assert meta.train.trained_tokens == int((arrays["labels"] != -100).sum())
    assert meta.eval is not None
    assert (meta.eval.examples, meta.eval.sequences) == (4, len(held_out["input_ids"]))
    assert meta.width == arrays["input_ids"].shape[1] == held_out["input_ids"].shape[1]
    assert (meta.pad_token_id, meta.vocabulary_size, meta.run_hash) == (2, VOCABULARY, "hash")


def test_rows_are_no_wider_than_the_longest_needs(tmp_path: Path) -> None:
    found = built(tmp_path, packing=False, sequence_length=512)
    arrays = read_split(tmp_path / "data", "train")
    longest = max(int((row != 2).sum()) for row in arrays["position_ids"])
    assert found.meta.train.sequences == found.meta.train.examples == 16
    assert found.meta.width % 8 == 0
    assert found.meta.width < 512
    assert found.meta.width - longest < 16


def test_the_same_seed_holds_out_the_same_examples_and_another_seed_others() -> None:
    examples = [tokens([i], [1]) for i in range(100)]

    def held(seed: int) -> list[int]:
        return [int(example.ids[0]) for example in split(examples, 0.1, seed)[1]]

    assert held(1) == held(1)
    assert len(held(1)) == 10
    assert held(1) != held(2)


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(100, 0.0, 0), (2, 0.01, 1), (1, 0.5, 0), (10, 0.05, 1), (3, 0.5, 2), (2, 0.5, 1)],
)
def test_at_least_one_example_is_held_out_and_one_is_left(
    count: int, fraction: float, expected: int
) -> None:
    train, held = split([tokens([i], [1]) for i in range(count)], fraction, seed=0)
    assert (len(train), len(held)) == (count - expected, expected)


def test_without_held_out_examples_there_is_no_such_directory(tmp_path: Path) -> None:
    found = built(tmp_path, eval_fraction=0.0)
    assert found.meta.eval is None
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "meta.json", "samples.txt", "train",
    ]  # fmt: skip


def test_long_examples_are_cut_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"prompt": "short", "completion": "word " * 100}
    never = {"prompt": "word " * 100, "completion": "lost"}
    records = [*questions(4), long, never]
    found = built(tmp_path, records=records, eval_fraction=0.0, sequence_length=64)
    assert (found.truncated, found.meta.train.examples) == (2, 5)
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "warning: 2 examples were cut at 64 tokens; "
        "a larger spec.training.sequenceLength would keep them whole",
        "warning: 1 examples have nothing left to learn after that and were left out",
    ]


def test_data_of_which_nothing_is_left_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        built(tmp_path, records=[{"prompt": "word " * 100, "completion": "x"}], sequence_length=16)
    assert str(caught.value) == (
        "none of the 1 examples has anything to learn within 16 tokens; "
        "raise spec.training.sequenceLength or shorten the prompts"
    )


def test_chat_data_for_a_model_without_chat_template_are_refused(tmp_path: Path) -> None:
    chat = {"messages": [{"role": "assistant", "content": "A"}]}
    with pytest.raises(ConfigurationError) as caught:
        built(tmp_path, template=None, records=[chat])
    assert str(caught.value) == (
        "the dataset has format Chat, but the model's tokenizer has no chat template; use an "
        "instruction-tuned model, add chat_template.jinja to the model, or use a dataset of "
        "format Instruction or Text"
    )


def test_a_record_of_another_format_is_refused_wherever_it_stands(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^d\.jsonl line 21 has the columns text, but format"):
        built(tmp_path, records=[*questions(20), {"text": "a"}])


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", *questions(4))
    run = a_run(tmp_path, tmp_path, data)
    with pytest.raises(ModelError, match=r"but the model knows only 10 tokens; tokenizer and"):
        build(run, [(data.name, data)], tiny_tokenizer(), 10, tmp_path / "data", "hash")


def test_samples_mark_what_is_learned(tmp_path: Path) -> None:
    built(tmp_path)
    text = (tmp_path / "data/samples.txt").read_text()
    assert text.count("⟦") == text.count("⟧") == 4  # three samples and the explanation
    assert (
        "<|im_start|>user\nWhat is 1 plus 1?<|im_end|>\n"
        "<|im_start|>assistant\n⟦1 plus 1 is 2.<|im_end|>⟧\n"
    ) in text


def test_a_sample_in_the_log_is_one_short_line() -> None:
    tokenizer = tiny_tokenizer()
    text = render(tokens(tokenizer.encode("a\nb"), [0, 0, 1]), tokenizer)
    assert one_line(text) == "a\\n⟦b⟧"
    assert len(one_line("x" * 1000)) == 400
