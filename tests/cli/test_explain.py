"""Why a job waits or what killed it, for every phase, reason and failure class."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from job_builders import (
    FAILURE,
    MADE,
    NOW,
    OUTPUT,
    PROGRESS,
    SINCE,
    body,
    condition,
    failed,
    job,
    running,
    succeeded,
    waiting,
)
from kube import ROOT

from finetune_api.outcome import FAILURE_CLASSES
from finetune_api.status import PHASES
from finetune_cli.advice import FAILURES, WAITS
from finetune_cli.explain import Explanation, explain
from finetune_cli.jobs import Event, parse_event, parse_job

Json = dict[str, Any]
WAIT = ("nothing to do but wait: `finetune watch docs -n team-a`",)
ANEW = "submit it again under another name: `finetune submit FILE --name NEW`"
AGAIN = (
    "then submit it under another name, as the spec of a job that has started is fixed: "
    "`finetune submit FILE --name NEW`"
)
LOGS = "read its log: `finetune logs docs -n team-a --failed`"
PLACE = ("Rank 3 failed first in pod docs-train-0-0-abcde on node node-1 with exit code 203.",)
EDIT = "`kubectl edit ftj docs -n team-a` (it has not started, so it may be changed)"
PROFILES = "see which profiles there are: `kubectl get finetuneprofiles`"


def told(status: Json | None, *events: Event, **spec: Any) -> Explanation:
    return explain(job(status, **spec), events, NOW, "finetune")


def test_every_failure_class_phase_and_reason_of_the_operator_is_known() -> None:
    assert set(FAILURES) == set(FAILURE_CLASSES)
    assert _reasons() - set(WAITS) == set()


def _reasons() -> set[str]:
    """The words that the operator gives as reasons to wait, from its source."""
    found = set()
    folders = ("operator/finetune_operator", "api/finetune_api")
    for path in (p for folder in folders for p in (ROOT / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("Refused", "Why") and isinstance(node.args[0], ast.Constant):
                found.add(node.args[0].value)
            if node.func.id == "Watch":
                reasons = [k.value for k in node.keywords if k.arg == "reason"]
                found |= {r.value for r in reasons if isinstance(r, ast.Constant)}
    assert {"ProfileNotFound", "DoesNotFit", "Starting", "Stopping"} <= found, "they are found"
    return found | {"QuotaExceeded", "PodsRefused", "ImagePull", "Volume", "Unschedulable"}


FAILED = {
    "Configuration": (
        "A setting of the job is wrong; the same run would fail again.",
        ("change what the message names, and check it: `finetune validate FILE`", AGAIN),
    ),
    "Data": (
        "The data cannot be used as they are; the same run would fail again.",
        ("mend what the message names in the data of spec.dataset.uri", AGAIN),
    ),
    "Model": (
        "The model could not be fetched or used; the same run would fail again.",
        (
            "check spec.model.uri (hf://HuggingFaceTB/SmolLM2-135M-Instruct); for a private or "
            "gated model name a Secret with the key `token` in spec.model.secretRef",
            AGAIN,
        ),
    ),
    "OutOfMemory": (
        "It needs more memory than it has; the same run would fail again.",
        (
            "set spec.training.gradientCheckpointing: Always",
            "lower spec.training.sequenceLength (it is 2048)",
            "keep the base model in 4 bits: spec.method.tuning: QLoRA",
            "shard the weights: spec.zero.stage: 3",
            "or ask your platform team for a profile with more memory",
            AGAIN,
        ),
    ),
    "Diverged": (
        "The training diverged: its loss was no number any more, or jumped. The same run would "
        "diverge again.",
        (
            "look at the loss: `finetune plot docs -n team-a`",
            "lower spec.training.learningRate (it is 0.0002), by 2 to 10 times",
            "or warm up for longer: spec.training.warmupFraction (it is 0.03)",
            "if it diverged at once, look at the data of the first steps: status.dataset.samples",
            AGAIN,
        ),
    ),
    "Stopped": (
        "Its workers were asked to stop, by the platform or by somebody.",
        (
            "see what happened to its node: `kubectl describe node node-1`",
            "see who stopped its pods: `kubectl get events -n team-a`",
            ANEW,
        ),
    ),
    "Internal": (
        "Something in the software or the platform failed that should not.",
        (
            "if it is a fault of finetune-operator, report it with the output of "
            "`finetune explain docs -n team-a -o yaml`",
            ANEW,
        ),
    ),
    "Hang": (
        "The training no longer got on, and was ended.",
        (
            "read where every rank stood: the stacks are in the log, and in `stacks` of the work "
            "directory",
            "if it was only slow, raise the budget that the message names in spec.hangPolicy",
            "if it hung in a collective, have the network between the nodes checked",
            ANEW,
        ),
    ),
    "PeerLost": (
        "A worker lost the connection to another one, and none had a reason of its own.",
        (
            "have the network between the nodes checked; where nodes have several networks, the "
            "profile's env must name one: NCCL_SOCKET_IFNAME",
            ANEW,
        ),
    ),
    "Killed": (
        "A process was killed from outside, without a word of its own.",
        (
            "see what happened to its node: `kubectl describe node node-1`",
            "see whether somebody deleted its pods, or the node ran out of memory: "
            "`kubectl get events -n team-a`",
            ANEW,
        ),
    ),
    "DeadlineExceeded": (
        "It did not keep a deadline of its spec.",
        ("its profile limits how long a job may be active: ask your platform team", AGAIN),
    ),
    "AllowanceUsedUp": (
        "It has used what its profile lets a job use.",
        (
            "see what its time went to: `kubectl get ftj docs -n team-a -o yaml` (status.usage)",
            "train for fewer steps, or ask your platform team for a profile that allows more",
        ),
    ),
}


@pytest.mark.parametrize("class_", FAILURE_CLASSES)
def test_a_job_that_failed_has_the_cause_the_place_and_what_to_try(class_: str) -> None:
    meaning, tries = FAILED[class_]
    assert told(failed(class_)) == Explanation(
        "team-a/docs",
        "Failed",
        f"docs failed in train: {class_}",
        ("Something broke.", meaning, *PLACE),
        (LOGS, *tries),
        "Traceback\nValueError: no",
    )


@pytest.mark.parametrize(
    ("spec", "resolved", "expected"),
    [
        pytest.param(
            {"training": {"microBatchSize": 4}},
            {},
            "set spec.training.microBatchSize: Auto",
            id="a batch of one's own",
        ),
        pytest.param(
            {}, {"microBatchSize": 4}, "set spec.training.microBatchSize: 2 (it was 4)", id="halve"
        ),
        pytest.param(
            {"method": {"tuning": "Full"}},
            {"gradientCheckpointing": True},
            "lower spec.training.sequenceLength (it is 2048)",
            id="checkpointing is done already",
        ),
    ],
)
def test_out_of_memory_proposes_what_is_not_done_yet_cheapest_first(
    spec: Json, resolved: Json, expected: str
) -> None:
    status = failed("OutOfMemory", pod=None) | {"resolved": resolved}
    assert told(status, **spec).next[0] == expected


def test_a_deadline_is_named_with_its_value() -> None:
    found = told(failed("DeadlineExceeded", pod=None), activeDeadlineSeconds=3600)
    assert found.next == (
        "if it was training: raise spec.activeDeadlineSeconds (it is 3600), or give it more "
        "workers",
        AGAIN,
    )


def test_earlier_attempts_are_told_and_a_node_that_returns_is_named() -> None:
    entry = {"cause": "Platform", "class": "Killed", "node": "node-1", "time": SINCE}
    history = [{"attempt": 0, "step": 12} | entry, {"attempt": 1} | entry]
    status = failed("Killed") | {"restarts": {"counted": 2, "disruptions": 0, "history": history}}
    assert told(status).because[3:] == (
        "2 restarts and 0 disruptions so far: attempt 0 Killed at step 12 on node-1; attempt 1 "
        "Killed on node-1.",
        "Node node-1 had to do with 2 of them: have it checked.",
    )


MEANINGS = {
    "ProfileNotFound": ("its profile does not exist", (PROFILES, f"set spec.profile: {EDIT}")),
    "NoDefaultProfile": (
        "it names no profile, and there is no default one",
        (PROFILES, f"set spec.profile: {EDIT}"),
    ),
    "AmbiguousProfile": (
        "it names no profile, and there are several default ones",
        (PROFILES, f"set spec.profile: {EDIT}"),
    ),
    "ForbiddenByProfile": (
        "it uses what its profile does not allow",
        (f"use what the message lists, or set another spec.profile: {EDIT}", PROFILES),
    ),
    "Queued": (
        "its turn in the queue has not come",
        ("see what is before it, and the quota: `kubectl get workloads -n team-a`",),
    ),
    "OwnTrainerForbidden": (
        "it brings a trainer of its own, which its profile does not allow",
        ("ask the platform team for a profile with limits.ownTrainer, or leave spec.trainer out",),
    ),
    "ExceedsProfile": (
        "it asks for more than its profile allows",
        (
            f"lower the field that the message names, or set another spec.profile: {EDIT}",
            PROFILES,
        ),
    ),
    "InvalidBatchSize": (
        "its batch cannot be shared by its processes",
        (f"set what the message proposes: {EDIT}",),
    ),
    "InvalidSpec": (
        "the operator cannot read its spec",
        (
            f"change the field that the message names: {EDIT}",
            "the CRDs in the cluster may be older or newer than the operator: have the chart's "
            "CRDs applied",
        ),
    ),
    "NameTaken": (
        "an object that it has to make exists already, and is not its own",
        ("delete the object that the message names, or submit the job under another name",),
    ),
    "ObjectRefused": (
        "the API server does not accept an object that the job needs",
        (
            "the message has its reason: where it is a quota, see what uses it: `kubectl describe "
            "quota -n team-a`; where it is a policy of the cluster, ask the platform team",
        ),
    ),
    "SizeUnknown": (
        "whether it fits on another number of workers is not known",
        ("set spec.workers.numNodes back: `kubectl edit ftj docs -n team-a`",),
    ),
    "DoesNotFit": (
        "it does not fit into the memory of that number of workers",
        ("set another spec.workers.numNodes: `kubectl edit ftj docs -n team-a`",),
    ),
    "QuotaExceeded": (
        "the namespace's quota has no room for its pods",
        (
            "see what uses it: `kubectl describe quota -n team-a`; its pods are made as soon as "
            "there is room",
            "or submit it under another name with fewer spec.workers.numNodes",
        ),
    ),
    "PodsRefused": (
        "the API server refuses its pods",
        (
            "the message names who refuses (PodSecurity, a LimitRange, a webhook): show it to your "
            "platform team",
        ),
    ),
    "Unschedulable": (
        "no node has room for a pod of it",
        ("look at the nodes: `kubectl get nodes`, `kubectl describe node NODE`",),
    ),
    "SchedulingGated": (
        "somebody holds its pods back",
        (
            "a queue such as Kueue lets them go in their turn; who it is: `kubectl get pods "
            "-n team-a -l finetune-operator.io/job=docs -o yaml` (schedulingGates)",
        ),
    ),
    "Volume": (
        "a volume is not ready",
        (
            "look at the claims: `kubectl get pvc -n team-a`",
            "a claim that the manifest names must exist in the job's namespace; one that stays "
            "Pending needs a storage class that can make it: `kubectl describe pvc -n team-a`",
        ),
    ),
    "ImagePull": (
        "its image cannot be pulled",
        (
            "have the image's name and the nodes' right to pull it checked: spec.image of its "
            "profile, or trainer.image of the Helm chart",
        ),
    ),
    "CreateContainerConfigError": (
        "a Secret or ConfigMap that its pods need is missing",
        ("make the object that the message names, in namespace team-a",),
    ),
    "Starting": ("its pods are being made, or start; nothing is wrong so far", WAIT),
    "Stopping": ("the workers of the last attempt are still being stopped", WAIT),
    "Restarting": ("an attempt has failed, and the next one comes by itself", WAIT),
    "Suspended": ("it is suspended", ("let it go on: `finetune resume docs -n team-a`",)),
    "CrashLoopBackOff": (
        "the kubelet cannot start a pod of it",
        ("look at the pods: `kubectl describe pods -n team-a -l finetune-operator.io/job=docs`",),
    ),
}


@pytest.mark.parametrize("reason", sorted({*WAITS, "CrashLoopBackOff"}))
def test_a_job_that_waits_says_for_what_since_when_and_what_to_try(reason: str) -> None:
    meaning, tries = MEANINGS[reason]
    held = ("It goes on by itself as soon as that is away.",)
    if reason in ("Starting", "Stopping", "Suspended"):
        held = ()
    assert told(waiting("Starting", reason, "pod x waits")) == Explanation(
        "team-a/docs",
        "Starting",
        f"docs waits ({reason}, for 2m00s): {meaning}",
        ("Pod x waits.", *held),
        tries,
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.", "wait until others end, or"),
        ("1 node(s) had untolerated taint {gpu: true}", "the profile must tolerate the nodes'"),
        ("2 node(s) didn't match Pod's node affinity/selector", "no node has the labels that the"),
        ("no nodes available to schedule pods", "the cluster has no node at all: `kubectl get"),
        ("1 node(s) were unschedulable", "nodes are closed for new pods: `kubectl get nodes`"),
    ],
)
def test_the_scheduler_s_words_decide_what_to_try(words: str, expected: str) -> None:
    (found,) = told(waiting("Starting", "Unschedulable", words)).next
    assert found.startswith(expected)


def test_a_job_that_does_not_fit_its_profile_has_made_nothing() -> None:
    words = "spec.workers.numNodes is 9; profile 'standard' allows at most 8"
    status = waiting("Pending", "ExceedsProfile", words)
    del status["startTime"]
    assert told(status).because == (
        "Spec.workers.numNodes is 9; profile 'standard' allows at most 8.".replace("Spec", "spec"),
        "Nothing has been made for it yet, and it holds nothing.",
    )


def test_a_size_that_is_refused_while_suspended_comes_before_the_suspension() -> None:
    status = waiting("Suspended", "Suspended", "suspended")
    status["conditions"].append(condition("Validated", "False", "DoesNotFit", "it is too large"))
    assert told(status).headline == (
        "docs waits (DoesNotFit, for 2m00s): it does not fit into the memory of that number of "
        "workers"
    )


def test_warnings_that_say_something_new_are_added_newest_first() -> None:
    def event(reason: str, message: str, time: str, type_: str = "Warning") -> Event:
        return Event(type_, reason, message, time, "Pod/docs-train-0-1")

    found = told(
        waiting("Starting", "Volume", "pod x waits: mount failed"),
        event("Old", "older words", MADE),
        event("FailedMount", "mount failed", SINCE),
        event("Pulled", "all is well", SINCE, "Normal"),
        event("New", "newer words", SINCE),
        event("Again", "newer words", SINCE),
    )
    assert found.because[2:] == (
        "Pod/docs-train-0-1 says New: newer words.",
        "Pod/docs-train-0-1 says Old: older words.",
    )


def test_a_suspended_job_says_from_where_it_goes_on() -> None:
    status = waiting("Suspended", "Suspended", "suspended", progress=PROGRESS)
    assert told(status).because == (
        "Suspended.",
        "It had done step 62 of 100, and goes on from its last checkpoint.",
    )


OTHERS: dict[str, tuple[Json | None, Explanation]] = {
    "new": (
        None,
        Explanation(
            "team-a/docs",
            "New",
            "docs was submitted 5m00s ago, and no operator has looked at it",
            ("finetune-operator does not run in this cluster, or has lost the API server.",),
            (
                "see whether it runs: "
                "`kubectl get pods -A -l app.kubernetes.io/name=finetune-operator`",
                "and which replica leads: `kubectl get lease -A | grep finetune-operator`",
            ),
        ),
    ),
    "running": (
        running(),
        Explanation(
            "team-a/docs",
            "Running",
            "docs is running; nothing is wrong",
            ("It has done step 62 of 100, loss 1.027.", "Training ends in about 3m20s."),
            ("see it: `finetune watch docs -n team-a`",),
        ),
    ),
    "exporting": (
        running(phase="Exporting", message="the result is being written and checked"),
        Explanation(
            "team-a/docs",
            "Exporting",
            "docs is exporting; nothing is wrong",
            ("The result is being written and checked.",),
            ("see it: `finetune watch docs -n team-a`",),
        ),
    ),
    "stalled": (
        running(progress=PROGRESS | {"stalledSeconds": 700, "etaSeconds": None}),
        Explanation(
            "team-a/docs",
            "Running",
            "docs does not get on, for 11m40s",
            (
                "It has done step 62 of 100, loss 1.027.",
                "spec.hangPolicy.action is Report, so its workers are left alone.",
            ),
            (
                "read where its ranks stand: `finetune logs docs -n team-a --all`",
                "end the attempt and go on from its checkpoint: `finetune suspend docs -n team-a`, "
                "then `resume`",
            ),
        ),
    ),
    "silent": (
        running(
            progress=None,
            conditions=[condition("ProgressReported", "False", "NoReports", "no report since x")],
        ),
        Explanation(
            "team-a/docs",
            "Running",
            "docs is running, but its reports do not arrive",
            ("Training.", "No report since x."),
            (
                "see whether it trains: `finetune logs docs -n team-a -f`",
                "have the way from its pods to the operator checked (NetworkPolicy, Service, "
                "progress port)",
            ),
        ),
    ),
    "restarting": (
        waiting("Restarting", "Restarting", "attempt 0 ended", lastFailure=FAILURE),
        Explanation(
            "team-a/docs",
            "Restarting",
            "docs starts again by itself after a failure",
            (
                "Attempt 0 ended.",
                "Something in the software or the platform failed that should not.",
                *PLACE,
            ),
            (*WAIT, "read what the failed worker said: `finetune logs docs -n team-a --failed`"),
            "Traceback\nValueError: no",
        ),
    ),
    "succeeded": (
        succeeded(),
        Explanation(
            "team-a/docs",
            "Succeeded",
            "docs succeeded",
            (
                "The result is in pvc://team-models/docs (12.5 MB).",
                "The loss on held-out examples was 2.336 before and is 1.06 now.",
            ),
            ("bring it here: `finetune fetch docs DIR -n team-a`",),
        ),
    ),
    "succeeded without learning": (
        succeeded(output=OUTPUT | {"evalLossAfter": 2.4}),
        Explanation(
            "team-a/docs",
            "Succeeded",
            "docs succeeded",
            (
                "The result is in pvc://team-models/docs (12.5 MB).",
                "The loss on held-out examples was 2.336 before and is 2.4 now: it has learned "
                "nothing that these examples show.",
            ),
            ("bring it here: `finetune fetch docs DIR -n team-a`",),
        ),
    ),
    "failed without a word": (
        {"phase": "Failed", "message": "somebody wrote this"},
        Explanation("team-a/docs", "Failed", "docs failed: somebody wrote this", (), ()),
    ),
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_is_said_where_nothing_waits(case: str) -> None:
    status, expected = OTHERS[case]
    assert told(status) == expected


@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_is_explained_also_with_an_empty_status(phase: str) -> None:
    found = told({"phase": phase})
    assert found.phase == phase
    assert found.headline.startswith("docs ")


def test_a_new_job_is_given_the_operator_s_time() -> None:
    assert explain(job(None), (), NOW - 297, "finetune").headline == (
        "docs was submitted 3s ago; the operator has not looked at it yet"
    )


def test_fields_of_a_newer_operator_are_left_out_but_not_values() -> None:
    newer = body(running(forecast={"days": 3}, progress=PROGRESS | {"perplexity": 2.0}))
    assert parse_job(newer) == job(running())


def test_events_of_both_apis_are_read() -> None:
    core = {
        "type": "Warning",
        "reason": "FailedMount",
        "message": "no",
        "lastTimestamp": SINCE,
        "involvedObject": {"kind": "Pod", "name": "x"},
    }
    new = {
        "type": "Warning",
        "reason": "FailedMount",
        "note": "no",
        "eventTime": SINCE,
        "regarding": {"kind": "Pod", "name": "x"},
    }
    assert (
        parse_event(core)
        == parse_event(new)
        == Event("Warning", "FailedMount", "no", SINCE, "Pod/x")
    )
