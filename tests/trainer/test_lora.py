"""What peft can do beside plain LoRA: trained by real ranks, saved, exported and loaded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from trainer_builders import questions, tiny_model, write_jsonl
from training_builders import LORA, Case, run_cases, run_config

from finetune_trainer.errors import ConfigurationError
from finetune_trainer.export import export
from finetune_trainer.prepare import prepare

STEPS = 3
EXTRAS: dict[str, dict[str, Any]] = {
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "modules": {"modules_to_save": ["embed_tokens", "lm_head"]},
}
SHARDED = [("modules", 3), ("modules", 2), ("DoRA", 1), ("DoRA", 2), ("rsLoRA", 3)]
NOTHING_PERSISTENT = {"stage3_param_persistence_threshold": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("lora")
    tiny_model(found / "model")
    write_jsonl(found / "data.jsonl", *questions(12))
    return found


def case(root: Path, name: str, patches: dict[str, Any] | None = None, **changes: Any) -> Case:
    """A prepared run."""
    run = run_config(
        root / name,
        model={"uri": "pvc://models/tiny", "path": str(root / "model")},
        dataset={"uri": "pvc://data/data.jsonl", "path": str(root / "data.jsonl")},
        sequence_length=64,
        eval_fraction=0.2,
        max_steps=STEPS,
        **changes,
    )
    prepare(run)
    return Case(run, patches or {})


@pytest.fixture(scope="module")
def alone(root: Path) -> dict[str, Case]:
    """By one process, the quantized ones first: peft must not have been imported without it."""
    made = {
        f"QLoRA {precision}": case(
            root, f"QLoRA {precision}", tuning="QLoRA", lora=LORA, precision=precision
        )
        for precision in ("FP32", "BF16")
    }
    made |= {
        name: case(root, name, tuning="LoRA", lora=LORA | extra)
        for name, extra in ({"LoRA": {}} | EXTRAS).items()
    }
    run_cases(root, 1, list(made.values()), timeout=480)
    return made


@pytest.fixture(scope="module")
def pair(root: Path) -> dict[str, Case]:
    """By two processes."""
    made = {
        f"QLoRA ZeRO {stage}": case(
            root,
            f"QLoRA ZeRO {stage}",
            tuning="QLoRA",
            lora=LORA,
            zero_stage=stage,
            num_proc_per_node=2,
        )
        for stage in (1, 2)
    }
    for name, stage in SHARDED:
        made[f"{name} ZeRO {stage}"] = case(
            root,
            f"{name} ZeRO {stage}",
            NOTHING_PERSISTENT if stage == 3 else {},
            tuning="LoRA",
            lora=LORA | EXTRAS[name],
            zero_stage=stage,
            num_proc_per_node=2,
        )
    run_cases(root, 2, list(made.values()), timeout=480)
    return made


def numbers(found: Case) -> list[float]:
    return [line.get("loss", line.get("evalLoss")) for line in found.lines]


@pytest.mark.parametrize(("name", "stage"), SHARDED)
def test_two_processes_learn_what_one_learns(
    alone: dict[str, Case], pair: dict[str, Case], name: str, stage: int
) -> None:
    found = numbers(pair[f"{name} ZeRO {stage}"])
    assert len(found) == STEPS + 2
    assert found == pytest.approx(numbers(alone[name]), abs=5e-5)
    assert found != pytest.approx(numbers(alone["LoRA"]), abs=5e-4)  # and it does make a difference


@pytest.mark.parametrize("stage", [1, 2])
def test_qlora_learns_the_same_on_two_processes(
    alone: dict[str, Case], pair: dict[str, Case], stage: int
) -> None:
    found = numbers(pair[f"QLoRA ZeRO {stage}"])
    assert found == pytest.approx(numbers(alone["QLoRA FP32"]), abs=5e-5)
    assert found[-1] < found[0] - 0.05


def test_four_bits_change_the_base_model_a_little(alone: dict[str, Case]) -> None:
    exact = numbers(alone["LoRA"])
    for name in ("QLoRA FP32", "QLoRA BF16"):
        found = numbers(alone[name])
        assert found == pytest.approx(exact, abs=0.1)
        assert found != pytest.approx(exact, abs=1e-4)


@pytest.mark.parametrize("name", ["rsLoRA ZeRO 3", "DoRA ZeRO 2", "modules ZeRO 3", "QLoRA ZeRO 2"])
def test_the_adapter_is_exported_and_loads_again(pair: dict[str, Case], name: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    found = pair[name]
    facts = export(found.run)
    output = Path(found.run.output_dir)
    base = AutoModelForCausalLM.from_pretrained(found.work / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, output)
    config = json.loads((output / "adapter_config.json").read_text())
    lora = found.run.lora
    assert lora is not None
    assert (config["use_rslora"], config["use_dora"]) == (lora.use_rslora, lora.use_dora)
    assert facts.tensors == 28 + 14 * lora.use_dora + 2 * bool(lora.modules_to_save)
    if lora.modules_to_save:
        tuned = model.get_input_embeddings().weight
        plain = base.get_input_embeddings().original_module.weight
        assert not torch.equal(tuned, plain)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"zero_stage": 3}, "ZeRO-3 cannot shard; set spec.zero.stage to 1 or 2"),
        (
            {"zero_stage": 3, "tuning": "LoRA", "lora": LORA | EXTRAS["DoRA"]},
            "useDora needs whole weights, .* set spec.zero.stage to 1 or 2, or useDora: false",
        ),
        ({"missing": "find_spec"}, "needs bitsandbytes, which is not in this image"),
        ({"missing": "_problem_on_cpu"}, "does not run on this CPU .*choose a profile with GPUs"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_fetched(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"tuning": "QLoRA", "lora": LORA} | changes
    missing = changes.pop("missing", None)
    if missing:
        answer = None if missing == "find_spec" else "no such instruction"
        monkeypatch.setattr(f"finetune_trainer.lora.{missing}", lambda *args: answer)
    with pytest.raises(ConfigurationError, match=message):
        prepare(run_config(tmp_path, **changes))
