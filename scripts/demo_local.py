"""`make demo LOCAL=1`: the same manifest's three stages on this machine, without a cluster.

The operator's own planning turns job and profile into `run.json`; two workers become two
launchers on this machine, as the operator would start them in two pods.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import yaml
from demo_report import answer, losses

from finetune_api.profile import FineTuneProfile
from finetune_api.resolve import Paths, run_config
from finetune_api.run_config import WORK_PREPARE_FACTS, WORK_TRAIN_FACTS, RunConfig
from finetune_api.snapshot import Refused, make_snapshot
from finetune_api.v1alpha1 import FineTuneJob

PORT = 29511


class StageError(Exception):
    """A stage failed; what it printed stands above."""


def run(root: Path, example: Path, build: Path, model: Path, dataset: Path, question: str) -> int:
    """All three stages; the result lies in build/demo-local/."""
    base = build.parent / "demo-local"
    shutil.rmtree(base, ignore_errors=True)
    claim = base / "claims" / "demo-data"
    claim.mkdir(parents=True)
    shutil.copy(model, claim / "SmolLM2-135M-Instruct.gguf")
    shutil.copy(dataset, claim / "stdlib-chat.jsonl")
    config = resolve(example, base)
    run_json = base / "run.json"
    run_json.write_text(config.model_dump_json(by_alias=True, indent=1))
    venv = subprocess.run(
        [root / "scripts" / "venv", "trainer-test"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    environment = trainer_environment(root, Path(venv))
    python = f"{venv}/bin/python"
    times = {}
    for stage in ("prepare", "launch", "export"):
        print(f"==> {stage}", flush=True)
        started = time.monotonic()
        workers = config.num_nodes if stage == "launch" else 1
        command = [python, "-m", f"finetune_trainer.{stage}", str(run_json)]
        run_stage(command, [environment | rendezvous(config, rank) for rank in range(workers)])
        times[stage] = time.monotonic() - started
    ask = [python, "-m", "finetune_trainer.ask", f"{config.work_dir}/model", question]
    ask += ["--adapter", config.output_dir]
    done = subprocess.run(ask, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    report(config, json.loads(done.stdout), question, times)
    return 0


def resolve(example: Path, base: Path) -> RunConfig:
    """Job and profile as the operator resolves them, with paths of this machine."""
    job = FineTuneJob.parse(yaml.safe_load((example / "job.yaml").read_text()))
    profile = FineTuneProfile.parse(yaml.safe_load((example / "profile.yaml").read_text()))
    snapshot = make_snapshot(job.spec, {str(job.spec.profile): profile.spec}, "none")
    if isinstance(snapshot, Refused):
        raise StageError(snapshot.message)
    paths = Paths(str(base / "work"), str(base / "claims"), str(base / "dataset"))
    return run_config("local", "python-helper", "local", snapshot, paths)


def trainer_environment(root: Path, venv: Path) -> dict[str, str]:
    """What the operator sets in a pod, for this machine."""
    return os.environ | {
        "PATH": f"{venv / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": f"{root / 'api'}:{root / 'trainer_image'}",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }


def rendezvous(config: RunConfig, rank: int) -> dict[str, str]:
    """What torchrun reads."""
    return {
        "PET_NNODES": str(config.num_nodes),
        "PET_NPROC_PER_NODE": str(config.num_proc_per_node),
        "PET_NODE_RANK": str(rank),
        "PET_MASTER_ADDR": "127.0.0.1",
        "PET_MASTER_PORT": str(PORT),
    }


def run_stage(command: list[str], environments: list[dict[str, str]]) -> None:
    """Run a stage's processes to their end."""
    processes = [subprocess.Popen(command, env=environment) for environment in environments]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise StageError(f"`{' '.join(command[1:3])}` ended with exit code {max(codes)}, see above")


def report(
    config: RunConfig, answers: dict[str, str], question: str, times: dict[str, float]
) -> None:
    """The end of the story."""
    facts = json.loads((Path(config.work_dir) / WORK_TRAIN_FACTS).read_text())
    prepared = json.loads((Path(config.work_dir) / WORK_PREPARE_FACTS).read_text())
    before, after = facts.get("evalLossBefore"), facts.get("evalLossAfter")
    print(f"\nSucceeded on {prepared['examples']} examples, without a cluster")
    print(f"  loss on held-out examples: {losses(before, after)}")
    print(f"  stages: {', '.join(f'{name} {s:.0f} s' for name, s in times.items())}")
    print(f"  adapter: {config.output_dir}\n\nQuestion: {question}")
    print(answer("base model", answers["base"]))
    print(answer("tuned model", answers["tuned"]))
