"""What the operator takes for written without reading it, beside what a real API server has."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

from kube import GROUP, Kube
from played import apply, report

from finetune_api.progress import ProgressBody
from finetune_api.status import Progress
from finetune_operator.cluster import connect
from finetune_operator.progress import merge
from finetune_operator.reconcile import Job, parse_job
from finetune_operator.usage import report_part, reported

NAMESPACE = "written"
T0, T1 = "2026-11-22T06:00:00Z", "2026-11-22T06:00:07Z"
STATUS: dict[str, Any] = {
    "phase": "Running",
    "attempt": 0,
    "usage": {
        "unit": "GPU",
        "price": {"perGpuHour": "2.5", "currency": "EUR"},
        "time": T0,
        "attempt": 0,
        "holding": 8,
        "countsAs": "Training",
    },
}


def test_a_job_is_known_as_it_is_after_a_report_was_written(kube: Kube, kubeconfig: Path) -> None:
    """No operator runs: only the answer to the write tells the version, and only metadata."""
    kube.namespace(NAMESPACE)
    apply(kube, NAMESPACE)
    path = f"{GROUP}/namespaces/{NAMESPACE}/finetunejobs/docs"
    body = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "docs", "namespace": NAMESPACE},
        "status": STATUS,
    }
    query = "/status?fieldManager=finetune-operator&force=true"
    code, answer = kube.call("PATCH", path + query, body, "application/apply-patch+yaml")
    assert code == 200, answer
    known = parse_job(kube.job(NAMESPACE, "docs"))

    for step, loss in ((3, 2.5), (4, 1e-7), (5, 123456.789)):
        sent = ProgressBody.parse(report(step, step, loss)).trainer_status
        new = merge(known.status.progress, sent, 0, T1)
        assert isinstance(new, Progress)
        known = asyncio.run(write(kubeconfig, known, new))
        read = parse_job(kube.job(NAMESPACE, "docs"))
        assert (read.version, read.status) == (known.version, known.status)
        assert read.status.usage is not None
        assert read.status.usage.held_seconds == 56


async def write(kubeconfig: Path, known: Job, new: Progress) -> Job:
    """As the intake does it."""
    cluster = await connect(str(kubeconfig), None, "test")
    try:
        after = reported(known.status, new)
        key = (known.namespace, known.name)
        version = await cluster.report_progress(*key, report_part(after), known.version, known.uid)
    finally:
        await cluster.close()
    return replace(known, version=version, status=after)
