"""What a person reads when something is wrong, on the real cluster of the demonstration."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from demo_cluster import output, program
from kube import GROUP, Kube, eventually, kubeconfig

ROOT = Path(__file__).parents[2]
JOBS = f"{GROUP}/namespaces/demo/finetunejobs"
EXAMPLE = yaml.safe_load((ROOT / "examples" / "01-first-job" / "job.yaml").read_text())
Json = dict[str, Any]


def run(kube: Kube, name: str, **spec: Any) -> str:
    """A variation of the example; replaces an earlier one of the name."""
    body = copy.deepcopy(EXAMPLE)
    body["metadata"]["name"] = name
    body["spec"].pop("output")
    body["spec"].update(spec)
    if kube.get(f"{JOBS}/{name}") is not None:
        kube.delete(f"{JOBS}/{name}?propagationPolicy=Foreground")
        eventually("the earlier job to be gone", lambda: kube.get(f"{JOBS}/{name}") is None, 120)
    kube.create(JOBS, body)
    return name


def failed(kube: Kube, name: str, seconds: float = 600) -> Json:
    """The failure of a job, once it has failed."""

    def ended() -> Json | None:
        status = kube.job("demo", name).get("status", {})
        assert status.get("phase") != "Succeeded"
        return status.get("lastFailure") if status.get("phase") == "Failed" else None

    found: Json = eventually(f"{name} to fail", ended, seconds)
    return found


def config_map(kube: Kube, name: str, text: str) -> str:
    path = "/api/v1/namespaces/demo/configmaps"
    if kube.get(f"{path}/{name}") is not None:
        kube.delete(f"{path}/{name}")
    kube.create(path, {"metadata": {"name": name}, "data": {"train.jsonl": text}})
    return f"configmap://{name}/train.jsonl"


GOOD = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n'

DATA: dict[str, tuple[str | None, list[str]]] = {
    "absent": (
        None,
        ["configmap://absent/train.jsonl", "nothing at this path", "spec.dataset.uri"],
    ),
    "empty": ("", ["empty"]),
    "not-json": (GOOD + GOOD + "{oops\n", ["line 3", "not JSON"]),
    "wrong-columns": (GOOD + '{"question": "a"}\n', ["line 2", "question", "messages"]),
}


@pytest.mark.parametrize("case", DATA)
def test_bad_data_fails_in_prepare_and_says_which_line(kube: Kube, case: str) -> None:
    text, said = DATA[case]
    uri = "configmap://absent/train.jsonl" if text is None else config_map(kube, case, text)
    model = {"uri": "pvc://demo-data/SmolLM2-135M-Instruct.gguf"}
    name = run(kube, f"bad-{case}", model=model, dataset={"uri": uri})
    failure = failed(kube, name)
    assert (failure["class"], failure["stage"], failure["exitCode"]) == ("Data", "prepare", 11)
    for part in said:
        assert part in failure["message"]


def test_a_model_that_does_not_exist_fails_in_prepare(kube: Kube) -> None:
    failure = failed(kube, run(kube, "no-model", model={"uri": "pvc://demo-data/nothing"}))
    assert (failure["class"], failure["stage"]) == ("Model", "prepare")
    assert "pvc://demo-data/nothing" in failure["message"]


def test_a_killed_worker_fails_the_job_with_rank_node_and_last_lines(kube: Kube) -> None:
    training_ = EXAMPLE["spec"]["training"] | {"maxSteps": 1000}
    name = run(kube, "killed", training=training_, restartPolicy={"maxRestarts": 0})

    def training() -> Json | None:
        status = kube.job("demo", name).get("status", {})
        assert status.get("phase") != "Failed", status
        return status if (status.get("progress") or {}).get("step") else None

    eventually("the first step", training, 900)
    victim = kube.pods("demo", f"{name}-train-0")[1]["metadata"]["name"]
    kill = "import os, signal, pathlib\n" + KILL_RANK
    kubectl = [program("kubectl"), "--kubeconfig", str(kubeconfig())]
    output([*kubectl, "-n", "demo", "exec", victim, "--", "python", "-c", kill])
    failure = failed(kube, name, 120)
    assert (failure["class"], failure["stage"], failure["rank"]) == ("Killed", "train", 1)
    assert (failure["pod"], failure["exitCode"]) == (victim, 137)
    assert failure["node"]
    assert failure["logTail"]
    assert not [
        p for p in kube.pods("demo", f"{name}-train-0") if p["status"]["phase"] == "Running"
    ]


KILL_RANK = """
for process in pathlib.Path("/proc").iterdir():
    if process.name.isdigit():
        try:
            command = (process / "cmdline").read_text()
        except OSError:
            continue
        if "\\0finetune_trainer.train\\0" in command:  # and not this very script
            os.kill(int(process.name), signal.SIGKILL)
"""


def test_a_job_that_no_node_can_hold_says_so(kube: Kube) -> None:
    profile = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "huge"},
        "spec": {"cpuStages": {"cpu": "1000", "memory": "1Gi"}, "storage": {"size": "1Gi"}},
    }
    path = f"{GROUP}/finetuneprofiles"
    if kube.get(f"{path}/huge") is None:
        kube.create(path, profile)
    name = run(kube, "too-big", profile="huge", training={}, workers={})

    def explained() -> str | None:
        message: str = kube.job("demo", name).get("status", {}).get("message", "")
        return message if "Unschedulable" in message else None

    message = eventually("the scheduler's words", explained, 60)
    kube.delete(f"{JOBS}/{name}")
    assert "Insufficient cpu" in message
