"""A language model small enough to try an installation: random weights, a real tokenizer.

`python -m finetune_trainer.tiny DIRECTORY` writes one of about 200,000 parameters, with a chat
template, in a second and without a network; the job of `helm test` tunes it. The libraries are
imported inside the functions: tests of other parts know this module without having them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

VOCABULARY_SIZE = 512
END_OF_TURN = "<|im_end|>"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""ChatML as most models ship it: without markers of what the assistant says."""

CORPUS = [
    "The operator prepares the data, trains the model and exports the result.",
    "What is the capital of France? The capital of France is Paris.",
    "Two plus two is four. Three plus three is six.",
    "user assistant system <question> <answer>",
    "How do I restart a pod? Delete it, and its controller makes a new one.",
]


def tiny_tokenizer(template: str | None = CHATML) -> Any:
    """A byte-level BPE tokenizer of at most 512 tokens: any text goes through it unharmed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=["<|endoftext|>", "<|im_start|>", END_OF_TURN],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    found = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",  # noqa: S106 (no password)
        eos_token=END_OF_TURN,
        pad_token=END_OF_TURN,
        unk_token="<|endoftext|>",  # noqa: S106 (no password)
        model_max_length=512,
    )
    found.chat_template = template
    return found


def tiny_model(
    directory: Path, template: str | None = CHATML, tie: bool = False, seed: int = 0
) -> Path:
    """Write a Llama of about 200,000 parameters, tokenizer and chat template; returns the path.

    Hidden size 64, 2 layers, 4 heads (2 for keys and values), vocabulary 512, float32.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tie,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    directory.mkdir(parents=True, exist_ok=True)
    LlamaForCausalLM(config).save_pretrained(directory)
    tiny_tokenizer(template).save_pretrained(directory)
    return directory


def main(arguments: list[str]) -> int:
    """Entry point."""
    if len(arguments) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    print(f"wrote a tiny model to {tiny_model(Path(arguments[0]))}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
