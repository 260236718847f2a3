"""`helm test` on a real kubelet: a tiny job, proven, and nothing is left of it."""

from __future__ import annotations

from demo_cluster import output, program
from e2e_jobs import kubectl
from kube import Kube, eventually, kubeconfig

NAMESPACE, NAME = "finetune-system", "finetune-operator-test"


def left() -> list[str]:
    """What there still is of the test."""
    kinds = "ftj,ftp,jobs,pods,pvc,configmaps,services,serviceaccounts,roles,rolebindings"
    found = kubectl("-n", NAMESPACE, "get", kinds, "--output", "name")
    return [line for line in found.splitlines() if NAME in line]


def test_the_installation_proves_itself_and_leaves_nothing(kube: Kube) -> None:
    helm = [program("helm"), "--kubeconfig", str(kubeconfig()), "--namespace", NAMESPACE]
    said = output([*helm, "test", "finetune-operator", "--timeout", "1200s"])
    assert "Phase:          Succeeded" in said
    eventually(f"{left()} to be gone", lambda: not left(), 120)
