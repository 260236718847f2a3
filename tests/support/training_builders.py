"""Work directories for tests of training, and several runs in one start of torchrun.

`python -m training_builders CASES_JSON` is a rank: importing torch and DeepSpeed takes 10 s here,
so a gang is started once for many cases. Each case leaves what `train` left: losses, result, facts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from trainer_builders import VOCABULARY_SIZE, tiny_model

from finetune_api.run_config import RunConfig
from finetune_trainer.batches import Sequences

LENGTH = 32
os.environ.setdefault("DS_ACCELERATOR", "cpu")  # for tests that import deepspeed themselves


def arrays(
    count: int, seed: int, learned: tuple[int, int] = (4, 12), length: int = LENGTH
) -> dict[str, np.ndarray[Any, Any]]:
    """`count` packed sequences of random tokens, two examples and padding in each.

    The tokens of an example are a line `a, a+d, a+2d ...` modulo the vocabulary, so that there is
    something to learn. `learned`: least and most tokens learned of each example.
    """
    made = np.random.default_rng(seed)
    ids = np.full((count, length), 2, dtype=np.int32)
    labels = np.full((count, length), -100, dtype=np.int32)
    positions = np.zeros((count, length), dtype=np.int32)
    for row in range(count):
        first = int(made.integers(length // 3, length // 2))
        second = int(made.integers(length // 4, length - first + 1))
        ends = ((0, first), (first, first + second))
        for begin, end in ends:
            start, stride = made.integers(3, VOCABULARY_SIZE, 2)
            ids[row, begin:end] = (start + stride * np.arange(end - begin)) % VOCABULARY_SIZE
            positions[row, begin:end] = np.arange(end - begin)
            wanted = min(int(made.integers(learned[0], learned[1] + 1)), end - begin - 1)
            labels[row, end - wanted : end] = ids[row, end - wanted : end]
        padding = length - first - second
        positions[row, first + second :] = np.arange(padding)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def sequences(data: dict[str, Any]) -> Sequences:
    """The same data as training reads them. Padding becomes an example of which nothing is learned.

    Args:
        data: `input_ids`, `labels` and `position_ids`, all [sequences, length].
    """
    ids, positions = data["input_ids"], data["position_ids"]
    learned = (data["labels"] != -100) & (positions != 0)
    stored = ids.astype(np.uint32) | (learned.astype(np.uint32) << np.uint32(31))
    starts = np.flatnonzero(positions.reshape(-1) == 0)
    firsts = np.searchsorted(starts, np.arange(len(ids) + 1) * ids.shape[1])
    return Sequences(stored.reshape(-1), np.append(starts, ids.size), firsts)


def save_sequences(directory: Path, data: dict[str, Any]) -> None:
    """Leave the data in the files that prepare would write."""
    made = sequences(data)
    directory.mkdir(parents=True, exist_ok=True)
    made.tokens.tofile(directory / "tokens.bin")
    np.save(directory / "examples.npy", made.examples)
    np.save(directory / "sequences.npy", made.sequences)


def dense(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What prepare has written as `input_ids`, `labels` and `position_ids`, [sequences, width]."""
    data = Sequences.open(directory)
    stored, positions = data.read(np.arange(len(data)))
    ids = (stored & ((1 << 31) - 1)).astype(np.int32)
    labels = np.where(stored >= 1 << 31, ids, -100)
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def write_work(
    work: Path, train: dict[str, Any], held_out: dict[str, Any] | None, total_steps: int
) -> None:
    """What prepare leaves: a tiny model (made once for all of a directory), data and facts."""
    shared = work.parent / "tiny-model"
    if not shared.exists():
        tiny_model(shared, tie=True)
    shutil.copytree(shared, work / "model", dirs_exist_ok=True)
    for split, data in (("train", train), ("eval", held_out)):
        if data is not None:
            save_sequences(work / "data" / split, data)
    sequences = len(train["input_ids"])
    facts = {
        "parameters": 115_000,
        "architecture": "LlamaForCausalLM",
        "format": "Chat",
        "examples": 2 * sequences,
        "evalExamples": 0 if held_out is None else 2 * len(held_out["input_ids"]),
        "tokens": 28 * sequences,
        "trainedTokens": int((train["labels"] != -100).sum()),
        "sequences": sequences,
        "truncatedExamples": 0,
        "packingEfficiency": 28 / 32,
        "totalSteps": total_steps,
    }
    (work / "prepare.json").write_text(json.dumps(facts))


