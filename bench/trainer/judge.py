"""What neither side says about itself: held-out losses, and the machine's peak.

judge.py loss MODEL EXAMPLES ADAPTER... | judge.py peak
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch


@torch.no_grad()
def losses(model_dir: str, examples: str, adapters: list[str]) -> dict[str, float]:
    """Mean loss over the learned tokens, one example at a time, in float32; "" is the base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    told = json.loads(Path(examples).read_text())
    found = {}
    for adapter in ["", *adapters]:
        model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        if adapter:
            model = PeftModel.from_pretrained(model, adapter)
        summed, count = 0.0, 0
        for example in told:
            ids = torch.tensor([example["input_ids"]])
            labels = torch.tensor(example["labels"][1:])
            logits = model(input_ids=ids).logits[0, :-1]
            nats = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
            summed, count = summed + nats.item(), count + int((labels != -100).sum())
        found[adapter] = summed / count
    return found


def peak(seconds: float = 3.0) -> float:
    """Operations per second of a bfloat16 matrix product on this process's core: the median."""
    torch.set_num_threads(1)
    a, b = (torch.randn(2048, 2048).bfloat16() for _ in range(2))
    a @ b
    times: list[float] = []
    while sum(times) < seconds:
        began = time.process_time()
        a @ b
        times.append(time.process_time() - began)
    return 2 * 2048**3 / sorted(times)[len(times) // 2]


if __name__ == "__main__":
    if sys.argv[1] == "peak":
        print(json.dumps(peak()))
    else:
        print(json.dumps(losses(sys.argv[2], sys.argv[3], sys.argv[4:])))
