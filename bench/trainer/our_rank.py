"""A rank of our trainer, unchanged but for notes on when its steps end: `our_rank.py CONFIG`."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from finetune_trainer import train

CONFIG = json.loads(Path(sys.argv[1]).read_text())


def watched(original: Callable[..., Any]) -> Callable[..., Any]:
    """`train.train` with an engine that notes down its own times."""

    def run(*args: Any) -> Any:
        import finetune_trainer.engine as engine_module  # late: as in the real start

        sys.path.insert(0, str(Path(__file__).parent))
        from marks import Marks

        marks = Marks(
            Path(CONFIG["out"]) / f"{os.environ['RANK']}.json", CONFIG.get("measuredStep")
        )
        build = engine_module.build

        def built(*args: Any, **kwargs: Any) -> Any:
            engine = build(*args, **kwargs)
            watch(engine.deepspeed, marks)
            return engine

        engine_module.build = built
        facts = original(*args)
        marks.write()
        return facts

    return run


def watch(engine: Any, marks: Any) -> None:
    """Note the seconds inside DeepSpeed's engine, and every optimizer step."""

    def timed(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            result = method(*args, **kwargs)
            marks.engine_seconds += time.perf_counter() - began
            return result

        return call

    step = timed(engine.step)

    def stepped(*args: Any, **kwargs: Any) -> Any:
        last = engine.is_gradient_accumulation_boundary()
        result = step(*args, **kwargs)
        if last:
            marks.tokens = CONFIG["tokensPerStepAndRank"]
            marks.step_ended()
        return result

    engine.forward, engine.backward = timed(engine.forward), timed(engine.backward)
    engine.step = stepped


if __name__ == "__main__":
    train.train = watched(train.train)
    code = train.main([CONFIG["run"]])
    sys.stdout.flush()
    os._exit(code)
