"""Every command of the documentation is run, as it stands there, in the order of its page.

A real API server without nodes takes them; the operator's pods are said to be running. What needs a
kubelet or another cluster is listed with the end-to-end test that runs it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from apiserver import api_server, kubectl
from chart import NAMESPACE, RELEASE, Manifest
from doc_commands import ROOT, commands_of, split, watches
from doc_shell import Shell
from kube import eventually
from pretended_kubelet import pretended_kubelet
from tools import run_tool

HELM_TEST = "tests/e2e/test_helm_test.py::test_the_installation_proves_itself_and_leaves_nothing"
KUBELET = "tests/e2e/test_doc_commands.py::test_what_needs_a_kubelet_works_as_documented"
METRICS = "/api/v1/namespaces/finetune-system/services/finetune-operator:metrics/proxy/metrics"
ELSEWHERE = {
    "helm test finetune-operator --namespace finetune-system --logs --timeout 1200s": HELM_TEST,
    "kubectl --namespace finetune-system logs deployment/finetune-operator --all-pods --tail 50": (
        KUBELET
    ),
    f"kubectl get --raw {METRICS}": KUBELET,
}
"""Commands that need a kubelet, and the test that runs each."""
IN_A_NEW_CLUSTER = "kubectl create -f jobs-backup.yaml"
"""Before this one the jobs are lost."""


INSTALL = commands_of("docs/install.md")[0]
"""On other pages this is what the reader has done."""


@dataclass(frozen=True)
class Before:
    """What a page takes for granted."""

    installed: bool = True
    commands: tuple[str, ...] = ()
    """That the reader has run before."""
    others: tuple[str, ...] = ()
    """Software of others, in place of which their CRDs are there, without a schema."""
    counted: bool = False
    """Kubernetes has learnt of the CRDs, so that quotas count what they are of."""


PAGES = {
    "docs/install.md": Before(installed=False),
    "README.md": Before(),
    "charts/finetune-operator/README.md": Before(),
    "examples/01-first-job/README.md": Before(),
    "examples/02-preferences/README.md": Before(),
    "examples/03-own-trainer/README.md": Before(
        commands=("kubectl apply -f examples/01-first-job/data.yaml",)
    ),
    "examples/04-gitops/README.md": Before(others=("argocd",), counted=True),
    "docs/platform.md": Before(others=("prometheus",), counted=True),
}
"""Every page with commands."""
MENTIONED = {
    "helm template",
    "helm test",
    "helm test --timeout",
    "helm uninstall",
    "helm upgrade",
    "kubectl apply",
    "kubectl delete --cascade=orphan",
    "kubectl edit ftj triage -n team-a",  # what `explain` answers
    "kubectl finetune",
    "kubectl finetune explain",
    "kubectl finetune logs",
    "kubectl finetune plot",
    "kubectl wait --for=condition=Complete ftj/docs-assistant",  # until somebody trains
}
"""Commands within a sentence that are spoken of; every other one is to be run."""
STANDS_FOR = {
    "ftj NAME": "ftj docs-assistant-1",
    "finetuneprofile NAME": "finetuneprofile try-out",
    "namespace ...": "namespace team-a",
    "NAMESPACE": "finetune-system",
}
FOLDERS = ("README.md", "docs/*.md", "charts/*/README.md", "examples/*/README.md")


@pytest.fixture(scope="module")
def server() -> Iterator[Path]:
    """A server of this module's own, as the commands install and uninstall."""
    with api_server() as kubeconfig, pretended_kubelet(kubeconfig, NAMESPACE):
        yield kubeconfig


@pytest.fixture
def shell(server: Path, tmp_path: Path) -> Shell:
    """Namespaces for two teams, and copies of the files that commands name."""
    for folder in ("charts", "crds", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for namespace in ("team-a", "team-b"):
        kubectl(server, "create", "namespace", namespace)
        assert kubectl(server, "get", "namespace", namespace).returncode == 0
    return Shell(server, tmp_path)


def installed(server: Path) -> bool:
    deployment = ("get", "deployment", RELEASE, "--namespace", NAMESPACE)
    return kubectl(server, *deployment).returncode == 0


def remove(server: Path) -> None:
    """The release with its CRDs, where it is there."""
    where = ("--kubeconfig", str(server), "--namespace", NAMESPACE, "--ignore-not-found")
    done = run_tool("helm", "uninstall", RELEASE, *where)
    assert done.returncode == 0, done.stderr
    crds = [f"crd/{kind}.finetune-operator.io" for kind in ("finetunejobs", "finetuneprofiles")]
    done = kubectl(server, "delete", "--ignore-not-found", *crds)
    assert done.returncode == 0, done.stderr


CRDS = {
    "argocd": ("argoproj.io", "v1alpha1", ("Application",)),
    "prometheus": ("monitoring.coreos.com", "v1", ("ServiceMonitor", "PrometheusRule")),
}


def pretend(server: Path, other: str) -> None:
    """The CRDs of others, which take anything."""
    group, version, kinds = CRDS[other]
    for kind in kinds:
        plural = f"{kind.lower()}s"
        schema = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        known = {"name": version, "served": True, "storage": True}
        crd = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"{plural}.{group}"},
            "spec": {
                "group": group,
                "names": {"kind": kind, "plural": plural},
                "scope": "Namespaced",
                "versions": [known | {"schema": {"openAPIV3Schema": schema}}],
            },
        }
        apply(server, crd)
        established = ("wait", "--for=condition=Established", f"crd/{plural}.{group}")
        assert kubectl(server, *established).returncode == 0
    if other == "argocd":
        apply(server, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": other}})
        metadata = {"name": "argocd-cm", "namespace": other}
        data = {"data": {"url": "https://argocd.example"}}
        apply(server, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata} | data)


