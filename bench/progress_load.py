"""`make bench-progress`: what 1,000 running jobs that report every 5 seconds cost the operator.

A real API server without nodes; every job has a token of its own, which the API server made for its
pod. The senders are synthetic, and each keeps its connection, as our trainer does
(`--new-connections`: one for each report, as `urllib` in Hugging Face's `KubeflowCallback`; a TLS
handshake costs several times what a report does). Each changes its activity now and then (an
evaluation every 20th report), so there are transitions beside numbers; each of those must have been
in the status, which is watched.

JSON in build/bench/progress.json. `--quick`: 50 jobs, half a minute. Writes are counted in the API
server's audit log, the operator's time by the kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import ssl
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import requests
from apiserver import api_server
from audit import AuditLog
from kube import GROUP, Kube, eventually
from operator_process import Operator, install_api
from process_figures import cpu_seconds, megabytes, stolen_seconds
from running_jobs import make_running_jobs, no_controllers

from finetune_api.progress import audience, status_path
from localcluster.layout import Layout
from localcluster.processes import Processes

ROOT = Path(__file__).parents[1]
EVERY = 5.0
"""Seconds between two reports of a job."""
EVALUATION = 20
"""Every so many reports one tells of an evaluation: two transitions."""
SCRAPES = 5
WARM_SECONDS = 300.0
"""At most, for all to be connected, their tokens reviewed, and the first reports written: 1,000 at
once are another load than that which is measured."""
FEW = 10
"""Passes that are due, of which the warm-up has fewer at its end."""
Json = dict[str, Any]


def tokens(kubeconfig: Path, jobs: int) -> list[str]:
    """One for each job, bound to its pod."""

    def make(number: int) -> str:
        kube, name = Kube(kubeconfig), f"job-{number}"
        pod = kube.get(f"/api/v1/namespaces/default/pods/{name}-train-0-0-abcde")
        assert pod is not None
        bound = {"kind": "Pod", "apiVersion": "v1", "name": pod["metadata"]["name"]}
        bound["uid"] = pod["metadata"]["uid"]
        spec = {
            "audiences": [audience("default", name)],
            "boundObjectRef": bound,
            "expirationSeconds": 3600,
        }
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        made = kube.create("/api/v1/namespaces/default/serviceaccounts/default/token", body)
        found: str = made["status"]["token"]
        return found

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(make, range(jobs)))


def report(number: int) -> Json:
    """The `number`th of a job: 2,000 steps, one every report."""
    step = 10 + number
    evaluates = number > 0 and number % EVALUATION == 0
    metrics = {
        "current_step": step,
        "total_steps": 2000,
        "loss": round(2.5 - step / 2000, 4),
        "learning_rate": 1e-4,
        "grad_norm": 1.25,
        "tokens_per_second": 5000,
        "activity": "Evaluating" if evaluates else "Training",
    }
    return {
        "trainerStatus": {
            "progressPercentage": 100 * step // 2000,
            "estimatedRemainingSeconds": 5 * (2000 - step),
            "metrics": [{"name": name, "value": str(value)} for name, value in metrics.items()],
        }
    }


class Senders:
    """All jobs' reports, spread evenly over the five seconds."""

    def __init__(self, port: int, ca: str, found: list[str], keep_alive: bool) -> None:
        self._port, self._ca, self._tokens, self._keep = port, ca, found, keep_alive
        self.codes: Counter[str] = Counter()
        self.transitions: dict[str, list[str]] = {}
        self.slowest = 0.0
        """Of the reports since all are connected."""
        self._first = 0

    async def run(self, stop: Any, connected: Any) -> None:
        """Report until `stop` is set; `connected` is set when each job's first report was taken."""
        context = ssl.create_default_context(cafile=self._ca)
        connector = aiohttp.TCPConnector(ssl=context, limit=0, force_close=not self._keep)
        if self._keep:
            connector = aiohttp.TCPConnector(ssl=context, limit=0, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector) as session:
            await asyncio.gather(
                *(self._job(session, n, stop, connected) for n in range(len(self._tokens)))
            )

    async def _job(
        self, session: aiohttp.ClientSession, number: int, stop: Any, connected: Any
    ) -> None:
        await asyncio.sleep(EVERY * number / len(self._tokens))
        name, sent, before = f"job-{number}", 0, "Training"
        url = f"https://127.0.0.1:{self._port}{status_path('default', name)}"
        headers = {"Authorization": f"Bearer {self._tokens[number]}"}
        told = self.transitions.setdefault(name, [])
        while not stop.is_set():
            body, began = report(sent), time.monotonic()
            try:
                async with session.post(url, json=body, headers=headers) as answer:
                    await answer.read()
                    code = str(answer.status)
            except (aiohttp.ClientError, TimeoutError) as error:
                code = type(error).__name__
            self.codes[code] += 1
            if connected.is_set():
                self.slowest = max(self.slowest, time.monotonic() - began)
            activity = body["trainerStatus"]["metrics"][-1]["value"]
            if code == "200":
                if activity != before:
                    told.append(activity)
                before = activity
                sent += 1
                self._first += sent == 1
                if self._first == len(self._tokens):
                    connected.set()
            await asyncio.sleep(max(0.0, EVERY - (time.monotonic() - began)))


def send(
    port: int, ca: str, found: list[str], keep: bool, stop: Any, connected: Any, answer: Any
) -> None:
    """In a process of its own: what the senders cost is not the operator's."""
    senders = Senders(port, ca, found, keep)
    asyncio.run(senders.run(stop, connected))
    answer.send((dict(senders.codes), senders.transitions, senders.slowest))


