"""What a person reads when something is wrong, on the real cluster of the demonstration."""

from __future__ import annotations

import pytest
from e2e_jobs import (
    EXAMPLE,
    JOBS,
    failed,
    gone,
    logged_until,
    run,
    signal_rank,
    steps_of,
    succeeded,
)
from kube import GROUP, Kube, eventually


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

    logged_until(kube, name, 1)
    victim = signal_rank(kube, name, 1, "SIGKILL")
    failure = failed(kube, name, 120)
    assert (failure["class"], failure["stage"], failure["rank"]) == ("Killed", "train", 1)
    assert (failure["pod"], failure["exitCode"]) == (victim, 137)
    assert failure["node"]
    assert failure["logTail"]
    assert not [
        p for p in kube.pods("demo", f"{name}-train-0") if p["status"]["phase"] == "Running"
    ]


SHORT = EXAMPLE["spec"]["training"] | {"maxSteps": 10}


def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint_and_not_the_job(
    kube: Kube,
) -> None:
    checkpoints = {"everySteps": 3}
    name = run(kube, "survives", training=SHORT, checkpoints=checkpoints)
    logged_until(kube, name, 5)
    signal_rank(kube, name, 1, "SIGKILL")
    status = succeeded(kube, name)
    (entry,) = status["restarts"]["history"]
    assert (status["attempt"], entry["cause"], entry["class"]) == (1, "Platform", "Killed")
    assert steps_of(name, 1)[0][0] in (4, 7, 10)
    assert status["progress"]["step"] == 10
    assert status["output"]["evalLossAfter"] < status["output"]["evalLossBefore"]


def test_a_suspended_job_keeps_what_it_has_learned(kube: Kube) -> None:
    name = run(kube, "pauses", training=SHORT)
    logged_until(kube, name, 3)
    kube.patch(f"{JOBS}/{name}", {"spec": {"suspend": True}})

    eventually("the workers to be gone", lambda: gone(kube, name), 120)
    assert kube.job("demo", name)["status"]["phase"] == "Suspended"
    done = kube.job("demo", name)["status"]["progress"]["step"]
    kube.patch(f"{JOBS}/{name}", {"spec": {"suspend": False}})
    status = succeeded(kube, name)
    assert (status["attempt"], status.get("restarts")) == (1, None)
    assert steps_of(name, 1)[0][0] > done
    assert status["progress"]["step"] == 10


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
