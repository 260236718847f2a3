"""The entry point of a rank: what it refuses, and how it tells."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_builders import LORA, arrays, run_config, write_work

from finetune_api.outcome import Failure, Outcome, TrainFacts
from finetune_trainer import train
from finetune_trainer.errors import (
    ConfigurationError,
    DivergedError,
    HangError,
    InternalError,
    OutOfMemoryError,
    PeerLostError,
)


@pytest.fixture
def rank_0(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The environment of a gang of one; returns where the outcome goes."""
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("TERMINATION_LOG", str(tmp_path / "message"))
    monkeypatch.setattr("signal.signal", lambda *args: None)
    return tmp_path / "message"


def fail(work: Path, message: Path, **changes: Any) -> tuple[int, Failure]:
    """Run a rank that must fail: exit code and failure."""
    work.mkdir(parents=True, exist_ok=True)
    file = work / "run.json"
    file.write_text(run_config(work, **changes).model_dump_json(by_alias=True))
    code = train.main([str(file)])
    outcome = Outcome.from_message(message.read_text())
    assert outcome is not None
    assert outcome.failure is not None
    return code, outcome.failure


def test_gpus_that_are_not_there_are_not_replaced_by_the_cpu(
    rank_0: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, failure = fail(tmp_path / "work", rank_0, accelerator="CUDA")
    assert (code, failure.failure_class, failure.rank) == (10, "Configuration", 0)
    assert "this pod sees none" in failure.message
    assert "set its accelerator to CPU" in failure.message


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from finetune_trainer.ranks import check_device

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    run = run_config(Path("/work"), accelerator="CUDA", num_proc_per_node=8, global_batch_size=8)
    with pytest.raises(ConfigurationError, match="4 GPUs but 8 processes"):
        check_device(run, local_rank=4)


def test_bfloat16_on_a_gpu_without_it_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from finetune_trainer.ranks import check_device

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    run = run_config(Path("/work"), accelerator="CUDA", precision="BF16")
    with pytest.raises(
        ConfigurationError, match=r"Tesla T4 .* set spec.training.precision to FP32"
    ):
        check_device(run, local_rank=0)
    run = run_config(Path("/work"), accelerator="CUDA", precision="FP32")
    assert str(check_device(run, local_rank=0)) == "cuda:0"


def test_a_gang_of_another_size_than_the_run_is_refused(rank_0: Path, tmp_path: Path) -> None:
    code, failure = fail(tmp_path / "work", rank_0, num_proc_per_node=2)
    assert (code, failure.failure_class) == (203, "Internal")
    assert failure.message == "1 processes were started, but the run is for 2"


def test_a_run_configuration_of_another_release_is_refused(rank_0: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    file.write_text('{"schemaVersion": 2}')
    assert train.main([str(file)]) == 10
    assert "of the same release" in rank_0.read_text()


def test_a_run_that_is_done_is_not_done_again(rank_0: Path, tmp_path: Path) -> None:
    run = run_config(tmp_path)
    (tmp_path / "result").mkdir()
    facts = TrainFacts(
        step=6, total_steps=6, loss=1.5, tokens=672, tokens_per_second=10.0, duration_seconds=67.2
    )
    train._leave(tmp_path, run, facts)
    assert train.finished(run) == facts
    assert train.finished(run_config(tmp_path, seed=8)) is None
    (tmp_path / "run.json").write_text(run.model_dump_json(by_alias=True))
    assert train.main([str(tmp_path / "run.json")]) == 0
    told = Outcome.from_message(rank_0.read_text())
    assert told is not None
    assert told.train == facts


def test_data_that_prepare_did_not_finish_is_the_platforms_problem(tmp_path: Path) -> None:
    with pytest.raises(InternalError, match="what prepare leaves is missing or broken"):
        train.prepared_facts(run_config(tmp_path))
    write_work(tmp_path / "work", arrays(4, seed=1), None, 3)
    facts = train.prepared_facts(run_config(tmp_path / "work"))
    assert (facts.total_steps, facts.eval_examples) == (3, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.7]:4", PeerLostError),
        ("[gloo/transport/tcp/pair.cc:534] Connection reset by peer", PeerLostError),
        ("NCCL error: ncclRemoteError: a call failed possibly due to exit", PeerLostError),
        ("[gloo/transport/tcp/unbound_buffer.cc:81] Timed out waiting 1800000ms", HangError),
        ("DefaultCPUAllocator: can't allocate memory: you tried", OutOfMemoryError),
        ("shape '[2, 3]' is invalid for input of size 5", RuntimeError),
        ("Connection closed by peer", RuntimeError),  # not the gang's: leave it as it is
    ],
)
def test_errors_of_torch_are_sorted_by_whose_problem_they_are(
    text: str, expected: type[Exception]
) -> None:
    from finetune_trainer.ranks import classified

    with pytest.raises(expected) as found, classified(run_config(Path("/work"))):
        raise RuntimeError(text)
    assert type(found.value) is expected


