"""Asks the base model and the tuned one the same question.

`python -m finetune_trainer.ask MODEL_DIR QUESTION [--adapter DIR] [--max-new-tokens N]` prints
`{"base": ..., "tuned": ...}`; `tuned` is there only with `--adapter`, which may also be the
directory of a whole tuned model.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from finetune_trainer.answers import go_on
from finetune_trainer.errors import TrainerError
from finetune_trainer.logs import set_up
from finetune_trainer.model.adapters import import_peft
from finetune_trainer.model.base import load_tokenizer


def ask(
    model_dir: Path, question: str, adapter: Path | None, max_new_tokens: int
) -> dict[str, str]:
    """Greedy answers of the base model and, where `adapter` is given, of the tuned one."""
    base = _load(model_dir)
    tokenizer = load_tokenizer(model_dir, str(model_dir))
    answers = {"base": answer(base, tokenizer, question, max_new_tokens)}
    if adapter is not None:
        if (adapter / "adapter_config.json").exists():
            tuned = (
                import_peft().PeftModel.from_pretrained(base, adapter, local_files_only=True).eval()
            )
        else:
            tuned = _load(adapter)
        answers["tuned"] = answer(tuned, tokenizer, question, max_new_tokens)
    return answers


def answer(model: Any, tokenizer: Any, question: str, max_new_tokens: int) -> str:
    """The most likely answer, in the model's own chat format where it has one."""
    if tokenizer.chat_template is None:
        ids = tokenizer(question)["input_ids"]
    else:
        ids = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
    return go_on(model, tokenizer, list(ids), max_new_tokens)


def _load(directory: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    # Most CPUs compute 16-bit numbers slower than 32-bit ones.
    return AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    ).eval()


def main(argv: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.ask", description=__doc__)
    parser.add_argument("model_dir", type=Path, help="directory of the base model")
    parser.add_argument("question")
    parser.add_argument("--adapter", type=Path, help="directory of the adapter or tuned model")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    options = parser.parse_args(argv)
    set_up()
    try:
        found = ask(options.model_dir, options.question, options.adapter, options.max_new_tokens)
    except TrainerError as exc:
        print(f"ask failed: {exc}", file=sys.stderr)
        return 1
    print(json.dumps(found, ensure_ascii=False))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
