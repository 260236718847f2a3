"""`make bench-trainer`: our trainer and TRL's SFTTrainer, in turn, on this machine.

The same model, examples, masks, LoRA, ZeRO stage, precision, optimizer, ranks and threads, both
started by torchrun. Writes build/bench/trainer.json; `--quick` is for development. The machine
should have nothing else to do: figures are of the wall clock, with the processors' beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from finetune_api.run_config import RunConfig
from finetune_trainer.batches import IGNORED, Sequences
from finetune_trainer.data.examples import LEARNED
from finetune_trainer.data.store import EXAMPLES, SEQUENCES, TOKENS

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "bench"
HERE = ROOT / "bench" / "trainer"
RANKS = 2
PORT = 29531
SEED = 7
"""Of the first round; every round has its own, for both sides."""
FLOP_PER_TOKEN = 4 * 134_515_008
"""LoRA: two operations per weight forward, two for the gradient of what goes into each layer."""
HELD_OUT = 6
"""Packed sequences on which the losses are compared afterwards; neither side trains on them."""


def configuration(work: Path, steps: int, seed: int = SEED) -> dict[str, Any]:
    """`run.json`: SmolLM2-135M, LoRA of rank 8 on all linear layers, ZeRO-2, 2 x 512 per rank."""
    fetch = subprocess.run(
        [ROOT / "scripts" / "fetch-smollm2"], check=True, stdout=subprocess.PIPE, text=True
    )
    return {
        "namespace": "bench",
        "name": "bench",
        "uid": "00000000-0000-4000-8000-000000000000",
        "model": {"uri": "pvc://bench/SmolLM2-135M-Instruct.gguf", "path": fetch.stdout.strip()},
        "dataset": {"uri": "pvc://bench/train.jsonl", "path": str(work / "train.jsonl")},
        "datasetFormat": "Chat",
        "evalFraction": 0.0,
        "objective": "SFT",
        "tuning": "LoRA",
        "lora": {"rank": 8, "alpha": 16, "dropout": 0.0, "targetModules": ["all-linear"]},
        "training": {
            "epochs": None,
            "maxSteps": steps,
            "learningRate": 1e-3,
            "schedule": "Constant",
            "warmupFraction": 0.0,
            "weightDecay": 0.0,
            "maxGradNorm": 1.0,
            "globalBatchSize": 2 * RANKS,
            "microBatchSize": 2,
            "gradientAccumulationSteps": 1,
            "sequenceLength": 512,
            "packing": True,
            "precision": "BF16",
            "gradientCheckpointing": False,
            "seed": seed,
        },
        "numNodes": 1,
        "numProcPerNode": RANKS,
        "zeroStage": 2,
        "accelerator": "CPU",
        "workDir": str(work),
        "outputUri": "pvc://bench/output",
        "outputDir": str(work / "output"),
        "merge": False,
    }


def environment() -> dict[str, str]:
    """Of both sides: one thread per rank, no network."""
    return os.environ | {
        "PYTHONPATH": f"{ROOT / 'api'}:{ROOT / 'trainer_image'}:{HERE}",
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TERMINATION_LOG": str(BUILD / "trainer-termination"),
    }


def python(*arguments: str | Path) -> str:
    """Run a program to its end; returns what it printed."""
    done = subprocess.run(
        [sys.executable, *arguments], env=environment(), stdout=subprocess.PIPE, text=True
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, arguments[:2]))} failed:\n{done.stdout[-3000:]}")
    return done.stdout


def prepared(fresh: bool) -> Path:
    """The work directory with model and data, as prepare leaves it; kept between runs."""
    work = BUILD / "trainer-work"
    if fresh:
        shutil.rmtree(work, ignore_errors=True)
    if not (work / "examples.json").exists():
        work.mkdir(parents=True, exist_ok=True)
        build = ROOT / "examples" / "01-first-job" / "build_dataset.py"
        python(build, "--output", work / "train.jsonl")
        told = RunConfig.model_validate(configuration(work, 1))
        (work / "run.json").write_text(told.model_dump_json(by_alias=True))
        python("-m", "finetune_trainer.prepare", work / "run.json")
        hold_out(work)
    return work


def hold_out(work: Path) -> None:
    """Take the last packed sequences away from both sides; write the other side's examples."""
    directory = work / "data" / "train"
    data = Sequences.open(directory)
    kept = len(data) - HELD_OUT
    for name, rows in (("held-out", range(kept, len(data))), ("examples", range(kept))):
        (work / f"{name}.json").write_text(json.dumps(examples(data, rows)))
    starts, sequences = np.array(data.examples), np.array(data.sequences[: kept + 1])
    starts = starts[: sequences[-1] + 1]
    tokens = np.array(data.tokens[: starts[-1]])
    tokens.tofile(directory / TOKENS)
    np.save(directory / EXAMPLES, starts)
    np.save(directory / SEQUENCES, sequences)


