"""Runs that are stopped, resumed and disturbed: many in one start of torchrun.

`python -m checkpoint_builders SCENARIOS_JSON` is a rank, as in `training_builders`.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training_builders import torchrun

from finetune_api.run_config import RunConfig


@dataclass
class Scenario:
    """One attempt of one run."""

    run: RunConfig
    asked_after: int | None = None
    """Step after which one process is asked to stop, as by SIGTERM."""
    asked_rank: int = 0
    diverges_at: int | None = None
    """Step that all processes are told to take for a diverged one."""
    evaluations: list[float] | None = None
    """What evaluations are to give, instead of evaluating."""

    @property
    def work(self) -> Path:
        """Its work directory."""
        return Path(self.run.work_dir)

    @property
    def losses(self) -> dict[int, float]:
        """Loss by step, as logged."""
        lines = (json.loads(line) for line in (self.work / "losses.jsonl").read_text().splitlines())
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    @property
    def ended(self) -> dict[str, Any]:
        """Class and message of a failure, or the facts; with what was logged."""
        found: dict[str, Any] = json.loads((self.work / "ended.json").read_text())
        return found

    @property
    def checkpoints(self) -> list[str]:
        """Names of what is in `checkpoints`."""
        place = self.work / "checkpoints"
        return sorted(p.name for p in place.iterdir()) if place.is_dir() else []


def run_scenarios(directory: Path, processes: int, name: str, scenarios: list[Scenario]) -> None:
    """Run all of them with one gang, in this order."""
    file = directory / f"scenarios-{name}.json"
    told = [asdict(s) | {"run": s.run.model_dump(mode="json")} for s in scenarios]
    file.write_text(json.dumps(told))
    torchrun(processes, "checkpoint_builders", str(file))


def main(file: str) -> None:
    """One rank: all scenarios of a file."""
    from finetune_trainer.ranks import join

    gang = None
    for told in json.loads(Path(file).read_text()):
        scenario = Scenario(**told | {"run": RunConfig.model_validate(told["run"])})
        gang = gang or join(scenario.run)
        ended = _one(scenario, gang)
        if gang.is_lead:
            (scenario.work / "ended.json").write_text(json.dumps(ended))
        gang.barrier()


def _one(scenario: Scenario, gang: Any) -> dict[str, Any]:
    from finetune_trainer import evaluate, logs, train
    from finetune_trainer.errors import DivergedError, TrainerError
    from finetune_trainer.report import NullReporter
    from finetune_trainer.stopping import StopRequest

    stop = StopRequest()

    class Watch(train.Watch):
        def after_step(self, step: Any) -> None:
            super().after_step(step)
            if step.step == scenario.diverges_at:
                raise DivergedError(f"training diverged at step {step.step}")
            if step.step == scenario.asked_after and gang.rank == scenario.asked_rank:
                stop.on_signal(15, None)

    logs.set_up()
    logs.forget()
    original, answers = evaluate.evaluate, list(scenario.evaluations or [])
    if scenario.evaluations:
        evaluate.evaluate = lambda *args: answers.pop(0)
    try:
        facts = train.train(scenario.run, gang, Watch(NullReporter()), stop)
    except TrainerError as exc:
        return {"class": exc.failure_class, "message": str(exc), "log": logs.tail()}
    finally:
        evaluate.evaluate = original
    return {"facts": facts.to_json_dict(), "log": logs.tail()}


if __name__ == "__main__":
    main(sys.argv[1])
    sys.stdout.flush()
    os._exit(0)
