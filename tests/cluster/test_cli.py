"""`finetune` as people call it, against a real API server with jobs in many phases."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from job_phases import Player, many_phases
from kube import GROUP, ROOT, Kube
from operator_process import Operator

from finetune_cli import cluster, init
from finetune_cli.fetch import reader
from finetune_cli.jobs import parse_job
from finetune_cli.reader import reader_pod

Json = dict[str, Any]
Call = Callable[..., subprocess.CompletedProcess[str]]
NAMESPACE = "cli"


@pytest.fixture(scope="module")
def jobs(kube: Kube, operator_process: Operator) -> str:
    """A namespace with a job in each of six phases."""
    kube.namespace(NAMESPACE)
    many_phases(Player(kube, NAMESPACE))
    return NAMESPACE


@pytest.fixture
def call(kubeconfig: Path, tmp_path: Path) -> Call:
    """The program, without a terminal, in an empty directory."""

    def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "finetune_cli", *arguments, "-n", NAMESPACE]
        environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {
            "KUBECONFIG": str(kubeconfig),
            "PYTHONPATH": f"{ROOT / 'api'}:{ROOT / 'cli'}",
        }
        return subprocess.run(
            command, input=stdin, env=environment, capture_output=True, text=True, cwd=tmp_path
        )

    return run


def data(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.returncode == 0, done.stderr
    return yaml.safe_load(done.stdout)


def manifest(name: str = "new", **spec: Any) -> str:
    wanted = {"model": {"uri": "hf://a/b"}, "dataset": {"uri": "pvc://data/x.jsonl"}} | spec
    body = {"apiVersion": "finetune-operator.io/v1alpha1", "kind": "FineTuneJob"}
    return yaml.safe_dump(body | {"metadata": {"name": name}, "spec": wanted})


def test_all_jobs_are_seen_with_what_they_do_or_wait_for(jobs: str, call: Call) -> None:
    found = data(call("watch", "--once", "-o", "json"))
    shown = {
        row["name"]: (row["phase"], row["percent"], row["says"].split(":")[0]) for row in found
    }
    assert shown == {
        "docs-assistant": ("Running", 65, "training"),
        "support-style": ("Succeeded", 100, "pvc"),
        "code-review": ("Failed", 22, "Diverged"),
        "translations": ("Preparing", None, "Unschedulable"),
        "triage": ("Pending", None, "ProfileNotFound"),
        "summaries": ("Suspended", None, "suspended; set spec.suspend to false to go on"),
    }


def test_watching_jobs_to_their_end_is_lines_without_a_terminal_and_a_verdict(
    jobs: str, call: Call
) -> None:
    good, bad = call("watch", "support-style"), call("watch", "support-style", "code-review")
    assert (good.returncode, bad.returncode) == (0, 6)
    assert good.stdout[9:] == (
        "cli/support-style  Succeeded  100 %  step 40/40  loss 1.132  "
        "pvc://support-style-work/output\n"
    )
    assert "\x1b" not in good.stdout + bad.stdout + bad.stderr
    assert call("watch", "docs-assistant", "--timeout", "0.1").returncode == 8


@pytest.mark.parametrize(
    ("job", "headline"),
    [
        ("docs-assistant", "docs-assistant is running; nothing is wrong"),
        ("support-style", "support-style succeeded"),
        ("code-review", "code-review failed in train: Diverged"),
        ("translations", "translations waits (Unschedulable, for "),
        ("triage", "triage waits (ProfileNotFound, for "),
        ("summaries", "summaries waits (Suspended, for "),
    ],
)
def test_every_phase_is_explained(jobs: str, call: Call, job: str, headline: str) -> None:
    assert data(call("explain", job, "-o", "yaml"))["headline"].startswith(headline)
    assert call("explain", job).stdout.startswith(headline)


def test_a_job_that_is_not_there_is_exit_code_4(jobs: str, call: Call) -> None:
    done = call("explain", "nobody")
    assert (done.returncode, done.stderr) == (
        4,
        'finetune: finetunejobs.finetune-operator.io "nobody" not found\n',
    )


def test_two_jobs_are_compared(jobs: str, call: Call) -> None:
    found = data(call("compare", "docs-assistant", "support-style", "-o", "json"))
    assert found["configuration"] == [{"field": "spec.training.learningRate", "a": 2e-4, "b": 1e-4}]


def test_a_loss_curve_is_drawn_and_its_points_are_data(jobs: str, call: Call) -> None:
    assert call("plot", "code-review").stdout.startswith("loss by step: code-review\n")
    points = data(call("plot", "code-review", "-o", "json"))["code-review"]
    assert [point["step"] for point in points] == list(range(1, 10))
    assert call("plot", "triage").returncode == 4


def test_a_new_user_writes_checks_and_submits_a_job(jobs: str, call: Call, kube: Kube) -> None:
    answers = ("--name", "first", "--model", "hf://a/b", "--dataset", "configmap://chats/x.jsonl")
    assert call("init", *answers).returncode == 0
    checks = data(call("validate", "job.yaml", "-o", "json"))
    assert [(check["check"], check["result"]) for check in checks] == [
        ("types of the fields", "ok"),
        ("rules of the API server", "ok"),
        ("limits of the profile cpu", "ok"),
    ]
    assert call("submit", "job.yaml", "--dry-run").returncode == 0
    assert kube.get(f"{GROUP}/namespaces/{NAMESPACE}/finetunejobs/first") is None
    assert call("submit", "job.yaml").stdout == "cli/first is submitted\n"
    assert kube.job(NAMESPACE, "first")["spec"]["model"] == {"uri": "hf://a/b"}
    again = call("submit", "job.yaml")
    assert (again.returncode, again.stderr) == (
        1,
        "finetune: cli/first exists already; give the new one another name: --name NEW\n",
    )
    assert call("submit", "job.yaml", "--name", "second").returncode == 0


def test_every_example_that_init_shows_is_accepted_by_the_api_server(jobs: str, call: Call) -> None:
    text = init.render("all", None, {"model.uri": "hf://a/b", "dataset.uri": "pvc://a/b"})
    real = "\n".join(
        line
        if line.lstrip().startswith(("# ", "#maxSteps", "#profile"))
        else line.replace("#", "", 1)
        for line in text.splitlines()
    ).replace("pvc://CLAIM/PATH", "pvc://claim/path")
    done = call("validate", "-", stdin=real)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize(
    ("spec", "check", "words"),
    [
        (
            {"zero": {"stage": 9}},
            "types of the fields",
            "spec.zero.stage: input should be 1, 2 or 3 or input should be 'Auto'; it is 9",
        ),
        (
            {"dataset": {"uri": "s3://x/y"}},
            "rules of the API server",
            "spec.dataset.uri: Invalid value: spec.dataset.uri must be hf://owner/name[/file], "
            "pvc://claim/path/file.jsonl or configmap://name/key; other schemes are not supported",
        ),
        (
            {"profile": "none"},
            "limits of the profile",
            "ProfileNotFound: spec.profile: there is no FineTuneProfile 'none'; existing: cpu",
        ),
    ],
)
def test_a_wrong_manifest_is_told_by_the_check_that_sees_it(
    jobs: str, call: Call, spec: Json, check: str, words: str
) -> None:
    done = call("validate", "-", "-o", "json", stdin=manifest(**spec))
    wrong = [c for c in json.loads(done.stdout) if c["result"] == "invalid"]
    assert (done.returncode, wrong) == (
        3,
        [{"job": "new", "check": check, "result": "invalid", "problems": [words]}],
    )


def test_what_the_api_server_refuses_is_exit_code_3_with_the_field(jobs: str, call: Call) -> None:
    done = call("submit", "-", stdin=manifest(dataset={"uri": "s3://x/y"}))
    first, second, _ = done.stderr.split("\n")
    assert (done.returncode, first) == (3, "finetune: new is refused:")
    assert second.startswith("  spec.dataset.uri: Invalid value: ")


def test_a_job_is_suspended_and_resumed(jobs: str, call: Call, kube: Kube) -> None:
    assert call("submit", "-", stdin=manifest("paused")).returncode == 0
    assert data(call("suspend", "paused", "-o", "json")) == [
        {"job": "cli/paused", "suspend": True, "changed": True}
    ]
    assert kube.job(NAMESPACE, "paused")["spec"]["suspend"] is True
    assert call("suspend", "paused").stdout == "paused is suspended already; nothing changed\n"
    assert call("resume", "paused").returncode == 0
    assert kube.job(NAMESPACE, "paused")["spec"]["suspend"] is False
    assert call("suspend", "code-review").returncode == 1


def test_names_of_jobs_are_completed(jobs: str, kubeconfig: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-c", "import finetune_cli.complete as c; c.main()"),
            *("explain", "-n", NAMESPACE, "docs"),
        ],
        env=os.environ
        | {"KUBECONFIG": str(kubeconfig), "PYTHONPATH": f"{ROOT / 'api'}:{ROOT / 'cli'}"},
        capture_output=True,
        text=True,
    )
    assert done.stdout == "docs-assistant\n:4\n"


def test_without_a_cluster_that_is_said(tmp_path: Path) -> None:
    environment = os.environ | {
        "KUBECONFIG": str(tmp_path / "none"),
        "PYTHONPATH": f"{ROOT / 'api'}:{ROOT / 'cli'}",
    }
    command = [sys.executable, "-m", "finetune_cli"]
    watch = subprocess.run([*command, "watch"], env=environment, capture_output=True, text=True)
    assert (watch.returncode, watch.stderr.split(":")[1]) == (5, " no cluster is configured")
    check = subprocess.run(
        [*command, "validate", "-"],
        input=manifest(),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert check.returncode == 0
    assert "rules of the API server: skipped" in check.stdout


def test_a_cluster_without_the_operator_is_told_apart_from_a_missing_job() -> None:
    assert str(cluster._error(404, b"404 page not found\n")).startswith(
        "the API server does not know FineTuneJobs"
    )


def test_the_reader_pod_is_let_into_a_restricted_namespace_and_is_gone_after_a_failure(
    kube: Kube, kubeconfig: Path, operator: Operator
) -> None:
    """There is no node here: it never runs, which must not leave it behind."""
    space = kube.namespace("cli-restricted", **{"pod-security.kubernetes.io/enforce": "restricted"})
    player = Player(kube, space)
    player.submit("docs")
    job = parse_job(kube.job(space, "docs"))
    made = reader_pod(job, "docs-work", "example/trainer:1", 60)
    api = cluster.connect(str(kubeconfig), None)

    class Args:
        timeout = 0.0

    path = f"/api/v1/namespaces/{space}/pods?labelSelector=finetune-operator.io/reader-of"
    starts = pytest.raises(cluster.CliError, match="the reader pod does not start")
    with starts as error, reader(api, made, Args):
        raise AssertionError("it cannot run")
    assert error.value.code == 8
    assert kube.items(path) == []
