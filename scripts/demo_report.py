"""What a person sees of the demonstration: a live line, and a summary at the end."""

from __future__ import annotations

import textwrap
from datetime import datetime
from pathlib import Path
from typing import Any

Json = dict[str, Any]
BAR = 24


def live_line(status: Json) -> str:
    """The state of a job in one line."""
    phase, progress = status.get("phase", "Pending"), status.get("progress")
    if phase != "Running" or not progress:
        return f"{phase:<10} {status.get('message', '')}".rstrip()
    percent = progress["percent"]
    bar = "#" * (percent * BAR // 100)
    parts = [f"{phase:<10} [{bar:<{BAR}}] {percent:3}%"]
    if "step" in progress:
        parts.append(f"step {progress['step']}/{progress.get('totalSteps', '?')}")
    if "loss" in progress:
        parts.append(f"loss {progress['loss']:.3f}")
    if "tokensPerSecond" in progress:
        parts.append(f"{progress['tokensPerSecond']:.0f} tokens/s")
    if "etaSeconds" in progress:
        parts.append(f"about {progress['etaSeconds']} s left")
    if progress.get("activity") not in (None, "Training"):
        parts.append(progress["activity"].lower())
    return "  ".join(parts)


def stage_seconds(status: Json) -> dict[str, float]:
    """How long each stage took."""
    found = {}
    for stage in status.get("stages", []):
        if "completionTime" in stage:
            begin = datetime.fromisoformat(stage["startTime"])
            end = datetime.fromisoformat(stage["completionTime"])
            found[stage["name"]] = (end - begin).total_seconds()
    return found


def losses(before: float | None, after: float | None) -> str:
    """Held-out loss before and after."""
    if before is None or after is None:
        return "no examples were held out"
    return f"{before:.3f} before, {after:.3f} after ({(after - before) / before:+.0%})"


def answer(title: str, text: str) -> str:
    """A model's answer, indented."""
    lines = textwrap.fill(text.strip() or "(nothing)", 92)
    return f"  {title}:\n{textwrap.indent(lines, '    ')}"


def summary(body: Json, answers: Json, question: str, kubeconfig: str, build: Path) -> str:
    """Everything worth knowing after the job."""
    status = body["status"]
    output = status["output"]
    before, after = output.get("evalLossBefore"), output.get("evalLossAfter")
    times = ", ".join(f"{name} {s:.0f} s" for name, s in stage_seconds(status).items())
    name, namespace = body["metadata"]["name"], body["metadata"]["namespace"]
    return "\n".join(
        [
            "",
            f"Succeeded: {name}",
            f"  loss on held-out examples: {losses(before, after)}",
            f"  stages: {times}",
            f"  adapter: {output['uri']}  ({output['bytes'] / 1e6:.1f} MB)",
            f"  digest of its manifest: {output['digest']}",
            f"  copied to {build}/output, the resource to {build}/job.yaml",
            "",
            f"Question: {question}",
            answer("base model", answers["base"]),
            answer("tuned model", answers["tuned"]),
            "",
            "Try next:",
            f"  export KUBECONFIG={kubeconfig}",
            f"  kubectl -n {namespace} get ftj -o wide",
            f"  kubectl -n {namespace} describe ftj {name}",
            "  kubectl explain ftj.spec.training",
            "  edit examples/01-first-job/job.yaml (another name, more steps), kubectl apply -f it",
            "  make cluster-down",
            "",
        ]
    )
