"""Statuses of jobs as full as they get, made up: for counting series and measuring scrapes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from finetune_api.status import PHASES, FineTuneJobStatus, Phase

NOW = datetime(2026, 11, 22, 7, tzinfo=UTC).timestamp()


def before(now: float, seconds_ago: float) -> str:
    """A moment before another one."""
    return datetime.fromtimestamp(now - seconds_ago, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def running(number: int = 0, phase: Phase = "Running", now: float = NOW) -> FineTuneJobStatus:
    """One that trains, hangs a little and costs money; or is in another phase."""
    done = phase in ("Succeeded", "Failed")
    status: dict[str, Any] = {
        "phase": phase,
        "phaseTime": before(now, 600),
        "phaseSeconds": dict.fromkeys(PHASES[:3], 60 + number % 7),
        "startTime": before(now, 3600),
        "attempt": 1,
        "resolved": {"profile": f"profile-{number % 10}", "maxRestarts": 2},
        "restarts": {"counted": 1, "disruptions": 2, "hangs": 1},
        "conditions": [
            {
                "type": "Waiting",
                "status": "False" if phase == "Running" or done else "True",
                "reason": {"Running": "Running", "Suspended": "Suspended"}.get(phase, "Starting"),
                "message": "",
                "lastTransitionTime": before(now, 7200),
                "observedGeneration": 1,
            }
        ],
        "progress": {
            "attempt": 1,
            "step": 50 + number % 7,
            "totalSteps": 100,
            "percent": 50,
            "etaSeconds": 1200,
            "loss": 1.5,
            "evalLoss": 1.7,
            "learningRate": 0.0002,
            "gradNorm": 0.9,
            "tokensPerSecond": 9000.0,
            "stalledSeconds": 30,
            "checkpointStep": 40,
            "checkpointTime": before(now, 120),
            "checkpointSeconds": 4.5,
            "lastUpdateTime": before(now, 20),
        },
        "usage": {
            "unit": "GPU",
            "heldSeconds": 36_000,
            "usefulSeconds": 27_000 if not done else 30_600,
            "badput": {"startUp": 3600, "lostSteps": 1800},
            "queueSeconds": 45,
            "gpuHours": 10.0,
            "price": {"perGpuHour": "2.50", "currency": "EUR"},
            "costSoFar": "25.00",
            "estimatedCost": "40.00",
            "attempt": 1,
            "holding": 16 if phase == "Running" else 0,
            "countsAs": "Training",
            "time": before(now, 20),
        },
    }
    if done:
        status["completionTime"] = before(now, 600)
    if phase == "Failed":
        status["lastFailure"] = {"class": "Diverged", "message": "", "time": before(now, 600)}
    return FineTuneJobStatus.parse(status)