def watch(kubeconfig: Path, stop: Any, answer: Any) -> None:
    """Every activity that the statuses went through, in a process of its own."""
    kube, seen = Kube(kubeconfig), {}
    path = f"{GROUP}/namespaces/default/finetunejobs"
    version = kube.call("GET", path + "?limit=1")[1]["metadata"]["resourceVersion"]
    answer.send("ready")
    while not stop.is_set():
        query = f"?watch=1&resourceVersion={version}&timeoutSeconds=5"
        for event in kube.watch(path + query):
            version = event["object"]["metadata"]["resourceVersion"]
            progress = event["object"].get("status", {}).get("progress") or {}
            told = seen.setdefault(event["object"]["metadata"]["name"], ["Training"])
            if progress.get("activity") not in (None, told[-1]):
                told.append(progress["activity"])
    answer.send({name: told[1:] for name, told in seen.items()})


def scrape(operator: Operator) -> float:
    """Seconds of the slowest of a few."""
    took = []
    for _ in range(SCRAPES):
        began = time.monotonic()
        url = f"http://127.0.0.1:{operator.metrics_port}/metrics"
        assert requests.get(url, timeout=30).status_code == 200
        took.append(time.monotonic() - began)
    return max(took)


def api_server_pid(kubeconfig: Path) -> int:
    """Of the API server that this run has started."""
    found = Processes(Layout.of(kubeconfig.parent)).find("kube-apiserver")
    assert found is not None
    return found.pid


def used_by(pids: Iterable[int]) -> list[float]:
    """Processor seconds of processes so far, and last what the host took from all of them."""
    return [*(cpu_seconds(pid) for pid in pids), stolen_seconds()]


def measure(kubeconfig: Path, operator: Operator, jobs: int, seconds: float, keep: bool) -> Json:
    """Let all jobs report; the part after the warm-up is measured."""
    found = tokens(kubeconfig, jobs)
    context = multiprocessing.get_context("spawn")
    answers, theirs = context.Pipe()
    seen, watcher = context.Pipe()
    stop, enough, connected = context.Event(), context.Event(), context.Event()
    looking = context.Process(target=watch, args=(kubeconfig, stop, watcher))
    looking.start()
    assert seen.recv() == "ready"
    arguments = (operator.progress_port, str(operator.ca), found, keep, enough, connected)
    sending, began = context.Process(target=send, args=(*arguments, theirs)), time.monotonic()
    sending.start()
    assert connected.wait(WARM_SECONDS), "not all jobs could report"
    while operator.metrics()["finetune_operator_queue_depth"] >= FEW:
        assert time.monotonic() - began < WARM_SECONDS, "passes are still due"
        time.sleep(EVERY)  # a scrape is work, too
    warm = time.monotonic() - began
    audit = AuditLog(kubeconfig, "finetune-operator/")
    pids = (operator.pid, api_server_pid(kubeconfig))
    before, began = used_by(pids), time.monotonic()
    time.sleep(seconds / 2)  # what is measured is a length of time
    scraped = scrape(operator)
    time.sleep(max(0.0, seconds - (time.monotonic() - began)))
    passed = time.monotonic() - began
    operators, servers, stolen = (
        round((b - a) / passed, 3) for a, b in zip(before, used_by(pids), strict=True)
    )
    reads, writes = dict(Counter(audit.reads())), audit.writes()
    enough.set()
    codes, told, slowest = answers.recv()
    sending.join()
    time.sleep(EVERY)  # for the last events of the watch
    stop.set()
    written = seen.recv()
    looking.join()
    lost = sum(len(told[name]) - common(told[name], written.get(name, [])) for name in told)
    changes = sum(len(activities) for activities in told.values())
    status_writes = sum("finetunejobs" in str(write) for write in writes)
    beside = changes * passed / (warm + passed)
    return {
        "jobs": jobs,
        "seconds": round(passed, 1),
        "warm_up_seconds": round(warm, 1),
        "connections": "kept" if keep else "one for each report",
        "operator_core_fraction": operators,
        "api_server_core_fraction": servers,
        "stolen_core_fraction": stolen,
        "reports": codes,
        "slowest_report_seconds": round(slowest, 2),
        "transitions": changes,
        "lost_transitions": lost,
        "status_writes": status_writes,
        "writes_per_job_per_30s": round(max(0, status_writes - beside) * 30 / passed / jobs, 2),
        "reads": reads,
        "scrape_seconds": round(scraped, 3),
        "memory_mb": megabytes(operator.pid, "VmRSS"),
    }


def common(wanted: list[str], found: list[str]) -> int:
    """How many of `wanted` are in `found`, in their order."""
    rest = iter(found)
    return sum(any(one == other for other in rest) for one in wanted)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="50 jobs, half a minute")
    parser.add_argument("--new-connections", action="store_true", help="one for each report")
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    jobs, seconds = (50, 30.0) if options.quick else (options.jobs, options.seconds)
    with api_server() as kubeconfig, tempfile.TemporaryDirectory() as directory:
        install_api(Kube(kubeconfig))
        # A long lease: on a machine that is busy with the senders too, the API server may be late.
        operator = Operator(kubeconfig, Path(directory), LEASE_SECONDS="60")
        with no_controllers(kubeconfig):
            make_running_jobs(kubeconfig, "default", jobs)
            operator.start()
            done = f"looked at {jobs} jobs"
            eventually("a round over all", lambda: done in operator.log.read_text(), 120)
            try:
                found = measure(kubeconfig, operator, jobs, seconds, not options.new_connections)
            except BaseException:
                print(operator.log.read_text()[-4000:], file=sys.stderr)
                raise
            finally:
                operator.stop()
    path = ROOT / "build" / "bench" / "progress.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(path.read_text(), end="")


if __name__ == "__main__":
    main()
