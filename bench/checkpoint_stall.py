"""How long a checkpoint holds up training, over how long a synchronous save of its state takes.

All weights of SmolLM2-135M, ZeRO-2, two ranks: 1.6 GB of state. Every other checkpoint is saved at
once, the others in the background; the last line printed is JSON. Part of `make bench-trainer`.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from trainer_speed import BUILD, HERE, RANKS, environment, prepared  # type: ignore[import-not-found]

from finetune_api.run_config import RunConfig

STEPS = 9
PORT = 29532


def configuration(work: Path, prepared_work: Path) -> RunConfig:
    """Full tuning on the data of the benchmark, a checkpoint after every step."""
    told = json.loads((prepared_work / "run.json").read_text())
    told |= {"tuning": "Full", "lora": None, "workDir": str(work), "outputDir": str(work / "out")}
    told["training"] |= {"maxSteps": STEPS, "microBatchSize": 1, "globalBatchSize": RANKS}
    told["checkpoints"] = {"everySteps": 1, "keep": 1}
    return RunConfig.model_validate(told)


def main() -> None:
    """Measure and print."""
    source = prepared(fresh=False)
    work = BUILD / "trainer-stall"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    for name in ("model", "data"):
        (work / name).symlink_to(source / name)
    facts = json.loads((source / "prepare.json").read_text())
    facts |= {"totalSteps": STEPS, "resolved": None, "estimate": None}
    (work / "prepare.json").write_text(json.dumps(facts))
    (work / "run.json").write_text(configuration(work, source).model_dump_json(by_alias=True))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS)]
    command += ["--master-port", str(PORT), str(HERE / "stall_rank.py"), str(work)]
    with (work / "log").open("w") as log:
        done = subprocess.run(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
    if done.returncode:
        raise SystemExit(f"training failed:\n{(work / 'log').read_text()[-3000:]}")
    ranks: list[dict[str, Any]] = [
        json.loads((work / f"{rank}.json").read_text()) for rank in range(RANKS)
    ]
    # The slower rank counts: training goes on when both do. The first of each kind is a rehearsal.
    found = {
        kind: statistics.median(max(rank[kind][i] for rank in ranks) for i in range(1, count))
        for kind in ("background", "synchronous")
        for count in [len(ranks[0][kind])]
    }
    print(
        json.dumps(
            {
                "checkpoint_stall_ratio": found["background"] / found["synchronous"],
                "checkpoint_stall_seconds": found["background"],
                "synchronous_save_seconds": found["synchronous"],
            }
        )
    )


if __name__ == "__main__":
    main()
