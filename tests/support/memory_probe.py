"""Measures what a rank really holds: `python -m memory_probe CASES_JSON DIRECTORY`, by torchrun.

Every case is a run of two optimizer steps of two backward passes each. What a rank holds is looked
at after every backward pass, and just before and after the optimizer changes weights: parameters,
gradients and optimizer state are there, activations are not.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_api.sizes import CPU_BUCKET

HIDDEN, LAYERS, VOCABULARY = 320, 3, 4096


def probe_model(directory: Path) -> None:
    """Write a Llama of 7 million parameters, most of them in matrices above ZeRO-3's threshold."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=1024,
        num_hidden_layers=LAYERS,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(directory)


def storages(tensors: Iterator[Any] | list[Any]) -> dict[int, int]:
    """Bytes by address of every piece of memory under these tensors."""
    import torch

    found = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor) and tensor.device.type == "cpu":
            memory = tensor.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
    found.pop(0, None)
    return found


def alive() -> list[Any]:
    """All tensors that were made since `gc.freeze`, and their gradients."""
    import torch

    gc.collect()
    found = [o for o in gc.get_objects() if isinstance(o, torch.Tensor)]
    return found + [o.grad for o in found if o.is_leaf and o.grad is not None]


def held(engine: Any, before: dict[int, int]) -> dict[str, int]:
    """Bytes by kind, looked at until two looks agree.

    A thread of gloo lets go of the numbers it exchanged a moment after it says that it is done.
    """
    last, found = None, look(engine, before)
    while found != last:
        time.sleep(0.05)
        last, found = found, look(engine, before)
    return found


def look(engine: Any, before: dict[int, int]) -> dict[str, int]:
    """Bytes by kind; `gradients` is all that is neither weight, optimizer nor bucket."""
    zero = engine.deepspeed.optimizer
    parameters = list(engine.deepspeed.module.parameters())
    shards = [getattr(p, "ds_tensor", None) for p in parameters]
    weights = storages([*parameters, *shards])
    masters = [
        tensor
        for name in (
            "single_partition_of_fp32_groups",
            "fp32_groups_flat_partition",
            "fp32_partitioned_groups_flat",
        )
        for tensor in getattr(zero, name, [])
    ]
    state = [t for values in engine.optimizer.state.values() for t in values.values()]
    optimizer = storages([*masters, *state])
    buckets = storages(
        [
            buffer
            for bucket in getattr(zero, "ipg_buckets", {}).values()
            for buffer in (bucket.buffer if isinstance(bucket.buffer, list) else [bucket.buffer])
        ]
    )
    known = before | weights | optimizer | buckets
    bucket = 4 * CPU_BUCKET  # another of its kind, for the numbers of all
    rest = {a: size for a, size in storages(alive()).items() if a not in known and size != bucket}
    return {
        "parameters": sum(weights.values()),
        "optimizer": sum(optimizer.values()),
        "buckets": sum(buckets.values()),
        "gradients": sum(rest.values()),
    }


def measure(run: Any, gang: Any) -> dict[str, int]:
    """What this rank holds at most during two steps of two micro-batches."""
    import torch

    from finetune_trainer.engine import build

    earlier = alive()  # of the case before; kept, so that no address is used again
    before = storages(earlier)
    gc.freeze()  # nothing of before is looked at, which saves seconds each time
    engine = build(run, gang)
    ids = torch.arange(16)[None] % VOCABULARY
    batch = {
        "input_ids": ids,
        "position_ids": torch.arange(16)[None],
        "keep": torch.arange(15),
        "targets": ids[:, 1:],
    }
    after_backward: list[dict[str, int]] = []
    in_step: list[dict[str, int]] = []
    inner = engine.optimizer.step

    def step(*args: Any, **kwargs: Any) -> Any:
        in_step.append(held(engine, before))
        done = inner(*args, **kwargs)
        in_step.append(held(engine, before))
        return done

    engine.optimizer.step = step  # type: ignore[method-assign]
    for _ in range(4):
        engine.deepspeed.backward(engine.deepspeed(**batch), scale_wrt_gas=False)
        after_backward.append(held(engine, before))
        engine.deepspeed.step()
    engine.deepspeed.destroy()
    engine.keep_alive = None  # else the next model is sharded while it is loaded
    del earlier
    kinds = ("parameters", "gradients", "optimizer")
    return {kind: max(found[kind] for found in after_backward) for kind in kinds} | {
        "total": max(sum(found[kind] for kind in kinds) for found in after_backward + in_step)
    }


def main(cases: str, directory: str) -> None:
    """One rank."""
    import finetune_trainer.engine  # noqa: F401 (so that what it imports is frozen with the rest)
    from finetune_api.run_config import RunConfig
    from finetune_trainer.ranks import join

    gc.freeze()
    gang, results = None, []
    for data in json.loads(Path(cases).read_text()):
        run = RunConfig.model_validate(data)
        gang = gang or join(run)
        results.append(measure(run, gang))
    Path(directory, f"{gang.rank if gang else 0}.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(0)
