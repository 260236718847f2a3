"""Which tokens are learned: those that the assistant says, and the token that ends its turn.

Both kinds of chat template lead to the same thing, a text and the spans of characters to learn:
with `{% generation %}` markers the template tells; without, the text up to each answer is rendered
as it will be at inference (with the generation prompt), and the answer is what follows it.
The text is then tokenised once, and a token is learned if it lies inside a span. A token that
crosses the start of a span belongs partly to the prompt, and is not learned.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finetune_trainer.data.formats import Completion, Conversation, Example, Message
from finetune_trainer.errors import DataError, ModelError

Span = tuple[int, int]
Array = Any
"""A numpy array (the library's types are not installed for the type checker)."""

_MARKER = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Tokens:
    """One tokenised example."""

    where: str
    ids: Array
    """Token ids, int32 [length]."""

    learned: Array
    """Whether the token's prediction is learned, bool [length]."""


class Masker:
    """Renders, tokenises and masks examples for one tokenizer.

    Args:
        tokenizer: A fast tokenizer of transformers.

    Raises:
        ModelError: the tokenizer has no fast implementation or no end-of-sequence token.
    """

    def __init__(self, tokenizer: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                "the model has no fast tokenizer (tokenizer.json), which is needed to tell "
                "which tokens are learned; convert it with transformers and add tokenizer.json"
            )
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "the model's tokenizer names no end-of-sequence token, so it could never learn "
                "to stop; set eos_token in tokenizer_config.json"
            )
        self._tokenizer = tokenizer
        # Post-processors of byte-level tokenizers shift offsets past white space, which would
        # move the border between prompt and answer by a token. This copy has none.
        backend = tokenizer.backend_tokenizer
        self._plain = type(backend).from_str(backend.to_str())
        self._plain.post_processor = None
        self._plain.no_truncation()
        self._plain.no_padding()
        self._template: str | None = tokenizer.chat_template
        self._marked = bool(self._template and _MARKER.search(self._template))
        self._ends = tuple(token for token in tokenizer.all_special_tokens if token)
        self._lead = np.array(self._first_tokens(), dtype=np.int32)

    @property
    def has_template(self) -> bool:
        """Whether conversations can be rendered."""
        return self._template is not None

    def tokenize(self, examples: Sequence[Example]) -> list[Tokens]:
        """Tokenise a batch; raises DataError where an example cannot be rendered or masked."""
        texts_and_spans = [self._text(example) for example in examples]
        encodings = self._plain.encode_batch(
            [text for text, _ in texts_and_spans], add_special_tokens=False
        )
        return [
            self._tokens(example, encoding, spans)
            for example, encoding, (_, spans) in zip(
                examples, encodings, texts_and_spans, strict=True
            )
        ]

    def _text(self, example: Example) -> tuple[str, list[Span]]:
        if isinstance(example, Completion):
            text = example.prompt + example.completion
            return text, [(len(example.prompt), len(text))]
        return self._render_marked(example) if self._marked else self._render_prefixes(example)

    def _tokens(self, example: Example, encoding: Any, spans: list[Span]) -> Tokens:
        ids = np.array(encoding.ids, dtype=np.int32)
        offsets = np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)
        learned = np.zeros(len(ids), dtype=bool)
        for start, end in spans:
            learned |= (offsets[:, 0] >= start) & (offsets[:, 1] <= end) & (offsets[:, 1] > start)
        if isinstance(example, Completion):
            # A chat template writes its own first and last token; plain text has none yet.
            eos = np.array([self._tokenizer.eos_token_id], dtype=np.int32)
            ids = np.concatenate([self._lead, ids, eos])
            learned = np.concatenate([np.zeros(len(self._lead), dtype=bool), learned, [True]])
        return Tokens(example.where, ids, learned)

    def _first_tokens(self) -> list[int]:
        """What the tokenizer puts before a text: a begin-of-sequence token, or nothing."""
        plain = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        full = self._tokenizer("a")["input_ids"]
        return list(full[: full.index(plain[0])]) if plain and plain[0] in full else []

    def encode(self, texts: Sequence[str], lead: bool) -> list[Array]:
        """Token ids of texts, int32 [length] each.

        Args:
            lead: Begin with what the tokenizer puts before a text; a chat template writes its own.
        """
        first = self._lead if lead else self._lead[:0]
        encodings = self._plain.encode_batch(list(texts), add_special_tokens=False)
        return [np.concatenate([first, np.array(e.ids, dtype=np.int32)]) for e in encodings]

    @property
    def end(self) -> str:
        """The end-of-sequence token."""
        return str(self._tokenizer.eos_token)

    def render(self, where: str, messages: list[Message], ask: bool) -> str:
        """A conversation as the chat template writes it; raises DataError if it cannot.

        Args:
            ask: End with what stands before an answer, as at inference.
        """
        return str(self._render(where, messages, add_generation_prompt=ask)[0][0])

    def _render(self, where: str, messages: list[Message], **options: Any) -> Any:
        from jinja2 import TemplateError  # type: ignore[import-not-found,unused-ignore]
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            return render_jinja_template(
                conversations=[messages],
                chat_template=self._template,
                **options,
                **self._tokenizer.special_tokens_map,
            )
        except (TemplateError, TypeError, ValueError) as exc:
            raise DataError(
                f"{where}: the model's chat template refuses this conversation: {exc}; "
                "change the example"
            ) from exc

    def _render_marked(self, example: Conversation) -> tuple[str, list[Span]]:
        """Text and spans by the template's own markers."""
        texts, spans = self._render(
            example.where, example.messages, return_assistant_tokens_mask=True
        )
        text = texts[0]
        return text, [(start, self._with_end(text, end)) for start, end in spans[0]]

    def _with_end(self, text: str, end: int) -> int:
        """Include the token that ends the turn where the markers leave it outside."""
        following = [t for t in self._ends if text.startswith(t, end)]
        if any(text.endswith(t, 0, end) for t in self._ends) or not following:
            return end
        return end + len(max(following, key=len))

    def _render_prefixes(self, example: Conversation) -> tuple[str, list[Span]]:
        """Text and spans by rendering the conversation up to before and after each answer."""
        messages = example.messages
        text: str = self._render(example.where, messages)[0][0]
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self._render(example.where, messages[:index], add_generation_prompt=True)[0][0]
            after = self._render(example.where, messages[: index + 1])[0][0]
            if not (after.startswith(before) and text.startswith(after)):
                raise DataError(
                    f"{example.where}: the model's chat template renders the conversation up to "
                    f"message {index + 1} differently from the whole, so the tokens that the "
                    "assistant says cannot be told for certain. Use a chat template with "
                    "{% generation %} markers, or end the conversation there"
                )
            spans.append((len(before), len(before) + self._turn_length(after[len(before) :])))
        return text, spans

    def _turn_length(self, turn: str) -> int:
        """Without the white space after the token that ends the turn: it is never generated."""
        stripped = turn.rstrip()
        return len(stripped) if stripped.endswith(self._ends) else len(turn)
