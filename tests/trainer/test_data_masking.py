"""Masks: token by token, for both kinds of chat template."""

from __future__ import annotations

from typing import Any

import pytest
from trainer_builders import CHATML, CHATML_WITH_MARKERS, tiny_tokenizer

from finetune_trainer.data.formats import Completion, Conversation
from finetune_trainer.data.masking import Masker
from finetune_trainer.errors import DataError, ModelError

CHAT = Conversation(
    "d.jsonl line 1",
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hé?"},
        {"role": "assistant", "content": " Yes 😀"},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "\nSo."},
    ],
)


def learned_text(tokenizer: Any, example: Any) -> list[str]:
    """The learned runs of tokens, decoded."""
    (tokens,) = Masker(tokenizer).tokenize([example])
    runs: list[list[int]] = []
    before = False
    for token, flag in zip(tokens.ids.tolist(), tokens.learned.tolist(), strict=True):
        if flag and not before:
            runs.append([])
        if flag:
            runs[-1].append(token)
        before = flag
    return [tokenizer.decode(run) for run in runs]


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_MARKERS], ids=["plain", "markers"])
def test_the_answers_and_their_ends_are_learned_and_nothing_else(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    assert learned_text(tokenizer, CHAT) == [" Yes 😀<|im_end|>", "\nSo.<|im_end|>"]


@pytest.mark.parametrize("template", [CHATML, CHATML_WITH_MARKERS], ids=["plain", "markers"])
def test_the_tokens_are_those_of_the_whole_conversation(template: str) -> None:
    tokenizer = tiny_tokenizer(template)
    (tokens,) = Masker(tokenizer).tokenize([CHAT])
    whole = tokenizer.apply_chat_template(CHAT.messages, return_dict=True)
    assert tokens.ids.tolist() == whole["input_ids"]


def test_markers_give_the_mask_that_transformers_gives() -> None:
    tokenizer = tiny_tokenizer(CHATML_WITH_MARKERS)
    (tokens,) = Masker(tokenizer).tokenize([CHAT])
    theirs = tokenizer.apply_chat_template(
        CHAT.messages, return_dict=True, return_assistant_tokens_mask=True
    )
    assert tokens.learned.astype(int).tolist() == theirs["assistant_masks"]


def test_each_prompt_is_what_the_model_is_asked_at_inference() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    (tokens,) = Masker(tokenizer).tokenize([CHAT])
    prompt = tokenizer.apply_chat_template(
        CHAT.messages[:2], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert tokens.ids[: len(prompt)].tolist() == prompt
    assert not tokens.learned[: len(prompt)].any()
    assert tokens.learned[len(prompt)]


def test_white_space_of_the_prompt_is_not_learned_as_part_of_the_answer() -> None:
    """Llama 3 and others report ` Paris` as beginning after its space: at the answer."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    example = Completion("d line 1", "It is ", "Paris.")
    assert learned_text(tokenizer, example) == [".<|im_end|>"]


def test_a_token_that_is_half_prompt_and_half_answer_is_not_learned() -> None:
    tokenizer = tiny_tokenizer(None)
    word = tokenizer.encode(" Paris.")
    assert len(word) == 2, "the tiny tokenizer knows ` Paris` as one token"
    (tokens,) = Masker(tokenizer).tokenize([Completion("d line 1", "It is Pa", "ris.")])
    flags = dict(zip(tokenizer.convert_ids_to_tokens(tokens.ids), tokens.learned, strict=True))
    assert flags["ĠParis"] == False  # noqa: E712 (numpy's own)
    assert flags["."] == True  # noqa: E712
    assert flags["<|im_end|>"] == True  # noqa: E712


def test_markers_that_leave_out_the_end_of_the_turn_do_not_unteach_it() -> None:
    template = CHATML_WITH_MARKERS.replace(
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}",
        "{% generation %}{{ message['content'] }}{% endgeneration %}{{ '<|im_end|>' }}",
    )
    assert template != CHATML_WITH_MARKERS
    tokenizer = tiny_tokenizer(template)
    assert learned_text(tokenizer, CHAT) == [" Yes 😀<|im_end|>", "\nSo.<|im_end|>"]


def test_a_template_that_hides_earlier_answers_is_refused() -> None:
    hides = CHATML.replace(
        "message['content'] +",
        "(message['content'] if loop.last or message['role'] != 'assistant' else '...') +",
    )
    with pytest.raises(DataError) as caught:
        Masker(tiny_tokenizer(hides)).tokenize([CHAT])
    assert str(caught.value) == (
        "d.jsonl line 1: the model's chat template renders the conversation up to message 3 "
        "differently from the whole, so the tokens that the assistant says cannot be told for "
        "certain. Use a chat template with {% generation %} markers, or end the conversation there"
    )


def test_a_conversation_that_the_template_refuses_is_named() -> None:
    strict = (
        "{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    with pytest.raises(DataError) as caught:
        Masker(tiny_tokenizer(strict)).tokenize([CHAT])
    assert str(caught.value) == (
        "d.jsonl line 1: the model's chat template refuses this conversation: "
        "System role not supported; change the example"
    )


def test_plain_text_is_learned_whole_with_an_end() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    assert learned_text(tokenizer, Completion("d line 1", "", "Hé.")) == ["Hé.<|im_end|>"]


def test_a_completion_is_learned_without_its_prompt() -> None:
    tokenizer = tiny_tokenizer(None)
    example = Completion("d line 1", "Q: x\n", "A")
    assert learned_text(tokenizer, example) == ["A<|im_end|>"]


def test_plain_text_begins_as_the_tokenizer_begins_texts() -> None:
    from tokenizers import processors

    tokenizer = tiny_tokenizer(None)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    (tokens,) = Masker(tokenizer).tokenize([Completion("d line 1", "", "A")])
    assert tokenizer.convert_ids_to_tokens(tokens.ids) == ["<|endoftext|>", "A", "<|im_end|>"]
    assert tokens.learned.tolist() == [False, True, True]


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"^the model has no fast tokenizer \(tokenizer\.json\)"):
        Masker(Slow())


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tokenizer = tiny_tokenizer(CHATML)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match=r"^the model's tokenizer names no end-of-sequence token"):
        Masker(tokenizer)
