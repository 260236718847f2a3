"""What a person reads when something is wrong, on the real cluster of the demonstration."""

from __future__ import annotations

import copy
import re
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

    trained_until(kube, name, 1)
    victim = kill_rank_1(kube, name)
    failure = failed(kube, name, 120)
    assert (failure["class"], failure["stage"], failure["rank"]) == ("Killed", "train", 1)
    assert (failure["pod"], failure["exitCode"]) == (victim, 137)
    assert failure["node"]
    assert failure["logTail"]
    assert not [
        p for p in kube.pods("demo", f"{name}-train-0") if p["status"]["phase"] == "Running"
    ]


def trained_until(kube: Kube, name: str, step: int) -> None:
    """Wait until so many steps are reported as done."""

    def training() -> Json | None:
        status = kube.job("demo", name).get("status", {})
        assert status.get("phase") != "Failed", status
        return status if ((status.get("progress") or {}).get("step") or 0) >= step else None

    eventually(f"step {step}", training, 900)


def kill_rank_1(kube: Kube, name: str) -> str:
    """SIGKILL for the training process of the second worker; the name of its pod."""
    victim: str = kube.pods("demo", f"{name}-train-0")[1]["metadata"]["name"]
    kill = "import os, signal, pathlib\n" + KILL_RANK
    kubectl = [program("kubectl"), "--kubeconfig", str(kubeconfig())]
    output([*kubectl, "-n", "demo", "exec", victim, "--", "python", "-c", kill])
    return victim


def succeeded(kube: Kube, name: str, seconds: float = 900) -> Json:
    """The status of a job, once it has succeeded."""

    def ended() -> Json | None:
        status: Json = kube.job("demo", name).get("status", {})
        assert status.get("phase") != "Failed", status
        return status if status.get("phase") == "Succeeded" else None

    found: Json = eventually(f"{name} to succeed", ended, seconds)
    return found


SHORT = EXAMPLE["spec"]["training"] | {"maxSteps": 10}


def first_step_again(kube: Kube, name: str) -> int:
    """The first step that the second attempt did, from the log of its first worker."""
    kubectl = [program("kubectl"), "--kubeconfig", str(kubeconfig()), "-n", "demo", "logs"]
    log = output([*kubectl, f"job/{name}-train-1"])
    found = re.search(r"step (\d+)/\d+  loss", log)
    assert found is not None, log
    return int(found[1])


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint_and_not_the_job(
    kube: Kube,
) -> None:
    checkpoints = {"everySteps": 3}
    name = run(kube, "survives", training=SHORT, checkpoints=checkpoints)
    trained_until(kube, name, 5)
    kill_rank_1(kube, name)
    status = succeeded(kube, name)
    (entry,) = status["restarts"]["history"]
    assert (status["attempt"], entry["cause"], entry["class"]) == (1, "Platform", "Killed")
    assert first_step_again(kube, name) in (4, 7, 10)
    assert status["progress"]["step"] == 10
    assert status["output"]["evalLossAfter"] < status["output"]["evalLossBefore"]


def test_a_suspended_job_keeps_what_it_has_learned(kube: Kube) -> None:
    name = run(kube, "pauses", training=SHORT)
    trained_until(kube, name, 3)
    kube.patch(f"{JOBS}/{name}", {"spec": {"suspend": True}})

    def gone() -> bool:
        alive = [p["status"]["phase"] for p in kube.pods("demo", f"{name}-train-0")]
        return not {"Pending", "Running"} & set(alive)

    eventually("the workers to be gone", gone, 120)
    assert kube.job("demo", name)["status"]["phase"] == "Suspended"
    done = kube.job("demo", name)["status"]["progress"]["step"]
    kube.patch(f"{JOBS}/{name}", {"spec": {"suspend": False}})
    status = succeeded(kube, name)
    assert (status["attempt"], status.get("restarts")) == (1, None)
    assert first_step_again(kube, name) > done
    assert status["progress"]["step"] == 10


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
