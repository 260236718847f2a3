"""DPO, KTO and ORPO against TRL: the same tokens, and on the same batch the same loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preference_builders import as_messages, judgements, pairs
from trainer_builders import CHATML, tiny_model, write_jsonl
from training_builders import LORA, run_config

from finetune_api.run_config import PreferenceConfig, RunConfig

COUNT, LENGTH = 6, 72
SETTINGS = PreferenceConfig(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
LONG = {
    "prompt": "What is the capital of France?",
    "chosen": "The capital of France is Paris. " * 9,
    "rejected": "The capital of France is Rome. " * 9,
}
CONVERSATION = {
    "chosen": [
        {"role": "system", "content": "Answer shortly."},
        {"role": "user", "content": "Two plus two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And three?"},
        {"role": "assistant", "content": "Seven."},
    ],
    "rejected": [
        {"role": "system", "content": "Answer shortly."},
        {"role": "user", "content": "Two plus two?"},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "And three?"},
        {"role": "assistant", "content": "What do you mean by three?"},
    ],
}


class Side:
    """A model with what both trainers made of the same examples."""

    def __init__(self, root: Path, objective: str, records: list[Any], chat: bool = True) -> None:
        from transformers import AutoTokenizer

        from finetune_trainer.data.build_pairs import build_pairs

        self.root, self.objective, self.chat = root, objective, chat
        template = CHATML if chat else None
        # Of these two the second one gives a positive estimate of KTO's distance.
        self.path = tiny_model(root / "model", template, seed=int(objective == "KTO"))
        self.reference_path = tiny_model(root / "ref", template, seed=int(objective != "KTO"))
        self.tokenizer = AutoTokenizer.from_pretrained(self.path)
        self.tokenizer.pad_token = "<|endoftext|>"
        data = write_jsonl(root / "data.jsonl", *records)
        self.run: RunConfig = run_config(
            root,
            objective=objective,
            preference=SETTINGS.model_dump(),
            sequence_length=LENGTH,
            eval_fraction=0.0,
        )
        build_pairs(self.run, [("data.jsonl", data)], self.tokenizer, 512, root / "data", "hash")
        self.records = [
            as_messages(r) if chat and isinstance(r.get("prompt"), str) else r for r in records
        ]

    def model(self, adapter: bool = False) -> Any:
        """The one that learns, perhaps by an adapter that has learned something already."""
        import torch
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(self.path, dtype=torch.float32)
        if not adapter:
            return base
        from finetune_trainer.lora import add_adapter

        torch.manual_seed(3)
        run = run_config(self.root, tuning="LoRA", lora=LORA)
        assert run.lora is not None
        adapted = add_adapter(base, run, run.lora)
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.05)
        return adapted

    def trainer(self, adapter: bool = False) -> Any:
        """TRL's."""
        import torch
        from datasets import Dataset
        from transformers import AutoModelForCausalLM

        shared = {
            "output_dir": str(self.root / "trl"),
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "per_device_train_batch_size": COUNT,
            "max_length": LENGTH,
            "beta": SETTINGS.beta,
        }
        model, data = self.model(), Dataset.from_list(self.records)
        if self.objective == "ORPO":
            from trl.experimental.orpo import ORPOConfig, ORPOTrainer

            arguments = ORPOConfig(**shared, disable_dropout=True)
            return ORPOTrainer(
                model, arguments, train_dataset=data, processing_class=self.tokenizer
            )
        if adapter:
            import peft

            more: dict[str, Any] = {
                "peft_config": peft.LoraConfig(
                    r=LORA["rank"],
                    lora_alpha=LORA["alpha"],
                    target_modules="all-linear",
                    task_type="CAUSAL_LM",
                )
            }
        else:
            more = {
                "ref_model": AutoModelForCausalLM.from_pretrained(
                    self.reference_path, dtype=torch.float32
                )
            }
        more |= {"train_dataset": data, "processing_class": self.tokenizer}
        if self.objective == "KTO":
            from trl import KTOConfig, KTOTrainer

            weights = SETTINGS.model_dump(exclude={"beta"})
            trainer = KTOTrainer(model, args=KTOConfig(**shared, **weights), **more)
        else:
            from trl import DPOConfig, DPOTrainer

            trainer = DPOTrainer(model, args=DPOConfig(**shared), **more)
        if adapter:  # an adapter that TRL is given would be its reference too
            learned = {
                name: value
                for name, value in self.model(adapter).state_dict().items()
                if "lora_" in name
            }
            found = trainer.model.load_state_dict(learned, strict=False)
            assert not found.unexpected_keys
        return trainer

    def ours(self, adapter: bool = False) -> tuple[float, dict[str, float]]:
        """Our loss of all examples in one batch, and its numbers."""
        from types import SimpleNamespace

        import torch
        from transformers import AutoModelForCausalLM

        from finetune_trainer.losses import tensors
        from finetune_trainer.objectives import needs_reference, objective_of
        from finetune_trainer.objectives.data import REFERENCE, Pairs
        from finetune_trainer.objectives.logprobs import LogProbs
        from finetune_trainer.objectives.reference import log_probs

        directory = self.root / "data" / "train"
        run = self.run.model_copy(update={"tuning": "LoRA"} if adapter else {})
        if needs_reference(run):
            base = AutoModelForCausalLM.from_pretrained(self.reference_path, dtype=torch.float32)
            said = log_probs(LogProbs(base, base), Pairs.open(directory))
            np.save(directory / REFERENCE, said)
        objective = objective_of(run)
        data = objective.open(directory)
        items = np.arange(len(data))
        model = self.model(adapter)
        module = objective.module(model, model.get_base_model() if adapter else model)
        alone = SimpleNamespace(device=torch.device("cpu"), sum=lambda values: values)
        constants = objective.constants(module, data, items, [items], alone)
        loss = module(**tensors(objective.batch(data, items), alone.device), **constants)
        taken = objective.taken(module).tolist()
        return loss.item() / objective.divisor(data, items), objective.metrics(taken)