def counts(server: Path) -> bool:
    """Whether a quota that is made now counts jobs; one that does not at once waits for minutes."""
    where, of = ("--namespace", "team-b"), "count/finetunejobs.finetune-operator.io"
    kubectl(server, "create", "quota", "probe", f"--hard={of}=1,configmaps=9", *where)

    def used() -> Any:
        found = kubectl(server, "get", "quota", "probe", *where, "--output", "json")
        return json.loads(found.stdout).get("status", {}).get("used")

    known = of in eventually("the quota to be counted", used)
    kubectl(server, "delete", "quota", "probe", *where)
    return known


def apply(server: Path, manifest: Manifest) -> None:
    done = kubectl(server, "apply", "-f", "-", stdin=json.dumps(manifest))
    assert done.returncode == 0, done.stderr


def runnable(page: str) -> list[str]:
    done = {INSTALL} if PAGES[page].installed else set()
    return [c for c in commands_of(page) if c not in ELSEWHERE.keys() | done]


def bring_about(before: Before, shell: Shell) -> None:
    if not before.installed:
        remove(shell.kubeconfig)
    elif not installed(shell.kubeconfig):
        assert INSTALL.startswith("helm install ")
        shell.run(INSTALL)
    else:
        shell.run("kubectl delete finetunejobs,finetuneprofiles --all --all-namespaces")
    for other in before.others:
        pretend(shell.kubeconfig, other)
    if before.counted:
        eventually("a quota that counts jobs", lambda: counts(shell.kubeconfig), 60)


@pytest.mark.cluster
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_work_one_after_the_other(page: str, shell: Shell) -> None:
    before = PAGES[page]
    bring_about(before, shell)
    for command in (*before.commands, *runnable(page)):
        if command == IN_A_NEW_CLUSTER:
            shell.run("kubectl delete finetunejobs --all --all-namespaces")
        shell.run(command)


@pytest.mark.cluster
def test_the_commands_within_sentences_work(shell: Shell) -> None:
    """In the namespace of a team that has a job."""
    bring_about(Before(counted=True), shell)
    for folder in ("profiles", "teams/team-a", "jobs/team-a"):
        shell.run(f"kubectl apply -k examples/04-gitops/{folder}")
    own = Shell(shutil.copy(shell.kubeconfig, shell.directory / "kubeconfig"), shell.directory)
    own.run("kubectl config set-context --current --namespace team-a")
    found = within_sentences()
    assert set(found) >= MENTIONED
    assert len(found) >= 30
    for command in sorted(set(found) - MENTIONED, key=lambda text: " delete " in text):
        for placeholder, example in STANDS_FOR.items():
            command = command.replace(placeholder, example)
        own.run(command)


def within_sentences() -> set[str]:
    """Commands in backticks."""
    pages = [path for folder in FOLDERS for path in ROOT.glob(folder)]
    text = "\n".join(path.read_text() for path in pages)
    return set(re.findall(r"(?<!`)`((?:kubectl|helm) [^`\n]+)`", text))


@pytest.mark.cluster
def test_the_health_check_leaves_argo_cds_other_settings_alone(server: Path, shell: Shell) -> None:
    pretend(server, "argocd")
    shell.run(commands_of("examples/04-gitops/README.md")[0])
    where = ("--namespace", "argocd", "--output", "json")
    found = json.loads(kubectl(server, "get", "configmap", "argocd-cm", *where).stdout)["data"]
    health = "resource.customizations.health.finetune-operator.io_FineTuneJob"
    assert set(found) == {"url", health}


def test_every_page_with_commands_is_known() -> None:
    pages = [path for folder in FOLDERS for path in sorted(ROOT.glob(folder))]
    assert len(pages) >= 20
    names = {str(path.relative_to(ROOT)) for path in pages}
    assert {name for name in names if commands_of(name)} == set(PAGES)


def test_what_is_run_elsewhere_is_in_the_documentation_and_in_that_test() -> None:
    told = {command for page in PAGES for command in commands_of(page)}
    assert set(ELSEWHERE) <= told
    for test in ELSEWHERE.values():
        path, name = test.split("::")
        text = (ROOT / path).read_text()
        assert f"def {name}(" in text


def test_no_command_hides_in_a_block_of_another_kind() -> None:
    for page in PAGES:
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.M)
        hidden = [
            line
            for kind, block in blocks
            for line in block.splitlines()
            if kind != "sh" and line.startswith(("kubectl ", "helm "))
        ]
        assert hidden == []


def test_a_block_is_split_into_commands_with_their_continued_lines_and_documents() -> None:
    block = "# why\na \\\n  b\n\nc <<'END'\nx: 1\n# y\nEND\nd -w\n"
    assert split(block) == ["a \\\n  b", "c <<'END'\nx: 1\n# y\nEND", "d -w"]
    assert [watches(command) for command in split(block)] == [False, False, True]
