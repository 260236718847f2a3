"""The prepared arrays: what training reads is exactly what the examples say."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainer_builders import CHATML, a_run, questions, tiny_tokenizer, write_jsonl
from training_builders import dense

from finetune_trainer.batches import Sequences
from finetune_trainer.data.build import Built, build, split
from finetune_trainer.data.examples import pieces
from finetune_trainer.data.lengths import histogram
from finetune_trainer.data.masking import Tokens
from finetune_trainer.data.samples import for_status, one_line, render
from finetune_trainer.data.store import DataMeta, SplitMeta, write_split
from finetune_trainer.errors import ConfigurationError, DataError, ModelError

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
    found = write_split(tmp_path / "train", examples, [[0, 1]])
    assert {name: array.tolist() for name, array in dense(tmp_path / "train").items()} == {
        "input_ids": [[11, 12, 13, 21, 22, 0, 0, 0]],
        # The first token of an example follows from nothing that belongs to it.
        "labels": [[-100, 12, 13, -100, 22, -100, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1, 0, 1, 2]],
    }
    assert found == SplitMeta(examples=2, sequences=1, tokens=5, trained_tokens=3)


def test_a_token_takes_four_bytes_however_uneven_the_examples_are(tmp_path: Path) -> None:
    examples = [tokens([5] * 1000, [1] * 1000), *(tokens([6, 7], [0, 1]) for _ in range(50))]
    write_split(tmp_path / "train", examples, [[i] for i in range(51)])
    assert (tmp_path / "train/tokens.bin").stat().st_size == 4 * (1000 + 2 * 50)


def test_no_example_is_lost_or_changed_by_packing(tmp_path: Path) -> None:
    built(tmp_path)
    segments = []
    for part in ("train", "eval"):
        arrays = dense(tmp_path / "data" / part)
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
    padding = [segment for segment in segments if set(segment) == {0}]
    assert sorted(s for s in segments if s not in padding) == sorted(expected)


def test_the_description_counts_what_the_arrays_contain(tmp_path: Path) -> None:
    found = built(tmp_path)
    arrays, held_out = dense(tmp_path / "data/train"), dense(tmp_path / "data/eval")
    meta = DataMeta.model_validate_json((tmp_path / "data/meta.json").read_bytes())
    assert found.meta == meta
    assert meta.train.examples == 16
    assert meta.train.sequences == len(arrays["input_ids"])
    assert meta.train.trained_tokens == int((arrays["labels"] != -100).sum())
    assert meta.eval is not None
    assert (meta.eval.examples, meta.eval.sequences) == (4, len(held_out["input_ids"]))
    widths = [Sequences.open(tmp_path / "data" / part).width for part in ("train", "eval")]
    assert meta.width == max(widths)
    assert (meta.vocabulary_size, meta.run_hash) == (VOCABULARY, "hash")


def test_rows_are_no_wider_than_the_longest_needs(tmp_path: Path) -> None:
    found = built(tmp_path, packing=False, sequence_length=512)
    longest = max(
        int(Sequences.open(tmp_path / "data" / part).lengths.max()) for part in ("train", "eval")
    )
    assert found.meta.train.sequences == found.meta.train.examples == 16
    assert found.meta.width % 8 == 0
    assert 0 <= found.meta.width - longest < 8


def test_the_same_seed_holds_out_the_same_examples_and_another_seed_others() -> None:
    def held(seed: int) -> list[int]:
        return split(100, 0.1, seed)[1].tolist()

    assert held(1) == held(1)
    assert len(held(1)) == 10
    assert held(1) != held(2)
    assert sorted([*split(100, 0.1, 1)[0].tolist(), *held(1)]) == list(range(100))


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(100, 0.0, 0), (2, 0.01, 1), (1, 0.5, 0), (10, 0.05, 1), (3, 0.5, 2), (2, 0.5, 1)],
)
def test_at_least_one_example_is_held_out_and_one_is_left(
    count: int, fraction: float, expected: int
) -> None:
    train, held = split(count, fraction, seed=0)
    assert (len(train), len(held)) == (count - expected, expected)


def test_without_held_out_examples_there_is_no_such_directory(tmp_path: Path) -> None:
    found = built(tmp_path, eval_fraction=0.0)
    assert found.meta.eval is None
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "meta.json", "samples.txt", "train",
    ]  # fmt: skip


LONG = {"prompt": "short", "completion": "word " * 100}
NEVER = {"prompt": "word " * 100, "completion": "lost"}


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


@pytest.mark.parametrize(
    ("choice", "counts", "examples", "warned"),
    [
        (
            "Truncate",
            (2, 1, 0),
            (5, 5),
            [
                "warning: 2 examples were cut at 64 tokens; a larger spec.training.sequenceLength, "
                "or spec.dataset.longExamples: Split, would keep them whole",
                "warning: 1 examples have nothing left to learn and were left out",
            ],
        ),
        (
            "Drop",
            (0, 2, 0),
            (4, 4),
            ["warning: 2 examples are too long or have nothing left to learn and were left out"],
        ),
        # Of the last one only the piece with the answer is worth anything.
        ("Split", (0, 0, 2), (6, 12), []),
    ],
)
def test_what_is_done_with_long_examples_is_a_choice_and_counted(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    choice: str,
    counts: tuple[int, int, int],
    examples: tuple[int, int],
    warned: list[str],
) -> None:
    changes = {"records": [*questions(4), LONG, NEVER], "eval_fraction": 0.0}
    made = built(tmp_path, **changes, sequence_length=64, long_examples=choice)
    found = made.found
    assert (found.truncated, found.dropped, found.split) == counts
    assert (made.train_examples, made.meta.train.examples) == examples
    assert made.meta.width <= 64
    assert warnings(caplog) == warned


def test_every_token_of_a_split_document_but_its_first_is_learned_exactly_once(
    tmp_path: Path,
) -> None:
    text = " ".join(f"{i} plus {i} is {2 * i}." for i in range(60))
    changes = {"records": [{"text": text}], "eval_fraction": 0.0, "long_examples": "Split"}
    made = built(tmp_path, template=None, **changes, sequence_length=32)
    assert made.found.split == 1
    data = Sequences.open(tmp_path / "data/train")
    learned = {}  # every piece by its place: pieces are unlike each other
    for row in range(len(data)):
        arrays = dense(tmp_path / "data/train")
        starts = [*np.flatnonzero(arrays["position_ids"][row] == 0), arrays["labels"].shape[1]]
        for a, b in pairwise(starts):
            ids = arrays["input_ids"][row, a:b].tolist()
            learned[tuple(ids)] = [x for x in arrays["labels"][row, a:b].tolist() if x != -100]
    whole = [*tiny_tokenizer(None).encode(text), 2]
    rebuilt, at = [], 0
    while at < len(whole) - 1:
        piece = whole[at : at + 32]
        rebuilt += learned.pop(tuple(piece))
        assert len(piece) >= 2
        at += 31
    assert rebuilt == whole[1:]
    assert made.meta.train.trained_tokens == len(whole) - 1
    assert [labels for labels in learned.values() if labels] == []  # nothing else but padding


@pytest.mark.parametrize("count", [*range(1, 12), 40])
def test_pieces_share_one_token_and_leave_none_out(count: int) -> None:
    found = [p.ids.tolist() for p in pieces(tokens(list(range(count)), [1] * count), 5)]
    assert [token for ids in found for token in ids[1:]] == list(range(1, count))
    assert found[0][0] == 0
    assert all(b[0] == a[-1] and len(b) >= 2 for a, b in pairwise(found))
    assert all(len(ids) == 5 for ids in found[:-1])


def test_all_pieces_of_a_document_are_on_one_side(tmp_path: Path) -> None:
    records = [{"text": f"{i} " * 60} for i in range(10)]
    changes = {"records": records, "eval_fraction": 0.3, "long_examples": "Split"}
    made = built(tmp_path, template=None, **changes, sequence_length=16)
    assert (made.train_examples, made.eval_examples) == (7, 3)
    tokenizer = tiny_tokenizer(None)
    sides = {}
    for part in ("train", "eval"):
        ids = dense(tmp_path / "data" / part)["input_ids"]
        sides[part] = set("".join(tokenizer.decode(row) for row in ids)) & set("0123456789")
    assert sides["train"] | sides["eval"] == set("0123456789")
    assert sides["train"] & sides["eval"] == set()


def test_exact_copies_are_counted_trained_on_and_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [*questions(20), *questions(3), questions(1)[0]]
    made = built(tmp_path, records=records, eval_fraction=0.0)
    assert (made.found.duplicates, made.train_examples) == (4, 24)
    assert warnings(caplog) == [
        "warning: 4 of 24 examples (16.7%) are exact copies of others, so they count more than "
        "once; remove them if that is not intended"
    ]


def test_a_few_copies_are_counted_without_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = built(tmp_path, records=[*questions(200), *questions(2)])
    assert made.found.duplicates == 2
    assert warnings(caplog) == []


def test_lengths_are_counted_before_anything_is_cut(tmp_path: Path) -> None:
    made = built(tmp_path, records=[*questions(4), LONG], eval_fraction=0.0, sequence_length=64)
    assert sum(bar.examples for bar in made.found.lengths) == 5
    assert made.found.lengths[-1].up_to > 64
    assert made.found.lengths[-1].examples == 1


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([], []),
        ([7], [(8, 1)]),
        ([8, 9, 12, 13], [(8, 1), (12, 2), (16, 1)]),
        ([100, 500], [(128, 1), (192, 0), (256, 0), (384, 0), (512, 1)]),
        # Twelve fine bars would not do: powers of two only.
        ([10, 20, 1000], [(16, 1), (32, 1), (64, 0), (128, 0), (256, 0), (512, 0), (1024, 1)]),
    ],
)
def test_bars_have_round_edges(lengths: list[int], expected: list[tuple[int, int]]) -> None:
    found = histogram(np.array(lengths, dtype=np.int64))
    assert [(bar.up_to, bar.examples) for bar in found] == expected


def test_there_are_never_more_than_twelve_bars_and_none_loses_an_example() -> None:
    lengths = np.unique(np.geomspace(1, 1_000_000, 500).astype(np.int64))
    found = histogram(lengths)
    assert len(found) == 12
    assert sum(bar.examples for bar in found) == len(lengths)
    assert (found[0].up_to, found[-1].up_to) == (512, 1 << 20)
    assert found[0].examples == int((lengths <= 512).sum())


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


def test_the_status_gets_three_samples(tmp_path: Path) -> None:
    record = {"prompt": "Say it.", "completion": "Yes."}
    found = built(tmp_path, records=[record] * 4, eval_fraction=0.0)
    said = r"<|im_start|>user\nSay it.<|im_end|>\n<|im_start|>assistant\n⟦Yes.<|im_end|>⟧\n"
    assert found.samples == [said] * 3


def test_a_sample_in_the_status_has_a_bounded_number_of_bytes() -> None:
    found = for_status('"é\n' * 400)
    assert found.startswith(r'"é\n"é')
    assert found.endswith("...")
    assert 290 < len(json.dumps(found, ensure_ascii=False).encode()) <= 300


def test_a_sample_in_the_log_is_one_short_line() -> None:
    tokenizer = tiny_tokenizer()
    text = render(tokens(tokenizer.encode("a\nb"), [0, 0, 1]), tokenizer)
    assert one_line(text) == "a\\n⟦b⟧"
    assert len(one_line("x" * 1000)) == 400