def run_config(work: Path, **changes: Any) -> RunConfig:
    """A run of 6 steps of 4 sequences in float32 on CPU; `changes` by the names of its fields.

    Names of `training` are found there: `run_config(work, micro_batch_size=4, zero_stage=3)`.
    """
    training = {
        "epochs": 1.0,
        "max_steps": None,
        "learning_rate": 1e-2,
        "schedule": "Cosine",
        "warmup_fraction": 0.3,
        "weight_decay": 0.1,
        "max_grad_norm": 0.5,
        "global_batch_size": 4,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 4,
        "sequence_length": LENGTH,
        "packing": True,
        "precision": "FP32",
        "gradient_checkpointing": False,
        "seed": 7,
    }
    run: dict[str, Any] = {
        "namespace": "team-a",
        "name": "tiny",
        "uid": "5f0c6f0e-0000-4000-8000-000000000000",
        "model": {"uri": "hf://someone/tiny", "revision": "abc"},
        "dataset": {"uri": "pvc://data/train.jsonl", "path": "/data/train.jsonl"},
        "dataset_format": "Auto",
        "eval_fraction": 0.1,
        "objective": "SFT",
        "tuning": "Full",
        "lora": None,
        "num_nodes": 1,
        "num_proc_per_node": 1,
        "zero_stage": 1,
        "accelerator": "CPU",
        "work_dir": str(work),
        "output_uri": "pvc://models/tiny",
        "output_dir": str(work / "output"),
        "merge": False,
    }
    for name, value in changes.items():
        (training if name in training else run)[name] = value
    if training["max_steps"] is not None:
        training["epochs"] = None
    processes = run["num_nodes"] * run["num_proc_per_node"]
    if "gradient_accumulation_steps" not in changes:
        share = training["global_batch_size"] // processes
        training["gradient_accumulation_steps"] = share // training["micro_batch_size"]
    return RunConfig.model_validate(run | {"training": training})


LORA = {"rank": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["all-linear"]}


def examples(data: dict[str, Any], row: int) -> list[tuple[np.ndarray[Any, Any], Any]]:
    """Tokens and labels of every example of a packed sequence, and of its padding."""
    starts = np.flatnonzero(data["position_ids"][row] == 0)
    ends = [*starts[1:], data["position_ids"].shape[1]]
    return [
        (data["input_ids"][row, a:b], data["labels"][row, a:b])
        for a, b in zip(starts, ends, strict=True)
    ]


def summed_loss(model: Any, tokens: Any, labels: Any) -> tuple[Any, int]:
    """Summed cross entropy of one example by itself, and the number of its learned tokens."""
    import torch

    ids = torch.tensor(tokens[None].astype(np.int64))
    targets = torch.tensor(labels[1:].astype(np.int64))
    logits = model(input_ids=ids).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum")
    return loss, int((targets != -100).sum())


def reference_losses(run: RunConfig, data: dict[str, Any], total_steps: int) -> list[float]:
    """The losses of the same run by a plain loop: one process, one example at a time."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_trainer.schedule import learning_rate

    told = run.training
    torch.manual_seed(told.seed)
    model = AutoModelForCausalLM.from_pretrained(Path(run.work_dir) / "model", dtype=torch.float32)
    if run.lora:
        lora = {"r": run.lora.rank, "lora_alpha": run.lora.alpha, "target_modules": "all-linear"}
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": told.weight_decay},
            {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
        eps=1e-8,
    )
    count, losses, order = len(data["input_ids"]), [], []
    for epoch in range(-(-total_steps * told.global_batch_size // count)):
        order += list(np.random.Generator(np.random.PCG64([told.seed, epoch])).permutation(count))
    for step in range(total_steps):
        batch = order[step * told.global_batch_size :][: told.global_batch_size]
        found = [summed_loss(model, *example) for row in batch for example in examples(data, row)]
        loss = sum(f[0] for f in found) / sum(f[1] for f in found)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, told.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(
                step, total_steps, told.learning_rate, told.schedule, told.warmup_fraction
            )
        optimizer.step()
        losses.append(loss.item())
    return losses


@dataclass
class Case:
    """One run of a gang."""

    run: RunConfig
    patches: dict[str, Any] = field(default_factory=dict)
    """Values that replace some in DeepSpeed's `zero_optimization`."""

    @property
    def work(self) -> Path:
        """Where it leaves its result."""
        return Path(self.run.work_dir)

    @property
    def losses(self) -> list[float]:
        """Of all steps."""
        return [line["loss"] for line in self.lines if "loss" in line]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """All lines of `losses.jsonl`."""
        text = (self.work / "losses.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]


def environment(**more: str) -> dict[str, str]:
    """For a process that trains: one thread, our packages, no cluster."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("KUBEFLOW_", "PET_"))}
    path = [p for p in sys.path if p]
    return kept | {
        "PYTHONPATH": os.pathsep.join(path),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        **more,
    }


def torchrun(processes: int, *command: str, timeout: float = 600) -> str:
    """Run `python -m command...` as a gang on this machine; returns what it printed."""
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [sys.executable, *start, "-m", *command],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    output = done.stdout + done.stderr
    if done.returncode:
        raise AssertionError(output)
    return output


def run_cases(directory: Path, processes: int, cases: list[Case], timeout: float = 240) -> None:
    """Train all cases with one gang, in this order."""
    file = directory / f"cases-{processes}.json"
    file.write_text(json.dumps([[c.run.model_dump(mode="json"), c.patches] for c in cases]))
    torchrun(processes, "training_builders", str(file), timeout=timeout)


def main(file: str) -> None:
    """One rank: train all cases of a file."""
    from finetune_trainer import engine
    from finetune_trainer.ranks import join
    from finetune_trainer.report import NullReporter
    from finetune_trainer.train import Watch, train

    original, gang = engine.deepspeed_config, None
    for run_data, patches in json.loads(Path(file).read_text()):
        run = RunConfig.model_validate(run_data)

        def patched(run: RunConfig, patches: dict[str, Any] = patches) -> dict[str, Any]:
            config = original(run)
            return config | {"zero_optimization": config["zero_optimization"] | patches}

        engine.deepspeed_config = patched
        gang = gang or join(run)
        train(run, gang, Watch(NullReporter()))


if __name__ == "__main__":
    main(sys.argv[1])
    os._exit(0)