def theirs(trainer: Any) -> tuple[float, dict[str, float]]:
    """TRL's loss of all examples in one batch, and its numbers."""
    trainer.model.train()
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(COUNT)])
    loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
    return loss.item(), {name: values[-1] for name, values in trainer._metrics["train"].items()}


def check(ours: tuple[float, dict[str, float]], trl: tuple[float, dict[str, float]]) -> None:
    assert ours[0] == pytest.approx(trl[0], abs=1e-5)
    expected = {name: trl[1][name] for name in ours[1] if name in trl[1]}
    assert {name: ours[1][name] for name in expected} == pytest.approx(expected, abs=1e-4)
    assert {"rewards/chosen", "rewards/rejected", "rewards/margins"} <= set(expected)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "adapter"])
@pytest.mark.parametrize("objective", ["DPO", "KTO"])
def test_the_loss_is_that_of_trl(objective: str, adapter: bool, tmp_path: Path) -> None:
    records = judgements(COUNT) if objective == "KTO" else [*pairs(COUNT - 1), LONG]
    side = Side(tmp_path, objective, records)
    trl = theirs(side.trainer(adapter))
    check(side.ours(adapter), trl)
    assert objective == "DPO" or trl[1]["kl"] > 0.01  # a test with no distance would tell nothing


def test_the_loss_of_orpo_is_that_of_trl(tmp_path: Path) -> None:
    """On the same tokens: TRL's own tokenising for ORPO differs from that for DPO."""
    import torch

    from finetune_trainer.objectives.data import Pairs

    side = Side(tmp_path, "ORPO", [*pairs(COUNT - 1), LONG])
    trainer, data = side.trainer(), Pairs.open(tmp_path / "data" / "train")
    batch = {}
    for place, name in enumerate(("chosen", "rejected")):
        rows = data.rows(2 * np.arange(COUNT) + place)
        lengths = np.diff(data.starts)[place::2]
        real = np.arange(rows.input_ids.shape[1]) < lengths[:, None]
        labels = np.full(rows.input_ids.shape, -100)
        labels[:, 1:] = rows.of_answers()[:, :-1]
        batch |= {
            f"{name}_input_ids": torch.from_numpy(rows.input_ids),
            f"{name}_attention_mask": torch.from_numpy(real.astype(np.int64)),
            f"{name}_labels": torch.from_numpy(labels),
        }
    loss, metrics = trainer.get_batch_loss_metrics(trainer.model, batch)
    check(side.ours(), (loss.item(), metrics))


@pytest.mark.parametrize(
    ("objective", "chat", "records"),
    [
        ("DPO", True, [*pairs(3), LONG]),
        ("DPO", True, [CONVERSATION]),
        ("DPO", False, [*pairs(3), LONG, {"prompt": "a<", "chosen": "answer>", "rejected": "b"}]),
        ("KTO", True, judgements(4)),
        ("KTO", False, judgements(4)),
    ],
)
def test_the_tokens_are_those_of_trl(
    objective: str, chat: bool, records: list[Any], tmp_path: Path
) -> None:
    from finetune_trainer.objectives.data import Pairs

    side = Side(tmp_path, objective, records, chat)
    data = Pairs.open(tmp_path / "data" / "train")
    trainer = side.trainer()
    batch = trainer.data_collator([*trainer.train_dataset])
    numbers = np.arange(0, 2 * len(data), 2)  # the chosen ones; then the rejected ones
    if objective == "DPO":
        numbers = np.concatenate([numbers, numbers + 1])
    expected = [batch[n] for n in ("input_ids", "completion_mask", "attention_mask")]
    for number, ids, mask, real in zip(numbers, *expected, strict=True):
        stored = data.tokens[data.starts[number] : data.starts[number + 1]]
        wanted = real.bool()
        assert (stored & 0x7FFFFFFF).tolist() == ids[wanted].tolist()
        assert (stored >> 31).tolist() == mask[wanted].tolist()