def examples(data: Sequences, rows: Iterable[int]) -> list[dict[str, list[int]]]:
    """What was packed, one by one: the same tokens and masks for the other side."""
    found = []
    for row in rows:
        starts = data.examples[data.sequences[row] : data.sequences[row + 1] + 1]
        for a, b in pairwise(starts.tolist()):
            stored = np.array(data.tokens[a:b])
            ids = (stored & np.uint32(LEARNED - 1)).astype(np.int64)
            labels = np.where(stored >= LEARNED, ids, IGNORED)
            found.append({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return found


def torchrun(name: str, script: str, config: dict[str, Any]) -> dict[str, Any]:
    """Run both ranks of a side; returns what they noted."""
    out = BUILD / "trainer" / name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "config.json").write_text(json.dumps(config | {"out": str(out)}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    command += ["--master-port", str(PORT), str(HERE / script), str(out / "config.json")]
    began = time.time()
    with (out / "log").open("w") as log:
        done = subprocess.run(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{(out / 'log').read_text()[-3000:]}")
    ranks = [json.loads((out / f"{rank}.json").read_text()) for rank in range(RANKS)]
    found = summary(ranks, began) | {"result": str(out / "result")}
    print(f"{name}: {json.dumps({k: v for k, v in found.items() if k != 'result'})}", flush=True)
    return found


def summary(ranks: list[dict[str, Any]], began: float) -> dict[str, Any]:
    """Figures of one run; the first step and one whose memory was measured do not count."""
    ends = [max(rank["steps"][i]["time"] for rank in ranks) for i in range(len(ranks[0]["steps"]))]
    counted = range(1, len(ends) - ("tensorBytes" in ranks[0]))
    tokens = [sum(rank["tokens"][i] for rank in ranks) for i in counted]
    seconds = [ends[i] - ends[i - 1] for i in counted]
    cpu = [
        sum(rank["steps"][i]["cpu"] - rank["steps"][i - 1]["cpu"] for rank in ranks)
        for i in counted
    ]
    found: dict[str, Any] = {
        "steps": len(ends),
        "start_to_first_step_seconds": ends[0] - began,
        "tokens_per_step": statistics.mean(tokens),
        "tokens_per_second": sum(tokens) / sum(seconds),
        "tokens_per_cpu_second": RANKS * sum(tokens) / sum(cpu),
        "seconds_per_step": seconds,
        "peak_rss_bytes": max(rank["rssBytes"] for rank in ranks),
    }
    if "tensorBytes" in ranks[0]:
        found["peak_tensor_bytes"] = max(rank["tensorBytes"]["peak"] for rank in ranks)
        found["tensor_bytes_between_steps"] = max(r["tensorBytes"]["before"] for r in ranks)
    if any(ranks[0]["engineSeconds"]):
        inside = sum(rank["engineSeconds"][i] for rank in ranks for i in counted)
        found["loop_overhead"] = RANKS * sum(seconds) / inside - 1
    if "losses" in ranks[0]:
        found["losses"] = ranks[0]["losses"]
    return found


def ours(name: str, work: Path, steps: int, memory: bool, seed: int = SEED) -> dict[str, Any]:
    """A run of our trainer, in a work directory of its own."""
    own = BUILD / "trainer" / f"{name}-work"
    shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True)
    for part in ("model", "data"):
        (own / part).symlink_to(work / part)
    facts = json.loads((work / "prepare.json").read_text())
    (own / "prepare.json").write_text(json.dumps(facts | {"totalSteps": steps}))
    config = configuration(work, steps, seed) | {"workDir": str(own)}
    (own / "run.json").write_text(RunConfig.model_validate(config).model_dump_json(by_alias=True))
    rows = config["training"]["globalBatchSize"] / RANKS
    told = {
        "run": str(own / "run.json"),
        "tokensPerStepAndRank": rows * facts["tokens"] / facts["sequences"],
        "measuredStep": steps if memory else None,
    }
    found = torchrun(name, "our_rank.py", told)
    lines = [json.loads(line) for line in (own / "losses.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return found | {"losses": losses, "result": str(own / "result")}


def trl(
    name: str, work: Path, steps: int, packing: bool, memory: bool, seed: int = SEED
) -> dict[str, Any]:
    """A run of TRL."""
    config = configuration(work, steps, seed)
    told = {
        "model": str(work / "model"),
        "examples": str(work / "examples.json"),
        "training": config["training"],
        "lora": config["lora"],
        "zeroStage": config["zeroStage"],
        "packing": packing,
        "ranks": RANKS,
        "measuredStep": steps if memory else None,
    }
    return torchrun(name, "trl_rank.py", told)


def peak() -> float:
    """FLOP/s of bfloat16 matrix products on all cores of the ranks at once."""
    command = [sys.executable, str(HERE / "judge.py"), "peak"]
    started = [
        subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True)
        for _ in range(RANKS)
    ]
    return sum(float(process.communicate()[0]) for process in started)


def warm(work: Path) -> None:
    """Two steps of each side that do not count.

    Whoever came first would read gigabytes of libraries from the disk. And TRL's side compiles
    DeepSpeed's shared-memory operator at its first start, which ours does not use: the compiler's
    40 s would not be fair in a comparison of starts.
    """
    python("-c", "from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder as B; B().load()")
    ours("ours-warm", work, 2, memory=False)
    trl("trl-warm", work, 2, packing=True, memory=False)


def report(
    mine: list[dict[str, Any]],
    packed: list[dict[str, Any]],
    plain: dict[str, Any],
    losses: dict[str, float],
    flops: float,
) -> dict[str, Any]:
    """The ratios that are promised, and what they come from; medians where there are several."""

    def middle(runs: list[dict[str, Any]], name: str) -> float:
        return float(statistics.median(run[name] for run in runs if name in run))

    def ratio(name: str, other: list[dict[str, Any]]) -> float:
        return middle(mine, name) / middle(other, name)

    return {
        "tokens_per_second_ratio_packed": ratio("tokens_per_second", packed),
        "tokens_per_second_ratio_default": ratio("tokens_per_second", [plain]),
        "tokens_per_cpu_second_ratio_packed": ratio("tokens_per_cpu_second", packed),
        "tokens_per_cpu_second_ratio_default": ratio("tokens_per_cpu_second", [plain]),
        "start_to_first_step_ratio": ratio("start_to_first_step_seconds", packed),
        "loop_overhead": middle(mine, "loop_overhead"),
        "peak_tensor_bytes_ratio": ratio("peak_tensor_bytes", packed),
        "checkpoint_stall_ratio": checkpoint_stall(),
        "held_out_loss": {
            "before": losses[""],
            "ours": [losses[run["result"]] for run in mine],
            "trl_packed": [losses[run["result"]] for run in packed],
        },
        "matmul_peak_flops": flops,
        "fraction_of_matmul_peak": {
            "ours": middle(mine, "tokens_per_second") * FLOP_PER_TOKEN / flops,
            "trl_packed": middle(packed, "tokens_per_second") * FLOP_PER_TOKEN / flops,
        },
        "ours": mine,
        "trl_packed": packed,
        "trl_default": plain,
    }


def checkpoint_stall() -> float:
    """Seconds that a checkpoint holds up training, over those of a synchronous save."""
    told: dict[str, float] = json.loads(
        python(ROOT / "bench" / "checkpoint_stall.py").splitlines()[-1]
    )
    return told["checkpoint_stall_ratio"]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few steps, each side once")
    parser.add_argument("--seeds", type=int, default=2, help="rounds, each with a seed of its own")
    parser.add_argument("--fresh", action="store_true", help="prepare model and data anew")
    options = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    work = prepared(options.fresh)
    steps, rounds = (3, 1) if options.quick else (12, options.seeds)
    warm(work)
    flops = peak()
    mine, packed = [], []
    plain: dict[str, Any] = {}
    for number in range(rounds):
        last = number == rounds - 1
        seed = SEED + number
        mine.append(ours(f"ours-{number}", work, steps, last, seed))
        packed.append(trl(f"trl-packed-{number}", work, steps, True, last, seed))
        if number == 0:
            plain = trl("trl-default", work, steps, packing=False, memory=False, seed=seed)
    results = [run["result"] for run in (*mine, *packed)]
    told = python(HERE / "judge.py", "loss", work / "model", work / "held-out.json", *results)
    found = report(mine, packed, plain, json.loads(told.splitlines()[-1]), flops)
    (BUILD / "trainer.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({k: v for k, v in found.items() if not isinstance(v, list)}, indent=1))


if __name__ == "__main__":
    main()