def test_memory_advice_names_only_what_the_run_has_not_done() -> None:
    from finetune_trainer.ranks import memory_advice

    greedy = run_config(Path("/w"), micro_batch_size=4, num_proc_per_node=1, num_nodes=1)
    assert memory_advice(greedy) == (
        "the model and its training state do not fit into the worker's memory; in this order: "
        "lower spec.training.microBatchSize (now 4), "
        "set spec.training.gradientCheckpointing: Always, use spec.method.tuning: LoRA, "
        "use spec.training.precision: BF16, shorten spec.training.sequenceLength (now 32), "
        "use more workers or a profile with more memory"
    )
    frugal = run_config(
        Path("/w"),
        accelerator="CUDA",
        offload="OptimizerAndParameters",
        num_nodes=2,
        zero_stage=3,
        gradient_checkpointing=True,
        precision="BF16",
        tuning="LoRA",
        lora=LORA,
    )
    assert memory_advice(frugal) == (
        "the model and its training state do not fit into the GPU's memory; in this order: "
        "shorten spec.training.sequenceLength (now 32), "
        "use more workers or a profile with more memory"
    )


def test_memory_advice_shows_what_prepare_expected() -> None:
    from finetune_api.outcome import Estimate
    from finetune_trainer.ranks import classified

    terms = {"parameters": 3, "gradients": 2, "optimizer": 6, "activations": 1}
    gib = {name: size * 2**30 for name, size in terms.items()}
    needed = Estimate(**gib, logits=0, buffers=0, total=12 * 2**30)
    run = run_config(Path("/w"), gradient_checkpointing=True, precision="BF16")
    with pytest.raises(OutOfMemoryError) as caught, classified(run, needed):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")
    assert str(caught.value).startswith(
        "the model and its training state do not fit into the worker's memory (prepare expected "
        "12.0 GiB: optimizer 6.0 GiB, parameters 3.0 GiB, gradients 2.0 GiB, "
        "activations 1.0 GiB); in this order: use spec.method.tuning: LoRA"
    )


def test_target_modules_that_fit_nothing_are_refused_with_those_that_do(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune_trainer.lora import add_adapter

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
    run = run_config(tmp_path, tuning="LoRA", lora=LORA | {"target_modules": ["query"]})
    assert run.lora is not None
    with pytest.raises(ConfigurationError, match=r"fit no layer .* are down_proj, gate_"):
        add_adapter(model, run, run.lora)


def test_a_result_with_an_empty_or_broken_tensor_is_not_accepted(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from finetune_trainer.result import check

    def write(**tensors: Any) -> Path:
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        return tmp_path

    check(write(a=torch.ones(2, 3), b=torch.ones(4)), elements=10)
    with pytest.raises(InternalError, match="a was saved empty"):
        check(write(a=torch.ones(0)), elements=0)
    with pytest.raises(InternalError, match="6 numbers were saved, 10 were trained"):
        check(write(a=torch.ones(2, 3)), elements=10)
    with pytest.raises(DivergedError, match="b has values that are not finite"):
        check(write(a=torch.ones(6), b=torch.tensor([1.0, float("nan")])), elements=8)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InternalError, match="0 numbers were saved"):
        check(tmp_path, elements=0)


def test_an_architecture_that_mixes_packed_examples_is_refused() -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from finetune_trainer.engine import check_separation
    from finetune_trainer.losses import SummedLoss

    class Mixing(LlamaForCausalLM):
        def forward(self, position_ids: Any = None, **rest: Any) -> Any:
            return super().forward(position_ids=None, **rest)

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2)
    torch.manual_seed(0)
    model, mixing = LlamaForCausalLM(config), Mixing(config)
    for parameter in [*model.parameters(), *mixing.parameters()]:
        torch.nn.init.normal_(parameter, std=0.5)
    check_separation(SummedLoss(model, model), torch.device("cpu"))
    with pytest.raises(ConfigurationError, match=r"Mixing .* set spec.training.packing: false"):
        check_separation(SummedLoss(mixing, model), torch.device("cpu"))


def test_the_log_of_a_long_run_has_about_a_thousand_lines(tmp_path: Path) -> None:
    from finetune_trainer.loop import LossLog, Step

    said: list[str] = []
    log = LossLog(tmp_path / "losses.jsonl", 25_000, said.append, monotonic=lambda: 0.0)
    for number in range(1, 25_001):
        log.step(Step(number, 25_000, 0.1, 2.31449, 1.9e-4, 0.8, 0.1, 812.4), eta_seconds=200)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, *range(25, 25_001, 25)]
    assert said[1] == "step 25/25000  loss 2.314  lr 0.00019  grad 0.8  812 tok/s  eta 3m20s"


def test_a_run_of_slow_steps_is_never_silent_for_long(tmp_path: Path) -> None:
    from finetune_trainer.loop import LossLog, Step

    now = [0.0]
    log = LossLog(tmp_path / "losses.jsonl", 1_000_000, lambda line: None, lambda: now[0])
    for number in range(1, 13):
        now[0] += 25.0
        log.step(Step(number, 1_000_000, 0.1, 2.3, 1e-4, 0.8, 25.0, 812.4), eta_seconds=200)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 7, 10]
