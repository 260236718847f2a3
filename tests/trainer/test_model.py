"""The base model: what is accepted, what is refused, and that nothing is executed or loaded."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trainer_builders import tiny_model

from finetune_api.sizes import LinearShape, ModelShape
from finetune_trainer.errors import ConfigurationError, ModelError
from finetune_trainer.model.base import load_tokenizer, prepare_model
from finetune_trainer.model.check import ModelInfo, check_length, inspect_model, shape_of
from finetune_trainer.model.files import link_or_copy

URI = "pvc://models/tiny"


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def change_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(model: Path, tmp_path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        prepare_model(model, tmp_path / "target", URI)
    return str(caught.value)


def test_a_model_is_described_without_loading_it(model: Path, tmp_path: Path) -> None:
    embeddings = 2 * 512 * 64  # input and output, not tied
    attention = 64 * 64 * 2 + 64 * 32 * 2  # q, o and the smaller k, v
    layer = attention + 3 * 64 * 128 + 2 * 64
    assert prepare_model(model, tmp_path / "target", URI) == ModelInfo(
        architecture="LlamaForCausalLM",
        parameters=embeddings + 2 * layer + 64,
        vocabulary_size=512,
        longest_sequence=512,
        shape=ModelShape(
            parameters=embeddings + 2 * layer + 64,
            largest_module=512 * 64,
            small_parameters=embeddings + 2 * layer + 64,
            hidden_size=64,
            intermediate_size=128,
            layers=2,
            heads=4,
            kv_heads=2,
            head_size=16,
            vocabulary_size=512,
            linears=[
                LinearShape(name=name, in_features=rows, out_features=columns, count=2)
                for name, rows, columns in (
                    ("down_proj", 128, 64),
                    ("gate_proj", 64, 128),
                    ("k_proj", 64, 32),
                    ("o_proj", 64, 64),
                    ("q_proj", 64, 64),
                    ("up_proj", 64, 128),
                    ("v_proj", 64, 32),
                )
            ],
        ),
    )


def test_layers_of_other_kinds_are_found_too() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM

    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4))
    found = shape_of(gpt2, gpt2.config)
    assert (found.hidden_size, found.intermediate_size, found.layers) == (32, 128, 2)
    assert {(x.name, x.in_features, x.out_features, x.count) for x in found.linears} == {
        ("c_attn", 32, 96, 2),
        ("c_proj", 32, 32, 2),
        ("c_proj", 128, 32, 2),
        ("c_fc", 32, 128, 2),
    }
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    mixtral = MixtralForCausalLM(
        MixtralConfig(**sizes, **heads, num_local_experts=4, num_experts_per_tok=2)
    )
    assert shape_of(mixtral, mixtral.config).intermediate_size == 2 * 48


def test_tied_weights_are_counted_once(tmp_path: Path, model: Path) -> None:
    tied = tiny_model(tmp_path / "tied", tie=True)
    two = prepare_model(model, tmp_path / "a", URI).parameters
    assert prepare_model(tied, tmp_path / "b", URI).parameters == two - 512 * 64


def test_only_weights_configuration_and_tokenizer_get_into_the_work_directory(
    model: Path, tmp_path: Path
) -> None:
    for name in ("pytorch_model.bin", "modeling_tiny.py", "README.md"):
        (model / name).write_text("x")
    prepare_model(model, tmp_path / "target", URI)
    assert sorted(path.name for path in (tmp_path / "target").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_on_the_same_volume_there_is_no_second_copy(model: Path, tmp_path: Path) -> None:
    prepare_model(model, tmp_path / "target", URI)
    weights = tmp_path / "target/model.safetensors"
    assert weights.samefile(model / "model.safetensors")
    assert not weights.is_symlink()


def test_a_link_of_the_cache_becomes_a_file(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("x")
    (tmp_path / "snapshot").symlink_to("blob")
    link_or_copy(tmp_path / "snapshot", tmp_path / "target")
    assert not (tmp_path / "target").is_symlink()
    assert (tmp_path / "target").read_text() == "x"


def test_a_model_with_code_of_its_own_is_refused_and_the_code_not_run(
    model: Path, tmp_path: Path
) -> None:
    change_config(model, model_type="own", auto_map={"AutoConfig": "configuration_own.OwnConfig"})
    (model / "configuration_own.py").write_text(
        f"open({str(tmp_path / 'executed')!r}, 'w')\nclass OwnConfig: pass\n"
    )
    assert refused(model, tmp_path) == (
        "pvc://models/tiny needs Python code of its own (auto_map in config.json), which this "
        "platform does not run; use a model whose architecture is part of transformers, or ask "
        "the platform team for a profile with spec.limits.remoteCode: true"
    )
    assert not (tmp_path / "executed").exists()


def test_a_model_that_is_no_causal_language_model_is_refused(model: Path, tmp_path: Path) -> None:
    change_config(model, model_type="t5", architectures=["T5ForConditionalGeneration"])
    assert refused(model, tmp_path) == (
        "pvc://models/tiny is of type t5, which is no causal language model; only models that "
        "continue text can be tuned"
    )


def test_a_classifier_is_refused(model: Path, tmp_path: Path) -> None:
    change_config(model, architectures=["LlamaForSequenceClassification"])
    assert refused(model, tmp_path) == (
        "pvc://models/tiny was saved as LlamaForSequenceClassification, which is no causal "
        "language model; only models that continue text can be tuned"
    )


def test_a_quantised_model_is_refused(model: Path, tmp_path: Path) -> None:
    change_config(model, quantization_config={"quant_method": "gptq", "bits": 4})
    assert refused(model, tmp_path) == (
        "pvc://models/tiny is quantised (quantization_config in config.json), so its weights "
        "cannot be trained; use the unquantised model"
    )


def test_a_model_of_an_unknown_type_is_refused(model: Path, tmp_path: Path) -> None:
    change_config(model, model_type="future")
    message = refused(model, tmp_path)
    assert message.startswith("pvc://models/tiny: config.json cannot be used: ")
    assert message.endswith("; the model may be damaged or newer than this trainer")


def test_a_directory_without_configuration_is_refused(model: Path, tmp_path: Path) -> None:
    (model / "config.json").unlink()
    assert refused(model, tmp_path) == (
        "pvc://models/tiny: there is no config.json, so this is no model in the layout of "
        "transformers; point spec.model.uri at the directory that contains it"
    )


def test_damaged_weights_are_refused(model: Path, tmp_path: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    message = refused(model, tmp_path)
    assert message.startswith("pvc://models/tiny: model.safetensors cannot be read (")
    assert message.endswith("); it is damaged or incomplete, copy it anew")


def test_a_missing_part_of_the_weights_is_named(model: Path, tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (model / "model.safetensors").rename(model / "model-1.safetensors")
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refused(model, tmp_path) == (
        "pvc://models/tiny: model-2.safetensors is missing, which model.safetensors.index.json "
        "lists; copy it there"
    )


def test_weights_that_are_no_plain_floats_are_refused(model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.ones(2, dtype=torch.int8)}, model / "model.safetensors")
    assert refused(model, tmp_path) == (
        "pvc://models/tiny: w in model.safetensors has the number format I8; only F32, F16, BF16 "
        "can be trained, use unquantised weights"
    )


def test_weights_that_can_run_code_are_refused(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert refused(model, tmp_path) == (
        "pvc://models/tiny has weights only in a format that can run code when it is read "
        "(.bin, .pt and the like); convert them to safetensors"
    )


def test_a_file_that_is_no_gguf_is_refused(model: Path, tmp_path: Path) -> None:
    assert refused(model / "config.json", tmp_path) == (
        "pvc://models/tiny is a file, but no .gguf; give a directory or a GGUF file"
    )


def test_a_damaged_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF but not really")
    message = refused(tmp_path / "m.gguf", tmp_path)
    assert message.startswith("pvc://models/tiny: the GGUF file cannot be converted: ")
    assert message.endswith("; use a directory with safetensors")


def test_a_model_without_tokenizer_is_refused(model: Path) -> None:
    (model / "tokenizer.json").unlink()
    (model / "tokenizer_config.json").unlink()
    with pytest.raises(ModelError) as caught:
        load_tokenizer(model, URI)
    message = str(caught.value)
    assert message.startswith("pvc://models/tiny: the tokenizer cannot be loaded: ")
    assert message.endswith(
        "; the model needs tokenizer.json and tokenizer_config.json, and no code of its own"
    )


def test_sequences_longer_than_the_model_knows_are_refused(model: Path) -> None:
    info = inspect_model(model, URI)
    check_length(info, 512)
    check_length(replace(info, longest_sequence=None), 10_000)
    with pytest.raises(ConfigurationError) as caught:
        check_length(info, 513)
    assert str(caught.value) == (
        "spec.training.sequenceLength is 513, but the model was made for at most 512 tokens; "
        "lower it to 512 or less"
    )
