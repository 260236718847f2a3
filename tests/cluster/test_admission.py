"""Wrong manifests, tried on a real API server: each refusal names the field and the fix."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kube import GROUP, Kube

Json = dict[str, Any]

GOOD: Json = {
    "apiVersion": "finetune-operator.io/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "docs"},
    "spec": {
        "model": {"uri": "hf://HuggingFaceTB/SmolLM2-135M-Instruct"},
        "dataset": {"uri": "pvc://team-data/docs.jsonl"},
    },
}
STRICT = "?fieldValidation=Strict&dryRun=All"


def attempt(kube: Kube, changes: Json) -> tuple[int, str]:
    body = copy.deepcopy(GOOD)
    for path, value in changes.items():
        *parents, last = path.split(".")
        target = body
        for key in parents:
            target = target.setdefault(key, {})
        target[last] = value
    path = f"{GROUP}/namespaces/default/finetunejobs{STRICT}"
    code, answer = kube.call("POST", path, body)
    return code, answer.get("message", "")


def test_five_lines_are_enough(kube: Kube) -> None:
    assert attempt(kube, {}) == (201, "")


@pytest.mark.parametrize(
    "changes",
    [
        {"spec.zero": {"stage": 3}, "spec.workers": {"numNodes": 2, "numProcPerNode": 8}},
        {"spec.training": {"maxSteps": 10, "microBatchSize": 2, "learningRate": 1e-3}},
        {"spec.method": {"lora": {"targetModules": ["q_proj", "v_proj"]}}},
        {"spec.method": {"tuning": "Full"}, "spec.output": {"uri": "pvc://models/docs"}},
        {"spec.dataset": {"uri": "configmap://team-docs/docs.jsonl"}},
        {"spec.dataset": {"uri": "hf://team/data/train.jsonl", "revision": "v1"}},
        {"spec.model": {"uri": "pvc://team-models/llama", "secretRef": {"name": "hf-token"}}},
        {"spec.hangPolicy": {"action": "Report", "trainingSeconds": 300, "loadingSeconds": 900}},
        {"spec.hangPolicy": {"action": "Fail", "trainingSeconds": "Auto"}},
        {"spec.tracking": {"reportTo": ["TensorBoard", "MLflow", "WandB"], "project": "docs"}},
        {"spec.ttlSecondsAfterFinished": {"failed": 60}},
        {"spec.trainer": {}, "spec.workers": {"numNodes": 3, "numProcPerNode": 1}},
        {
            "spec.trainer": {
                "image": "example/mine:1",
                "command": ["torchrun", "train.py"],
                "args": ["--x"],
                "env": [
                    {"name": "STEPS", "value": ""},
                    {"name": "KEY", "secretKeyRef": {"name": "keys", "key": "mine"}},
                ],
                "filesFrom": "my-script",
            }
        },
        {
            "spec.ttlSecondsAfterFinished": {"succeeded": 60, "failed": 60},
            "spec.output": {"uri": "pvc://models/docs"},
        },
    ],
)
def test_what_people_write_is_accepted(kube: Kube, changes: Json) -> None:
    assert attempt(kube, changes) == (201, "")


REFUSED: dict[str, tuple[Json, str, str]] = {
    "a rendezvous variable": (
        {"spec.trainer.env": [{"name": "PET_MASTER_ADDR", "value": "x"}]},
        "spec.trainer.env",
        "are set by the operator (rendezvous, paths, progress); remove the variable",
    ),
    "a variable of the operator": (
        {"spec.trainer.env": [{"name": "FINETUNE_RESULT_DIR", "value": "x"}]},
        "spec.trainer.env",
        "are set by the operator (rendezvous, paths, progress); remove the variable",
    ),
    "a variable of the progress protocol": (
        {"spec.trainer.env": [{"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": "x"}]},
        "spec.trainer.env",
        "are set by the operator (rendezvous, paths, progress); remove the variable",
    ),
    "a variable with two values": (
        {
            "spec.trainer.env": [
                {"name": "A", "value": "x", "secretKeyRef": {"name": "keys", "key": "mine"}}
            ]
        },
        "spec.trainer.env",
        "either a value or a secretKeyRef",
    ),
    "a variable without a value": (
        {"spec.trainer.env": [{"name": "A"}]},
        "spec.trainer.env",
        "either a value or a secretKeyRef",
    ),
    "a tracker named twice": (
        {"spec.tracking": {"reportTo": ["WandB", "WandB"]}},
        "spec.tracking.reportTo",
        "name each of TensorBoard, MLflow and WandB once",
    ),
    "a tracker that there is not": (
        {"spec.tracking": {"reportTo": ["Comet"]}},
        "spec.tracking.reportTo",
        'supported values: "TensorBoard", "MLflow", "WandB"',
    ),
    "a tracker of another trainer": (
        {"spec.trainer": {}, "spec.tracking": {"reportTo": ["TensorBoard"]}},
        "spec.tracking",
        "let your own script report",
    ),
    "a merge of what another trainer leaves": (
        {"spec.trainer": {}, "spec.output": {"uri": "pvc://models/docs", "merge": True}},
        "spec.output.merge",
        "leave the merged model in $FINETUNE_RESULT_DIR",
    ),
    "zero nodes": (
        {"spec.workers.numNodes": 0},
        "spec.workers.numNodes",
        "should be greater than or equal to 1",
    ),
    "unknown method": (
        {"spec.method.tuning": "Magic"},
        "spec.method.tuning",
        'Unsupported value: "Magic": supported values: "Full", "LoRA"',
    ),
    "QLoRA with full tuning": (
        {"spec.method": {"tuning": "Full", "quantization": "NF4"}},
        "spec.method.quantization",
        "unknown field",
    ),
    "LoRA settings with full tuning": (
        {"spec.method": {"tuning": "Full", "lora": {"rank": 8}}},
        "spec.method.lora",
        "only for tuning: LoRA or QLoRA; remove spec.method.lora or set spec.method.tuning",
    ),
    "LoRA rank 0": (
        {"spec.method.lora": {"rank": 0}},
        "spec.method.lora.rank",
        "should be greater than or equal to 1",
    ),
    "all-linear beside other names": (
        {"spec.method.lora": {"targetModules": ["all-linear", "q_proj"]}},
        "spec.method.lora.targetModules",
        "all-linear stands alone; remove it or the other names",
    ),
    "bad URI scheme of the model": (
        {"spec.model.uri": "ftp://server/model"},
        "spec.model.uri",
        "must be hf://owner/name or pvc://claim/path/to/directory-or.gguf",
    ),
    "bad URI scheme of the dataset": (
        {"spec.dataset.uri": "docs.jsonl"},
        "spec.dataset.uri",
        "must be hf://owner/name[/file], pvc://claim/path/file.jsonl or configmap://name/key",
    ),
    "path out of the volume": (
        {"spec.dataset.uri": "pvc://team-data/../secrets.jsonl"},
        "spec.dataset.uri",
        "must not contain '.' or '..'",
    ),
    "output into a hub": (
        {"spec.output": {"uri": "hf://team/model"}},
        "spec.output.uri",
        "must be pvc://claim/path",
    ),
    "negative learning rate": (
        {"spec.training.learningRate": -1e-4},
        "spec.training.learningRate",
        "should be greater than 0",
    ),
    "both epochs and maxSteps": (
        {"spec.training": {"epochs": 1, "maxSteps": 10}},
        "spec.training",
        "spec.training.epochs and spec.training.maxSteps exclude each other; remove one",
    ),
    "micro-batch larger than the batch": (
        {"spec.training": {"globalBatchSize": 8, "microBatchSize": 16}},
        "spec.training.microBatchSize",
        "lower it or use Auto",
    ),
    "micro-batch that is a word": (
        {"spec.training.microBatchSize": "big"},
        "spec.training.microBatchSize",
        "must be Auto or a whole number from 1 to 65536",
    ),
    "batch that the processes cannot share": (
        {
            "spec.training.globalBatchSize": 10,
            "spec.workers": {"numNodes": 2, "numProcPerNode": 4},
        },
        "spec.training.globalBatchSize",
        "must be a multiple of spec.workers.numNodes x spec.workers.numProcPerNode",
    ),
    "ZeRO stage 4": (
        {"spec.zero.stage": 4},
        "spec.zero.stage",
        "must be Auto or one of 1, 2, 3",
    ),
    "merge of what is no adapter": (
        {
            "spec.method.tuning": "Full",
            "spec.output": {"uri": "pvc://team-models/docs", "merge": True},
        },
        "spec.output.merge",
        "only for spec.method.tuning: LoRA or QLoRA; remove it",
    ),
    "preferences of supervised tuning": (
        {"spec.method.preference": {"beta": 0.2}},
        "spec.method.preference",
        "only for objective: DPO, KTO or ORPO; remove it",
    ),
    "DPO on chats": (
        {"spec.method.objective": "DPO", "spec.dataset.format": "Chat"},
        "spec.dataset.format",
        "belong together; change one",
    ),
    "supervised tuning on preferences": (
        {"spec.dataset.format": "Preference", "spec.method.objective": "SFT"},
        "spec.dataset.format",
        "belong together; change one",
    ),
    "continued pre-training on chats": (
        {"spec.method.objective": "CPT", "spec.dataset.format": "Chat"},
        "spec.dataset.format",
        "needs spec.dataset.format: Text or Auto",
    ),
    "chats that are split": (
        {"spec.dataset.format": "Chat", "spec.dataset.longExamples": "Split"},
        "spec.dataset.longExamples",
        "is only for text; use Truncate or Drop",
    ),
    "parameters offloaded under a low stage": (
        {"spec.zero": {"stage": 2, "offload": "OptimizerAndParameters"}},
        "spec.zero.offload",
        "needs spec.zero.stage 3 or Auto",
    ),
    "patience without evaluations": (
        {"spec.evaluation": {"earlyStoppingPatience": 3}},
        "spec.evaluation.earlyStoppingPatience",
        "set spec.evaluation.everySteps too",
    ),
    "evaluations of nothing": (
        {"spec.evaluation": {"everySteps": 10}, "spec.dataset.evalFraction": 0},
        "spec.evaluation.everySteps",
        "set spec.dataset.evalFraction above 0",
    ),
    "gradient checkpointing as a truth value": (
        {"spec.training.gradientCheckpointing": True},
        "spec.training.gradientCheckpointing",
        "Invalid value",
    ),
    "a hang policy without a meaning": (
        {"spec.hangPolicy": {"action": "Ignore"}},
        "spec.hangPolicy.action",
        'supported values: "Restart", "Fail", "Report"',
    ),
    "a step that may take no time": (
        {"spec.hangPolicy": {"trainingSeconds": 1}},
        "spec.hangPolicy.trainingSeconds",
        "must be Auto or a whole number from 10 to 604800",
    ),
    "loading for more than a week": (
        {"spec.hangPolicy": {"loadingSeconds": 1_000_000}},
        "spec.hangPolicy.loadingSeconds",
        "should be less than or equal to 604800",
    ),
    "a TTL that deletes the result": (
        {"spec.ttlSecondsAfterFinished": {"succeeded": 60}},
        "spec.ttlSecondsAfterFinished.succeeded",
        "set spec.output.uri to a claim of your own (pvc://claim/path), or remove succeeded",
    ),
    "a TTL with the result in the job's own claim": (
        {
            "spec.ttlSecondsAfterFinished": {"succeeded": 60},
            "spec.output": {"uri": "pvc://docs-work/result"},
        },
        "spec.ttlSecondsAfterFinished.succeeded",
        "set spec.output.uri to a claim of your own (pvc://claim/path), or remove succeeded",
    ),
    "a TTL below zero": (
        {"spec.ttlSecondsAfterFinished": {"failed": -1}},
        "spec.ttlSecondsAfterFinished.failed",
        "should be greater than or equal to 0",
    ),
    "no model": ({"spec.model": None}, "spec.model", "Required value"),
    "name too long for a Service": (
        {"metadata.name": "a" * 49},
        "metadata.name",
        "must have at most 48 characters",
    ),
    "name that starts with a digit": (
        {"metadata.name": "7b-model"},
        "metadata.name",
        "start with a letter",
    ),
    "misspelt field": (
        {"spec.training.learning_rate": 1e-4},
        "spec.training.learning_rate",
        "unknown field",
    ),
    "half the data held out and more": (
        {"spec.dataset.evalFraction": 0.6},
        "spec.dataset.evalFraction",
        "should be less than or equal to 0.5",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_manifest_is_refused_with_field_and_fix(kube: Kube, case: str) -> None:
    changes, field, fix = REFUSED[case]
    code, message = attempt(kube, changes)
    assert code in (400, 422), message
    assert field in message
    assert fix in message


def test_a_started_job_cannot_be_changed_and_another_can(kube: Kube) -> None:
    jobs = f"{GROUP}/namespaces/default/finetunejobs"
    merge = "application/merge-patch+json"
    kube.create(jobs, GOOD)
    change = {"spec": {"model": {"uri": "hf://other/model"}}}
    assert kube.call("PATCH", f"{jobs}/docs", change, merge)[0] == 200
    kube.patch(f"{jobs}/docs/status", {"status": {"startTime": "2026-11-22T06:00:00Z"}})
    again = {"spec": {"model": {"uri": "hf://third/model"}}}
    code, answer = kube.call("PATCH", f"{jobs}/docs", again, merge)
    assert kube.call("PATCH", f"{jobs}/docs", {"spec": {"suspend": True}}, merge)[0] == 200
    kube.delete(f"{jobs}/docs")
    assert code == 422
    assert (
        "spec (but for suspend, activeDeadlineSeconds, startupDeadlineSeconds, "
        "ttlSecondsAfterFinished, and workers.numNodes while the job is Suspended) cannot be "
        "changed after the job has started; create a new FineTuneJob under another name"
        in answer["message"]
    )


Change = Callable[[Json], tuple[int, str]]


@pytest.fixture
def started(kube: Kube) -> Iterator[Change]:
    """A job that has started, with 2 workers of 8 processes; changes it."""
    jobs = f"{GROUP}/namespaces/default/finetunejobs"
    workers = {"numNodes": 2, "numProcPerNode": 8}
    sizes = {"workers": workers, "training": {"globalBatchSize": 32}}
    kube.create(jobs, GOOD | {"spec": GOOD["spec"] | sizes})
    kube.patch(f"{jobs}/docs/status", {"status": {"startTime": "2026-11-22T06:00:00Z"}})

    def change(body: Json) -> tuple[int, str]:
        path = f"{jobs}/docs/status" if "status" in body else f"{jobs}/docs"
        code, answer = kube.call("PATCH", path, body, "application/merge-patch+json")
        return code, answer.get("message", "")

    yield change
    kube.delete(f"{jobs}/docs")


OTHER_SIZE = {"spec": {"workers": {"numNodes": 4}}}
NOT_SUSPENDED = (
    "spec.workers.numNodes can be changed only while the job is Suspended, and the rest of "
    "spec.workers not after it has started; set spec.suspend to true, wait for the phase "
    "Suspended, change it, and set spec.suspend to false"
)


def test_the_number_of_workers_can_be_changed_while_a_job_is_suspended(started: Change) -> None:
    for phase, suspend in (("Running", False), ("Running", True), ("Suspended", False)):
        assert started({"status": {"phase": phase}})[0] == 200
        assert started({"spec": {"suspend": suspend}})[0] == 200
        code, message = started(OTHER_SIZE)
        assert code == 422
        assert NOT_SUSPENDED in message
    assert started({"spec": {"suspend": True}})[0] == 200
    assert started(OTHER_SIZE) == (200, "")
    assert started({"spec": {"workers": {"numNodes": 1}, "suspend": False}}) == (200, "")
    assert started({"spec": {"workers": {"numNodes": 2}, "suspend": True}}) == (200, "")


def test_a_size_that_the_batch_does_not_allow_is_refused_at_once(started: Change) -> None:
    started({"status": {"phase": "Suspended"}})
    started({"spec": {"suspend": True}})
    code, message = started({"spec": {"workers": {"numNodes": 3}}})
    assert code == 422
    assert "must be a multiple of spec.workers.numNodes x spec.workers.numProcPerNode" in message


@pytest.mark.parametrize("processes", [4, "Auto"])
def test_the_processes_of_a_worker_stay_also_while_suspended(
    started: Change, processes: int | str
) -> None:
    started({"status": {"phase": "Suspended"}})
    started({"spec": {"suspend": True}})
    code, message = started({"spec": {"workers": {"numProcPerNode": processes}}})
    assert code == 422
    assert NOT_SUSPENDED in message


@pytest.mark.parametrize("phase", ["Running", "Failed"])
def test_a_ttl_can_be_given_and_taken_away_at_any_time(started: Change, phase: str) -> None:
    started({"status": {"phase": phase}})
    assert started({"spec": {"ttlSecondsAfterFinished": {"failed": 60}}}) == (200, "")
    assert started({"spec": {"ttlSecondsAfterFinished": None}}) == (200, "")
    code, message = started({"spec": {"ttlSecondsAfterFinished": {"succeeded": 60}}})
    assert code == 422
    assert "spec.ttlSecondsAfterFinished.succeeded would delete the result" in message


def test_a_profile_with_cuda_needs_gpus(kube: Kube) -> None:
    body = {
        "apiVersion": "finetune-operator.io/v1alpha1",
        "kind": "FineTuneProfile",
        "metadata": {"name": "none"},
        "spec": {"node": {"accelerator": "CUDA", "gpusPerNode": 0}},
    }
    code, answer = kube.call("POST", f"{GROUP}/finetuneprofiles{STRICT}", body)
    assert code == 422
    assert "spec.node.gpusPerNode must be at least 1" in answer["message"]
