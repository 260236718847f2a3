"""The GitOps example: values that the chart takes, a job that fits its profile, and Argo CD's
health check in Lua over the statuses that the operator really writes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import builders
import yaml
from chart import CHART, only, refusal, render
from lupa.lua51 import LuaRuntime
from simulation import SimulatedCluster

from finetune_api.profile import FineTuneProfile
from finetune_api.snapshot import Snapshot, make_snapshot
from finetune_api.status import PHASES
from finetune_api.v1alpha1 import FineTuneJob

EXAMPLE = Path(__file__).parents[2] / "examples" / "04-gitops"
HEALTH = "resource.customizations.health.finetune-operator.io_FineTuneJob"
Json = dict[str, Any]


def load(path: str) -> Any:
    return yaml.safe_load((EXAMPLE / path).read_text())


def health(body: Json) -> tuple[str, str]:
    """What Argo CD would say of a job: it runs Lua 5.1, without more than its base library."""
    lua = LuaRuntime(register_eval=False, register_builtins=False)
    for name in ("io", "os", "package", "require", "string", "math", "debug"):
        lua.globals()[name] = None
    lua.globals()["obj"] = lua.table_from(copy.deepcopy(body), recursive=True)
    found = lua.execute(load("argocd/argocd-cm.yaml")["data"][HEALTH])
    return found["status"], found["message"]


def job(**spec: Any) -> SimulatedCluster:
    return SimulatedCluster(builders.job_body(spec=spec), builders.world())


def seen(*clusters: SimulatedCluster) -> dict[str, str]:
    """The health by phase; the message is the job's own."""
    found = {}
    for cluster in clusters:
        status, message = health(cluster.body)
        assert message == cluster.status.message
        assert cluster.status.phase is not None
        found[cluster.status.phase] = status
    return found


def a_life() -> dict[str, str]:
    """A job that loses a worker, goes on, and succeeds."""
    cluster, found = job(), {}
    cluster.settle()
    found |= seen(cluster)
    cluster.finish("docs-prepare", builders.OUTCOMES["prepare"])
    cluster.settle()
    found |= seen(cluster)
    cluster.run("docs-train-0")
    cluster.settle()
    found |= seen(cluster)
    cluster.fail("docs-train-0", {1: builders.failure("PeerLost", "lost rank 0", 98.0)})
    cluster.settle()
    found |= seen(cluster)
    cluster.clock += 60
    cluster.settle()
    cluster.finish("docs-train-1", builders.OUTCOMES["train"])
    cluster.settle()
    found |= seen(cluster)
    cluster.finish("docs-export", builders.OUTCOMES["export"])
    cluster.settle()
    return found | seen(cluster)


def test_every_phase_of_a_job_is_a_health_with_the_jobs_own_message() -> None:
    assert a_life() == {
        "Preparing": "Progressing",
        "Starting": "Progressing",
        "Running": "Progressing",
        "Restarting": "Progressing",
        "Exporting": "Progressing",
        "Succeeded": "Healthy",
    }
    failed, held = job(), job(suspend=True)
    for cluster in (failed, held):
        cluster.settle()
    words = "line 3 of docs.jsonl is no JSON"
    failed.fail("docs-prepare", {0: builders.failure("Data", words, 98.0)})
    failed.settle()
    assert seen(failed, held) == {"Failed": "Degraded", "Suspended": "Suspended"}
    assert set(a_life()) | {"Failed", "Suspended", "Pending"} == set(PHASES)


def test_a_job_that_nobody_has_seen_is_progressing() -> None:
    words = "the operator has not seen it yet"
    assert health(job().body) == ("Progressing", words)
    assert health(job().body | {"status": {}}) == ("Progressing", words)


def test_a_job_that_waits_for_people_is_degraded_with_what_it_lacks() -> None:
    cluster = job(profile="big")
    cluster.settle()
    assert cluster.status.phase == "Pending"
    words = "spec.profile: there is no FineTuneProfile 'big'; existing: standard"
    assert health(cluster.body) == ("Degraded", words)


def test_a_change_that_the_operator_has_not_seen_is_progressing_unless_the_job_is_over() -> None:
    held = job(suspend=True)
    held.settle()
    held.body["metadata"]["generation"] += 1
    words = "the operator has not seen its last change yet"
    assert health(held.body) == ("Progressing", words)
    over = job()
    over.settle()
    over.fail("docs-prepare", {0: builders.failure("Data", "no data", 98.0)})
    over.settle()
    over.body["metadata"]["generation"] += 1
    over.settle()
    assert over.status.observed_generation == 1
    assert seen(over) == {"Failed": "Degraded"}


def test_the_values_are_those_of_the_chart_and_a_wrong_one_is_refused() -> None:
    values = load("operator/values.yaml")
    options = ("--api-versions", "cert-manager.io/v1", "--api-versions", "monitoring.coreos.com/v1")
    manifests = render(values, *options)
    image = only(manifests, "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image == f"registry.example/mirror/finetune-operator@sha256:{'0' * 64}"
    assert not [m for m in manifests if m["kind"] == "Secret"], "made anew at every sync"
    assert {m["kind"] for m in manifests} >= {"Certificate", "ServiceMonitor", "PrometheusRule"}
    hooks = [m for m in manifests if "helm.sh/hook" in (m["metadata"].get("annotations") or {})]
    assert hooks == []
    values["operator"]["replica"] = 3
    assert "replica" in refusal(values)


def test_the_application_installs_this_version_of_the_chart_with_these_values() -> None:
    text = (EXAMPLE / "argocd" / "applications.yaml").read_text()
    operator, *others = yaml.safe_load_all(text)
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    source = operator["spec"]["sources"][0]
    assert (source["chart"], source["targetRevision"]) == (chart["name"], chart["version"])
    (values,) = source["helm"]["valueFiles"]
    root = EXAMPLE.parents[1]
    assert (root / values.removeprefix("$values/")).samefile(EXAMPLE / "operator" / "values.yaml")
    paths = [application["spec"]["source"]["path"] for application in others]
    assert [(root / path / "kustomization.yaml").exists() for path in paths] == [True] * 3


def test_the_jobs_of_the_team_fit_a_profile_and_its_namespace() -> None:
    profiles = {
        body["metadata"]["name"]: FineTuneProfile.parse(body).spec
        for body in map(load, ("profiles/standard.yaml", "profiles/try-out.yaml"))
    }
    labels = load("teams/team-a/namespace.yaml")["metadata"]["labels"]
    run = FineTuneJob.parse(load("jobs/team-a/docs-assistant-1.yaml"))
    found = make_snapshot(run.spec, profiles, "image", labels)
    assert isinstance(found, Snapshot), found
    assert found.profile_name == "standard"
    refused = make_snapshot(run.spec, profiles, "image", {})
    assert not isinstance(refused, Snapshot), "the label lets the team in"


def test_no_job_of_the_example_is_deleted_by_time_while_git_has_it() -> None:
    """It would be made again, and start anew."""
    for profile in map(load, ("profiles/standard.yaml", "profiles/try-out.yaml")):
        defaults = profile["spec"].get("defaults", {})
        assert "retention" not in profile["spec"]
        assert "ttlSecondsAfterFinished" not in defaults
    run = load("jobs/team-a/docs-assistant-1.yaml")
    assert "ttlSecondsAfterFinished" not in run["spec"]
    options = run["metadata"]["annotations"]["argocd.argoproj.io/sync-options"]
    assert options == "Prune=confirm,Delete=confirm"
